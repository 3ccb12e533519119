"""Video representations by masked prediction, and dynamics on top of them: V-JEPA 2 and V-JEPA 2-AC in miniature.

Assran et al. 2025, "V-JEPA 2", arXiv:2506.09985. Stage ``pretrain``: a vision transformer sees a clip with blocks cut
out, and a predictor says what a slowly following copy of it makes of the missing parts. Stage ``dynamics``: that copy
is frozen, and a transformer that is causal in time predicts the patches of the next frame from action, proprioception
and patches of the frames so far. A decoder and heads that send no gradient back make it visible.

Read top to bottom: the state, the networks, the model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from pydantic import Field, PositiveInt

from jaxwm.models import register
from jaxwm.models.base import masked_mean
from jaxwm.models.heads import Looked, OnlookerHeads, onlooker_losses, predicted
from jaxwm.nn import Linear, patchify
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.nn.layers import symlog
from jaxwm.nn.masks import draw_blocks, visible_at_most
from jaxwm.nn.representation import watch_places
from jaxwm.nn.transformer import Cache, FrameTransformer, TokenTransformer, window_mask
from jaxwm.types import Array, Arrays, Aux, Prediction, Spec, Stage, Trajectory, Variables

Share = Annotated[float, Field(gt=0, lt=1)]


def layer_norm(x: Array) -> Array:
    """Mean 0 and variance 1 along the last axis; without parameters."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)


class VJEPAState(struct.PyTreeNode):
    """What the model knows at one time.

    Attributes:
      latent: ``[B, N, width]``, the patches of the last frame, seen or predicted.
      proprioception: ``[B, P]``, the vectors of the observation through symlog, side by side.
      known: ``[B]`` bool, whether there has been a frame at all.
      cache: keys and values of the frames before.
    """

    latent: Array
    proprioception: Array
    known: Array
    cache: Cache


class _Encoder(nn.Module):
    """A vision transformer over patches of ``tubelet`` frames."""

    width: int
    blocks: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tubelets: Array, positions: Array, seen: Array | None = None) -> Array:
        """Pixels ``[B, S, tubelet * patch * patch * C]`` at ``positions`` ``[B or 1, S, 3]`` to ``[B, S, width]``."""
        tokens = Linear(self.width, dtype=self.dtype, name="patches")(tubelets)
        trunk = TokenTransformer(self.blocks, self.heads, dtype=self.dtype, name="trunk")
        return trunk(tokens, positions, seen).astype(jnp.float32)


class _MaskPredictor(nn.Module):
    """Says what the encoder would make of what is missing."""

    width: int
    outputs: int
    blocks: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, context: Array, places: Array, seen: Array, wanted: Array, real: Array) -> Array:
        """Context ``[B, K, C]`` at ``places`` ``[B, K, 3]``, of which ``seen`` ``[B, K]`` are there; to ``[B, S, C]``.

        ``wanted`` ``[S, 3]`` are all places of the clip; at each stands a mask token, which is read afterwards. Those
        that are not ``real`` ``[B, S]``, beyond the end of an episode, are seen by no other.
        """
        rows, count = len(context), len(wanted)
        mask_token = self.param("mask_token", nn.initializers.zeros_init(), (self.width,), jnp.float32)
        tokens = Linear(self.width, dtype=self.dtype, name="inputs")(context)
        empty = jnp.broadcast_to(mask_token.astype(self.dtype), (rows, count, self.width))
        positions = jnp.concatenate([places, jnp.broadcast_to(wanted, (rows, *wanted.shape))], axis=1)
        trunk = TokenTransformer(self.blocks, self.heads, dtype=self.dtype, name="trunk")
        there = jnp.concatenate([seen, real], axis=1)
        out = trunk(jnp.concatenate([tokens, empty], axis=1), positions, there)[:, -count:]
        return Linear(self.outputs, dtype=self.dtype, name="outputs")(out).astype(jnp.float32)


class _Dynamics(nn.Module):
    """Predicts the patches of the next frame from action, proprioception and patches of the frames so far."""

    config: VJEPA

    def setup(self) -> None:
        c = self.config
        linear = lambda features: Linear(features, dtype=c.compute_dtype)  # noqa: E731
        self.action_token = linear(c.dynamics_width)
        self.patch_tokens = linear(c.dynamics_width)
        if c.spec.vectors:
            self.vector_token = linear(c.dynamics_width)
            self.next_vectors = linear(c.vector_size)
        self.trunk = c.trunk
        self.next_patches = Linear(c.width, output_scale=0.1, dtype=c.compute_dtype)

    def __call__(
        self,
        latent: Array,
        vectors: Array,
        action: Array,
        mask: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Array, Any]:
        """Frames ``[B, T, N, width]`` and ``[B, T, P]`` with the actions done in them to the frames that follow."""
        parts = [self.action_token(self.config.spec.action.normalise(action))[:, :, None]]
        if self.config.spec.vectors:
            parts.append(self.vector_token(vectors)[:, :, None])
        tokens = jnp.concatenate([*parts, self.patch_tokens(latent)], axis=2)
        out, entries = self.trunk(tokens, cache=cache, mask=mask)
        following = layer_norm(latent + self.next_patches(out[:, :, len(parts) :]))
        if self.config.spec.vectors:
            vectors = vectors + 0.1 * self.next_vectors(out[:, :, 1]).astype(jnp.float32)
        return following, vectors, entries


@register("vjepa")
@dataclasses.dataclass(frozen=True)
class VJEPA:
    """V-JEPA 2 (stage ``pretrain``) and V-JEPA 2-AC (stage ``dynamics``); the state is patches and a ring of frames.

    The encoder sees clips in pretraining and, in `observe`, each frame alone, repeated to fill a tubelet. Features are
    the patches side by side, and the vectors of the observation behind them.

    Args:
      spec: what the world shows and takes; exactly one image.
      patch: side of a patch in pixels; divides the image.
      tubelet: frames in a patch.
      width: of the encoder.
      blocks: of the encoder.
      heads: of the encoder's attention.
      predictor_width: of the mask predictor.
      predictor_blocks: of the mask predictor.
      predictor_heads: of the mask predictor's attention.
      dynamics_width: of the dynamics.
      dynamics_blocks: of the dynamics.
      dynamics_heads: of the dynamics' attention.
      window: frames before the last one that the dynamics sees.
      short_blocks: cut out of a clip in the first of two masks.
      short_share: of the area, for each of them.
      long_blocks: cut out in the second mask.
      long_share: of the area, for each of them.
      target_rate: step of the target encoder towards the encoder, in each update of ``pretrain``.
      rollout: steps of the dynamics' second loss, which feeds on its own predictions.
      depth: width of the decoder.
      units: width of the heads.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      dtype: what the networks compute in; parameters and states are float32.

    Raises:
      ValueError: no image or several, or one that does not divide into patches.
    """

    spec: Spec
    patch: PositiveInt = 8
    tubelet: PositiveInt = 2
    width: PositiveInt = 96
    blocks: PositiveInt = 4
    heads: PositiveInt = 3
    predictor_width: PositiveInt = 64
    predictor_blocks: PositiveInt = 2
    predictor_heads: PositiveInt = 2
    dynamics_width: PositiveInt = 96
    dynamics_blocks: PositiveInt = 3
    dynamics_heads: PositiveInt = 3
    window: PositiveInt = 7
    short_blocks: PositiveInt = 8
    short_share: Share = 0.15
    long_blocks: PositiveInt = 2
    long_share: Share = 0.7
    target_rate: Share = 1 - 0.99925
    rollout: PositiveInt = 2
    depth: PositiveInt = 16
    units: PositiveInt = 128
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    dtype: Literal["float32", "bfloat16"] = "float32"

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("pretrain", ("encoder", "predictor", "heads")),
        Stage("dynamics", ("dynamics", "heads")),
    )

    def __post_init__(self) -> None:
        images = self.spec.images
        if len(images) != 1:
            raise ValueError(f"vjepa takes exactly one image, but this world shows {len(images)}")
        if any(side % self.patch for side in images[0].shape[:2]):
            raise ValueError(f"patch is {self.patch}, which does not divide the image {list(images[0].shape)}")

    @property
    def compute_dtype(self) -> Any:
        """The dtype that the networks compute in."""
        return jnp.dtype(self.dtype)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.spec.images[0].shape[:2]
        return height // self.patch, width // self.patch

    @property
    def vector_size(self) -> int:
        """P, how many numbers the vectors of the observation have."""
        return sum(field.shape[0] for field in self.spec.vectors)

    @property
    def trunk(self) -> FrameTransformer:
        """The dynamics' transformer; its tokens are action, vectors where there are any, patches."""
        places = tuple((row, column) for row in range(self.grid[0]) for column in range(self.grid[1]))
        others = ((0, 0),) * (2 if self.spec.vectors else 1)
        return FrameTransformer(
            self.dynamics_blocks, self.dynamics_heads, self.window, others + places, dtype=self.compute_dtype
        )

    @property
    def features_size(self) -> int:
        """F."""
        return math.prod(self.grid) * self.width + self.vector_size

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        self.spec.check_trajectory(batch)
        keys = jax.random.split(key, 4)
        count, pixels = math.prod(self.grid), self.patch**2 * self.spec.images[0].shape[2]
        places, latent = self._places(1), jnp.zeros((1, count, self.width))
        seen = jnp.ones((1, count), bool)
        encoder = self._encoder.init(keys[0], jnp.zeros((1, count, self.tubelet * pixels)), places[None])["params"]
        heads = self._heads.init(keys[3], jnp.zeros((1, self.features_size)))["params"]
        decoder = start_from_mean_frame(heads["decoder"], self.spec, batch, self.pixels)
        params = {
            "encoder": encoder,
            "predictor": self._predictor.init(keys[1], latent, places[None], seen, places, seen)["params"],
            "dynamics": _Dynamics(self).init(
                keys[2], latent[:, None], jnp.zeros((1, 1, self.vector_size)), batch.action[:1, :1]
            )["params"],
            "heads": {**heads, "decoder": decoder},
        }
        return {"params": params, "targets": {"encoder": encoder, "pixels": self._pixel_statistics(batch)}}

    def init_state(self, batch_size: int) -> VJEPAState:
        """Nothing has been seen."""
        trunk = self.trunk
        return VJEPAState(
            latent=jnp.zeros((batch_size, math.prod(self.grid), self.width)),
            proprioception=jnp.zeros((batch_size, self.vector_size)),
            known=jnp.zeros(batch_size, bool),
            cache=trunk.init_cache(batch_size, len(trunk.positions or ()), self.dynamics_width),
        )

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: VJEPAState,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> VJEPAState:
        """The patches of this frame; the one before goes into the ring, with the action that was done in it."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        cache = self._step(variables, state, previous_action)[2]
        latent, vectors = self.encode(variables, observation)
        return VJEPAState(latent, vectors, jnp.ones_like(state.known), cache.forget(is_first | ~state.known))

    def predict(
        self, variables: Variables, keys: Array, state: VJEPAState, action: Array, condition: Arrays | None = None
    ) -> VJEPAState:
        """The patches that follow; deterministic, so ``keys`` and sampling controls have no effect."""
        self.spec.check_action(action, (keys.shape[0],))
        latent, vectors, cache = self._step(variables, state, action)
        return VJEPAState(latent, vectors, jnp.ones_like(state.known), cache)

    def features(self, variables: Variables, state: VJEPAState) -> Array:
        """``[B, N * width + P]``."""
        return self._features(state.latent, state.proprioception)

    def decode(self, variables: Variables, state: VJEPAState) -> Prediction:
        """What the heads make of the features; no part of them has shaped the representation."""
        return predicted(self._look(variables, self.features(variables, state)))

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: VJEPAState,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """The mean absolute error of the predicted patches."""
        self.spec.check_step(previous_action, observation, keys.shape[0])
        expected = self.predict(variables, keys, state, previous_action).latent
        return jnp.mean(jnp.abs(expected - self.encode(variables, observation)[0]), axis=(1, 2))

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The loss of ``stage``, and those of the heads; in ``Aux.states`` are the patches ``[B, T, N, width]``.

        A window is seen for itself: what may lie before it, ``batch.initial_state``, has no effect.

        Raises:
          ValueError: the windows are shorter than a tubelet, or not longer than ``rollout``.
        """
        self.spec.check_trajectory(batch)
        latent, vectors = self.encode(variables, batch.observation)
        if stage == "pretrain":
            terms = self._masked_losses(variables, keys, batch)
        else:
            terms = self._dynamics_losses(variables, batch, latent, vectors)
        heads = onlooker_losses(self._look(variables, self._features(latent, vectors)), batch)
        total = sum((terms | heads).values(), jnp.zeros(()))
        metrics = {f"loss/{name}": value for name, value in (terms | heads).items()}
        return total, Aux(metrics | watch_places(latent, batch.valid), latent)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """The target encoder follows the encoder while that is trained."""
        if stage != "pretrain":
            return variables
        follow = lambda slow, fast: slow + self.target_rate * (fast - slow)  # noqa: E731
        encoder = jax.tree.map(follow, variables["targets"]["encoder"], variables["params"]["encoder"])
        return {**variables, "targets": {**variables["targets"], "encoder": encoder}}

    def encode(self, variables: Variables, observation: Arrays) -> tuple[Array, Array]:
        """Each frame for itself: patches ``[..., N, width]`` and vectors ``[..., P]``; without gradient."""
        images = observation[self.spec.images[0].name]
        leading = images.shape[:-3]
        clips = jnp.repeat(images.reshape(-1, 1, *images.shape[-3:]), self.tubelet, axis=1)
        tokens = _run(
            self._encoder, variables["targets"]["encoder"], self._tubelets(variables, clips), self._places(1)[None]
        )
        latent = layer_norm(jax.lax.stop_gradient(tokens)).reshape(*leading, math.prod(self.grid), self.width)
        vectors = [symlog(observation[field.name]) for field in self.spec.vectors]
        return latent, jnp.concatenate(vectors, axis=-1) if vectors else jnp.zeros((*leading, 0))

    def encode_clips(self, variables: Variables, images: Array, valid: Array | None = None) -> Array:
        """Clips as pretraining sees them whole: uint8 ``[B, T, H, W, C]`` to ``[B, T / tubelet, N, width]``.

        Without gradient. A patch sees all of its clip, later frames included, but none that is not ``valid``
        ``[B, T]``.

        Raises:
          ValueError: the clips are shorter than a tubelet.
        """
        name, length, count = self.spec.images[0].name, images.shape[1], math.prod(self.grid)
        steps = length // self.tubelet
        if not steps:
            raise ValueError(f"{name} has {length} frames, expected at least tubelet={self.tubelet}")
        pixels = self._tubelets(variables, images[:, : steps * self.tubelet])
        seen = None if valid is None else jnp.repeat(self._whole_tubelets(valid), count, axis=1)
        tokens = _run(self._encoder, variables["targets"]["encoder"], pixels, self._places(steps)[None], seen)
        return layer_norm(jax.lax.stop_gradient(tokens)).reshape(len(images), steps, count, self.width)

    def _whole_tubelets(self, valid: Array) -> Array:
        """``[B, T / tubelet]``: those of which all frames are ``valid`` ``[B, T]``."""
        steps = valid.shape[1] // self.tubelet
        return jnp.all(valid[:, : steps * self.tubelet].reshape(len(valid), steps, self.tubelet), axis=-1)

    def _masked_losses(self, variables: Variables, keys: Array, batch: Trajectory) -> dict[str, Array]:
        """Mean absolute error of the representations of what was cut out, for short and for long blocks."""
        images, count = batch.observation[self.spec.images[0].name], math.prod(self.grid)
        targets = self.encode_clips(variables, images, batch.valid)
        steps = targets.shape[1]
        targets = targets.reshape(len(images), steps * count, -1)
        pixels, places = self._tubelets(variables, images[:, : steps * self.tubelet]), self._places(steps)
        # Tubelets beyond the end of an episode show nothing.
        real = self._whole_tubelets(batch.valid)
        everything = jnp.repeat(real, count, axis=1)
        grouped = pixels.reshape(len(pixels), steps, count, -1)
        losses = {}
        for index, (kind, blocks, share) in enumerate(
            (("short", self.short_blocks, self.short_share), ("long", self.long_blocks, self.long_share))
        ):
            mask_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            hidden = jax.vmap(lambda key, n=blocks, s=share: draw_blocks(key, self.grid, n, s))(mask_keys)
            hidden = hidden.reshape(len(pixels), count)
            kept = visible_at_most(self.grid, share)
            order = jnp.argsort(hidden, axis=1, stable=True)[:, :kept]
            there = ~jnp.take_along_axis(hidden, order, axis=1)
            rows = jnp.arange(len(pixels))[:, None, None]
            times = jnp.arange(steps)[:, None]
            context = grouped[rows, times, order[:, None]].reshape(len(pixels), steps * kept, -1)
            where = places.reshape(steps, count, 3)[times, order[:, None]].reshape(len(pixels), steps * kept, 3)
            there = jnp.tile(there, (1, steps)) & jnp.repeat(real, kept, axis=1)
            seen = _run(self._encoder, variables["params"]["encoder"], context, where, there)
            guess = _run(self._predictor, variables["params"]["predictor"], seen, where, there, places, everything)
            counts = jnp.tile(hidden, (1, steps)) & everything & jnp.any(there, axis=1, keepdims=True)
            losses[f"masked_{kind}"] = masked_mean(jnp.mean(jnp.abs(guess - targets), axis=-1), counts)
        return losses

    def _dynamics_losses(
        self, variables: Variables, batch: Trajectory, latent: Array, vectors: Array
    ) -> dict[str, Array]:
        """Mean absolute errors one step ahead, and along ``rollout`` steps that feed on their own predictions."""
        rows, length = batch.reward.shape
        if length <= self.rollout:
            raise ValueError(f"reward has {length} steps, expected more than rollout={self.rollout}")
        inside = batch.transitions()
        segments = jnp.cumsum(batch.is_first, axis=1)[:, :-1]
        mask = window_mask(length - 1, self.window, segments)
        following, moved, _ = _run(
            _Dynamics(self), variables["params"]["dynamics"],
            latent[:, :-1], vectors[:, :-1], batch.action[:, :-1], mask,
        )  # fmt: skip
        error = lambda guess, truth: jnp.mean(jnp.abs(guess - truth), axis=-1)  # noqa: E731
        losses = {"next": masked_mean(error(following, latent[:, 1:]).mean(-1), inside)}
        if self.spec.vectors:
            losses["next_vectors"] = masked_mean(error(moved, vectors[:, 1:]), inside)

        state = self.init_state(rows).replace(latent=latent[:, 0], proprioception=vectors[:, 0])
        along, real = [], []
        for t in range(self.rollout):
            now, vector, cache = self._step(variables, state, batch.action[:, t])
            state = state.replace(latent=now, proprioception=vector, cache=cache)
            along.append(error(now, latent[:, t + 1]).mean(-1))
            real.append(jnp.all(inside[:, : t + 1], axis=1))
        losses["rollout"] = masked_mean(jnp.stack(along), jnp.stack(real))
        return losses

    def _step(self, variables: Variables, state: VJEPAState, action: Array) -> tuple[Array, Array, Cache]:
        """The frame after the state's, and the ring with the state's frame in it."""
        latent, vectors, entries = _run(
            _Dynamics(self), variables["params"]["dynamics"],
            state.latent[:, None], state.proprioception[:, None], action[:, None], None, state.cache,
        )  # fmt: skip
        return latent[:, 0], vectors[:, 0], state.cache.append(entries)

    def _pixel_statistics(self, batch: Trajectory) -> Arrays:
        """Mean and standard deviation of each colour ``[C]`` in the frames of ``batch``."""
        images, real = batch.observation[self.spec.images[0].name] / 255.0, batch.valid[..., None, None, None]
        mean = lambda x: jnp.sum(x * real, (0, 1, 2, 3)) / (jnp.maximum(jnp.sum(real), 1) * math.prod(x.shape[2:4]))  # noqa: E731
        middle = mean(images)
        # A picture of one colour would be blown up to noise.
        return {"mean": middle, "spread": jnp.maximum(jnp.sqrt(mean(jnp.square(images - middle))), 0.02)}

    def _tubelets(self, variables: Variables, clips: Array) -> Array:
        """uint8 ``[B, T, H, W, C]`` to ``[B, T / tubelet * N, tubelet * patch * patch * C]``, standardised."""
        rows, length = clips.shape[:2]
        steps = length // self.tubelet
        pixels = jax.lax.stop_gradient(variables["targets"]["pixels"])
        scaled = ((clips / 255.0 - pixels["mean"]) / pixels["spread"]).astype(self.compute_dtype)
        patches = patchify(scaled.reshape(rows * length, *clips.shape[2:]), self.patch)
        patches = patches.reshape(rows, steps, self.tubelet, math.prod(self.grid), -1)
        return jnp.moveaxis(patches, 2, 3).reshape(rows, steps * math.prod(self.grid), -1)

    def _places(self, steps: int) -> Array:
        """``[steps * N, 3]``: time, row and column of each patch."""
        return jnp.stack(jnp.meshgrid(*map(jnp.arange, (steps, *self.grid)), indexing="ij"), axis=-1).reshape(-1, 3)

    def _features(self, latent: Array, vectors: Array) -> Array:
        return jnp.concatenate([latent.reshape(*latent.shape[:-2], -1), vectors], axis=-1)

    def _look(self, variables: Variables, features: Array) -> Looked:
        looked: Looked = _run(self._heads, variables["params"]["heads"], features)
        return looked

    @property
    def _encoder(self) -> _Encoder:
        return _Encoder(self.width, self.blocks, self.heads, self.compute_dtype)

    @property
    def _predictor(self) -> _MaskPredictor:
        return _MaskPredictor(
            self.predictor_width, self.width, self.predictor_blocks, self.predictor_heads, self.compute_dtype
        )

    @property
    def _heads(self) -> OnlookerHeads:
        return OnlookerHeads(
            self.spec, self.depth, self.units, 2, "patch", "rms", "silu", self.pixels, self.compute_dtype
        )


def _run(module: nn.Module, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)
