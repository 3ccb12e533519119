"""A small joint-embedding predictive world model: it learns to predict its own representation, and paints nothing.

Encoder and latent dynamics are trained together, end to end, by the error of the prediction in the space of the
representation (LeCun 2022; Sobal et al. 2025, arXiv:2502.14819). What keeps that space from collapsing is a choice of
terms: variance and covariance of VICReg (Bardes et al. 2022, arXiv:2105.04906) with slowness and inverse dynamics, or
SIGReg (Balestriero & LeCun 2025, arXiv:2511.08544). A decoder and heads that send no gradient back make it visible.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import make_encoder, masked_mean, scan_time
from jaxwm.models.heads import Looked, OnlookerHeads, onlooker_losses, predicted
from jaxwm.nn import MLP, GRUCell, Linear
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.nn.representation import covariance_penalty, sketched_gaussianity, variance_hinge, watch_collapse
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables


class JEPAState(struct.PyTreeNode):
    """What the model knows at one time.

    Attributes:
      latent: ``[B, latent]``, the representation of the last frame, seen or predicted.
      memory: ``[B, memory]``, what is remembered of those before it.
    """

    latent: Array
    memory: Array


class _Networks(nn.Module):
    config: JEPA

    def setup(self) -> None:
        c = self.config
        style: dict[str, Any] = dict(norm=c.norm, activation=c.activation, dtype=c.compute_dtype)
        self.encoder = make_encoder(c, c.latent, c.units, linear=True)
        if c.memory:
            self.cell = GRUCell(c.memory, dtype=c.compute_dtype)
        self.hidden = MLP(c.hidden, 2, **style)
        self.next_latent = Linear(c.latent, dtype=c.compute_dtype)
        self.inverse_hidden = MLP(c.hidden, 1, **style)
        self.inverse_output = Linear(c.spec.action.dim, dtype=c.compute_dtype)
        self.heads = OnlookerHeads(
            c.spec, c.depth, c.units, c.layers, c.coder, c.norm, c.activation, c.pixels, c.compute_dtype
        )

    def encode(self, observation: Arrays) -> Array:
        """Raw observation to its representation ``[..., latent]``."""
        return self.encoder(observation).astype(jnp.float32)

    def remember(self, memory: Array, latent: Array, action: Array) -> Array:
        """The memory after ``action`` was done in ``latent``."""
        if not self.config.memory:
            return memory
        return self.cell(memory, jnp.concatenate([latent, self.config.spec.action.normalise(action)], axis=-1))

    def predict_next(self, memory: Array, latent: Array, action: Array) -> Array:
        """The representation one step on; ``memory`` knows of the action already."""
        inputs = jnp.concatenate([latent, memory, self.config.spec.action.normalise(action)], axis=-1)
        return (latent + 0.1 * self.next_latent(self.hidden(inputs))).astype(jnp.float32)

    def act_between(self, latent: Array, following: Array) -> Array:
        """Logits of the action, or the action itself on the scale -1..1, that led from one to the other."""
        return self.inverse_output(self.inverse_hidden(jnp.concatenate([latent, following], axis=-1)))

    def look(self, features: Array) -> Looked:
        """What the heads make of ``features`` ``[..., F]``."""
        return self.heads(features)

    def everything(self, observation: Arrays, action: Array) -> Any:
        """Touches every parameter; only for initialisation."""
        latent = self.encode(observation)
        memory = self.remember(jnp.zeros((*latent.shape[:-1], self.config.memory)), latent, action)
        following = self.predict_next(memory, latent, action)
        return self.act_between(latent, following), self.look(jnp.concatenate([following, memory], axis=-1))


@register("jepa")
@dataclasses.dataclass(frozen=True)
class JEPA:
    """Joint-embedding predictive world model, trained end to end; the state is a latent and a memory.

    Features are both side by side, the ``latent`` entries first: those alone say where a goal is that is known by one
    frame (``first`` of the planner's objective). The terms of the loss each have a weight; 0 leaves a term out.

    Args:
      spec: what the world shows and takes.
      latent: size of the representation of a frame.
      memory: size of the memory (a GRU of latents and actions); 0 for none, where one frame shows all.
      hidden: width of the dynamics (two layers) and of the inverse dynamics.
      units: width of the vector coders and of the heads.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      coder: of images, ``patch`` or ``stride``.
      norm: normalisation of hidden layers.
      activation: activation of hidden layers.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      unroll: how many steps ahead every frame predicts that has so many others after it in its window, each from the
        prediction before.
      prediction_scale: squared error of predicted representations.
      variance_scale: hinge that keeps the standard deviation of each dimension at 1.
      covariance_scale: penalty of what two dimensions have in common.
      similarity_scale: squared distance of neighbouring frames: slowness.
      inverse_scale: error of the action that is read from two neighbouring frames.
      gaussian_scale: SIGReg, in place of variance and covariance.
      directions: of SIGReg, drawn anew in each step.
      dtype: what the networks compute in; parameters and states are float32.
    """

    spec: Spec
    latent: PositiveInt = 64
    memory: NonNegativeInt = 0
    hidden: PositiveInt = 256
    units: PositiveInt = 128
    layers: PositiveInt = 2
    depth: PositiveInt = 16
    coder: Literal["patch", "stride"] = "patch"
    norm: Literal["rms", "none"] = "rms"
    activation: Literal["silu", "relu"] = "silu"
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    unroll: PositiveInt = 1
    prediction_scale: NonNegativeFloat = 1.0
    variance_scale: NonNegativeFloat = 16.0
    covariance_scale: NonNegativeFloat = 8.0
    similarity_scale: NonNegativeFloat = 12.0
    inverse_scale: NonNegativeFloat = 1.0
    gaussian_scale: NonNegativeFloat = 0.0
    directions: PositiveInt = 256
    dtype: Literal["float32", "bfloat16"] = "float32"

    stages: ClassVar[tuple[Stage, ...]] = (Stage("train"),)

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        first = {name: value[:, 0] for name, value in batch.observation.items()}
        params = dict(_Networks(self).init(key, first, batch.action[:, 0], method="everything")["params"])
        decoder = start_from_mean_frame(params["heads"]["decoder"], self.spec, batch, self.pixels)
        params["heads"] = {**params["heads"], "decoder": decoder}
        return {"params": params, "targets": {}}

    def init_state(self, batch_size: int) -> JEPAState:
        """Zeros."""
        return JEPAState(jnp.zeros((batch_size, self.latent)), jnp.zeros((batch_size, self.memory)))

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: JEPAState,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> JEPAState:
        """The representation of this frame, and what is remembered of those before it."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        memory = self._apply(variables, "remember", state.memory, state.latent, previous_action)
        return JEPAState(self.encode(variables, observation), jnp.where(is_first[:, None], 0.0, memory))

    def predict(
        self, variables: Variables, keys: Array, state: JEPAState, action: Array, condition: Arrays | None = None
    ) -> JEPAState:
        """The next state; deterministic, so ``keys`` and sampling controls have no effect."""
        self.spec.check_action(action, (keys.shape[0],))
        memory = self._apply(variables, "remember", state.memory, state.latent, action)
        return JEPAState(self._apply(variables, "predict_next", memory, state.latent, action), memory)

    def features(self, variables: Variables, state: JEPAState) -> Array:
        """``[B, latent + memory]``."""
        return jnp.concatenate([state.latent, state.memory], axis=-1)

    def decode(self, variables: Variables, state: JEPAState) -> Prediction:
        """What the heads make of the features; no part of them has shaped the representation."""
        return predicted(self._apply(variables, "look", self.features(variables, state)))

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: JEPAState,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """The mean squared error of the predicted representation."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        expected = self.predict(variables, keys, state, previous_action).latent
        return jnp.mean(jnp.square(expected - self.encode(variables, observation)), axis=-1)

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The weighted sum of the terms; in ``Aux.states`` are those that the windows were seen in.

        Raises:
          ValueError: the windows are not longer than ``unroll``.
        """
        del stage
        self.spec.check_trajectory(batch)
        length = batch.reward.shape[1]
        if length <= self.unroll:
            raise ValueError(f"reward has {length} steps, expected more than unroll={self.unroll}")
        latent = self.encode(variables, batch.observation)
        states = JEPAState(latent, self._memories(variables, batch, latent))
        inside = batch.has_previous()[:, 1:]
        neighbours = latent[:, :-1], latent[:, 1:]

        terms = {
            "prediction": self._prediction_error(variables, batch, states),
            "variance": variance_hinge(latent, batch.valid),
            "covariance": covariance_penalty(latent, batch.valid),
            "similarity": masked_mean(jnp.mean(jnp.square(neighbours[1] - neighbours[0]), axis=-1), inside),
            "inverse": self._inverse_error(variables, batch, neighbours),
        }
        if self.gaussian_scale:
            terms["gaussian"] = sketched_gaussianity(keys[0], latent, batch.valid, self.directions)
        total = sum((getattr(self, f"{name}_scale") * term for name, term in terms.items()), jnp.zeros(()))
        watched = watch_collapse(latent, batch.valid)

        features = jnp.concatenate([states.latent, states.memory], axis=-1)
        heads = onlooker_losses(self._apply(variables, "look", features), batch)
        metrics = {f"loss/{name}": value for name, value in (terms | heads).items()}
        return total + sum(heads.values(), jnp.zeros(())), Aux(metrics | watched, states)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Nothing follows an update in this family."""
        return variables

    def encode(self, variables: Variables, observation: Arrays) -> Array:
        """Raw observation ``[..., ...]`` to its representation ``[..., latent]``."""
        return self._apply(variables, "encode", observation)

    def _memories(self, variables: Variables, batch: Trajectory, latent: Array) -> Array:
        """``[B, T, memory]``: what is remembered when each frame is seen."""
        rows, length = batch.reward.shape
        start = self.init_state(rows) if batch.initial_state is None else batch.initial_state
        if not self.memory:
            return jnp.zeros((rows, length, 0))

        def step(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            memory, before = carry
            now, action, is_first = inputs
            memory = self._apply(variables, "remember", memory, before, action)
            memory = jnp.where(is_first[:, None], 0.0, memory)
            return (memory, now), memory

        inputs = (latent, batch.previous_actions(), batch.is_first)
        return scan_time(step, (start.memory, start.latent), inputs)[1]

    def _prediction_error(self, variables: Variables, batch: Trajectory, states: JEPAState) -> Array:
        """Mean squared error of the representations 1 to ``unroll`` steps after each frame."""
        starts = batch.reward.shape[1] - self.unroll
        ahead = lambda x, first: jnp.stack([x[:, k : k + starts] for k in range(first, first + self.unroll)])  # noqa: E731

        def step(state: JEPAState, action: Array) -> tuple[JEPAState, Array]:
            memory = self._apply(variables, "remember", state.memory, state.latent, action)
            following = self._apply(variables, "predict_next", memory, state.latent, action)
            return JEPAState(following, memory), following

        begin = jax.tree.map(lambda x: x[:, :starts], states)
        _, predicted = jax.lax.scan(step, begin, ahead(batch.action, 0))
        # Each step of the way must be one within an episode, by an action that is known.
        real = jnp.cumprod(ahead(batch.transitions(), 0), axis=0) > 0
        return masked_mean(jnp.mean(jnp.square(predicted - ahead(states.latent, 1)), axis=-1), real)

    def _inverse_error(self, variables: Variables, batch: Trajectory, neighbours: tuple[Array, Array]) -> Array:
        """Cross entropy in nats of a discrete action, squared error of another on the scale -1..1."""
        known = batch.transitions()
        read = self._apply(variables, "act_between", *neighbours).astype(jnp.float32)
        done = self.spec.action.normalise(batch.action[:, :-1])
        if self.spec.action.discrete:
            return masked_mean(-jnp.sum(done * jax.nn.log_softmax(read), axis=-1), known)
        return masked_mean(jnp.mean(jnp.square(read - done), axis=-1), known)

    def _apply(self, variables: Variables, method: str, *args: Any) -> Any:
        return _Networks(self).apply({"params": variables["params"]}, *args, method=method)
