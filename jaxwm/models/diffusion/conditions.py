"""What a simulator is told beside actions: words, numbers, sets of things, maps; how each gets into the network.

The shape of a condition says what it is. Whole numbers ``[L]`` are words (see `jaxwm.worlds.captions`), numbers
``[D]`` speak of the whole frame (weather, time of day), numbers ``[..., D]`` of several things (the boxes of agents,
cameras), and bytes ``[H, W, C]`` of places (depth, edges, segmentation). Words and things are looked at by all tokens
of their frame, in attention across (as GAIA-2 does, Russell et al. 2025, arXiv:2503.20523); numbers steer the blocks;
maps go through a branch that begins as zero (Zhang et al. 2023, arXiv:2302.05543). What all of them add to a fresh
network is zero.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxwm.nn import MLP, Linear, patchify
from jaxwm.nn.transformer import TokenTransformer
from jaxwm.types import Array, Arrays, Field

VOCABULARY = 256
"""Words that a model can be told; those of the worlds here are fewer."""


class Told(NamedTuple):
    """What conditions come to, for frames ``[B, T]`` of N patches and a network of width C.

    Attributes:
      steering: ``[B, T, C]`` to be added to what steers the blocks.
      things: ``[B, T, K, C]`` to be looked at; the first one says nothing and is always there.
      seen: ``[B, T, K]`` bool, which of them are there.
      places: ``[B, T, V * N, C]`` to be added to the patches of V images, or None where there are no maps.
    """

    steering: Array
    things: Array
    seen: Array
    places: Array | None


def is_words(field: Field) -> bool:
    """Whether a condition is text."""
    return field.dtype == "int32" and len(field.shape) == 1


def is_map(field: Field) -> bool:
    """Whether a condition is a picture that is to be followed."""
    return field.is_image


def is_set(field: Field) -> bool:
    """Whether a condition speaks of several things."""
    return field.dtype == "float32" and len(field.shape) > 1


def check_conditions(fields: tuple[Field, ...], images: tuple[Field, ...]) -> None:
    """Raises ValueError unless a model of ``images`` can read all of ``fields``; names the one that it cannot."""
    for field in fields:
        side = images[0].shape[:2]
        if is_map(field) and (field.shape[:2] != side or field.shape[2] % len(images)):
            raise ValueError(
                f"condition[{field.name!r}] is a map {list(field.shape)}, expected {list(side)} with channels for "
                f"each of the {len(images)} images"
            )
        if not (is_words(field) or is_map(field) or (field.dtype == "float32" and field.shape)):
            raise ValueError(
                f"condition[{field.name!r}] is {field.dtype}{list(field.shape)}, expected words int32[L], numbers "
                "float32[..., D] or a map uint8[H, W, C]"
            )


class ConditionReader(nn.Module):
    """Reads conditions that are known and lets those that are not be silent.

    A thing whose numbers are all 0 is not there (an agent that is not seen), nor is word 0.

    Args:
      fields: the conditions of the spec, in order.
      cameras: V, how many images there are; the channels of a map are those of the first, then of the second ...
      patch: side of the patches of maps, that of the tokenizer.
      width: of the network.
      heads: of the attention among words.
    """

    fields: tuple[Field, ...]
    cameras: int
    patch: int
    width: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, condition: Arrays, known: Array) -> Told:
        """What is told to each frame.

        Args:
          condition: ``[B, T, ...]`` by name.
          known: ``[B, T, len(fields)]`` bool; what is not known has no effect.
        """
        leading = known.shape[:2]
        steering, places = jnp.zeros((*leading, self.width), self.dtype), None
        nothing = self.param("nothing", nn.initializers.normal(0.02), (self.width,))
        things = [jnp.broadcast_to(nothing, (*leading, 1, self.width)).astype(self.dtype)]
        seen = [jnp.ones((*leading, 1), bool)]
        for index, field in enumerate(self.fields):
            value, told = condition[field.name], known[..., index, None]
            if is_words(field):
                things.append(self._words(field, value))
                seen.append(told & (value > 0))
            elif is_map(field):
                each = jnp.stack(jnp.split(value, self.cameras, axis=-1), axis=2)
                shown = patchify(each.astype(jnp.float32) / 127.5 - 1.0, self.patch)
                shown = shown.reshape(*leading, -1, shown.shape[-1])
                read = MLP(self.width, 2, dtype=self.dtype, name=f"{field.name}_hidden")(shown)
                read = Linear(self.width, 0.0, dtype=self.dtype, name=f"{field.name}_output")(read)
                places = jnp.where(told[..., None], read, 0.0) + (0.0 if places is None else places)
            elif is_set(field):
                flat = value.reshape(*leading, -1, field.shape[-1])
                # Which of them it is (of which camera, say) is told by its number in the set.
                number = self.param(f"{field.name}_number", nn.initializers.normal(0.02), (flat.shape[2], self.width))
                things.append(MLP(self.width, 1, dtype=self.dtype, name=field.name)(flat) + number.astype(self.dtype))
                seen.append(told & jnp.any(flat != 0, axis=-1))
            else:
                read = MLP(self.width, 1, dtype=self.dtype, name=f"{field.name}_hidden")(value)
                read = Linear(self.width, 0.0, dtype=self.dtype, name=f"{field.name}_output")(read)
                steering += jnp.where(told, read, 0.0)
        return Told(steering, jnp.concatenate(things, axis=2), jnp.concatenate(seen, axis=2), places)

    def _words(self, field: Field, value: Array) -> Array:
        """``[B, T, L, C]``: words as they mean something together."""
        rows, length, count = value.shape
        embedded = nn.Embed(VOCABULARY, self.width, dtype=self.dtype, name=f"{field.name}_words")(value)
        flat, order = embedded.reshape(rows * length, count, self.width), jnp.arange(count)[None, :, None]
        reader = TokenTransformer(1, self.heads, dtype=self.dtype, name=f"{field.name}_reader")
        return reader(flat, order, value.reshape(rows * length, count) > 0).reshape(embedded.shape)
