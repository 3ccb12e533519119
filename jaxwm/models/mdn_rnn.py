"""World Models: a picture becomes a few numbers (V), a memory says how they go on (M).

After Ha & Schmidhuber 2018, arXiv:1803.10122: a convolutional variational autoencoder, and on its latents an LSTM
whose output is a mixture density, trained one after the other. The third part of the paper, the linear controller (C)
that is evolved in the dream, works with any family: `jaxwm.agents.evolution`.

Read top to bottom: the networks, the state, the model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import make_decoder, make_encoder, masked_mean, temperature_of
from jaxwm.nn import Bernoulli, Linear, LSTMCell, Normal, NormalMixture
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables

_FIRST_STD = 0.15
"""Standard deviation that a fresh posterior has: wide noise would have to be unlearned before a picture is seen."""


class MDNRNNState(struct.PyTreeNode):
    """What the model knows at one time t.

    Attributes:
      latent: ``[B, latent]``, the frame at t, encoded by `MDNRNN.observe` or drawn by `MDNRNN.predict`.
      hidden: ``[B, hidden]``, output of the memory after frames and actions up to t - 1: it predicts the frame at t.
      cell: ``[B, hidden]``, the memory itself.
    """

    latent: Array
    hidden: Array
    cell: Array


class _Networks(nn.Module):
    """All parameters of an `MDNRNN`."""

    config: MDNRNN

    def setup(self) -> None:
        c = self.config
        linear = functools.partial(Linear, dtype=c.compute_dtype)
        self.encoder = make_encoder(c, c.embed, c.units)
        self.decoder = make_decoder(c, c.units, c.background)
        self.posterior = linear(2 * c.latent)
        self.memory = LSTMCell(c.hidden, dtype=c.compute_dtype)
        self.mixture = linear(c.mixtures * (2 * c.latent + c.choices))
        self.reward = linear(1, output_scale=0.0)
        self.done = linear(1, output_scale=0.0)

    def encode(self, observation: Arrays) -> Normal:
        """Raw observation ``[..., ...]`` to the distribution of its latent."""
        parameters = self.posterior(self.encoder(observation)).astype(jnp.float32)
        location, raw_std = jnp.split(parameters, 2, axis=-1)
        return Normal(location, jax.nn.softplus(raw_std))

    def decode(self, latent: Array) -> dict[str, Any]:
        """Distributions of the parts of the observation, for ``latent`` ``[..., latent]``."""
        return self.decoder(latent)

    def remember(self, latent: Array, hidden: Array, cell: Array, action: Array) -> tuple[Array, Array]:
        """The memory one step on, after ``latent`` and ``action`` in raw units."""
        action = self.config.spec.action.normalise(action)
        return self.memory(hidden, cell, jnp.concatenate([latent, action], axis=-1))

    def expect(self, hidden: Array) -> NormalMixture:
        """What the memory says of the latent."""
        c = self.config
        size = c.latent * c.mixtures
        location, raw_std, logits = jnp.split(self.mixture(hidden).astype(jnp.float32), [size, 2 * size], axis=-1)
        shape = (*hidden.shape[:-1], c.latent, c.mixtures)
        std = jax.nn.softplus(raw_std.reshape(shape)) + c.min_std
        return NormalMixture(logits.reshape(*hidden.shape[:-1], c.choices, c.mixtures), location.reshape(shape), std)

    def outcome(self, hidden: Array) -> tuple[Array, Array]:
        """What the memory says of the reward, and the logit of the end as it is trained, weighted; ``[...]`` each."""
        outputs = self.reward(hidden), self.done(hidden)
        return outputs[0][..., 0].astype(jnp.float32), outputs[1][..., 0].astype(jnp.float32)

    def everything(self, state: MDNRNNState, action: Array, observation: Arrays) -> Any:
        """Touches every parameter; only for initialisation."""
        latent = self.encode(observation).location
        hidden, _ = self.remember(latent, state.hidden, state.cell, action)
        return self.decode(latent), self.expect(hidden), self.outcome(hidden)


@register("mdn_rnn")
@dataclasses.dataclass(frozen=True)
class MDNRNN:
    """Variational autoencoder and mixture-density LSTM; the defaults are the paper's for CarRacing.

    Args:
      spec: what the world shows and takes.
      latent: numbers that a frame becomes (the paper: 32, in VizDoom 64).
      hidden: size of the memory (the paper: 256, in VizDoom 512).
      mixtures: Gaussians in each mixture.
      mixture: ``dimension``, where each latent number has a mixture of its own, or ``joint``, where one choice of a
        component holds for all of them.
      cell_features: whether features are [z, c, h] with the LSTM's cell, or [z, h].
      embed: size of the encoder's output.
      units: width of the vector coders.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      coder: ``patch`` (fast everywhere) or ``stride`` (stride-2 convolutions).
      norm: normalisation of hidden layers in the coders.
      activation: activation of hidden layers in the coders.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      background: whether the decoder starts from the mean frame of the batch that `init` is given.
      free_nats: KL of a latent dimension below this many nats, on average over a batch, costs nothing.
      kl_scale: weight of the KL.
      min_std: least standard deviation of a component.
      reward_scale: weight of the reward's squared error.
      done_scale: weight of the loss of the end of an episode.
      done_weight: how much more a frame that ends an episode counts in that loss than another: ends are rare.
        Predictions are corrected for it, so they are probabilities all the same.
      dtype: what the networks compute in; parameters and distributions are float32.
    """

    spec: Spec
    latent: PositiveInt = 32
    hidden: PositiveInt = 256
    mixtures: PositiveInt = 5
    mixture: Literal["dimension", "joint"] = "dimension"
    cell_features: bool = False
    embed: PositiveInt = 256
    units: PositiveInt = 256
    layers: PositiveInt = 2
    depth: PositiveInt = 16
    coder: Literal["patch", "stride"] = "patch"
    norm: Literal["rms", "none"] = "rms"
    activation: Literal["silu", "relu"] = "silu"
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    background: bool = True
    free_nats: NonNegativeFloat = 0.5
    kl_scale: NonNegativeFloat = 1.0
    min_std: PositiveFloat = 0.01
    reward_scale: NonNegativeFloat = 1.0
    done_scale: NonNegativeFloat = 1.0
    done_weight: Annotated[float, Field(gt=0)] = 10.0
    dtype: Literal["float32", "bfloat16"] = "float32"

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("vae", ("encoder", "posterior", "decoder")),
        Stage("dynamics", ("memory", "mixture", "reward", "done")),
    )

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    @property
    def choices(self) -> int:
        """How many components are chosen for a latent: one for each number, or one for all."""
        return self.latent if self.mixture == "dimension" else 1

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        first = {name: value[:, 0] for name, value in batch.observation.items()}
        state = self.init_state(batch.reward.shape[0])
        params = dict(_Networks(self).init(key, state, batch.action[:, 0], first, method="everything")["params"])
        narrow = params["posterior"]["bias"].at[self.latent :].set(math.log(math.expm1(_FIRST_STD)))
        params["posterior"] = {**params["posterior"], "bias": narrow}
        if self.background:
            params["decoder"] = start_from_mean_frame(params["decoder"], self.spec, batch, self.pixels)
        return {"params": params, "targets": {}}

    def init_state(self, batch_size: int) -> MDNRNNState:
        """Zeros; see `jaxwm.types.WorldModel.init_state`."""
        memory = jnp.zeros((batch_size, self.hidden))
        return MDNRNNState(jnp.zeros((batch_size, self.latent)), memory, memory)

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: MDNRNNState,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> MDNRNNState:
        """The frame as the encoder sees it, beside a memory that has not; an episode begins with an empty memory."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        hidden, cell = self._remember(variables, state, previous_action)
        empty = is_first[:, None]
        latent = self._apply(variables, "encode", observation).sample(keys, temperature_of(condition))
        return MDNRNNState(latent, jnp.where(empty, 0.0, hidden), jnp.where(empty, 0.0, cell))

    def predict(
        self, variables: Variables, keys: Array, state: MDNRNNState, action: Array, condition: Arrays | None = None
    ) -> MDNRNNState:
        """A latent drawn from the mixture; the control ``temperature`` is the paper's, see `NormalMixture.sample`."""
        self.spec.check_action(action, (keys.shape[0],))
        hidden, cell = self._remember(variables, state, action)
        latent = self._apply(variables, "expect", hidden).sample(keys, temperature_of(condition))
        return MDNRNNState(latent, hidden, cell)

    def features(self, variables: Variables, state: MDNRNNState) -> Array:
        """[z, h] of the paper, ``[B, latent + hidden]``; [z, c, h] with `cell_features`."""
        parts = [state.latent, state.cell, state.hidden] if self.cell_features else [state.latent, state.hidden]
        return jnp.concatenate(parts, axis=-1)

    def decode(self, variables: Variables, state: MDNRNNState) -> Prediction:
        """Images, vectors, reward and continuation; this family has no uncertainty.

        As in the paper reward and end are read from the memory alone, before the frame is seen.
        """
        heads = self._apply(variables, "decode", state.latent)
        reward, done = self._apply(variables, "outcome", state.hidden)
        return Prediction(
            observation={name: head.mode() for name, head in heads.items()},
            reward=reward,
            continuation=jax.nn.sigmoid(math.log(self.done_weight) - done),
        )

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: MDNRNNState,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """Minus the log density of the frame's latent (the mean that the encoder gives) under the mixture, in nats."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        hidden, _ = self._remember(variables, state, previous_action)
        latent = self._apply(variables, "encode", observation).location
        return -self._apply(variables, "expect", hidden).log_prob(latent)

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The loss of V in the stage ``vae`` and that of M in ``dynamics``, means over the entries that count.

        V: squared error summed over the frame (images on the scale 0..1, vectors in symlog space), and the KL to the
        standard normal with free bits for each dimension (Kingma et al. 2016, equation 15). M: negative log-likelihood
        of the next latent in nats a dimension, squared error of the reward, weighted cross entropy of the end.
        """
        self.spec.check_trajectory(batch)
        if stage == "vae":
            return self._vae_loss(variables, keys, batch)
        return self._dynamics_loss(variables, keys, batch)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Nothing follows an update in this family."""
        return variables

    def _vae_loss(self, variables: Variables, keys: Array, batch: Trajectory) -> tuple[Array, Aux]:
        posterior = self._apply(variables, "encode", batch.observation)
        heads = self._apply(variables, "decode", _sample_windows(posterior, keys))
        metrics = {
            f"loss/{name}": masked_mean(-head.log_prob(batch.observation[name]), batch.valid)
            for name, head in heads.items()
        }
        variance = jnp.square(posterior.std)
        kl = 0.5 * (variance + jnp.square(posterior.location) - 1.0 - jnp.log(variance))
        kl = jnp.sum(jnp.where(batch.valid[..., None], kl, 0.0), axis=(0, 1)) / jnp.maximum(jnp.sum(batch.valid), 1)
        metrics["loss/kl"] = jnp.sum(jnp.maximum(kl, self.free_nats))
        total = sum(metrics.values(), jnp.zeros(())) + (self.kl_scale - 1.0) * metrics["loss/kl"]
        metrics["kl"] = jnp.sum(kl)
        metrics["used_dimensions"] = jnp.sum(kl > self.free_nats).astype(jnp.float32)
        return total, Aux(metrics)

    def _dynamics_loss(self, variables: Variables, keys: Array, batch: Trajectory) -> tuple[Array, Aux]:
        posterior = jax.lax.stop_gradient(self._apply(variables, "encode", batch.observation))
        latents = _sample_windows(posterior, keys)

        def step(memory: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            latent, action, begins = inputs
            hidden, cell = (jnp.where(begins[:, None], 0.0, x) for x in memory)
            hidden, cell = self._apply(variables, "remember", latent, hidden, cell, action)
            return (hidden, cell), hidden

        by_time = lambda x: jnp.swapaxes(x[:, :-1], 0, 1)  # noqa: E731
        if batch.initial_state is None:
            empty = self.init_state(batch.reward.shape[0])
            start = (empty.hidden, empty.cell)
        else:
            start = self._remember(variables, batch.initial_state, batch.previous_action)
        inputs = (by_time(latents), by_time(batch.action), by_time(batch.is_first))
        _, hidden = jax.lax.scan(step, start, inputs)
        hidden = jnp.swapaxes(hidden, 0, 1)  # entry t predicts the frame at t + 1

        follows = batch.has_previous()[:, 1:]
        reward, done = self._apply(variables, "outcome", hidden)
        ends = batch.is_terminal[:, 1:].astype(jnp.float32)
        weight = jnp.where(batch.is_terminal[:, 1:], self.done_weight, 1.0)
        metrics = {
            "loss/latent": masked_mean(
                -self._apply(variables, "expect", hidden).log_prob(latents[:, 1:]) / self.latent, follows
            ),
            "loss/reward": masked_mean(jnp.square(reward - batch.reward[:, :-1]), follows),
            "loss/done": masked_mean(-weight * Bernoulli(done).log_prob(ends), follows),
        }
        weights = {"loss/reward": self.reward_scale, "loss/done": self.done_scale}
        total = sum((weights.get(name, 1.0) * term for name, term in metrics.items()), jnp.zeros(()))
        return total, Aux(metrics)

    def _remember(self, variables: Variables, state: MDNRNNState, action: Array) -> tuple[Array, Array]:
        return self._apply(variables, "remember", state.latent, state.hidden, state.cell, action)

    def _apply(self, variables: Variables, method: str, *args: Any) -> Any:
        return _Networks(self).apply({"params": variables["params"]}, *args, method=method)


def _sample_windows(posterior: Normal, keys: Array) -> Array:
    """Latents ``[B, T, D]`` drawn from ``posterior`` with one key for each of the B rows."""
    noise = jax.vmap(lambda key: jax.random.normal(key, posterior.location.shape[1:]))(keys)
    return posterior.location + posterior.std * noise
