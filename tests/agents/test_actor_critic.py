"""Returns and losses of the actor-critic, against loops and hand-made worlds."""

import dataclasses
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm
from jaxwm.agents.actor_critic import (
    ActorCritic,
    ActorPolicy,
    fresh_return_range,
    lambda_returns,
    move_return_range,
)
from jaxwm.types import Prediction

CHOICES = jaxwm.ActionSpec(3, discrete=True)
BOUNDED = jaxwm.ActionSpec(2, low=(-2.0, 0.0), high=(2.0, 1.0))


def make(action, **options):
    fields = dict(
        units=16, actor_layers=1, critic_layers=1, horizon=4, discount=0.9, return_lambda=0.8, entropy_scale=1e-3,
        unimix=0.01, slow_scale=1.0, return_rate=0.01,
    )  # fmt: skip
    return ActorCritic(action, **(fields | options))


def test_lambda_returns_are_those_of_the_recursion():
    draw = np.random.default_rng(0)
    rewards, values = draw.normal(size=(2, 5, 6))
    going, last = draw.uniform(size=(5, 6)), draw.normal(size=5)
    mixing = draw.uniform(size=(5, 6))
    expected = np.zeros((5, 6))
    following = last
    for t in reversed(range(6)):
        following = rewards[:, t] + going[:, t] * ((1 - mixing[:, t]) * values[:, t] + mixing[:, t] * following)
        expected[:, t] = following
    np.testing.assert_allclose(lambda_returns(rewards, going, values, last, mixing), expected, rtol=1e-5)


def test_returns_without_mixing_are_one_step_and_with_all_of_it_monte_carlo():
    rewards, values = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[10.0, 20.0, 30.0]])
    going, last = jnp.full((1, 3), 0.5), jnp.array([30.0])
    np.testing.assert_allclose(lambda_returns(rewards, going, values, last, 0.0), [[6.0, 12.0, 18.0]])
    np.testing.assert_allclose(
        lambda_returns(rewards, going, values, last, 1.0), [[1 + 0.5 * (2 + 0.5 * 18), 2 + 0.5 * 18, 18.0]]
    )


def test_the_range_of_returns_moves_towards_the_percentiles():
    averages = fresh_return_range()
    returns = jnp.arange(101.0)
    for _ in range(2):
        averages = move_return_range(averages, returns, 0.1)
    assert float(averages["low"]) == pytest.approx(5 * 0.19)
    assert float(averages["high"]) == pytest.approx(95 * 0.19)


def test_a_discrete_actor_never_gives_up_exploring():
    part = make(CHOICES)
    params = part.init(jax.random.key(0), 5)
    certain = jax.tree.map(lambda x: 1e6 * jnp.ones_like(x), params["actor"])
    probs = part.choice(certain, jnp.ones((1, 5))).probs
    assert float(probs.min()) >= 0.01 / 3 - 1e-7
    lopsided = {**params["actor"], "output": {**params["actor"]["output"], "bias": jnp.array([1e4, 0.0, 0.0])}}
    choice = part.choice(lopsided, jnp.ones((1, 5)))
    assert float(choice.entropy()[0]) > 0.03


def test_a_fresh_actor_is_undecided_and_a_fresh_critic_expects_nothing():
    features = jax.random.normal(jax.random.key(1), (64, 5))
    for action in (CHOICES, BOUNDED):
        part = make(action)
        params = part.init(jax.random.key(0), 5)
        np.testing.assert_array_equal(part.value(params["critic"], features).mean(), 0.0)
        choice = part.choice(params["actor"], features)
        if action.discrete:
            np.testing.assert_allclose(choice.probs, 1 / 3, atol=0.02)
        else:
            np.testing.assert_allclose(choice.location, 0.0, atol=0.05)
            np.testing.assert_allclose(choice.std, 0.9 * jax.nn.sigmoid(2.0) + 0.1, atol=0.02)


@pytest.mark.parametrize("action", [CHOICES, BOUNDED], ids=["discrete", "continuous"])
def test_the_policy_acts_in_raw_units(action):
    part = make(action)
    params = part.init(jax.random.key(0), 5)
    keys = jax.random.split(jax.random.key(2), 512)
    taken, _ = ActorPolicy(part)(params["actor"], keys, jnp.ones((512, 5)), None)
    chex.assert_shape(taken, (512, action.dim))
    if action.discrete:
        np.testing.assert_array_equal(np.sort(np.unique(taken)), [0.0, 1.0])
        np.testing.assert_array_equal(taken.sum(-1), 1.0)
        assert (taken.mean(0) > 0.2).all()
    else:
        # The standard deviation is 0.89 of half the width of the bounds, around their middle.
        np.testing.assert_allclose(taken.mean(0), [0.0, 0.5], atol=0.15)
        np.testing.assert_allclose(taken.std(0), [1.79, 0.447], rtol=0.1)
    likeliest, _ = ActorPolicy(part, sample=False)(params["actor"], keys, jnp.ones((512, 5)), None)
    assert len(np.unique(likeliest, axis=0)) == 1


@dataclasses.dataclass(frozen=True)
class Corridor:
    """A model without parameters: the state counts the actions that were right, each of which pays 1."""

    spec: jaxwm.Spec
    ends: bool = False
    stages: typing.ClassVar = ()

    def features(self, variables, state):
        return jnp.concatenate([state, jnp.ones_like(state)], axis=-1)

    def predict(self, variables, keys, state, action, condition=None):
        right = action[:, :1] if self.spec.action.discrete else (action[:, :1] > 0).astype(jnp.float32)
        return right

    def decode(self, variables, state):
        going = jnp.where(state[:, 0] > 0.5, 1.0, 0.0) if self.ends else jnp.ones(state.shape[0])
        return Prediction({}, reward=state[:, 0], continuation=going)


def world(action, **options):
    return Corridor(jaxwm.Spec((jaxwm.Field("vector", (1,), "float32"),), action), **options)


@pytest.mark.parametrize("action", [CHOICES, BOUNDED], ids=["discrete", "continuous"])
def test_the_actor_learns_what_pays_and_only_actor_and_critic_learn(action):
    part, model = make(action), world(action)
    params = part.init(jax.random.key(0), 2)
    starts, averages = jnp.zeros((64, 1)), fresh_return_range()

    @jax.jit
    def update(params, averages, key):
        def loss(params):
            found = part.imagined_losses(
                model, {"params": params}, params["critic"], averages, jax.random.split(key, 64), starts
            )
            return found.actor_loss + found.critic_loss, found.metrics

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        return params, {"low": metrics["return_low"], "high": metrics["return_high"]}, metrics

    for step in range(300):
        params, averages, metrics = update(params, averages, jax.random.key(step))
    assert float(metrics["imagined_reward"]) > 0.9
    # From the state where the last action was right: 1 + 0.9 + 0.81 + ... forever, as the bootstrap makes it.
    value = part.value(params["critic"], jnp.array([[1.0, 1.0]])).mean()
    assert 7.0 < float(value[0]) < 10.5


def test_nothing_counts_after_the_end():
    part, model = make(CHOICES), world(CHOICES, ends=True)
    params = part.init(jax.random.key(0), 2)
    keys = jax.random.split(jax.random.key(1), 4096)
    found = part.imagined_losses(
        model, {"params": params}, params["critic"], fresh_return_range(), keys, jnp.ones((4096, 1))
    )
    # An actor that is right once in three times: the reward of step t comes with (1/3)^t, and the end cuts the rest.
    # λ-returns with a critic of 0: sum over t of (0.9 * 0.8)^(t-1) (1/3)^t.
    expected = sum((0.9 * 0.8) ** (t - 1) * (1 / 3) ** t for t in range(1, 5))
    assert float(found.returns.mean()) == pytest.approx(expected, abs=0.02)


def test_a_model_without_rewards_is_refused():
    class Silent(Corridor):
        def decode(self, variables, state):
            return Prediction({})

    part = make(CHOICES)
    params = part.init(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="Silent predicts no reward"):
        part.imagined_losses(
            Silent(world(CHOICES).spec), {"params": params}, params["critic"], fresh_return_range(),
            jax.random.split(jax.random.key(1), 2), jnp.ones((2, 1)),
        )  # fmt: skip
