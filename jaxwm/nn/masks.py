"""Which patches of a picture are hidden: multi-block masks, of shapes that a compiled function can know.

Bardes et al. 2024, "Revisiting Feature Prediction for Learning Visual Representations from Video", arXiv:2404.08471.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxwm.types import Array

_ASPECT = (0.75, 1.5)
"""Least and largest height of a block over its width."""


def draw_blocks(key: Array, grid: tuple[int, int], count: int, share: float) -> Array:
    """``[rows, columns]`` bool: the union of ``count`` blocks, each of about ``share`` of the area.

    Their aspect ratio, height over width, is drawn from 0.75 to 1.5, evenly in its logarithm.
    """
    rows, columns = grid
    aspect_key, top_key, left_key = jax.random.split(key, 3)
    aspect = jnp.exp(
        jax.random.uniform(aspect_key, (count, 1, 1), minval=math.log(_ASPECT[0]), maxval=math.log(_ASPECT[1]))
    )
    area = share * rows * columns
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, rows)
    width = jnp.clip(jnp.round(area / height), 1, columns)
    top = jnp.floor(jax.random.uniform(top_key, height.shape) * (rows - height + 1))
    left = jnp.floor(jax.random.uniform(left_key, width.shape) * (columns - width + 1))
    y, x = jnp.arange(rows)[:, None], jnp.arange(columns)
    return jnp.any((y >= top) & (y < top + height) & (x >= left) & (x < left + width), axis=0)


def visible_at_most(grid: tuple[int, int], share: float) -> int:
    """Patches outside of a block of ``share`` of the area, at most: a static length for what an encoder sees."""
    rows, columns = grid
    heights = range(1, rows + 1)
    areas = [
        height * min(max(round(share * rows * columns / height), 1), columns)
        for height in heights
        if math.floor(math.sqrt(share * rows * columns * _ASPECT[0]))
        <= height
        <= math.ceil(math.sqrt(share * rows * columns * _ASPECT[1]))
    ]
    return max(rows * columns - min(areas, default=1), 1)
