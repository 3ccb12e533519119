"""A world model that compiles in no time: it remembers the last frame, and lets it fade while it imagines."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pydantic

from jaxwm import models
from jaxwm.types import Aux, Prediction, Spec, Stage


@models.register("toy")
@dataclasses.dataclass(frozen=True)
class Toy:
    """Each step multiplies the picture by ``fade``; at temperature t each row gets t times a random brightness."""

    spec: Spec
    fade: pydantic.PositiveFloat = 0.9

    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    def init(self, key, batch):
        return {"params": {"fade": jnp.asarray(self.fade)}, "targets": {}}

    def loss(self, variables, keys, batch, stage):
        images = batch.observation["image"].astype(jnp.float32) / 255
        return jnp.mean((images[:, 1:] - variables["params"]["fade"] * images[:, :-1]) ** 2), Aux({})

    def after_update(self, variables, aux, stage):
        return variables

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, *self.spec.images[0].shape))

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return observation["image"].astype(jnp.float32) / 255

    def predict(self, variables, keys, state, action, condition=None):
        self.spec.check_action(action, (state.shape[0],))
        noise = 0.1 * (condition or {}).get("temperature", 1.0) * jax.vmap(jax.random.normal)(keys)
        push = 0.1 * action[:, 0]
        return variables["params"]["fade"] * state + (noise + push)[:, None, None, None]

    def features(self, variables, state):
        return state.reshape(state.shape[0], -1)

    def decode(self, variables, state):
        return Prediction({"image": state})

    def surprise(self, variables, keys, state, previous_action, observation, condition=None):
        return jnp.zeros(state.shape[0])


def toy_values(data_path) -> dict:
    """A configuration of `Toy`, as plain values."""
    return {
        "model": {"family": "toy"},
        "data": {
            "path": str(data_path),
            "batch": 4,
            "length": 6,
            "generate": {"world": {"name": "bounce", "size": 16}, "train": 8, "test": 6, "length": 12},
        },
        "stages": {"train": {"steps": 6, "optimizer": {"learning_rate": 0.01}}},
        "training": {"log_every": 2, "checkpoint_every": 3, "evaluate_every": 3, "video_every": 3},
        "evaluation": {"context": 3, "horizon": 5, "episodes": 4},
    }
