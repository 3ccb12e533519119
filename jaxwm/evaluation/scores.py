"""Figures by horizon, for a model and its baselines, and how to show them: a table, JSON, a plot."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxwm.types import nearest

if TYPE_CHECKING:
    from rich.table import Table

PSNR_CEILING = 100.0
"""dB; a perfect picture has no finite PSNR, and JSON no infinity."""

LABELS = {"model": "model", "copy": "copy last frame", "mean": "mean frame"}
COLOURS = {"model": "#2f6fde", "copy": "#d9822b", "mean": "#8a8f98"}

TITLES = {
    "psnr": "PSNR, all pixels (dB)",
    "psnr_changed": "PSNR, changed pixels (dB)",
    "ssim": "SSIM, all pixels",
    "ssim_changed": "SSIM, changed pixels",
    "mse": "MSE, all pixels",
    "mse_changed": "MSE, changed pixels",
    "rmse": "RMSE",
    "within_radius": "balls within one radius (fraction)",
    "position_error": "ball position error (radii)",
}
_HEADS = ("reward", "continuation")

RISING = ("psnr", "psnr_changed", "ssim", "ssim_changed", "within_radius")
"""Metrics of which more is better."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """How far imagined frames are from the truth, by horizon.

    PSNR is that of the mean squared error over all frames at a horizon (10 log10(1 / MSE)), not the mean of the
    frames' own PSNRs: it can be recomputed from the MSE beside it, one perfect frame does not drown the others, and
    over changed pixels each pixel counts once. It is never above the mean of PSNRs.

    Attributes:
      metrics: ``{predictor: {"name/metric": values}}`` with one value for each horizon 1..H, NaN where no episode has
        such a frame or no pixel changed.
      count: for each horizon the number of frames scored.
      context: the number of frames seen before.
      episodes: the number of episodes scored.
      estimate: what of the model was scored: its ``mode``, the ``mean`` of samples, or each ``sample`` for itself.
      samples: the number of sampled futures for each episode.
      threshold: by how much of 0..1 a pixel differs from the last frame seen to count as changed.
      mean: what the mean frame is the mean of: ``training`` or ``context``.
    """

    metrics: Mapping[str, Mapping[str, tuple[float, ...]]]
    count: tuple[int, ...]
    context: int
    episodes: int
    estimate: str
    samples: int
    threshold: float
    mean: str

    @classmethod
    def from_totals(cls, totals: Mapping[str, Mapping[str, tuple[Any, Any]]], **facts: Any) -> Scores:
        """Divides sums by weights; ``totals`` is ``{predictor: {metric: (sum [H], weight [H])}}`` in float64."""
        scored = facts["samples"] if facts["estimate"] == "sample" else 1
        weights = next(weight for name, (_, weight) in totals["model"].items() if name.endswith("/mse"))
        count = tuple(round(float(weight) / scored) for weight in weights)
        metrics: dict[str, dict[str, tuple[float, ...]]] = {}
        for predictor in sorted(totals, key=lambda p: list(LABELS).index(p) if p in LABELS else len(LABELS)):
            parts = totals[predictor]
            metrics[predictor] = {}
            for name, (total, weight) in parts.items():
                mean = np.divide(total, weight, out=np.full(np.shape(total), np.nan), where=np.asarray(weight) > 0)
                is_image = f"{name.split('/')[0]}/mse_changed" in parts
                for derived, values in _derived(name, mean, is_image).items():
                    metrics[predictor][derived] = tuple(float(value) for value in values)
        return cls(metrics=metrics, count=count, **facts)

    @property
    def horizon(self) -> int:
        """H, the number of frames imagined."""
        return len(self.count)

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric of the model, as ``"part/metric"``: part by part, the ones that say most first."""
        names = list(self.metrics["model"])
        order = {metric: index for index, metric in enumerate(TITLES)}

        def rank(name: str) -> tuple[bool, bool, str, int]:
            part, _, metric = name.partition("/")
            return part in _HEADS, f"{part}/psnr" not in names, part, order.get(metric, len(order))

        return tuple(sorted(names, key=rank))

    @property
    def shown(self) -> tuple[str, ...]:
        """`names` without rewards and continuations that never vary: there, copying is exact."""
        return tuple(
            name
            for name in self.names
            if name.split("/")[0] not in _HEADS or any(v > 0 for v in self.metrics.get("copy", {}).get(name, (1.0,)))
        )

    def at(self, name: str, horizon: int, predictor: str = "model") -> float:
        """The value of metric ``name`` (``"image/psnr"``) at ``horizon`` (1 is the first imagined frame).

        Raises:
          ValueError: an unknown name, predictor or horizon.
        """
        if predictor not in self.metrics:
            raise ValueError(f"{predictor!r} is not a predictor; {nearest(predictor, list(self.metrics))}")
        if name not in self.metrics[predictor]:
            raise ValueError(f"{predictor} has no metric {name!r}; {nearest(name, list(self.metrics[predictor]))}")
        if not 1 <= horizon <= self.horizon:
            raise ValueError(f"horizon is {horizon}, expected 1..{self.horizon}")
        return self.metrics[predictor][name][horizon - 1]

    def means(self) -> dict[str, float]:
        """The model's metrics, each averaged over the horizons that have it: for logs."""
        rows = {name: [v for v in values if math.isfinite(v)] for name, values in self.metrics["model"].items()}
        return {name: sum(values) / len(values) for name, values in rows.items() if values}

    def describe(self) -> str:
        """One sentence: what was scored, over how much."""
        what = {
            "mode": "the model's mode",
            "mean": f"the mean of {self.samples} sampled futures",
            "sample": f"sampled futures ({self.samples} an episode, each scored for itself)",
        }[self.estimate]
        return (
            f"{self.episodes} episodes, {self.context} frames of context, then {self.horizon} imagined; "
            f"scored: {what}. Mean frame: of the {self.mean} {'data' if self.mean == 'training' else 'frames'}. "
            f"Changed pixels differ by more than {self.threshold:g} from the last frame seen."
        )

    def to_json(self) -> str:
        """JSON text; NaN becomes null. `from_json` reads it back."""
        values = dataclasses.asdict(self)
        values["metrics"] = {
            predictor: {name: [v if math.isfinite(v) else None for v in row] for name, row in metrics.items()}
            for predictor, metrics in self.metrics.items()
        }
        return json.dumps(values, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """The scores that `to_json` wrote."""
        values = json.loads(text)
        values["metrics"] = {
            predictor: {name: tuple(math.nan if v is None else v for v in row) for name, row in metrics.items()}
            for predictor, metrics in values["metrics"].items()
        }
        return cls(**{**values, "count": tuple(values["count"])})

    def rows(self, horizons: Sequence[int] | None = None) -> tuple[list[str], list[list[str]]]:
        """Header and lines of the table: a line for each metric and predictor, a column for each horizon.

        Args:
          horizons: which; by default some round ones between 1 and H.
        """
        horizons = list(horizons or some_horizons(self.horizon))
        lines = []
        for name in self.shown:
            for predictor, metrics in self.metrics.items():
                if name in metrics:
                    cells = [_format(name, metrics[name][h - 1]) for h in horizons]
                    lines.append([title(name), LABELS.get(predictor, predictor), *cells])
        return ["metric", "predictor", *(f"+{h}" for h in horizons)], lines

    def table(self, horizons: Sequence[int] | None = None) -> Table:
        """`rows` as a rich table, with the best predictor of each column in bold."""
        from rich.table import Table

        header, lines = self.rows(horizons)
        horizons = list(horizons or some_horizons(self.horizon))
        table = Table(caption=self.describe(), caption_justify="left", header_style="bold")
        for index, column in enumerate(header):
            table.add_column(column, justify="left" if index < 2 else "right")
        metric = None
        for line, (name, predictor) in zip(lines, self.order(), strict=True):
            cells = [
                f"[bold green]{text}[/]" if predictor == self.best(name, h) else text
                for text, h in zip(line[2:], horizons, strict=True)
            ]
            if line[0] != metric and metric is not None:
                table.add_section()
            table.add_row("" if line[0] == metric else line[0], line[1], *cells)
            metric = line[0]
        return table

    def best(self, name: str, horizon: int) -> str | None:
        """The predictor with the best value of metric ``name`` at ``horizon``, or None where there is none."""
        values = {p: metrics[name][horizon - 1] for p, metrics in self.metrics.items() if name in metrics}
        finite = {p: v for p, v in values.items() if math.isfinite(v)}
        if not finite:
            return None
        pick = max if name.split("/")[-1] in RISING else min
        return pick(finite, key=lambda p: finite[p])

    def plot(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Draws every metric over the horizon, the model against its baselines, into a PNG (or PDF, SVG) file.

        Raises:
          ValueError: a suffix that matplotlib does not write.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        path = pathlib.Path(path)
        figure = Figure(figsize=(1, 1), layout="constrained")
        known = FigureCanvasAgg(figure).get_supported_filetypes()
        if path.suffix.lstrip(".") not in known:
            raise ValueError(f"{path}: cannot draw a plot as {path.suffix!r}; {nearest(path.suffix, sorted(known))}")
        names = [name for name in self.shown if any(math.isfinite(v) for v in self.metrics["model"][name])]
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        figure.set_size_inches(4.4 * columns, 3.0 * lines)
        steps = range(1, self.horizon + 1)
        for index, name in enumerate(names):
            axes = figure.add_subplot(lines, columns, index + 1)
            for predictor, metrics in self.metrics.items():
                if name in metrics:
                    colour = COLOURS.get(predictor)
                    label = LABELS.get(predictor, predictor)
                    axes.plot(steps, metrics[name], color=colour, label=label, lw=2 if predictor == "model" else 1.4)
            style_axes(axes, title(name), "frames after the last one seen")
            if index == 0:
                axes.legend(fontsize=8, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path

    def order(self) -> list[tuple[str, str]]:
        """(metric, predictor) of each line of `rows`."""
        return [(name, p) for name in self.shown for p, metrics in self.metrics.items() if name in metrics]


def style_axes(axes: Any, title: str, x_title: str) -> None:
    """Gives matplotlib's ``axes`` titles and the look of all plots here."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_title, fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def title(name: str) -> str:
    """What a metric such as ``"image/psnr"`` is called in tables and plots."""
    part, _, metric = name.partition("/")
    text = TITLES.get(metric, metric)
    return text if part in ("image", "ball") else f"{part}: {text}"


def some_horizons(horizon: int) -> list[int]:
    """At most eight horizons from 1 to ``horizon``: round ones, both ends among them."""
    round_ones = [h * 10**power for power in range(6) for h in (1, 2, 5)] + [15, 30, 40]
    chosen = sorted({h for h in round_ones if h < horizon} | {horizon})
    return [1, *chosen[-7:]] if len(chosen) > 8 else chosen


def _derived(name: str, mean: np.ndarray, is_image: bool) -> dict[str, np.ndarray]:
    """The metrics that follow from the mean ``name``: PSNR of an image's MSE, RMSE of anything else's."""
    part, _, metric = name.partition("/")
    if metric in ("mse", "mse_changed") and is_image:
        psnr = -10 * np.log10(np.maximum(mean, 10 ** (-PSNR_CEILING / 10)))
        return {f"{part}/{metric.replace('mse', 'psnr')}": psnr, name: mean}
    return {f"{part}/rmse": np.sqrt(mean)} if metric == "mse" else {name: mean}


def _format(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    metric = name.split("/")[-1]
    if metric.startswith("psnr"):
        return f"{value:.1f}"
    return f"{value:.3f}" if metric in (*RISING, "position_error") else f"{value:.3g}"
