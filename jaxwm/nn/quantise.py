"""Vectors as one of a number of codes: by the angle to learned codes, or by rounding each entry.

Both pass the gradient of what they give straight on to what they took. Codes have a root mean square of about 1 an
entry, so that noise of unit variance hides them.

Learned codes die when no vector is near them. How often each is used is kept as a running share (`follow_usage`), and
those that were not for long begin anew at vectors that no code is near (`draw_candidates`, `reseed_codes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array

COMMITMENT = 0.25
"""How much a vector is drawn to its code, in parts of how much the code is drawn to it."""
USAGE_RATE = 0.05
"""Step of the running share of a code towards its share in the batch, in each update."""
DEAD = 0.01
"""A code is dead whose running share is below this part of an equal share: one of equal share, after 90 updates."""


class Quantised(NamedTuple):
    """Vectors with their codes.

    Attributes:
      vectors: ``[..., D]``, the codes; their gradient goes to the vectors that were quantised.
      indices: ``[...]`` int32.
      losses: ``[...]``, to be added to what the vectors are for; the codes learn by nothing else.
    """

    vectors: Array
    indices: Array
    losses: Array


def to_sphere(x: Array) -> Array:
    """``[..., D]`` of any length but 0 to the same direction with a root mean square of 1 an entry, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(x), axis=-1, keepdims=True), 1e-12))


def quantise_cosine(x: Array, codebook: Array) -> Quantised:
    """Each vector becomes the code at the least angle to it; both are taken by their direction (`to_sphere`).

    The losses are ``|sg(x) - e|^2 + 0.25 |x - sg(e)|^2`` of the directions x and e as unit vectors: VQ-VAE (van den
    Oord et al. 2017, arXiv:1711.00937, equation 3) with normalised codes (Yu et al. 2021, arXiv:2110.04627).

    Args:
      x: ``[..., D]``.
      codebook: ``[K, D]``, of any length.
    """
    x, codes = to_sphere(x), to_sphere(codebook)
    indices = jnp.argmax(x @ codes.T, axis=-1).astype(jnp.int32)
    chosen = codes[indices]
    fixed, drawn = jax.lax.stop_gradient(x), jax.lax.stop_gradient(chosen)
    # A mean over entries that are sqrt(D) times those of a unit vector.
    distance = lambda a, b: jnp.mean(jnp.square(a - b), axis=-1)  # noqa: E731
    losses = distance(fixed, chosen) + COMMITMENT * distance(x, drawn)
    # The bracket is exactly zero: what comes out is the code to the last bit.
    return Quantised(drawn + (x - fixed), indices, losses)


def quantise_scalars(x: Array, levels: Sequence[int]) -> tuple[Array, Array]:
    """Each entry becomes one of ``levels`` values: finite scalar quantisation, FSQ.

    Mentzer et al. 2023, arXiv:2309.15505, appendix A.1: a tanh bounds each entry, and it is rounded. The values are
    not scaled to [-1, 1] as there, but to mean 0 and variance 1 over the levels of an entry.

    Args:
      x: ``[..., D]``.
      levels: D numbers from 2.

    Returns:
      The vectors ``[..., D]``, whose gradient goes through the tanh to ``x``, and the indices ``[...]`` int32.
    """
    counts = np.asarray(levels)
    half = (counts - 1) * (1 - 1e-3) / 2
    offset = np.where(counts % 2, 0.0, 0.5)
    bounded = jnp.tanh(x.astype(jnp.float32) + np.tan(offset / half)) * half - offset
    indices = _join(jnp.round(bounded).astype(jnp.int32) + counts // 2, levels)
    slope = (bounded - jax.lax.stop_gradient(bounded)) / _spread(levels)
    return scalar_vectors(indices, levels) + slope, indices


def scalar_vectors(indices: Array, levels: Sequence[int]) -> Array:
    """``[...]`` to the vectors ``[..., D]`` of `quantise_scalars`."""
    counts = np.asarray(levels)
    steps = indices[..., None] // _strides(levels) % counts
    return ((steps - (counts - 1) / 2) / _spread(levels)).astype(jnp.float32)


def scalar_indices(vectors: Array, levels: Sequence[int]) -> Array:
    """The inverse of `scalar_vectors`; what lies between the values is rounded, and beyond them cut off."""
    counts = np.asarray(levels)
    steps = jnp.round(vectors * _spread(levels) + (counts - 1) / 2).astype(jnp.int32)
    return _join(jnp.clip(steps, 0, counts - 1), levels)


def code_shares(indices: Array, valid: Array, count: int) -> Array:
    """``[count]``: how often each code occurs among ``indices`` where ``valid``, as shares; all 0 if nowhere."""
    found = jnp.zeros(count).at[indices.reshape(-1)].add(valid.reshape(-1).astype(jnp.float32))
    return found / jnp.maximum(jnp.sum(found), 1.0)


def used_share(shares: Array) -> Array:
    """The share of codes ``[K]`` that occur at all."""
    return jnp.mean((shares > 0).astype(jnp.float32))


def perplexity(shares: Array) -> Array:
    """How many codes of equal share would be as uncertain: exp of the entropy of ``shares`` ``[K]``; from 1 to K."""
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))


def follow_usage(usage: Array, shares: Array) -> Array:
    """The running shares ``[K]`` after a batch with these ``shares``; after a batch of nothing they stay."""
    return usage + USAGE_RATE * jnp.where(jnp.sum(shares) > 0, shares - usage, 0.0)


def dead_codes(usage: Array) -> Array:
    """``[K]`` bool: which codes were used by no more than a trace for long."""
    return usage < DEAD / len(usage)


def draw_candidates(keys: Array, x: Array, quantised: Quantised, valid: Array, count: int) -> Array:
    """``[count, D]``: vectors of a batch to begin codes at, the likelier the farther they are from their code.

    As in k-means++ (Arthur & Vassilvitskii 2007) the probability goes with the squared distance. None is drawn twice
    before all have been.

    Args:
      keys: ``[B]``, one for each row of the batch.
      x: ``[B, ..., D]``.
      quantised: `quantise_cosine` of ``x``.
      valid: ``[B, ...]``, which of them count.
      count: how many; more than there are begin again with the first.
    """
    x = jax.lax.stop_gradient(to_sphere(x))
    size = x.shape[-1]
    away = jnp.mean(jnp.square(x - jax.lax.stop_gradient(quantised.vectors)), axis=-1)
    chance = jax.vmap(lambda key: jax.random.gumbel(key, valid.shape[1:]))(keys)
    scores = jnp.where(valid, jnp.log(away + 1e-12) + chance, -jnp.inf).reshape(-1)
    _, order = jax.lax.top_k(scores, min(count, scores.size))
    here = jnp.clip(jnp.sum(valid), 1, len(order))
    return x.reshape(-1, size)[order[jnp.arange(count) % here]]


def reseed_codes(codebook: Array, usage: Array, candidates: Array) -> tuple[Array, Array]:
    """Dead codes begin anew at the ``candidates`` ``[K, D]``, in order, and count as if they had an equal share.

    Returns:
      The codebook ``[K, D]`` and the running shares ``[K]``.
    """
    dead = dead_codes(usage)
    turn = jnp.maximum(jnp.cumsum(dead) - 1, 0)
    codebook = jnp.where(dead[:, None], candidates[turn].astype(codebook.dtype), codebook)
    return codebook, jnp.where(dead, 1 / len(usage), usage)


def _spread(levels: Sequence[int]) -> np.ndarray:
    """``[D]``: standard deviations of whole numbers, of which there are ``levels`` in a row."""
    return np.sqrt((np.square(np.asarray(levels, np.float32)) - 1) / 12)


def _strides(levels: Sequence[int]) -> np.ndarray:
    """``[D]``: what a step in each entry adds to the index; the first entry counts fastest."""
    return np.asarray([math.prod(levels[:place]) for place in range(len(levels))], np.int32)


def _join(steps: Array, levels: Sequence[int]) -> Array:
    return jnp.sum(steps * _strides(levels), axis=-1).astype(jnp.int32)
