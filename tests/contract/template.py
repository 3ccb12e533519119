"""A complete family to start your own from: copy it, rename it, replace the networks.

What makes it a family is `WorldModel` (`jaxwm/types.py`), nothing else: a frozen dataclass whose fields are its
configuration, with a `spec` and these methods. With ``@jaxwm.register("mine")`` above it, ``model: {family: mine}``
in a YAML file trains it; `check_world_model` (see `test_template.py`) tells whether it keeps the laws.

This one moves a latent with a residual MLP and knows vectors only.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from pydantic import PositiveInt

from jaxwm import Aux, Prediction, Spec, Stage


class Networks(nn.Module):
    """The linen modules, a method for each way they are used."""

    latent: int
    sizes: tuple[int, ...]

    def setup(self):
        self.encoder = nn.Dense(self.latent)
        self.hidden = nn.Dense(4 * self.latent)
        self.change = nn.Dense(self.latent)
        self.decoder = nn.Dense(sum(self.sizes))

    def encode(self, vectors):
        return self.encoder(vectors)

    def step(self, latent, action):
        return latent + self.change(nn.silu(self.hidden(jnp.concatenate([latent, action], axis=-1))))

    def decode(self, latent):
        return self.decoder(latent)

    def everything(self, vectors, action):  # touches every parameter, for init
        return self.decode(self.step(self.encode(vectors), action))


@dataclasses.dataclass(frozen=True)
class ResidualModel:
    """Residual dynamics of a latent ``[B, latent]``. Field types are what the configuration checks."""

    spec: Spec
    latent: PositiveInt = 32

    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    def __post_init__(self):
        if self.spec.images:  # what cannot work is refused where the model is made
            raise ValueError(f"observation {self.spec.images[0].name!r} is an image; this family knows vectors only")

    def init(self, key, batch):
        self.spec.check_trajectory(batch)
        params = self._networks.init(key, self._join(batch.observation), batch.action, method="everything")["params"]
        return {"params": params, "targets": {}}

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, self.latent))

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        self.spec.check_step(previous_action, observation, keys.shape[0])  # before anything is compiled
        return self._apply(variables, "encode", self._join(observation))

    def predict(self, variables, keys, state, action, condition=None):
        self.spec.check_action(action, keys.shape)
        return self._apply(variables, "step", state, self.spec.action.normalise(action))

    def features(self, variables, state):
        return state

    def decode(self, variables, state):
        parts = jnp.split(self._apply(variables, "decode", state), self._ends, axis=-1)
        return Prediction({field.name: part for field, part in zip(self.spec.vectors, parts, strict=True)})

    def surprise(self, variables, keys, state, previous_action, observation, condition=None):
        self.spec.check_step(previous_action, observation, keys.shape[0])
        expected = self.decode(variables, self.predict(variables, keys, state, previous_action)).observation
        return jnp.mean(jnp.square(self._join(expected) - self._join(observation)), axis=-1)

    def loss(self, variables, keys, batch, stage):
        self.spec.check_trajectory(batch)
        vectors = self._join(batch.observation)
        latents = self._apply(variables, "encode", vectors)
        # action[t] leads from t to t+1: the last one is void, and so is a step across two episodes.
        following = self._apply(variables, "step", latents[:, :-1], self.spec.action.normalise(batch.action[:, :-1]))
        real = batch.transitions()
        errors = jnp.mean(jnp.square(self._apply(variables, "decode", following) - vectors[:, 1:]), axis=-1)
        error = jnp.sum(jnp.where(real, errors, 0.0)) / jnp.maximum(jnp.sum(real), 1)
        return error, Aux({"loss/vectors": error})

    def after_update(self, variables, aux, stage):
        return variables

    @property
    def _networks(self):
        return Networks(self.latent, tuple(field.shape[0] for field in self.spec.vectors))

    @property
    def _ends(self):
        sizes = self._networks.sizes
        return [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]

    def _join(self, observation):
        return jnp.concatenate([observation[field.name] for field in self.spec.vectors], axis=-1)

    def _apply(self, variables, method, *args):
        return self._networks.apply({"params": variables["params"]}, *args, method=method)
