"""The network behind the objectives: noisy tokens of frames and actions to what they are without noise."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxwm.models.diffusion.conditions import ConditionReader, Told
from jaxwm.models.diffusion.objectives import Objective
from jaxwm.nn import MLP, Linear
from jaxwm.nn.transformer import Cache, Entries, FrameTransformer
from jaxwm.types import Array, Arrays

_FREQUENCIES = 6


class Denoiser(nn.Module):
    """A transformer over frames of tokens: parts of the action that led to it, patches, parts of vectors.

    How noisy a token is, is part of the token. The level of its frame (that of the noisiest token that shows
    something), the size of the step that is asked for and the action with its own level steer all blocks (adaLN-Zero
    of DiT, Peebles & Xie 2023, arXiv:2212.09748); the action is in tokens as well, because steering is silent in a
    fresh network. What the size of the step adds begins at zero: the rare large steps start from what the network does
    for the smallest one.

    Args:
      groups: how many tokens of a frame there are of each kind, those of the action first; each kind has projections
        of its own.
      trunk: the transformer, for frames of all of these; it is conditioned.
      width: of the tokens inside.
      objective: says how tokens are scaled and levels told.
      reader: of conditions, if there are any.
    """

    groups: tuple[int, ...]
    trunk: FrameTransformer
    width: int
    objective: Objective
    reader: ConditionReader | None = None
    dtype: DTypeLike = jnp.float32

    def begin(self, noisy: Array, level: Array, step: Array, condition: Arrays, known: Array) -> None:
        """Touches every parameter, for ``init``."""
        self(noisy, level, step, told=self.read(condition, known) if self.reader else None)

    def read(self, condition: Arrays, known: Array) -> Told:
        """What conditions come to; see `ConditionReader`."""
        assert self.reader is not None
        found: Told = self.reader(condition, known)
        return found

    @nn.compact
    def __call__(
        self,
        noisy: Array,
        level: Array,
        step: Array,
        mask: Array | None = None,
        time: Array | None = None,
        cache: Cache | None = None,
        told: Told | None = None,
    ) -> tuple[Array, Array, Entries]:
        """Raw output ``[B, T, M, C]``, a summary of each frame ``[B, T, width]``, and entries for the cache.

        Args:
          noisy: ``[B, T, M, C]`` tokens.
          level: ``[B, T, M]`` their levels.
          step: ``[B, T]`` sizes of the steps that are asked for; 0 where the objective tells none.
          mask: see `FrameTransformer`.
          time: likewise.
          cache: likewise.
          told: what `read` says of the frames.
        """
        linear: Any = lambda name, size: Linear(size, dtype=self.dtype, name=name)  # noqa: E731
        ends = [sum(self.groups[: k + 1]) for k in range(len(self.groups) - 1)]
        scaled, acts = self.objective.scaled(noisy, level), self.groups[0]
        levels = _waves(self.objective.embedded(level))
        parts = [linear(f"inputs_{k}", self.width)(part) for k, part in enumerate(jnp.split(scaled, ends, axis=2))]
        tokens = jnp.concatenate(parts, axis=2) + linear("noise", self.width)(levels)

        acted = jnp.concatenate([scaled, levels], axis=-1)[:, :, :acts].reshape(*step.shape, -1)
        frame = _waves(self.objective.embedded(level[:, :, acts:].min(-1)))
        steering = MLP(self.width, 2, dtype=self.dtype, name="steering")(jnp.concatenate([frame, acted], axis=-1))
        steering += Linear(self.width, 0.0, dtype=self.dtype, name="step")(_waves(_halvings(step)))
        things = None
        if told is not None:
            steering, things = steering + told.steering, (told.things, told.seen)
            if told.places is not None:
                tokens = tokens.at[:, :, acts : acts + told.places.shape[2]].add(told.places)
        out, entries = self.trunk(
            tokens, condition=steering[:, :, None], cache=cache, mask=mask, time=time, things=things
        )

        channels = noisy.shape[-1]
        outputs = [linear(f"outputs_{k}", channels)(part) for k, part in enumerate(jnp.split(out, ends, axis=2))]
        return jnp.concatenate(outputs, axis=2).astype(jnp.float32), out.mean(2).astype(jnp.float32), entries


def _waves(x: Array) -> Array:
    """``[..., 12]``: sines and cosines of numbers of magnitude 1."""
    angles = x[..., None] * (math.pi / 4 * 2.0 ** jnp.arange(_FREQUENCIES))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _halvings(step: Array) -> Array:
    """How often 1 is halved to make a step, on a scale of magnitude 1; -1 for none."""
    return jnp.where(step > 0, -jnp.log2(jnp.maximum(step, 1e-3)) / 10, -1.0)
