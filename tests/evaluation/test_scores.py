"""Scores: derived metrics, the table, JSON and the plot."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxwm.evaluation.scores import Scores, some_horizons

FACTS = {"context": 5, "episodes": 3, "estimate": "mode", "samples": 1, "threshold": 0.05, "mean": "training"}


def make(model_mse, copy_mse, **facts):
    count = np.full(len(model_mse), 4.0)
    parts = lambda mse: {  # noqa: E731
        "image/mse": (np.array(mse) * count, count),
        "image/mse_changed": (np.array(mse) * 10, np.array([0.0, *[10.0] * (len(mse) - 1)])),
        "vector/mse": (np.array(mse) * count, count),
    }
    return Scores.from_totals({"model": parts(model_mse), "copy": parts(copy_mse)}, **{**FACTS, **facts})


@pytest.fixture
def scores():
    return make([0.001, 0.01, 0.04], [0.01, 0.01, 0.02])


def test_psnr_and_rmse_follow_from_the_mean_squared_error(scores):
    np.testing.assert_allclose(scores.metrics["model"]["image/psnr"], [30, 20, 13.9794], atol=1e-4)
    np.testing.assert_allclose(scores.metrics["model"]["vector/rmse"], [0.0316228, 0.1, 0.2], atol=1e-6)
    assert "vector/mse" not in scores.metrics["model"] and "vector/psnr" not in scores.metrics["model"]
    assert math.isnan(scores.at("image/psnr_changed", 1))
    assert scores.count == (4, 4, 4) and scores.horizon == 3


def test_a_perfect_prediction_has_the_highest_psnr():
    assert make([0.0], [0.1]).at("image/psnr", 1) == 100


def test_frames_are_counted_once_however_many_samples():
    assert make([0.1], [0.1], estimate="sample", samples=2).count == (2,)
    assert make([0.1], [0.1], estimate="mean", samples=2).count == (4,)


def test_what_says_most_comes_first_and_what_says_nothing_is_not_shown():
    one = np.ones(1)
    parts = {"reward/mse": (0 * one, one), "ball/within_radius": (one, one), "continuation/mse": (one, one)}
    images = {"image/mse": (one, one), "image/mse_changed": (one, one), "image/ssim": (one, one)}
    scores = Scores.from_totals({"mean": images, "copy": parts | images, "model": parts | images}, **FACTS)
    assert list(scores.metrics) == ["model", "copy", "mean"]
    assert scores.names[0] == "image/psnr" and scores.names[2] == "image/ssim"
    assert scores.names[-3:] == ("ball/within_radius", "continuation/rmse", "reward/rmse")
    assert scores.shown == scores.names[:-1], "the last frame's reward is exactly right: there is nothing to predict"


def test_best_knows_which_way_is_up(scores):
    assert [scores.best("image/psnr", h) for h in (1, 3)] == ["model", "copy"]
    assert [scores.best("image/mse", h) for h in (1, 3)] == ["model", "copy"]
    assert scores.best("image/psnr_changed", 1) is None


def test_json_keeps_everything(scores):
    text = scores.to_json()
    assert json.loads(text)["metrics"]["model"]["image/psnr_changed"][0] is None
    back = Scores.from_json(text)
    for predictor, metrics in scores.metrics.items():
        for name, values in metrics.items():
            np.testing.assert_array_equal(back.metrics[predictor][name], values)
    assert (back.count, back.context, back.describe()) == (scores.count, 5, scores.describe())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("image/pnsr", 1), "no metric 'image/pnsr'; did you mean 'image/psnr'"),
        (("image/psnr", 4), r"horizon is 4, expected 1\.\.3"),
        (("image/psnr", 1, "kopy"), "'kopy' is not a predictor; did you mean 'copy'"),
    ],
)
def test_unknown_figures_are_refused(scores, arguments, message):
    with pytest.raises(ValueError, match=message):
        scores.at(*arguments)


def test_the_table_shows_each_figure(scores):
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores.table())
    text = " ".join(console.export_text().split())
    for expected in ("PSNR, all pixels", "copy last frame", "30.0", "14.0", "+3", "-", "3 episodes", "model's mode"):
        assert expected in text, text
    header, lines = scores.rows([3])
    assert header == ["metric", "predictor", "+3"]
    assert ["PSNR, all pixels (dB)", "copy last frame", "17.0"] in lines


def test_the_averages_for_logs_skip_missing_horizons(scores):
    means = scores.means()
    np.testing.assert_allclose(means["image/psnr"], (30 + 20 + 13.9794) / 3, atol=1e-4)
    np.testing.assert_allclose(means["image/psnr_changed"], (20 + 13.9794) / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [(1, [1]), (4, [1, 2, 4]), (15, [1, 2, 5, 10, 15]), (40, [1, 5, 10, 15, 40]), (500, [1, 100, 200, 500])],
)
def test_the_columns_cover_the_horizon(horizon, expected):
    assert set(expected) <= set(some_horizons(horizon))
    assert len(some_horizons(horizon)) <= 8 and max(some_horizons(horizon)) == horizon


def test_the_plot_is_a_picture(scores, tmp_path):
    from PIL import Image

    path = scores.plot(tmp_path / "new" / "plot.png")
    assert Image.open(path).size[0] > 300
    with pytest.raises(ValueError, match=r"cannot draw a plot as '\.pgn'"):
        scores.plot(tmp_path / "plot.pgn")
