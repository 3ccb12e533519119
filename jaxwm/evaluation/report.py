"""A report as one HTML page that needs nothing else: clips, curves, tables, read in a minute.

A `Report` is a list of sections, so that other evaluations add theirs. All clips and all curves over the horizon
follow one slider.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.resources
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxwm.evaluation import clips
from jaxwm.evaluation.scores import LABELS, Scores, some_horizons, title

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 10, 26
_SERIES = ("model", "copy", "mean")
"""Names of the colours in the style sheet, in the order in which series take them."""


class Section(Protocol):
    """A part of a page."""

    def to_html(self) -> str:
        """The section's HTML, without the frame around it."""
        ...


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number to remember: ``value`` (as text), what it is, and under which conditions."""

    value: str
    label: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
      title: what this is about.
      lead: one or two sentences below it.
      figures: the numbers to remember.
      sections: the page's parts, in order.
      footer: a line at the end.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    figures: Sequence[Figure] = ()
    footer: str = ""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Panels that play beside each other: ``{name: [T, H, W, C]}``, of one length and shape."""

    name: str
    panels: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Player:
    """Clips of one length under one slider; the first ``context`` frames were shown to the model. One a page."""

    title: str
    clips: Sequence[Clip]
    context: int
    note: str = ""
    fps: int = 8

    def to_html(self) -> str:
        """A sprite sheet for each clip, moved by the slider."""
        shapes = {np.shape(panel) for clip in self.clips for panel in clip.panels.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 4:
            raise ValueError(f"the panels of a player have shapes {sorted(shapes)}, expected one [T, H, W, C]")
        frames, height, width, _ = next(iter(shapes))
        start = min(self.context, frames - 1)
        cards = "".join(self._card(clip, frames, height, width) for clip in self.clips)
        return (
            _heading(self.title, self.note) + f'<div class="player" style="--seen:{100 * self.context / frames:.2f}%">'
            f'<button type="button" aria-label="Play">▶</button><div class="track">'
            f'<input type="range" min="0" max="{frames - 1}" value="{start}" aria-label="Frame" '
            f'data-context="{self.context}" data-fps="{self.fps}"><i></i></div><output></output></div>'
            f'<div class="clips">{cards}</div>'
        )

    def _card(self, clip: Clip, frames: int, height: int, width: int) -> str:
        names = list(clip.panels)
        sheet = np.concatenate([clips.to_pixels(clip.panels[name]) for name in names], axis=2)
        sprite = sheet.reshape(frames * height, width * len(names), 3)
        columns = max(1, len(names) - 1)
        panels = "".join(
            f'<div role="img" aria-label="{_text(name)}" style="--x:{100 * index / columns:g}%"></div>'
            for index, name in enumerate(names)
        )
        labels = "".join(f"<span>{_text(name)}</span>" for name in names)
        style = (
            f"--panels:{len(names)};--frames:{max(frames, 2)};--aspect:{width}/{height};--sprite:url({_png(sprite)})"
        )
        return (
            f'<figure class="clip" style="{style}"><figcaption><span>{_text(clip.name)}</span></figcaption>'
            f'<div class="panels">{panels}</div><div class="names">{labels}</div></figure>'
        )


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves over a common axis.

    Attributes:
      title: what is drawn.
      series: ``{name: values}``; NaN leaves a gap.
      x: the places of the values; by default 1, 2, 3 ...
      x_title: what the axis counts.
      digits: significant digits of values under the cursor.
      log: whether values, all positive, are drawn on a logarithmic axis.
      follows_clock: whether the axis is the horizon, so that the page's slider moves its cursor.
      colours: of each series, as names of the style sheet (``model``, ``copy``, ``mean``).
    """

    title: str
    series: Mapping[str, Sequence[float]]
    x: Sequence[float] | None = None
    x_title: str = "frames after the last one seen"
    digits: int = 3
    log: bool = False
    follows_clock: bool = False
    colours: Sequence[str] = _SERIES

    def to_html(self) -> str:
        """An inline SVG with its legend."""
        values = [[float(v) for v in row] for row in self.series.values()]
        places = list(self.x) if self.x is not None else list(range(1, len(values[0]) + 1))
        if any(len(row) != len(places) for row in values):
            raise ValueError(f"{self.title}: series of {[len(r) for r in values]} values on an axis of {len(places)}")
        finite = [v for row in values for v in row if math.isfinite(v)] or [0.0, 1.0]
        marks = (_decades if self.log else _ticks)(min(finite), max(finite))
        low, high = min(marks[0], *finite), max(marks[-1], *finite)
        first, last = float(places[0]), float(places[-1])
        span = (last - first) or 1.0
        to_x = lambda v: round(_LEFT + (v - first) / span * (_WIDTH - _LEFT - _RIGHT), 1)  # noqa: E731
        scale = math.log10 if self.log else float
        share = lambda v: (scale(v) - scale(low)) / (scale(high) - scale(low))  # noqa: E731
        to_y = lambda v: round(_HEIGHT - _BOTTOM - share(v) * (_HEIGHT - _TOP - _BOTTOM), 1)  # noqa: E731
        x = [to_x(float(v)) for v in places]
        y = [[to_y(v) if math.isfinite(v) else None for v in row] for row in values]
        grid = "".join(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{to_y(v)}" y2="{to_y(v)}"/>'
            f'<text x="{_LEFT - 6}" y="{to_y(v) + 4}" text-anchor="end">{v:g}</text>'
            for v in marks
        )
        below = "".join(
            f'<text x="{to_x(v)}" y="{_HEIGHT - 10}" text-anchor="{_anchor(v == last)}">{_short(v)}</text>'
            for v in _axis(first, last)
        )
        colour = [f"var(--{self.colours[i % len(self.colours)]})" for i in range(len(values))]
        # The first series is the one that matters: it is drawn last, above the others.
        drawn = list(zip(y, colour, strict=True))[::-1]
        curves = "".join(f'<path d="{_path(x, row)}" style="stroke:{c}"/>' for row, c in drawn)
        dots = "".join(f'<circle r="4" style="fill:{c};display:none"/>' for c in colour)
        legend = "".join(
            f'<span><i style="background:{c}"></i>{_text(name)} <b></b></span>'
            for name, c in zip(self.series, colour, strict=True)
        )
        shown = [[f"{v:.{self.digits}g}" if math.isfinite(v) else "" for v in row] for row in values]
        data = json.dumps({"first": 1, "values": shown, "x": x, "y": y}, separators=(",", ":"))
        clock = ' data-clock="1"' if self.follows_clock else ""
        return (
            f'<figure class="chart" data-values="{html.escape(data)}"{clock}>'
            f'<figcaption>{_text(self.title)}</figcaption><div class="legend">{legend}</div>'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{_text(self.title)} over {_text(self.x_title)}">{grid}{below}'
            f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" style="display:none"/>{curves}{dots}'
            "</svg></figure>"
        )


@dataclasses.dataclass(frozen=True)
class Charts:
    """Charts beside each other."""

    title: str
    charts: Sequence[Chart]
    note: str = ""

    def to_html(self) -> str:
        """The charts in a grid."""
        return (
            _heading(self.title, self.note) + f'<div class="charts">{"".join(c.to_html() for c in self.charts)}</div>'
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """Lines of text under a header; ``best`` holds the (line, column) of cells to stand out."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()

    def to_html(self) -> str:
        """A table; a first cell that repeats the one above is left out."""
        head = "".join(f"<th>{_text(cell)}</th>" for cell in self.header)
        rows, above = [], None
        for index, line in enumerate(self.lines):
            is_new = line[0] != above
            cells = [("" if not is_new else line[0]), *line[1:]]
            marks = ['class="best"' if (index, column) in self.best else "" for column in range(len(cells))]
            body = "".join(f"<td {mark}>{_text(cell)}</td>" for cell, mark in zip(cells, marks, strict=True))
            rows.append(f'<tr class="first">{body}</tr>' if is_new else f"<tr>{body}</tr>")
            above = line[0]
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        return _heading(self.title, self.note) + f'<div class="scroll">{table}</div>'


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and values; ``source`` is a longer text (the configuration) behind a fold."""

    title: str
    facts: Mapping[str, str]
    source: str = ""
    source_title: str = "Configuration"

    def to_html(self) -> str:
        """A list of definitions."""
        items = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in self.facts.items())
        fold = f"<details><summary>{_text(self.source_title)}</summary><pre>{_text(self.source)}</pre></details>"
        return _heading(self.title) + f"<dl>{items}</dl>" + (fold if self.source else "")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture ``[H, W, C]``, embedded."""

    title: str
    pixels: Any
    note: str = ""

    def to_html(self) -> str:
        """A PNG within the page."""
        image = f'<img alt="{_text(self.title)}" src="{_png(clips.to_pixels(self.pixels))}">'
        return _heading(self.title, self.note) + image


def curves(scores: Scores) -> Charts:
    """The charts of ``scores`` over the horizon, but for mean squared errors, which PSNR shows already."""
    names = [n for n in scores.shown if not n.endswith(("/mse", "/mse_changed"))]
    names = [n for n in names if any(math.isfinite(v) for v in scores.metrics["model"][n])]
    charts = []
    for name in names:
        present = [p for p in scores.metrics if name in scores.metrics[p]]
        series = {LABELS.get(p, p): scores.metrics[p][name] for p in present}
        charts.append(Chart(title(name), series, follows_clock=True, colours=present))
    return Charts("How far ahead it sees", charts, scores.describe())


def table(scores: Scores, horizons: Sequence[int] | None = None) -> Table:
    """The table of ``scores`` by horizon, the best predictor of each column marked."""
    horizons = list(horizons or some_horizons(scores.horizon))
    header, lines = scores.rows(horizons)
    best = frozenset(
        (index, 2 + column)
        for index, (name, predictor) in enumerate(scores.order())
        for column, h in enumerate(horizons)
        if scores.best(name, h) == predictor
    )
    note = "PSNR is that of the mean squared error over all frames at a horizon. The best of each column stands out."
    return Table("The figures", header, lines, note, best)


def write_report(path: str | os.PathLike[str], report: Report) -> pathlib.Path:
    """Writes ``report`` as one HTML file without outside references, and returns its path.

    Raises:
      ValueError: another suffix than .html, or sections that cannot be drawn.
    """
    path = check_path(path)
    here = importlib.resources.files("jaxwm.evaluation")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    figures = "".join(
        f'<div class="figure"><b>{_text(f.value)}</b><span>{_text(f.label)}</span><small>{_text(f.note)}</small></div>'
        for f in report.figures
    )
    body = "".join(f"<section>{section.to_html()}</section>" for section in report.sections)
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(report.title)}</title><style>{style}</style></head><body><main>"
        f'<h1>{_text(report.title)}</h1><p class="lead">{_text(report.lead)}</p>'
        f'<div class="headline">{figures}</div>{body}<footer>{_text(report.footer)}</footer></main>'
        f"<script>{script}</script></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
    return path


def check_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """``path``, if a report can have that name.

    Raises:
      ValueError: it does not end in .html.
    """
    path = pathlib.Path(path)
    if path.suffix != ".html":
        raise ValueError(f"{path}: a report is an .html file")
    return path


def _text(value: str) -> str:
    return html.escape(str(value))


def _heading(title: str, note: str = "") -> str:
    return f"<h2>{_text(title)}</h2>" + (f'<p class="note">{_text(note)}</p>' if note else "")


def _png(pixels: clips.Pixels) -> str:
    """``pixels`` as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _path(x: Sequence[float], y: Sequence[float | None]) -> str:
    """SVG path commands; a None lifts the pen."""
    commands, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if b is None:
            pen = "M"
            continue
        commands.append(f"{pen}{a:g} {b:g}")
        pen = "L"
    return "".join(commands)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers that span ``low`` to ``high``."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = magnitude * next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, and where they are few also twice and five times them, that enclose ``low`` to ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    steps = (1, 2, 5) if last - first < 3 else (1,)
    marks = [m * 10.0**e for e in range(first, last) for m in steps] + [10.0**last]
    below, above = [m for m in marks if m <= low], [m for m in marks if m >= high]
    return [m for m in marks if below[-1] <= m <= above[0]]


def _axis(first: float, last: float) -> list[float]:
    """The round numbers below a chart, its ends among them."""
    inner = [v for v in _ticks(first, last) if first < v < last - (last - first) / 10]
    return [first, *inner, last]


def _anchor(is_last: bool) -> str:
    return "end" if is_last else "middle"


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"
