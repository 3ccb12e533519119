"""The page about a run: its held-out episodes as it imagines them, the curves, the figures, the facts."""

from __future__ import annotations

import datetime
import math
import os
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxwm.evaluation import report as page
from jaxwm.evaluation import runs, video
from jaxwm.evaluation.clips import drawable, error_map
from jaxwm.evaluation.scores import Scores

if TYPE_CHECKING:
    from jaxwm.config import Config
    from jaxwm.training import Run


def run_report(
    run: Run,
    path: str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    scores: Scores | None = None,
    episodes: int | None = None,
    horizon: int | None = None,
    clips: int = 6,
    title: str | None = None,
    log: Callable[[str], None] | None = None,
) -> Scores:
    """Writes the page about a run to ``path`` and returns the scores on it.

    Args:
      run: what `jaxwm.load_run` returned.
      path: of the .html file.
      run_dir: the run's folder, from whose metrics the training curves are drawn.
      scores: those of `evaluate_run`; computed here if not given.
      episodes: how many to score.
      horizon: how far to imagine.
      clips: how many episodes to show.
      title: the page's heading.
      log: gets a line before each part of the work.

    Raises:
      DataError, ValueError: as `evaluate_run`.
    """
    page.check_path(path)
    say = log or (lambda line: None)
    if scores is None:
        say("scoring held-out episodes")
        scores = runs.evaluate_run(run, episodes, horizon=horizon)
    say("imagining the episodes to show")
    rollout = runs.watch_run(run, clips, scores.context, scores.horizon)
    world = _world_name(run.config)
    family = run.config.model.family
    parameters = sum(int(leaf.size) for leaf in jax.tree.leaves(run.variables["params"]))
    history = _history(run_dir)
    sections: list[page.Section] = []
    if player := _player(rollout):
        sections.append(player)
    sections += [page.curves(scores), page.table(scores)]
    if charts := _training_charts(history):
        sections.append(charts)
    facts = _facts(run, parameters, history)
    sections.append(page.Facts("The run", facts, run.config.to_yaml()))
    lead = (
        f"Shown {scores.context} frames of an episode that it was not trained on, the model imagines the next "
        f"{scores.horizon} under the actions that were really done."
    )
    report = page.Report(
        title=title or f"What {family} imagines of {world}",
        lead=lead,
        sections=sections,
        figures=_headline(scores, parameters, history),
        footer=f"jaxwm, {datetime.date.today().isoformat()}. Everything on this page is in this one file.",
    )
    page.write_report(path, report)
    say(f"wrote {path}")
    return scores


def _player(rollout: video.OpenLoop) -> page.Player | None:
    """The first image of the observation: truth, imagination and error of each episode."""
    name = drawable(rollout.observation)
    if name is None:
        return None
    truth, imagined = rollout.observation[name], rollout.prediction.observation[name]
    shown = [
        page.Clip(f"episode {i}", {"truth": a, "imagined": b, "error": error_map(a, b)})
        for i, (a, b) in enumerate(zip(truth, imagined, strict=True))
    ]
    note = (
        "Amber: frames that the model is shown (beside them what it makes of each). Blue: frames that it imagines and "
        "never sees. Error: black is none, through red and yellow to white."
    )
    return page.Player("Held-out episodes", shown, rollout.context, note)


def _headline(scores: Scores, parameters: int, history: Sequence[dict[str, Any]]) -> list[page.Figure]:
    horizon = min(15, scores.horizon)
    ahead = f"{horizon} frames ahead"
    figures = []
    for name in (n for n in scores.names if n.endswith("/psnr")):
        gain = _decibels(scores.at(name, horizon) - scores.at(name, horizon, "copy"))
        over_mean = _decibels(scores.at(name, horizon) - scores.at(name, horizon, "mean"))
        note = f"{ahead}, all pixels; {over_mean} over the mean frame"
        figures.append(page.Figure(gain, "PSNR over copying the last frame", note))
    for name in (n for n in scores.names if n.endswith("/ssim")):
        figures.append(page.Figure(f"{scores.at(name, horizon):.3f}", "SSIM", f"{ahead}; copying: "
                                   f"{scores.at(name, horizon, 'copy'):.3f}"))  # fmt: skip
    if "ball/within_radius" in scores.names:
        share = scores.at("ball/within_radius", horizon)
        figures.append(page.Figure(f"{share:.0%}", "of balls within one radius", ahead))
    seconds = _training_seconds(history)
    trained = f"trained in {_duration(seconds)}" if seconds else ""
    figures.append(page.Figure(f"{parameters / 1e6:.2f} M", "parameters", trained))
    return figures


def _facts(run: Run, parameters: int, history: Sequence[dict[str, Any]]) -> dict[str, str]:
    device = jax.devices()[0]
    generate = run.config.data.generate
    facts = {
        "model": run.config.model.family,
        "parameters": f"{parameters:,}",
        "updates": f"{run.step:,}",
        "windows per update": f"{run.config.data.batch} of {run.config.data.length} steps",
    }
    if generate is not None:
        facts["episodes"] = f"{generate.train} for training, {generate.test} held out, {generate.length} steps each"
    if seconds := _training_seconds(history):
        facts["time in updates"] = _duration(seconds)
    facts |= {
        "seed": str(run.config.seed),
        "evaluated on": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores",
        "software": f"jax {jax.__version__}, Python {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
    }
    return facts


def _history(run_dir: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    from jaxwm.training.metrics import FILE, read_metrics

    if run_dir is None or not (pathlib.Path(run_dir) / FILE).is_file():
        return []
    return read_metrics(run_dir)


def _training_seconds(history: Sequence[dict[str, Any]]) -> float:
    """Seconds spent in updates, without compilation, evaluation and pauses between sittings."""
    seconds, before = 0.0, 0
    for line in history:
        if speed := line.get("train/steps_per_second"):
            seconds += (line["step"] - before) / speed
            before = line["step"]
    return seconds


def _training_charts(history: Sequence[dict[str, Any]]) -> page.Charts | None:
    """Losses over the updates, on a common axis (values in between are left out)."""
    charts = []
    pairs = [("loss", {"training": "train/loss", "held out": "test/loss"})]
    pairs += [(name, {name: name}) for name in sorted({k for line in history for k in line if k.endswith("/psnr")})]
    for name, series in pairs:
        lines = [line for line in history if any(_number(line.get(key)) for key in series.values())]
        steps = sorted({line["step"] for line in lines})
        if len(steps) < 2:
            continue
        values: dict[str, list[float]] = {}
        for label, key in series.items():
            known = {line["step"]: line[key] for line in lines if _number(line.get(key))}
            if known:
                at = sorted(known)
                row = np.interp(steps, at, [known[s] for s in at], left=math.nan, right=math.nan)
                values[label] = [float(v) for v in row]
        finite = [v for row in values.values() for v in row if math.isfinite(v)]
        is_wide = min(finite) > 0 and max(finite) > 10 * min(finite)
        charts.append(page.Chart(name, values, x=steps, x_title="updates", log=is_wide))
    note = "Over the number of updates."
    return page.Charts("Training", charts, note) if charts else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _world_name(config: Config) -> str:
    data = config.data
    if data.simulation is not None:
        return data.simulation.world.name
    if data.collect is not None and data.collect.environment is not None:
        return data.collect.environment
    return pathlib.Path(data.path).name


def _decibels(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f} dB"  # adding zero takes the sign from a rounded -0.0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
