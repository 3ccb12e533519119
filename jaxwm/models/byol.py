"""Latent self-prediction: a belief that foretells its own later representations, and is curious where it cannot.

BYOL-Explore (Guo et al. 2022, arXiv:2206.08332): a recurrent belief takes in what is seen, another recurrence lets it
run on by actions alone, and both learn by one loss, the distance of the unit vectors that they predict to those that a
slowly following copy of the encoder makes of the frames to come. The same distance is the curiosity reward. A decoder
and heads that send no gradient back make it visible.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from pydantic import Field, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import make_encoder, masked_mean, scan_time
from jaxwm.models.heads import Looked, OnlookerHeads, onlooker_losses, predicted
from jaxwm.nn import MLP, GRUCell, Linear
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.nn.representation import watch_collapse
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables


class BYOLState(struct.PyTreeNode):
    """What the model knows at one time.

    Attributes:
      belief: ``[B, belief]``, after a frame that was seen or an action that was imagined.
    """

    belief: Array


class _Networks(nn.Module):
    config: BYOL

    def setup(self) -> None:
        c = self.config
        style: dict[str, Any] = dict(norm=c.norm, activation=c.activation, dtype=c.compute_dtype)
        self.encoder = make_encoder(c, c.latent, c.units, linear=True)
        self.closed_cell = GRUCell(c.belief, dtype=c.compute_dtype)
        self.open_cell = GRUCell(c.belief, dtype=c.compute_dtype)
        self.predictor_hidden = MLP(c.hidden, 1, **style)
        self.predictor_output = Linear(c.latent, dtype=c.compute_dtype)
        self.heads = OnlookerHeads(
            c.spec, c.depth, c.units, c.layers, c.coder, c.norm, c.activation, c.pixels, c.compute_dtype
        )

    def encode(self, observation: Arrays) -> Array:
        """Raw observation to its representation ``[..., latent]``, of any length."""
        return self.encoder(observation).astype(jnp.float32)

    def see(self, belief: Array, latent: Array, previous_action: Array) -> Array:
        """The belief after a frame."""
        action = self.config.spec.action.normalise(previous_action)
        return self.closed_cell(belief, jnp.concatenate([latent, action], axis=-1))

    def run_on(self, belief: Array, action: Array) -> Array:
        """The belief after an action whose frame is not seen."""
        return self.open_cell(belief, self.config.spec.action.normalise(action))

    def foretell(self, belief: Array) -> Array:
        """The representation that the belief expects here, a unit vector ``[..., latent]``."""
        return _unit(self.predictor_output(self.predictor_hidden(belief)).astype(jnp.float32))

    def look(self, features: Array) -> Looked:
        """What the heads make of ``features`` ``[..., F]``."""
        return self.heads(features)

    def everything(self, observation: Arrays, action: Array) -> Any:
        """Touches every parameter; only for initialisation."""
        latent = self.encode(observation)
        belief = self.see(jnp.zeros((*latent.shape[:-1], self.config.belief)), latent, action)
        belief = self.run_on(belief, action)
        return self.look(jnp.concatenate([self.foretell(belief), belief], axis=-1))


@register("byol")
@dataclasses.dataclass(frozen=True)
class BYOL:
    """Latent self-prediction with a slow target encoder; the state is a belief.

    Features are the representation that the belief expects, ``latent`` entries of unit length, and the belief itself.
    The first alone say where a goal is that is known by one frame (``first`` of the planner's objective). Video
    without known actions teaches it to foretell the frame that it sees, and nothing further.

    Args:
      spec: what the world shows and takes.
      latent: size of the representation of a frame.
      belief: size of the recurrent belief.
      hidden: width of the predictor.
      units: width of the vector coders and of the heads.
      layers: hidden layers of the vector coders.
      depth: width of the image coders.
      coder: of images, ``patch`` or ``stride``.
      norm: normalisation of hidden layers.
      activation: activation of hidden layers.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      unroll: how many actions ahead the belief runs on, from every frame.
      target_rate: step of the target encoder towards the encoder, in each update.
      dtype: what the networks compute in; parameters and states are float32.
    """

    spec: Spec
    latent: PositiveInt = 64
    belief: PositiveInt = 256
    hidden: PositiveInt = 256
    units: PositiveInt = 128
    layers: PositiveInt = 2
    depth: PositiveInt = 16
    coder: Literal["patch", "stride"] = "patch"
    norm: Literal["rms", "none"] = "rms"
    activation: Literal["silu", "relu"] = "silu"
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    unroll: PositiveInt = 8
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
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
        return {"params": params, "targets": {"encoder": params["encoder"], "error": jnp.ones(())}}

    def init_state(self, batch_size: int) -> BYOLState:
        """Zeros ``[B, belief]``."""
        return BYOLState(jnp.zeros((batch_size, self.belief)))

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: BYOLState,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> BYOLState:
        """The belief after this frame."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        latent = self._apply(variables, "encode", observation)
        return BYOLState(self._see(variables, state.belief, latent, previous_action, is_first))

    def predict(
        self, variables: Variables, keys: Array, state: BYOLState, action: Array, condition: Arrays | None = None
    ) -> BYOLState:
        """The belief runs on; deterministic, so ``keys`` and sampling controls have no effect."""
        self.spec.check_action(action, (keys.shape[0],))
        return BYOLState(self._apply(variables, "run_on", state.belief, action))

    def features(self, variables: Variables, state: BYOLState) -> Array:
        """``[B, latent + belief]``."""
        return jnp.concatenate([self._apply(variables, "foretell", state.belief), state.belief], axis=-1)

    def decode(self, variables: Variables, state: BYOLState) -> Prediction:
        """What the heads make of the features; no part of them has shaped the representation."""
        return predicted(self._apply(variables, "look", self.features(variables, state)))

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: BYOLState,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """Squared distance of the expected unit vector to the target encoder's, 0 to 4."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        expected = self._apply(variables, "foretell", self.predict(variables, keys, state, previous_action).belief)
        return jnp.sum(jnp.square(expected - self._targets(variables, observation)), axis=-1)

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The mean distance over all frames and all of the 0 to ``unroll`` actions that they are foretold by.

        The prediction by no action, of the frame that was just seen, is what makes features of seen and of imagined
        states speak of the same thing.
        """
        del stage
        beliefs, errors, real = self._errors(variables, batch)
        self_prediction = masked_mean(errors, real)

        watched = self._half_imagined(variables, keys, batch, beliefs)
        features = jnp.concatenate([self._apply(variables, "foretell", watched), watched], axis=-1)
        heads = onlooker_losses(self._apply(variables, "look", features), batch)
        total = self_prediction + sum(heads.values(), jnp.zeros(()))
        metrics = {f"loss/{name}": value for name, value in ({"self_prediction": self_prediction} | heads).items()}
        targets = self._targets(variables, batch.observation)
        return total, Aux(metrics | watch_collapse(self.latent**0.5 * targets, batch.valid), BYOLState(beliefs))

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Moves the target encoder, and the mean error that curiosity is measured by."""
        params, targets = variables["params"], variables["targets"]
        follow = lambda slow, fast: slow + self.target_rate * (fast - slow)  # noqa: E731
        error = follow(targets["error"], aux.metrics["loss/self_prediction"])
        encoder = jax.tree.map(follow, targets["encoder"], params["encoder"])
        return {**variables, "targets": {"encoder": encoder, "error": error}}

    def curiosity(self, variables: Variables, batch: Trajectory) -> Array:
        """The reward for being surprised, ``[B, T]``: that of ``action[t]`` is about the frame ``t + 1``.

        How far off all predictions of that frame were, from 1 to ``unroll`` actions before it, in units of the mean
        error of training (the paper's sum, as a mean); 0 where no frame follows.
        """
        _, errors, real = self._errors(variables, batch)
        length = batch.reward.shape[1]
        # errors[k, :, t] is the error of foretelling frame t + k at frame t.
        shift = lambda x, k: jnp.pad(x, ((0, 0), (k, 0)))[:, :length]  # noqa: E731
        total = sum(shift(jnp.where(real[k], errors[k], 0.0), k) for k in range(1, self.unroll + 1))
        count = sum(shift(real[k].astype(jnp.float32), k) for k in range(1, self.unroll + 1))
        mean = total / jnp.maximum(count, 1.0) / jnp.maximum(variables["targets"]["error"], 1e-8)
        return jnp.pad(mean[:, 1:], ((0, 0), (0, 1)))

    def _errors(self, variables: Variables, batch: Trajectory) -> tuple[Array, Array, Array]:
        """Beliefs ``[B, T, belief]``; squared distances ``[unroll + 1, B, T]`` by actions, frame; which are real."""
        self.spec.check_trajectory(batch)
        rows, length = batch.reward.shape
        latents = self._apply(variables, "encode", batch.observation)
        start = self.init_state(rows) if batch.initial_state is None else batch.initial_state

        def see(belief: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
            latent, previous_action, is_first = inputs
            belief = self._see(variables, belief, latent, previous_action, is_first)
            return belief, belief

        _, beliefs = scan_time(see, start.belief, (latents, batch.previous_actions(), batch.is_first))

        # Frame t, action t, frame t + 1 and so on; what would lie beyond the window is not real.
        ahead = lambda x, k: jnp.pad(x[:, k:], ((0, 0), (0, min(k, length)), *((0, 0),) * (x.ndim - 2)))  # noqa: E731
        targets = self._targets(variables, batch.observation)
        inside = jnp.pad(batch.transitions(), ((0, 0), (1, 0)))

        def run_on(
            carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            belief, real = carry
            action, target, follows = inputs
            belief, real = self._apply(variables, "run_on", belief, action), real & follows
            return (belief, real), (self._distance(variables, belief, target), real)

        steps = range(1, self.unroll + 1)
        stack = lambda x, first: jnp.stack([ahead(x, k + first) for k in steps])  # noqa: E731
        given = (stack(batch.action, -1), stack(targets, 0), stack(inside, 0))
        _, (errors, real) = jax.lax.scan(run_on, (beliefs, batch.valid), given)
        here = self._distance(variables, beliefs, targets)
        return beliefs, jnp.concatenate([here[None], errors]), jnp.concatenate([batch.valid[None], real])

    def _half_imagined(self, variables: Variables, keys: Array, batch: Trajectory, beliefs: Array) -> Array:
        """Beliefs ``[B, T, belief]`` for the heads, which are asked about seen and about imagined ones.

        In about half of the windows those of ``beliefs``; in the others those that the action before leads to without
        the frame itself, wherever there is one.
        """
        reached = self._apply(variables, "run_on", beliefs[:, :-1], batch.action[:, :-1])
        reached = jnp.where(batch.transitions()[..., None], reached, beliefs[:, 1:])
        imagined = jnp.concatenate([beliefs[:, :1], reached], axis=1)
        return jnp.where(jax.vmap(jax.random.bernoulli)(keys)[:, None, None], imagined, beliefs)

    def _distance(self, variables: Variables, beliefs: Array, targets: Array) -> Array:
        return jnp.sum(jnp.square(self._apply(variables, "foretell", beliefs) - targets), axis=-1)

    def _targets(self, variables: Variables, observation: Arrays) -> Array:
        """Unit vectors ``[..., latent]`` of the slow encoder; without gradient."""
        slow = {"params": {**variables["params"], "encoder": variables["targets"]["encoder"]}}
        return jax.lax.stop_gradient(_unit(self._apply(slow, "encode", observation)))

    def _see(
        self, variables: Variables, belief: Array, latent: Array, previous_action: Array, is_first: Array
    ) -> Array:
        keep = lambda x: jnp.where(is_first[:, None], 0.0, x)  # noqa: E731
        return self._apply(variables, "see", keep(belief), latent, keep(previous_action))

    def _apply(self, variables: Variables, method: str, *args: Any) -> Any:
        return _Networks(self).apply({"params": variables["params"]}, *args, method=method)


def _unit(x: Array) -> Array:
    """Vectors of length 1 along the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-8)
