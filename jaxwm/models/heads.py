"""Heads that look at a representation and leave it as it is: what makes models visible that do not paint."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxwm.models.base import masked_mean
from jaxwm.nn import MLP, Activation, Bernoulli, Decoder, Kind, Linear, Norm
from jaxwm.types import Array, Prediction, Spec, Trajectory


class OnlookerHeads(nn.Module):
    """Decoder, reward and continuation on features that get no gradient from them.

    Their gradient is still part of the whole: a clip of its global norm lets what a picture costs slow down the
    representation. AGC, which clips each parameter for itself, does not.
    """

    spec: Spec
    depth: int
    units: int
    layers: int
    kind: Kind
    norm: Norm
    activation: Activation
    pixels: Any
    dtype: DTypeLike

    @nn.compact
    def __call__(self, features: Array) -> tuple[dict[str, Any], Array, Bernoulli]:
        """Distributions of what is seen, the reward ``[...]`` and the continuation, for ``features`` ``[..., F]``."""
        features = jax.lax.stop_gradient(features)
        style: dict[str, Any] = dict(norm=self.norm, activation=self.activation, dtype=self.dtype)
        decoder = Decoder(
            self.spec, self.depth, self.units, self.layers, self.kind,
            pixels=self.pixels, background=True, name="decoder", **style,
        )  # fmt: skip
        reward = MLP(self.units, 1, name="reward_hidden", **style)(features)
        reward = Linear(1, output_scale=0.0, dtype=self.dtype, name="reward_output")(reward)
        going = MLP(self.units, 1, name="continue_hidden", **style)(features)
        going = Linear(1, dtype=self.dtype, name="continue_output")(going)
        return decoder(features), reward[..., 0].astype(jnp.float32), Bernoulli(going[..., 0])


Looked = tuple[dict[str, Any], Array, Bernoulli]
"""What `OnlookerHeads` return."""


def predicted(looked: Looked) -> Prediction:
    """The likeliest observation, the expected reward, the probability of going on."""
    observation, reward, going = looked
    return Prediction({name: head.mode() for name, head in observation.items()}, reward, going.mean())


def onlooker_losses(looked: Looked, batch: Trajectory) -> dict[str, Array]:
    """Losses by name, each a mean over the entries ``[B, T]`` that there are."""
    observation, reward, going = looked
    rewards, rewarded = batch.previous_rewards()
    losses = {
        name: masked_mean(-head.log_prob(batch.observation[name]), batch.valid) for name, head in observation.items()
    }
    losses["reward"] = masked_mean(jnp.square(reward - rewards), rewarded)
    losses["continue"] = masked_mean(-going.log_prob(1.0 - batch.is_terminal), batch.valid)
    return losses
