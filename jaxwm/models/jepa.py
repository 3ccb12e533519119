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
from jaxwm.nn.transformer import Cache, FrameTransformer, clear_rows, size_of_heads, window_mask
from jaxwm.types import Array, Arrays, Aux, Prediction, PyTree, Spec, Stage, Trajectory, Variables


class JEPAState(struct.PyTreeNode):
    """What the model knows at one time.

    Attributes:
      latent: ``[B, latent]``, the representation of the last frame, seen or predicted.
      memory: what is remembered of the frames before: ``[B, memory]``, or keys and values of ``history`` frames.
      known: ``[B]`` bool, whether there has been a frame at all.
    """

    latent: Array
    memory: PyTree
    known: Array


class _Networks(nn.Module):
    config: JEPA

    def setup(self) -> None:
        c = self.config
        style: dict[str, Any] = dict(norm=c.norm, activation=c.activation, dtype=c.compute_dtype)
        self.encoder = make_encoder(c, c.latent, c.units, linear=True)
        if c.history:
            self.trunk = c.trunk
            self.steering = Linear(c.latent, dtype=c.compute_dtype)
        else:
            self.hidden = MLP(c.hidden, 2, **style)
        if c.memory:
            self.cell = GRUCell(c.memory, dtype=c.compute_dtype)
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
        """The recurrent memory after ``action`` was done in ``latent``."""
        if not self.config.memory:
            return memory
        return self.cell(memory, jnp.concatenate([latent, self.config.spec.action.normalise(action)], axis=-1))

    def step(self, memory: PyTree, latent: Array, action: Array) -> tuple[Array, PyTree]:
        """The representation one step after ``[B, latent]``, and what is remembered there."""
        if isinstance(memory, Cache):
            following, entries = self.attend(latent[:, None], action[:, None], cache=memory)
            return following[:, 0], memory.append(entries)
        memory = self.remember(memory, latent, action)
        inputs = jnp.concatenate([latent, memory, self.config.spec.action.normalise(action)], axis=-1)
        return self._following(latent, self.hidden(inputs)), memory

    def attend(
        self, latent: Array, action: Array, mask: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Any]:
        """Representations ``[B, T, latent]`` one step after each, by attention; and the entries for the cache."""
        steering = self.steering(self.config.spec.action.normalise(action))[:, :, None]
        # The action is also part of the token: steering begins at zero, and would be silent in a fresh model.
        out, entries = self.trunk(latent[:, :, None] + steering, steering, cache, mask)
        return self._following(latent, out[:, :, 0]), entries

    def _following(self, latent: Array, hidden: Array) -> Array:
        return (latent + 0.1 * self.next_latent(hidden)).astype(jnp.float32)

    def act_between(self, latent: Array, following: Array) -> Array:
        """Logits of the action, or the action itself on the scale -1..1, that led from one to the other."""
        return self.inverse_output(self.inverse_hidden(jnp.concatenate([latent, following], axis=-1)))

    def look(self, features: Array) -> Looked:
        """What the heads make of ``features`` ``[..., F]``."""
        return self.heads(features)

    def everything(self, memory: PyTree, action: Array, observation: Arrays) -> Any:
        """Touches every parameter; only for initialisation."""
        latent = self.encode(observation)
        following, memory = self.step(memory, latent, action)
        return self.act_between(latent, following), self.look(_features(self.config, following, memory))


@register("jepa")
@dataclasses.dataclass(frozen=True)
class JEPA:
    """Joint-embedding predictive world model, trained end to end; the state is a latent and a memory.

    The dynamics is an MLP on the latent, the action and a recurrent memory. With ``history`` it is a transformer over
    the latents of so many frames before and the last one, steered by the actions; a ring of keys and values makes a
    step as cheap as one frame. With ``gaussian_scale`` in place of the other terms this is in the manner of
    LeWorldModel (Maes et al. 2026, arXiv:2603.19312). Video without known actions trains the representation, but no
    dynamics.

    Features are latent and recurrent memory side by side, the ``latent`` entries first: those alone say where a goal
    is that is known by one frame (``first`` of the planner's objective). The terms of the loss each have a weight; 0
    leaves a term out.

    Args:
      spec: what the world shows and takes.
      latent: size of the representation of a frame, and width of the transformer.
      memory: size of the recurrent memory (a GRU of latents and actions); 0 for none, where one frame shows all.
      history: frames before the last one that each block of the transformer sees (all blocks together ``blocks`` times
        as many); 0 for an MLP in its place.
      blocks: of the transformer.
      heads: of its attention.
      head_size: of its heads; by default they are together as wide as the latent.
      hidden: width of the dynamics (two layers, or those inside of the transformer) and of the inverse dynamics.
      units: width of the vector coders and of the heads.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      coder: of images, ``patch`` or ``stride``.
      norm: normalisation of hidden layers.
      activation: activation of hidden layers.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      unroll: how many steps ahead every frame predicts that has so many others after it in its window, each from the
        prediction before. With ``history`` every frame predicts the next one, and the first of a window so many.
      prediction_scale: squared error of predicted representations.
      variance_scale: hinge that keeps the standard deviation of each dimension at 1.
      covariance_scale: penalty of what two dimensions have in common.
      similarity_scale: squared distance of neighbouring frames: slowness.
      inverse_scale: error of the action that is read from two neighbouring frames.
      gaussian_scale: SIGReg, in place of variance and covariance.
      directions: of SIGReg, drawn anew in each step.
      dtype: what the networks compute in; parameters and states are float32.

    Raises:
      ValueError: both ``memory`` and ``history``, or heads that do not divide the latent.
    """

    spec: Spec
    latent: PositiveInt = 64
    memory: NonNegativeInt = 0
    history: NonNegativeInt = 0
    blocks: PositiveInt = 4
    heads: PositiveInt = 4
    head_size: PositiveInt | None = None
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

    def __post_init__(self) -> None:
        if self.memory and self.history:
            raise ValueError(f"memory={self.memory} and history={self.history} exclude each other: one of them is 0")
        if self.history:
            size_of_heads(self.latent, self.heads, self.head_size)

    @property
    def trunk(self) -> FrameTransformer:
        """The transformer; a frame is one token."""
        return FrameTransformer(
            self.blocks, self.heads, self.history,
            conditioned=True, hidden=self.hidden, head_size=self.head_size, dtype=self.compute_dtype,
        )  # fmt: skip

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        first = {name: value[:, 0] for name, value in batch.observation.items()}
        memory = self.init_state(batch.reward.shape[0]).memory
        params = dict(_Networks(self).init(key, memory, batch.action[:, 0], first, method="everything")["params"])
        decoder = start_from_mean_frame(params["heads"]["decoder"], self.spec, batch, self.pixels)
        params["heads"] = {**params["heads"], "decoder": decoder}
        return {"params": params, "targets": {}}

    def init_state(self, batch_size: int) -> JEPAState:
        """Nothing has been seen."""
        empty = jnp.zeros((batch_size, self.memory))
        memory = self.trunk.init_cache(batch_size, 1, self.latent) if self.history else empty
        return JEPAState(jnp.zeros((batch_size, self.latent)), memory, jnp.zeros(batch_size, bool))

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
        memory = self._apply(variables, "step", state.memory, state.latent, previous_action)[1]
        memory = clear_rows(memory, is_first | ~state.known)
        return JEPAState(self.encode(variables, observation), memory, jnp.ones_like(state.known))

    def predict(
        self, variables: Variables, keys: Array, state: JEPAState, action: Array, condition: Arrays | None = None
    ) -> JEPAState:
        """The next state; deterministic, so ``keys`` and sampling controls have no effect."""
        self.spec.check_action(action, (keys.shape[0],))
        following, memory = self._apply(variables, "step", state.memory, state.latent, action)
        return JEPAState(following, memory, jnp.ones_like(state.known))

    def features(self, variables: Variables, state: JEPAState) -> Array:
        """``[B, latent + memory]``."""
        return _features(self, state.latent, state.memory)

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

        With ``history`` a window is seen for itself, and its states hold no cache.

        Raises:
          ValueError: the windows are not longer than ``unroll``.
        """
        del stage
        self.spec.check_trajectory(batch)
        length = batch.reward.shape[1]
        if length <= self.unroll:
            raise ValueError(f"reward has {length} steps, expected more than unroll={self.unroll}")
        latent = self.encode(variables, batch.observation)
        memories = () if self.history else self._memories(variables, batch, latent)
        states = JEPAState(latent, memories, batch.valid)
        inside = batch.has_previous()[:, 1:]
        neighbours = latent[:, :-1], latent[:, 1:]

        terms = {
            "prediction": (self._attentive_error if self.history else self._recurrent_error)(variables, batch, states),
            "variance": variance_hinge(latent, batch.valid),
            "covariance": covariance_penalty(latent, batch.valid),
            "similarity": masked_mean(jnp.mean(jnp.square(neighbours[1] - neighbours[0]), axis=-1), inside),
            "inverse": self._inverse_error(variables, batch, neighbours),
        }
        if self.gaussian_scale:
            terms["gaussian"] = sketched_gaussianity(keys[0], latent, batch.valid, self.directions)
        total = sum((getattr(self, f"{name}_scale") * term for name, term in terms.items()), jnp.zeros(()))
        watched = watch_collapse(latent, batch.valid)

        features = _features(self, latent, memories)
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
            now, action, begins = inputs
            memory = clear_rows(self._apply(variables, "remember", memory, before, action), begins)
            return (memory, now), memory

        begins = batch.is_first.at[:, 0].set(batch.is_first[:, 0] | ~start.known)
        return scan_time(step, (start.memory, start.latent), (latent, batch.previous_actions(), begins))[1]

    def _recurrent_error(self, variables: Variables, batch: Trajectory, states: JEPAState) -> Array:
        """Mean squared error of the representations 1 to ``unroll`` steps after each frame."""
        starts = batch.reward.shape[1] - self.unroll
        ahead = lambda x, first: jnp.stack([x[:, k : k + starts] for k in range(first, first + self.unroll)])  # noqa: E731

        def step(carry: tuple[Array, Array], action: Array) -> tuple[tuple[Array, Array], Array]:
            following, memory = self._apply(variables, "step", carry[1], carry[0], action)
            return (following, memory), following

        begin = jax.tree.map(lambda x: x[:, :starts], (states.latent, states.memory))
        _, predicted = jax.lax.scan(step, begin, ahead(batch.action, 0))
        # Each step of the way must be one within an episode, by an action that is known.
        real = jnp.cumprod(ahead(batch.transitions(), 0), axis=0) > 0
        return masked_mean(jnp.mean(jnp.square(predicted - ahead(states.latent, 1)), axis=-1), real)

    def _attentive_error(self, variables: Variables, batch: Trajectory, states: JEPAState) -> Array:
        """Mean squared error one step after every frame, and 2 to ``unroll`` steps after the first."""
        latent, real = states.latent, batch.transitions()
        segments = jnp.cumsum(batch.is_first, axis=1)[:, :-1]
        mask = window_mask(segments.shape[1], self.trunk.window, segments)
        following, _ = self._apply(variables, "attend", latent[:, :-1], batch.action[:, :-1], mask)
        errors = jnp.mean(jnp.square(following - latent[:, 1:]), axis=-1)
        if self.unroll == 1:
            return masked_mean(errors, real)

        def step(carry: tuple[Array, PyTree], action: Array) -> tuple[tuple[Array, PyTree], Array]:
            now, memory = self._apply(variables, "step", carry[1], carry[0], action)
            return (now, memory), now

        start = latent[:, 0], self.init_state(len(latent)).memory
        _, ahead = scan_time(step, start, batch.action[:, : self.unroll])
        further = jnp.mean(jnp.square(ahead - latent[:, 1 : self.unroll + 1]), axis=-1)[:, 1:]
        reached = (jnp.cumprod(real[:, : self.unroll], axis=1) > 0)[:, 1:]
        return masked_mean(jnp.concatenate([errors, further], axis=1), jnp.concatenate([real, reached], axis=1))

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


def _features(model: JEPA, latent: Array, memory: PyTree) -> Array:
    """Latent ``[..., latent]`` and recurrent memory side by side."""
    return latent if model.history else jnp.concatenate([latent, memory], axis=-1)
