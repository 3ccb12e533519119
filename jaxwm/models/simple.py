"""The simple world model: encoder, feed-forward dynamics, decoder.

The smallest thing that deserves the name, s_{t+1} = f(s_t, a_t) with a latent state that holds one frame. It
cannot infer what a single frame does not show (velocities, hidden things); `jaxwm.models.rssm` remembers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import make_decoder, make_encoder, masked_mean
from jaxwm.nn import MLP, Linear
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.nn.distributions import SymlogSquaredError
from jaxwm.nn.layers import symlog
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables


class _Networks(nn.Module):
    """All parameters of a `SimpleWorldModel`."""

    config: SimpleWorldModel

    def setup(self) -> None:
        c = self.config
        if c.coder != "identity":
            self.encoder = make_encoder(c, c.latent_size, c.hidden)
            self.decoder = make_decoder(c, c.hidden, c.background)
        self.hidden = MLP(c.hidden, 2, norm=c.norm, activation=c.activation, dtype=c.compute_dtype)
        self.next_latent = Linear(c.latent_size, dtype=c.compute_dtype)
        self.reward = Linear(1, dtype=c.compute_dtype)

    def encode(self, observation: Arrays) -> Array:
        """Raw observation to the latent, ``[..., latent]``."""
        if self.config.coder == "identity":
            return symlog(jnp.concatenate([observation[field.name] for field in self.config.spec.vectors], axis=-1))
        return self.encoder(observation)

    def predict_next(self, latent: Array, action: Array) -> Array:
        """The latent one step on."""
        action = self.config.spec.action.normalise(action)
        angles = [math.pi * 2**k * latent for k in range(self.config.frequencies)]
        waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
        following = self.next_latent(self.hidden(jnp.concatenate([latent, *waves, action], axis=-1)))
        # A step changes little: a tenth of the output begins with dreams that stand nearly still, and learns finely.
        return latent + 0.1 * following if self.config.residual else following

    def heads(self, latent: Array) -> tuple[dict[str, Any], Array]:
        """Distributions of the observation, and the reward ``[...]``."""
        reward = self.reward(latent)[..., 0].astype(jnp.float32)
        if self.config.coder != "identity":
            return self.decoder(latent), reward
        vectors = self.config.spec.vectors
        parts = jnp.split(latent, np.cumsum([field.shape[0] for field in vectors])[:-1], axis=-1)
        return {field.name: SymlogSquaredError(part) for field, part in zip(vectors, parts, strict=True)}, reward

    def everything(self, observation: Arrays, action: Array) -> Any:
        """Touches every parameter; only for initialisation."""
        return self.heads(self.predict_next(self.encode(observation), action))


@register("simple")
@dataclasses.dataclass(frozen=True)
class SimpleWorldModel:
    """Encoder, MLP dynamics and decoder; the state is the latent ``[B, latent]`` of the last frame.

    Args:
      spec: what the world shows and takes.
      latent: size of the latent; without meaning for the coder ``identity``.
      hidden: width of the dynamics (two layers) and of the vector coders.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      coder: of images ``patch`` (fast everywhere) or ``stride`` (three stride-2 layers, as in the listing); or
        ``identity``: the latent is the vectors of the observation themselves, through symlog, and nothing is coded. A
        dream then cannot leave the space that the model was trained in. For worlds without images.
      norm: normalisation of hidden layers.
      activation: activation of hidden layers.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` (as in the listing) or ``linear``.
      background: whether the decoder starts from the mean frame of the batch that `init` is given.
      residual: whether the dynamics predicts the change of the latent: steps that change little stay exact.
      frequencies: the dynamics sees the sines and cosines of the latent times pi, 2 pi, 4 pi and so on, this many of
        them, beside the latent itself: edges in space are then learned much sooner (Tancik et al. 2020,
        arXiv:2006.10739). For latents of about unit size, such as small vectors under ``identity``.
      unroll: how many steps ahead the loss looks. With 1 only single steps are learned, and dreams that go on from
        their own latents drift.
      reward_scale: weight of the reward loss.
      dtype: what the networks compute in; parameters are float32.
    """

    spec: Spec
    latent: PositiveInt = 128
    hidden: PositiveInt = 256
    layers: PositiveInt = 2
    depth: PositiveInt = 24
    coder: Literal["patch", "stride", "identity"] = "patch"
    norm: Literal["rms", "none"] = "rms"
    activation: Literal["silu", "relu"] = "silu"
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    background: bool = True
    residual: bool = False
    frequencies: NonNegativeInt = 0
    unroll: PositiveInt = 1
    reward_scale: NonNegativeFloat = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"

    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    def __post_init__(self) -> None:
        if self.coder == "identity" and self.spec.images:
            raise ValueError(f"coder=identity takes vectors only, but {self.spec.images[0].name!r} is an image")

    @property
    def latent_size(self) -> int:
        """Length of the latent."""
        return sum(field.shape[0] for field in self.spec.vectors) if self.coder == "identity" else self.latent

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        first = {name: value[:, 0] for name, value in batch.observation.items()}
        params = _Networks(self).init(key, first, batch.action[:, 0], method="everything")["params"]
        if self.background and self.coder != "identity":
            params = {**params, "decoder": start_from_mean_frame(params["decoder"], self.spec, batch, self.pixels)}
        return {"params": params, "targets": {}}

    def init_state(self, batch_size: int) -> Array:
        """Zeros ``[B, latent]``."""
        return jnp.zeros((batch_size, self.latent_size))

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: Array,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> Array:
        """The latent of this frame; what came before it is forgotten."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        return self.encode(variables, observation)

    def predict(
        self, variables: Variables, keys: Array, state: Array, action: Array, condition: Arrays | None = None
    ) -> Array:
        """The next latent; deterministic, so ``keys`` and sampling controls have no effect."""
        self.spec.check_action(action, (keys.shape[0],))
        return self.predict_next(variables, state, action)

    def features(self, variables: Variables, state: Array) -> Array:
        """The latent itself, ``[B, latent]``."""
        return state

    def decode(self, variables: Variables, state: Array) -> Prediction:
        """Images, vectors and reward; this family has no continuation head and no uncertainty."""
        observation, reward = self._apply(variables, "heads", state)
        return Prediction({name: head.mode() for name, head in observation.items()}, reward=reward)

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: Array,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """The prediction's mean squared error, as in the loss."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        heads, _ = self._apply(variables, "heads", self.predict_next(variables, state, previous_action))
        return sum(self._errors(heads, observation).values(), jnp.zeros(keys.shape[0]))

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """Mean squared error of the frames to come plus ``reward_scale`` times that of the rewards.

        Every frame that has ``unroll`` others after it in its window predicts them from itself and the actions; the
        mean is over these predictions. In ``Aux.states`` are the predicted latents ``[B, starts, unroll, latent]``.

        Raises:
          ValueError: the windows are not longer than ``unroll``.
        """
        self.spec.check_trajectory(batch)
        length = batch.reward.shape[1]
        if length <= self.unroll:
            raise ValueError(f"reward has {length} steps, expected more than unroll={self.unroll}")
        starts = length - self.unroll
        ahead = lambda x, first: jnp.stack([x[:, k : k + starts] for k in range(first, first + self.unroll)], axis=2)  # noqa: E731
        latent = self.encode(variables, {name: x[:, :starts] for name, x in batch.observation.items()})

        def step(latent: Array, action: Array) -> tuple[Array, Array]:
            latent = self.predict_next(variables, latent, action)
            return latent, latent

        _, latents = jax.lax.scan(step, latent, jnp.moveaxis(ahead(batch.action, 0), 2, 0))
        predicted = jnp.moveaxis(latents, 0, 2)
        heads, reward = self._apply(variables, "heads", predicted)
        # Each step of the way must be one within an episode.
        real = jnp.cumprod(ahead(batch.has_previous(), 1), axis=2) > 0
        errors = self._errors(heads, {name: ahead(x, 1) for name, x in batch.observation.items()})
        errors["reward"] = jnp.square(reward - ahead(batch.reward, 0))
        metrics = {f"loss/{name}": masked_mean(error, real) for name, error in errors.items()}
        total = sum(metrics.values(), jnp.zeros(())) + (self.reward_scale - 1.0) * metrics["loss/reward"]
        return total, Aux(metrics, predicted)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Nothing follows an update in this family."""
        return variables

    # The vocabulary of the listing; `jaxwm.imagination.imagine` with ``decode=True`` is its ``imagine``.

    def encode(self, variables: Variables, observation: Arrays) -> Array:
        """Raw observation ``[..., ...]`` to its latent ``[..., latent]``."""
        return self._apply(variables, "encode", observation)

    def predict_next(self, variables: Variables, latent: Array, action: Array) -> Array:
        """``latent`` ``[..., latent]`` and ``action`` ``[..., A]`` in raw units to the next latent."""
        return self._apply(variables, "predict_next", latent, action).astype(jnp.float32)

    def imagine(self, variables: Variables, observation: Arrays, actions: Array) -> Prediction:
        """From one real frame ``[B, ...]`` and ``actions`` ``[B, T, A]``, the predictions ``[B, T+1, ...]``."""
        from jaxwm.imagination import imagine

        state = self.encode(variables, observation)
        dream = imagine(self, variables, jax.random.key(0), state, actions, decode=True)
        assert dream.prediction is not None
        return dream.prediction

    def _errors(self, heads: dict[str, Any], observation: Arrays) -> dict[str, Array]:
        """Squared error of each part, a mean over its entries, ``[...]`` by name."""
        sizes = {field.name: math.prod(field.shape) for field in self.spec.observation}
        return {name: -head.log_prob(observation[name]) / sizes[name] for name, head in heads.items()}

    def _apply(self, variables: Variables, method: str, *args: Any) -> Any:
        return _Networks(self).apply({"params": variables["params"]}, *args, method=method)
