"""The laws are not empty: models that break one are caught by it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxwm import testing
from tests.contract.families import VECTOR_MODEL

SIMPLE = type(VECTOR_MODEL)
FIELDS = {field.name: getattr(VECTOR_MODEL, field.name) for field in dataclasses.fields(SIMPLE)}


class Deaf(SIMPLE):
    """Ignores the action."""

    def predict(self, variables, keys, state, action, condition=None):
        return super().predict(variables, keys, state, jnp.zeros_like(action), condition)


class Early(SIMPLE):
    """Learns from ``action[t+1]``, the action after the transition."""

    def loss(self, variables, keys, batch, stage):
        shifted = jnp.concatenate([batch.action[:, 1:], batch.action[:, :1]], axis=1)
        return super().loss(variables, keys, batch.replace(action=shifted), stage)


class Gossip(SIMPLE):
    """Mixes the rows of a batch."""

    def predict(self, variables, keys, state, action, condition=None):
        following = super().predict(variables, keys, state, action, condition)
        return following + 0.1 * jnp.mean(following, axis=0)


class Careless(SIMPLE):
    """Checks nothing."""

    def predict(self, variables, keys, state, action, condition=None):
        return self.predict_next(variables, state, action[..., : self.spec.action.dim])


class Explosive(SIMPLE):
    """Grows without bound."""

    def predict(self, variables, keys, state, action, condition=None):
        return 100.0 * super().predict(variables, keys, state, action, condition) + 1e3 * state


class Frozen(SIMPLE):
    """Trains nothing below the decoder."""

    def loss(self, variables, keys, batch, stage):
        params = dict(variables["params"])
        params["decoder"] = jax.lax.stop_gradient(params["decoder"])
        return super().loss({**variables, "params": params}, keys, batch, stage)


class Stale(SIMPLE):
    """Keeps what it knew when an episode begins."""

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return super().observe(variables, keys, state, previous_action, observation, is_first) + 0.1 * state


@pytest.fixture(scope="module")
def given():
    key = jax.random.key(0)
    batch = testing.moving_clips(VECTOR_MODEL.spec, testing.BATCH, testing.LENGTH)
    return jax.jit(VECTOR_MODEL.init)(key, batch), key, batch


@pytest.mark.parametrize(
    ("family", "check", "law"),
    [
        (Deaf, testing.check_causality, "law 3: action"),
        (Gossip, testing.check_rows, "law 4: rows"),
        (Stale, testing.check_rows, "law 4: is_first"),
        (Explosive, testing.check_long_dream, "law 6"),
        (Careless, testing.check_errors, "law 9"),
    ],
)
def test_broken_models_are_caught(family, check, law, given):
    with pytest.raises(AssertionError, match=law):
        check(family(**FIELDS), *given)


@pytest.mark.parametrize(
    ("family", "law"), [(Early, "law 5: the loss ignores"), (Frozen, "law 5: stage train trains")]
)
def test_broken_training_is_caught(family, law, given):
    with pytest.raises(AssertionError, match=law):
        testing.check_training(family(**FIELDS), *given, "train", updates=6)
