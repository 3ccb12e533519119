"""Attention over the frames of a video: rotary positions in time and space, blocks, a ring of keys and values.

Tokens are ``[B, T, N, C]``: N of them in each of T frames. A token sees those of its own frame and of at most
``window`` frames before it. What it sees of the past is kept in a `Cache` of fixed size, so that a step costs the same
at frame 10 and at frame 10,000.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from jaxwm.nn.layers import Linear, RMSNorm, activate
from jaxwm.types import Array, PyTree

PERIOD = 1 << 16
"""Positions count modulo this. All angles turn a whole number of times in it, so nothing is lost by starting over."""
BASE = 10_000.0


def rotary_angles(positions: Array, size: int, base: float = BASE) -> Array:
    """Angles ``[..., size / 2]`` in radians by which the pairs of a head turn (Su et al. 2021, arXiv:2104.09864).

    Each axis of the positions gets an equal share of the pairs, and what is left over does not turn. The frequencies
    are those of the paper, from 1 down to 1 / base a position, rounded to whole turns in `PERIOD` positions: angles
    are exact however long a dream is.

    Args:
      positions: ``[..., axes]`` whole numbers, such as (time, row, column).
      size: of a head.
      base: see above. The paper's 10,000 leaves few of the pairs of a small head to tell neighbours apart.

    Raises:
      ValueError: a head with fewer pairs than axes, which could not tell one place from another.
    """
    axes = positions.shape[-1]
    share = size // 2 // max(axes, 1)
    if axes and not share:
        raise ValueError(f"rotary_angles: a head of {size} has fewer pairs than there are axes, {axes}")
    wanted = base ** (-np.arange(share) / max(share, 1))
    turns = jnp.asarray(np.maximum(np.round(wanted * PERIOD / (2 * math.pi)), 1), jnp.int32)
    phase = (positions.astype(jnp.int32) % PERIOD)[..., None] * turns % PERIOD
    angles = (2 * math.pi / PERIOD * phase).reshape(*positions.shape[:-1], axes * share)
    return jnp.pad(angles, [(0, 0)] * (positions.ndim - 1) + [(0, size // 2 - axes * share)])


def rotate(x: Array, angles: Array) -> Array:
    """Turns the pairs (i, i + D/2) of heads ``[..., S, H, D]`` by ``angles`` ``[..., S, D/2]``."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def window_mask(length: int, window: int, segments: Array | None = None) -> Array:
    """``[1 or B, T, T]``: whether frame t sees frame s: itself and ``window`` frames before it, of its own episode.

    Args:
      length: T.
      window: frames before.
      segments: ``[B, T]`` numbers of episodes; None: all frames are of one.
    """
    ahead = (jnp.arange(length)[:, None] - jnp.arange(length)[None])[None]
    mask = (ahead >= 0) & (ahead <= window)
    return mask if segments is None else mask & (segments[:, :, None] == segments[:, None])


def clear_rows(tree: PyTree, where: Array) -> PyTree:
    """``tree`` ``[B, ...]`` with zeros in the rows ``where`` ``[B]`` bool."""
    return jax.tree.map(lambda x: jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), 0, x), tree)


class Cache(struct.PyTreeNode):
    """What a `FrameTransformer` keeps of the frames before: a ring of ``window`` frames for each of its blocks.

    Attributes:
      keys: for each block ``[B, R, H, window, M, D]``, turned to where they stand in time; R groups of M tokens in a
        frame that attend to each other: one group of all tokens, or each token a group of its own.
      values: the same shapes.
      recent: ``[B, K, M, C]``, tokens of the last K frames as they came in, the latest one last; K may be 0.
      position: ``[B]`` int32, the number of the next frame.
      count: ``[B]`` int32, how many frames of this episode there are, at most ``window``.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    recent: Array
    position: Array
    count: Array

    @property
    def window(self) -> int:
        """How many frames fit."""
        return self.keys[0].shape[3]

    def forget(self, where: Array) -> Cache:
        """As good as new in the rows ``where`` ``[B]`` bool: an episode begins there."""
        cache: Cache = clear_rows(self, where)
        return cache

    def seen(self) -> Array:
        """``[B, window]``: which slots hold a frame of this episode."""
        age = (self.position[:, None] - 1 - jnp.arange(self.window)) % self.window
        return age < self.count[:, None]

    def append(self, entries: Entries) -> Cache:
        """With a frame more, which takes the place of the oldest one."""
        slot = self.position % self.window

        def write(ring: Array, entry: Array) -> Array:
            put = lambda ring, entry, slot: jax.lax.dynamic_update_slice_in_dim(ring, entry, slot, axis=2)  # noqa: E731
            return jax.vmap(put)(ring, entry.astype(ring.dtype), slot)

        tokens = entries.tokens.astype(self.recent.dtype)
        return Cache(
            keys=tuple(write(ring, keys) for ring, keys in zip(self.keys, entries.keys, strict=True)),
            values=tuple(write(ring, values) for ring, values in zip(self.values, entries.values, strict=True)),
            recent=jnp.concatenate([self.recent, tokens], axis=1)[:, 1:],
            # Turns over where neither the slot nor the angle notices.
            position=(self.position + 1) % (PERIOD * self.window),
            count=jnp.minimum(self.count + 1, self.window),
        )


class Entries(NamedTuple):
    """What a `Cache` takes in of one frame.

    Attributes:
      keys: for each block ``[B, R, H, 1, M, D]``.
      values: the same shapes.
      tokens: ``[B, 1, M, C]``, as they came in.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    tokens: Array


def size_of_heads(width: int, heads: int, size: int | None) -> int:
    """``size``, or that of heads which are together as wide as the tokens.

    Raises:
      ValueError: heads of odd size, whose entries have no pairs, or a width that they do not divide.
    """
    if size is None and width % (2 * heads):
        raise ValueError(f"Attention: width {width} is not divisible by twice the {heads} heads")
    if size is not None and size % 2:
        raise ValueError(f"Attention: head_size is {size}, expected an even number")
    return size or width // heads


class Attention(nn.Module):
    """Self-attention with rotary positions, normalised queries and keys, and memories of the past if there are any.

    Heads have ``head_size`` entries, by default such that all of them are as wide as the tokens.
    """

    heads: int
    output_scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    head_size: int | None = None

    @nn.compact
    def __call__(
        self, x: Array, angles: Array, mask: Array | None = None, past: tuple[Array, Array, Array] | None = None
    ) -> tuple[Array, Array, Array]:
        """``[B, S, C]`` to ``[B, S, C]``, and the keys and values ``[B, H, S, D]``.

        Args:
          x: the tokens.
          angles: ``[B or 1, S, D/2]``, see `rotary_angles`.
          mask: ``[B or 1, S, S]``, whether token i sees token j; None for all.
          past: keys and values ``[B, H, P, D]`` of tokens before, and ``[B, P]`` which of them are seen.
        """
        rows, length, width = x.shape
        size = size_of_heads(width, self.heads, self.head_size)
        mixed = Linear(3 * self.heads * size, dtype=self.dtype, name="inputs")(x)
        mixed = mixed.reshape(rows, length, 3, self.heads, size)
        query = rotate(RMSNorm(dtype=self.dtype, name="query_norm")(mixed[:, :, 0]), angles)
        key = rotate(RMSNorm(dtype=self.dtype, name="key_norm")(mixed[:, :, 1]), angles)
        value = mixed[:, :, 2]
        if past is None:
            seen = None if mask is None else mask[:, None]
            found = jax.nn.dot_product_attention(query, key, value, mask=seen)
        query, key, value = (jnp.swapaxes(part, 1, 2) for part in (query, key, value))
        if past is not None:
            found = jnp.swapaxes(_attend_with_past(query, key, value, mask, past), 1, 2)
        output = Linear(width, self.output_scale, dtype=self.dtype, name="output")
        return output(found.reshape(rows, length, self.heads * size)), key, value


def _attend_with_past(
    query: Array, key: Array, value: Array, mask: Array | None, past: tuple[Array, Array, Array]
) -> Array:
    """``[B, H, S, D]``: attention to the past and the present as if they lay in one array."""
    past_key, past_value, seen = past
    scale = 1 / math.sqrt(query.shape[-1])
    logits = lambda keys: scale * jnp.einsum("bhqd,bhkd->bhqk", query, keys, preferred_element_type=jnp.float32)  # noqa: E731
    before, now = logits(past_key), logits(key)
    before = jnp.where(seen[:, None, None], before, -jnp.inf)
    if mask is not None:
        now = jnp.where(mask[:, None], now, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([before, now], axis=-1), axis=-1).astype(value.dtype)
    count = past_key.shape[2]
    mix = lambda weights, values: jnp.einsum("bhqk,bhkd->bhqd", weights, values)  # noqa: E731
    return mix(weights[..., :count], past_value) + mix(weights[..., count:], value)


class CrossAttention(nn.Module):
    """What tokens see among things of another kind. It adds nothing in a fresh network."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, things: Array, seen: Array) -> Array:
        """``[B, S, C]`` for tokens ``[B, S, C]`` and things ``[B, K, C]``, at least one ``seen`` ``[B, K]``."""
        rows, length, width = x.shape
        apart = lambda x, parts: x.reshape(rows, -1, parts, self.heads, width // self.heads)  # noqa: E731
        query = apart(Linear(width, dtype=self.dtype, name="query")(x), 1)[:, :, 0]
        key, value = jnp.moveaxis(apart(Linear(2 * width, dtype=self.dtype, name="things")(things), 2), 2, 0)
        query, key = (
            RMSNorm(dtype=self.dtype, name="query_norm")(query),
            RMSNorm(dtype=self.dtype, name="key_norm")(key),
        )
        found = jax.nn.dot_product_attention(query, key, value, mask=seen[:, None, None])
        return Linear(width, 0.0, dtype=self.dtype, name="output")(found.reshape(rows, length, width))


class FrameTransformer(nn.Module):
    """Blocks of attention and MLP over ``[B, T, N, C]``, causal in time unless a mask says otherwise.

    Args:
      blocks: how many.
      heads: of the attention.
      window: frames before its own that a token sees.
      positions: ``[N][axes]`` where each token is, such as (row, column), or (camera, row, column) where a frame is
        what several cameras see: attention within it is then between cameras too. None where a place means nothing.
      factorised: tokens attend to those of their own frame, then to themselves in the frames before (cheap for many
        tokens); otherwise to all tokens of all frames at once.
      conditioned: each block is steered by a condition, as in DiT (Peebles & Xie 2023, arXiv:2212.09748): shifts,
        scales and gates, all zero at first.
      recent: K, to the tokens of a frame come linear functions of those of the K frames before it: a short convolution
        over time, which shows what moves before any attention has learned where to look (the token shift of RWKV, Peng
        et al. 2023, arXiv:2305.13048).
      hidden: width of the MLP's hidden layer; by default four times that of the tokens.
      head_size: see `Attention`.
      base: see `rotary_angles`.
    """

    blocks: int
    heads: int
    window: int
    positions: tuple[tuple[int, ...], ...] | None = None
    factorised: bool = False
    conditioned: bool = False
    recent: int = 0
    hidden: int | None = None
    head_size: int | None = None
    base: float = BASE
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        condition: Array | None = None,
        cache: Cache | None = None,
        mask: Array | None = None,
        time: Array | None = None,
        things: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Entries]:
        """``[B, T, N, C]`` to ``[B, T, N, C]``, normalised, and what a cache is to keep of the frames.

        Args:
          tokens: of all frames; of one (T = 1) where there is a cache.
          condition: ``[B, T, 1 or N, C]``.
          cache: the frames before. It is not changed: `Cache.append` takes the entries that are returned.
          mask: ``[1 or B, T, T]`` bool, whether frame t sees frame s. None: the window of `window_mask`, all frames
            being of one episode. Of no effect where there is a cache.
          time: ``[1 or B, T]`` whole numbers, when each frame is; None: one after the other. A cache knows it itself.
          things: ``[B, T, K, C]`` for the tokens of a frame to look at, and which of them are there ``[B, T, K]``.
        """
        _, length, count, width = tokens.shape
        if cache is not None and length != 1:
            raise ValueError(f"FrameTransformer: {length} frames, expected 1 where there is a cache")
        x = tokens = tokens.astype(self.dtype)
        if cache is None:
            mask = window_mask(length, self.window) if mask is None else mask
            time = jnp.arange(length)[None] if time is None else time
            before = _frames_before(tokens, mask, time, self.recent)
        else:
            mask, time, before = None, cache.position[:, None], cache.recent[:, None]
        if self.conditioned != (condition is not None):
            raise ValueError(f"FrameTransformer: conditioned={self.conditioned}, but condition is {condition}")
        places = jnp.asarray(self.positions or ((),) * count, jnp.int32)
        members = 1 if self.factorised else count
        where = jnp.broadcast_to(time[:, :, None, None], (*time.shape, members, 1))
        if not self.factorised:
            here = jnp.broadcast_to(places, (*time.shape, *places.shape))
            where = jnp.concatenate([where, here], axis=-1)
        size = size_of_heads(width, self.heads, self.head_size)
        angles = rotary_angles(where, size, self.base).reshape(where.shape[0], length * members, size // 2)
        inside = rotary_angles(places[None], size, self.base)
        quiet = 1 / math.sqrt(self.blocks * (3 if self.factorised else 2))
        if self.recent:
            before = before.swapaxes(2, 3).reshape(*tokens.shape[:3], self.recent * width)
            x += Linear(width, dtype=self.dtype, name="recent")(before)
        entries = []
        for index in range(self.blocks):
            past = None if cache is None else (cache.keys[index], cache.values[index], cache.seen())
            block = _Block(
                self.heads, self.head_size, quiet, self.factorised, self.hidden, self.dtype, name=f"block_{index}"
            )
            x, entry = block(x, angles, inside, mask, condition, past, things)
            entries.append(entry)
        keys, values = zip(*entries, strict=True)
        return RMSNorm(dtype=self.dtype, name="norm")(x), Entries(keys, values, tokens)

    def init_cache(self, rows: int, count: int, width: int) -> Cache:
        """An empty cache for ``rows`` videos of frames with ``count`` tokens of ``width``."""
        groups, members = (count, 1) if self.factorised else (1, count)
        size = size_of_heads(width, self.heads, self.head_size)
        shape = (rows, groups, self.heads, self.window, members, size)
        empty = tuple(jnp.zeros(shape, self.dtype) for _ in range(self.blocks))
        zeros = jnp.zeros(rows, jnp.int32)
        return Cache(empty, empty, jnp.zeros((rows, self.recent, count, width), self.dtype), zeros, zeros)


def _frames_before(tokens: Array, mask: Array, time: Array, count: int) -> Array:
    """``[B, T, count, N, C]``: for each frame those before it that it sees, the latest one last; zeros for none."""
    ago = jnp.arange(count, 0, -1)[:, None]
    chosen = mask[:, :, None] & (time[:, :, None, None] - time[:, None, None] == ago)
    chosen = jnp.broadcast_to(chosen, (len(tokens), *chosen.shape[1:])).astype(tokens.dtype)
    return jnp.einsum("btks,bsnc->btknc", chosen, tokens)


class _Block(nn.Module):
    heads: int
    head_size: int | None
    output_scale: float
    factorised: bool
    hidden: int | None
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Array,
        angles: Array,
        inside: Array,
        mask: Array | None,
        condition: Array | None,
        past: tuple[Array, Array, Array] | None,
        things: tuple[Array, Array] | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """``x`` ``[B, T, N, C]``; ``angles`` are those of time attention, ``inside`` of attention within a frame."""
        rows, length, count, width = x.shape
        parts = 3 if self.factorised else 2
        steering: list[Array] = []
        if condition is not None:
            raw = Linear(3 * parts * width, 0.0, dtype=self.dtype, name="steering")(jax.nn.silu(condition))
            steering = jnp.split(raw, 3 * parts, axis=-1)

        def residual(name: str, x: Array, part: Callable[[Array], Array]) -> Array:
            normed = RMSNorm(dtype=self.dtype, name=f"{name}_norm")(x)
            if not steering:
                return x + part(normed)
            shift, scale, gate = (steering.pop(0) for _ in range(3))
            return x + gate * part(normed * (1 + scale) + shift)

        def space(x: Array) -> Array:
            attention = Attention(self.heads, self.output_scale, self.dtype, self.head_size, name="space")
            return attention(x.reshape(rows * length, count, width), inside)[0].reshape(x.shape)

        entry: list[Array] = []

        def time(x: Array) -> Array:
            groups, members = (count, 1) if self.factorised else (1, count)
            each = functools.partial(_for_each_group, groups=groups)
            series = x.reshape(rows, length, groups, members, width).swapaxes(1, 2)
            before = None
            if past is not None:
                keys, values, seen = past
                flat = (rows * groups, self.heads, -1, keys.shape[-1])
                before = keys.reshape(flat), values.reshape(flat), each(jnp.repeat(seen, members, axis=1))
            among = None if mask is None else each(jnp.repeat(jnp.repeat(mask, members, axis=1), members, axis=2))
            out, keys, values = Attention(self.heads, self.output_scale, self.dtype, self.head_size, name="time")(
                series.reshape(rows * groups, length * members, width), each(angles), among, before
            )
            kept = (rows, groups, self.heads, length, members, keys.shape[-1])
            entry.extend([keys.reshape(kept), values.reshape(kept)])
            return out.reshape(rows, groups, length, members, width).swapaxes(1, 2).reshape(x.shape)

        mlp = _FeedForward(self.hidden, self.output_scale, self.dtype, name="mlp")
        if self.factorised:
            x = residual("space", x, space)
        x = residual("time", x, time)
        if things is not None:
            shown, seen = (part.reshape(rows * length, *part.shape[2:]) for part in things)
            normed = RMSNorm(dtype=self.dtype, name="things_norm")(x).reshape(rows * length, count, width)
            across = CrossAttention(self.heads, self.dtype, name="things")
            x += across(normed, shown.astype(self.dtype), seen).reshape(x.shape)
        x = residual("mlp", x, mlp)
        return x, (entry[0], entry[1])


def _for_each_group(array: Array, groups: int) -> Array:
    """``[B, ...]`` or ``[1, ...]`` to ``[B * groups, ...]`` or ``[1, ...]``: the groups of a row are all alike."""
    return array if array.shape[0] == 1 else jnp.repeat(array, groups, axis=0)


class TokenTransformer(nn.Module):
    """Blocks of attention and MLP over one set of tokens ``[B, S, C]``, all of which see each other."""

    blocks: int
    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, positions: Array, seen: Array | None = None) -> Array:
        """``[B, S, C]`` to ``[B, S, C]``, normalised.

        Args:
          tokens: the set.
          positions: ``[B or 1, S, axes]`` whole numbers, such as (time, row, column).
          seen: ``[B or 1, S]`` bool, which tokens the others see; None for all.
        """
        width = tokens.shape[-1]
        quiet = 1 / math.sqrt(2 * self.blocks)
        angles = rotary_angles(positions, width // self.heads)
        mask = None if seen is None else jnp.broadcast_to(seen[:, None], (len(seen), tokens.shape[1], tokens.shape[1]))
        x = tokens.astype(self.dtype)
        for index in range(self.blocks):
            normed = RMSNorm(dtype=self.dtype, name=f"attention_norm_{index}")(x)
            x += Attention(self.heads, quiet, self.dtype, name=f"attention_{index}")(normed, angles, mask)[0]
            normed = RMSNorm(dtype=self.dtype, name=f"mlp_norm_{index}")(x)
            x += _FeedForward(None, quiet, self.dtype, name=f"mlp_{index}")(normed)
        return RMSNorm(dtype=self.dtype, name="norm")(x)


class _FeedForward(nn.Module):
    hidden: int | None
    output_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = Linear(self.hidden or 4 * x.shape[-1], dtype=self.dtype, name="hidden")(x)
        hidden = activate("silu", hidden)
        return Linear(x.shape[-1], self.output_scale, dtype=self.dtype, name="output")(hidden)
