"""Ball positions in imagined pictures, against hand-placed balls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.evaluation.balls import BallPositions
from jaxwm.evaluation.scores import Scores
from jaxwm.evaluation.video import OpenLoop
from jaxwm.types import Prediction
from jaxwm.worlds import Bounce

WORLD = Bounce(balls=2, size=32, radius=(0.1, 0.1))
TRUTH = np.array([[0.3, 0.3], [0.7, 0.6]], np.float32)


def picture(*moves):
    """The world with its balls moved from `TRUTH`."""
    ones = jnp.ones(2)
    state = WORLD.state(jnp.asarray(TRUTH + np.array(moves, np.float32)), jnp.zeros((2, 2)), 0.1 * ones, ones)
    return np.asarray(WORLD.render(state)) / 255


@pytest.fixture(scope="module")
def measured():
    here, near, far = picture((0, 0), (0, 0)), picture((0.05, 0), (0, 0)), picture((0, 0), (0, 0.15))
    background = np.broadcast_to(np.array(WORLD.background) / 255, here.shape)
    faint = background + 0.15 * (here - background)
    # Five episodes of one context frame and one imagined one; the last is padding.
    frames = np.stack([here, near, far, faint, background])[:, None]
    valid = np.array([[True, True]] * 4 + [[True, False]])
    rollout = OpenLoop(
        observation={}, prediction=Prediction({}), reward=None, continuation=None, valid=valid, context=1,
        info={"position": np.broadcast_to(TRUTH, (5, 2, 2, 2)), "radius": np.full((5, 2, 2), 0.1, np.float32)},
    )  # fmt: skip
    still = np.broadcast_to(here, frames.shape)
    return rollout, {"model": {"image": frames}, "copy": {"image": still}, "mean": {"image": still}}


def test_near_counts_far_and_faint_do_not(measured):
    totals = jax.tree.map(lambda x: np.asarray(x, np.float64), BallPositions(WORLD)(*measured))
    assert set(totals) == {"model", "copy"}
    assert [float(x[0]) for x in totals["model"]["ball/within_radius"]] == [2, 4], "here and near, of four episodes"
    assert [float(x[0]) for x in totals["copy"]["ball/within_radius"]] == [4, 4]
    total, count = totals["model"]["ball/position_error"]
    assert count[0] == 6, "two balls in each of the three episodes where they are not faint"
    np.testing.assert_allclose(total[0], 0.5 + 1.5, atol=0.05)
    facts = {"context": 1, "episodes": 4, "estimate": "mode", "samples": 1, "threshold": 0.05, "mean": "context"}
    totals["model"]["image/mse"] = (np.ones(1), np.full(1, 4.0))
    assert Scores.from_totals(totals, **facts).at("ball/within_radius", 1) == 0.5


def test_without_recorded_truth_nothing_is_measured(measured):
    rollout, observations = measured
    assert BallPositions(WORLD)(rollout.replace(info={}), observations) == {}
