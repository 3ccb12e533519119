"""A model simple enough to be computed by hand, and episodes that it half understands."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from half_solved import HalfSolved

from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation import evaluate_planning
from jaxwm.planning import CEM, GoalDistance, PlanningAgent
from jaxwm.types import ActionSpec, Field, Prediction, Spec, Stage, Trajectory
from tests.planning.point import VARIABLES, Point

SIZE = 16


@dataclasses.dataclass(frozen=True)
class Shifter:
    """Remembers the last frame and vector; a step moves the picture right by one pixel and adds the action.

    At temperature t it adds t times a normal number, one for each row, to the vector.
    """

    spec: Spec
    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    def init(self, key, batch):
        return {"params": {"speed": jnp.ones((), jnp.int32)}, "targets": {}}

    def loss(self, variables, keys, batch, stage):
        raise AssertionError("evaluation never trains")

    def after_update(self, variables, aux, stage):
        return variables

    def init_state(self, batch_size):
        return {
            "image": jnp.zeros((batch_size, *self.spec.observation[0].shape), jnp.float32),
            "vector": jnp.zeros((batch_size, 2), jnp.float32),
        }

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return {"image": observation["image"].astype(jnp.float32) / 255, "vector": observation["vector"]}

    def predict(self, variables, keys, state, action, condition=None):
        noise = jax.vmap(jax.random.normal)(keys) * (condition or {}).get("temperature", 1.0)
        return {
            "image": jnp.roll(state["image"], variables["params"]["speed"], axis=2),
            "vector": state["vector"] + action + noise[:, None],
        }

    def features(self, variables, state):
        return state["vector"]

    def decode(self, variables, state):
        reward = state["vector"][:, 0]
        return Prediction(dict(state), reward=reward, continuation=jnp.full(reward.shape, 0.75))

    def surprise(self, variables, keys, state, previous_action, observation, condition=None):
        return jnp.zeros(previous_action.shape[0])


def make_episodes(spec: Spec, batch: int, length: int, speed: int = 1, seed: int = 0) -> Trajectory:
    """Random pictures that move right by ``speed`` pixels a step; the vector is the sum of the actions."""
    random = np.random.default_rng(seed)
    first = random.integers(0, 256, (batch, *spec.observation[0].shape), dtype=np.uint8)
    images = np.stack([np.roll(first, speed * t, axis=2) for t in range(length)], axis=1)
    action = random.normal(size=(batch, length, 2)).astype(np.float32)
    vector = np.concatenate([np.zeros((batch, 1, 2)), np.cumsum(action, axis=1)[:, :-1]], axis=1)
    steps = np.broadcast_to(np.arange(length), (batch, length))
    return Trajectory(
        observation={"image": images, "vector": vector.astype(np.float32)},
        action=action,
        previous_action=np.zeros((batch, 2), np.float32),
        reward=random.normal(size=(batch, length)).astype(np.float32),
        is_first=steps == 0,
        is_last=steps == length - 1,
        is_terminal=np.zeros((batch, length), bool),
        valid=np.ones((batch, length), bool),
        action_valid=np.ones((batch, length), bool),
    )


@pytest.fixture(scope="session")
def spec() -> Spec:
    return Spec((Field("image", (SIZE, SIZE, 3), "uint8"), Field("vector", (2,), "float32")), ActionSpec(2))


@pytest.fixture(scope="session")
def model(spec) -> Shifter:
    return Shifter(spec)


@pytest.fixture(scope="session")
def variables(model):
    return model.init(jax.random.key(0), None)


@pytest.fixture(scope="session")
def episodes():
    """`make_episodes`, for tests that need their own."""
    return make_episodes


@pytest.fixture(scope="session")
def planned():
    """Seven episodes of a planner that knows the world exactly, half of them solved at the start."""
    agent = PlanningAgent(Point(), GoalDistance("position"), CEM(4, samples=32, elites=6, iterations=3), every=2)
    environments = WorldEnvironments(HalfSolved(), 12)
    return evaluate_planning(agent, VARIABLES, jax.random.key(0), environments, 7, batch=3, shown=2)
