"""Measurements: what is counted, not how fast it is."""

from __future__ import annotations

import pytest
from rich.console import Console

from jaxwm import bench
from jaxwm.config import load_config
from jaxwm.types import ActionSpec, Field, Spec


def test_every_figure_is_measured(toy_config, monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (2, 3))
    monkeypatch.setattr(bench, "PEAK_SIZE", 64)
    lines = []
    result = bench.measure(load_config(toy_config), horizon=4, seconds=0.01, log=lines.append)
    names = [m.name for m in result.measurements]
    assert names == [
        "imagine, batch 2, horizon 4",
        "imagine, batch 3, horizon 4",
        "update (train), batch 4 x 6",
        "input, batch 4 x 6",
    ]
    for rows, m in zip((2, 3), result.measurements, strict=False):
        assert m.rate == pytest.approx(rows * 4 / (m.milliseconds / 1e3))
        assert m.unit == "steps/s" and m.peak_share > 0
    assert result.peak > 0 and result.title == "toy, 1 parameters" and len(lines) == 4
    assert result.measurements[3].note.startswith("no episodes in")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    assert "updates/s" in console.export_text()


def test_the_first_call_is_not_counted(monkeypatch):
    now = [0.0]
    durations = iter([100.0, 1.0, 2.0, 9.0, 3.0, 3.0, 3.0])

    def call():
        now[0] += next(durations)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    assert bench.median_seconds(call, seconds=12.5) == 2.5, "the median of 1, 2, 9, 3"


def test_random_batches_fit_their_spec():
    spec = Spec((Field("image", (8, 8, 3), "uint8"), Field("v", (2,), "float32")), ActionSpec(3, discrete=True))
    batch = bench.random_batch(spec, 2, 3)
    spec.check_trajectory(batch)
    assert (batch.action.sum(-1) == 1).all()
