"""Objectives on dreams that are written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.imagination import Dream
from jaxwm.planning import Goal, GoalDistance, Reward, Uncertainty, Weighted, encode_goal
from jaxwm.types import Prediction
from tests.planning.point import SPEC, VARIABLES, Point

REWARDS = np.array([[9.0, 1.0, 2.0, 4.0], [9.0, 0.0, -1.0, 3.0]], np.float32)
GOES_ON = np.array([[0.1, 1.0, 0.5, 0.5], [0.1, 0.0, 1.0, 1.0]], np.float32)
PLACES = np.array([[[7.0, 7.0], [3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]], np.float32)


def dream(reward=REWARDS, continuation=None, features=None, uncertainty=None, observation=None):
    rows, length = reward.shape
    features = np.zeros((rows, length, 2), np.float32) if features is None else features
    prediction = Prediction(observation or {}, reward, continuation, uncertainty)
    return Dream(jnp.asarray(features), jax.tree.map(jnp.asarray, prediction), None, None, None)


def test_the_return_leaves_out_what_no_action_changes():
    np.testing.assert_allclose(Reward()(None, dream()), [-7, -2])
    np.testing.assert_allclose(Reward(discount=0.5)(None, dream()), [-(1 + 1 + 1), -(0 - 0.5 + 0.75)])


def test_what_comes_after_the_end_is_not_had():
    cost = Reward()(None, dream(continuation=GOES_ON))
    np.testing.assert_allclose(cost, [-(1 + 2 + 0.5 * 4), -0.0])


def test_a_value_follows_the_last_entry():
    features = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    value = lambda params, features: params * features[:, 0]  # noqa: E731
    cost = Reward(discount=0.5, value=value)(2.0, dream(features=features))
    np.testing.assert_allclose(cost, [-(3 + 0.125 * 2 * 6), -(0.25 + 0.125 * 2 * 14)])
    cost = Reward(value=value)(2.0, dream(features=features, continuation=GOES_ON))
    np.testing.assert_allclose(cost, [-(5 + 0.25 * 12), -0.0])


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (GoalDistance(over="last"), 1.0),
        (GoalDistance(over="sum"), 5 + 2 + 1),
        (GoalDistance(over="discounted", discount=0.5), 5 + 1 + 0.25),
        (GoalDistance(distance="l1", over="sum"), 7 + 2 + 1),
        (GoalDistance(over="sum", first=1), 3 + 0 + 1),
        (GoalDistance(over="sum", width=2.0), 3 - np.exp(-25 / 8) - np.exp(-4 / 8) - np.exp(-1 / 8)),
    ],
)
def test_distances_by_hand(objective, expected):
    there = Goal(jnp.zeros((1, 2)), {})
    assert float(objective(None, dream(REWARDS[:1], features=PLACES), there)[0]) == pytest.approx(expected, rel=1e-5)


def test_the_cosine_looks_at_directions_alone():
    cost = GoalDistance(distance="cosine", over="sum")(
        None, dream(REWARDS[:1], features=PLACES), Goal(jnp.array([[5.0, 0.0]]), {})
    )
    np.testing.assert_allclose(cost, [(1 - 0.6) + 1.0 + 0.0], rtol=1e-5)


def test_pictures_are_compared_on_the_scale_of_predictions():
    white = np.full((1, 2, 1, 1, 3), 1.0, np.float32)
    goal = Goal(None, {"image": np.full((1, 1, 1, 3), 255, np.uint8)})
    cost = GoalDistance("image", "l1")(None, dream(REWARDS[:1, :2], observation={"image": white}), goal)
    np.testing.assert_allclose(cost, [0.0], atol=1e-6)


def test_a_gradient_exists_where_the_goal_is_met():
    def cost(place):
        return GoalDistance()(None, dream(REWARDS[:1, :2], features=place), Goal(jnp.zeros((1, 2)), {}))[0]

    np.testing.assert_array_equal(jax.grad(cost)(jnp.zeros((1, 2, 2))), 0.0)


def test_uncertainty_and_weights_add_up():
    unsure = np.array([[5.0, 1.0, 2.0, 3.0], [5.0, 0.0, 0.0, 1.0]], np.float32)
    d = dream(uncertainty=unsure)
    np.testing.assert_allclose(Uncertainty()(None, d), [6, 1])
    np.testing.assert_allclose(Uncertainty(discount=0.5)(None, d), [1 + 1 + 0.75, 0.25])
    both = Weighted(((1.0, Reward()), (0.5, Uncertainty())))
    assert both.decode and not Weighted(((1.0, GoalDistance()),)).decode
    np.testing.assert_allclose(both(None, d, None), [-7 + 3, -2 + 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Reward()(None, dream().replace(prediction=None)), "predicts no reward"),
        (lambda: Uncertainty()(None, dream()), "an ensemble of it would"),
        (lambda: GoalDistance()(None, dream(), None), "there is no goal|but there is none"),
        (lambda: GoalDistance()(None, dream(), Goal(None, {"position": 0})), r"known as \['position'\] only"),
        (
            lambda: GoalDistance("positon")(
                None, dream(observation={"position": PLACES}), Goal(None, {"position": PLACES[:, 0]})
            ),
            "space is 'positon'; did you mean 'position'",
        ),
        (lambda: Weighted(()), "at least one term"),
        (
            lambda: encode_goal(Point(), VARIABLES, jax.random.split(jax.random.key(0), 1), {"positon": PLACES[:, 0]}),
            r"goal\['positon'\] is not part of the observation; did you mean 'position'",
        ),
    ],
)
def test_what_cannot_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_goal_that_is_seen_is_encoded():
    keys = jax.random.split(jax.random.key(0), 1)
    goal = encode_goal(Point(), VARIABLES, keys, {"position": PLACES[:, 1]})
    np.testing.assert_array_equal(goal.features, PLACES[:, 1])
    assert SPEC.observation[0].name in goal.observation
