"""A world and a model so small that all of it is known beforehand: a point on a plane that goes where it is pushed."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxwm.types import ActionSpec, Field, Prediction, Spec, Stage
from jaxwm.worlds import Transition

STEP = 0.25
SPEC = Spec((Field("position", (2,), "float32"),), ActionSpec(2, low=(-1.0, -1.0), high=(1.0, 1.0)))


@dataclasses.dataclass(frozen=True)
class Point:
    """Knows the world exactly; at temperature t each row is blown about by ``t * wind``."""

    wind: float = 0.0

    spec: ClassVar[Spec] = SPEC
    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    def init(self, key, batch):
        return {"params": {"step": jnp.asarray(STEP)}, "targets": {}}

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return observation["position"]

    def predict(self, variables, keys, state, action, condition=None):
        temperature = (condition or {}).get("temperature", jnp.ones(state.shape[0]))
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        return state + variables["params"]["step"] * action + self.wind * temperature[:, None] * noise

    def features(self, variables, state):
        return state

    def decode(self, variables, state):
        reward = -jnp.sum(jnp.square(state - 1.0), axis=-1)
        return Prediction({"position": state}, reward=reward, uncertainty=jnp.abs(state[:, 0]))


@dataclasses.dataclass(frozen=True)
class Plane:
    """The world of `Point`: begins near 0, is rewarded for being near (1, 1), and is solved within 0.3 of it."""

    spread: float = 0.1

    spec: ClassVar[Spec] = SPEC

    def reset(self, key):
        return self.spread * jax.random.normal(key, (2,))

    def step(self, key, state, action):
        state = state + STEP * jnp.clip(action, -1.0, 1.0)
        return Transition(state, -jnp.sum(jnp.square(state - 1.0)), jnp.array(False))

    def observation(self, state):
        return {"position": state}

    def render(self, state, size=None):
        size = size or 8
        pixel = jnp.clip(jnp.round(state * (size - 1)), 0, size - 1).astype(jnp.int32)
        return jnp.zeros((size, size, 3), jnp.uint8).at[pixel[1], pixel[0]].set(255)

    def info(self, state):
        return {"position": state}

    def goal_state(self, state):
        return jnp.ones(2)

    def is_solved(self, state):
        return jnp.linalg.norm(state - 1.0) < 0.3


VARIABLES = {"params": {"step": jnp.asarray(STEP)}, "targets": {}}
