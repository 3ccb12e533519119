"""The simple world model: encoder, feed-forward dynamics, decoder.

The smallest thing that deserves the name, s_{t+1} = f(s_t, a_t) with a latent state that holds one frame. It
cannot infer what a single frame does not show (velocities, hidden things); `jaxwm.models.rssm` remembers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from pydantic import NonNegativeFloat, PositiveInt

from jaxwm.models import register
from jaxwm.nn import MLP, Decoder, Encoder, Linear
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables


class _Networks(nn.Module):
    """All parameters of a `SimpleWorldModel`."""

    config: SimpleWorldModel

    def setup(self) -> None:
        c = self.config
        style: dict[str, Any] = dict(norm=c.norm, activation=c.activation, dtype=c.compute_dtype)
        coder = dict(depth=c.depth, units=c.hidden, layers=c.layers, kind=c.coder, **style)
        self.encoder = Encoder(c.spec, embed=c.latent, **coder)
        self.hidden = MLP(c.hidden, 2, **style)
        self.next_latent = Linear(c.latent, dtype=c.compute_dtype)
        self.decoder = Decoder(c.spec, **coder)
        self.reward = Linear(1, dtype=c.compute_dtype)

    def encode(self, observation: Arrays) -> Array:
        """Raw observation to the latent, ``[..., latent]``."""
        return self.encoder(observation)

    def predict_next(self, latent: Array, action: Array) -> Array:
        """The latent one step on."""
        action = self.config.spec.action.normalise(action)
        return self.next_latent(self.hidden(jnp.concatenate([latent, action], axis=-1)))

    def heads(self, latent: Array) -> tuple[dict[str, Any], Array]:
        """Distributions of the observation, and the reward ``[...]``."""
        return self.decoder(latent), self.reward(latent)[..., 0].astype(jnp.float32)

    def everything(self, observation: Arrays, action: Array) -> Any:
        """Touches every parameter; only for initialisation."""
        return self.heads(self.predict_next(self.encode(observation), action))


@register("simple")
@dataclasses.dataclass(frozen=True)
class SimpleWorldModel:
    """Encoder, MLP dynamics and decoder; the state is the latent ``[B, latent]`` of the last frame.

    Args:
      spec: what the world shows and takes.
      latent: size of the latent.
      hidden: width of the dynamics (two layers) and of the vector coders.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      coder: ``patch`` (fast everywhere) or ``stride`` (three stride-2 layers, as in the listing).
      norm: normalisation of hidden layers.
      activation: activation of hidden layers.
      squash: how pixels are brought to [0, 1]: ``sigmoid`` of the decoder's output, or by ``clip`` when shown.
      reward_scale: weight of the reward loss.
      dtype: what the networks compute in; parameters are float32.
    """

    spec: Spec
    latent: PositiveInt = 128
    hidden: PositiveInt = 256
    layers: PositiveInt = 2
    depth: PositiveInt = 32
    coder: Literal["patch", "stride"] = "patch"
    norm: Literal["rms", "none"] = "rms"
    activation: Literal["silu", "relu"] = "silu"
    reward_scale: NonNegativeFloat = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"

    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)
