"""The page: complete in itself, and true to the figures."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from jaxwm.evaluation import report
from jaxwm.evaluation.run_page import run_report
from jaxwm.evaluation.scores import Scores

VOID = {"meta", "input", "img", "br", "line"}


class Checker(html.parser.HTMLParser):
    """Collects tags and their attributes, and notices tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, text):
        self.texts.append(text)

    def all(self, tag, class_name=None):
        found = [a for t, a in self.tags if t == tag]
        return [a for a in found if class_name is None or class_name in (a.get("class") or "").split()]


def parse(text):
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    return checker


@pytest.fixture
def scores():
    n = np.full(4, 8.0)
    mse = {"model": [0.001, 0.002, 0.004, 0.01], "copy": [0.01, 0.02, 0.02, 0.02]}
    parts = {p: {"image/mse": (np.array(v) * n, n), "image/mse_changed": (np.array(v), n * 0)} for p, v in mse.items()}
    facts = {"context": 2, "episodes": 8, "estimate": "mode", "samples": 1, "threshold": 0.05, "mean": "training"}
    return Scores.from_totals(parts, **facts)


def test_a_page_refers_to_nothing_outside(tmp_path, scores):
    images = np.zeros((6, 8, 8, 3), np.uint8)
    sections = [
        report.Player("Clips", [report.Clip("a <b>", {"truth": images, "imagined": images})], 2),
        report.curves(scores),
        report.table(scores),
        report.Facts("Facts", {"a & b": "<1>"}, "x: <y>"),
        report.Picture("Picture", images[0]),
    ]
    figures = [report.Figure("+1 dB", "gain")]
    path = report.write_report(tmp_path / "new" / "page.html", report.Report("T & T", "Lead", sections, figures))
    text = path.read_text()
    for reference in re.findall(r"(?:src|href)=[\"']?([^\"' >]+)|url\(([^)]+)\)", text):
        assert "".join(reference).startswith("data:image/png;base64,")
    assert "http" not in text
    page = parse(text)
    assert "T & T" in page.texts and "a <b>" in page.texts and "<1>" in page.texts and "x: <y>" in page.texts
    assert len(page.all("section")) == 5
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_the_sprite_holds_every_frame_of_every_panel():
    random = np.random.default_rng(0)
    truth, imagined = random.integers(0, 256, (2, 5, 6, 4, 3), dtype=np.uint8)
    player = report.Player("P", [report.Clip("c", {"truth": truth, "imagined": imagined})], 2, fps=5)
    page = parse(player.to_html())
    style = page.all("figure", "clip")[0]["style"]
    assert "--panels:2;--frames:5;--aspect:4/6;" in style
    sprite = np.asarray(Image.open(io.BytesIO(base64.b64decode(style.split("base64,")[1].rstrip(")")))))
    np.testing.assert_array_equal(sprite.reshape(5, 6, 2, 4, 3)[:, :, 0], truth)
    np.testing.assert_array_equal(sprite.reshape(5, 6, 2, 4, 3)[:, :, 1], imagined)
    slider = page.all("input")[0]
    assert (slider["max"], slider["data-context"], slider["data-fps"]) == ("4", "2", "5")
    assert [a["style"] for t, a in page.tags if a.get("role") == "img"] == ["--x:0%", "--x:100%"]


def test_clips_of_different_lengths_are_refused():
    clips = [report.Clip("a", {"truth": np.zeros((3, 4, 4, 3))}), report.Clip("b", {"truth": np.zeros((2, 4, 4, 3))})]
    with pytest.raises(ValueError, match="expected one"):
        report.Player("P", clips, 1).to_html()


def test_a_chart_draws_its_values_to_scale():
    chart = report.Chart("c", {"one": [0.0, 5.0, 10.0], "two": [10.0, float("nan"), 0.0]}, x=[0, 50, 100])
    page = parse(chart.to_html())
    data = json.loads(page.all("figure", "chart")[0]["data-values"])
    x, (one, two) = data["x"], data["y"]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert one[0] - one[1] == pytest.approx(one[1] - one[2], abs=0.2) and one[0] > one[2], "y grows downwards"
    assert (two[0], two[1], two[2]) == (one[2], None, one[0])
    assert data["values"] == [["0", "5", "10"], ["10", "", "0"]]
    # The first series is drawn last, above the others; a NaN lifts the pen.
    paths = [a["d"] for a in page.all("path")]
    assert paths == [f"M{x[0]:g} {two[0]:g}M{x[2]:g} {two[2]:g}", "".join(
        f"{c}{a:g} {b:g}" for c, a, b in zip("MLL", x, one, strict=True))]  # fmt: skip
    with pytest.raises(ValueError, match="series of"):
        report.Chart("c", {"one": [1.0, 2.0]}, x=[1]).to_html()


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    page = parse(report.Chart("c", {"one": [1000.0, 100.0, 10.0]}, log=True).to_html())
    (y,) = json.loads(page.all("figure", "chart")[0]["data-values"])["y"]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2) and y[0] < y[2]
    assert report._decades(3, 70) == [2, 5, 10, 20, 50, 100]
    assert report._decades(0.003, 900) == [0.001, 0.01, 0.1, 1, 10, 100, 1000]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 8), (1e-6, 3e-6), (5, 5), (0, 23456)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    ticks = report._ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


def test_the_table_marks_the_best_of_each_column(scores):
    page = parse(report.table(scores, [1, 4]).to_html())
    text = report.table(scores, [1, 4])
    assert text.lines[0][2:] == ["30.0", "20.0"] and text.lines[1][2:] == ["20.0", "17.0"]
    assert {(0, 2), (0, 3)} <= text.best and (1, 2) not in text.best
    assert len(page.all("td", "best")) == len(text.best)


def test_curves_leave_out_what_was_never_measured(scores):
    assert [chart.title for chart in report.curves(scores).charts] == ["PSNR, all pixels (dB)"]


def test_only_html_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"a report is an \.html file"):
        report.write_report(tmp_path / "page.pdf", report.Report("t", "l", []))


def test_the_page_of_a_run(toy_run, toy_run_dir, tmp_path):
    lines = []
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": s, "time": 0.0, "train/loss": 1 / s, "train/steps_per_second": 10.0}) + "\n"
            for s in (10, 20, 30)
        )
    )
    path = tmp_path / "report.html"
    scores = run_report(toy_run, path, run_dir=tmp_path, episodes=3, horizon=4, clips=2, log=lines.append)
    page = parse(path.read_text())
    text = " ".join(page.texts)
    assert scores.episodes == 3 and scores.horizon == 4
    assert "What toy imagines of bounce" in text
    assert len(page.all("figure", "clip")) == 2
    gain = scores.at("image/psnr", 4) - scores.at("image/psnr", 4, "copy")
    assert f"{gain:+.1f} dB" in text
    assert "trained in 3 s" in text, "30 updates at 10 a second"
    assert "family: toy" in text and lines[-1] == f"wrote {path}"
    charts = [json.loads(a["data-values"]) for a in page.all("figure", "chart")]
    assert charts[-1]["values"] == [["0.1", "0.05", "0.0333"]]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(toy_run.variables["params"]))
    assert parameters == 1 and "parameters" in text
