"""Blocks of patches that are hidden."""

import jax
import numpy as np
import pytest

from jaxwm.nn.masks import draw_blocks, visible_at_most


def test_blocks_have_the_share_that_is_asked_for():
    draw = jax.jit(jax.vmap(lambda key: draw_blocks(key, (16, 16), 1, 0.15)))
    blocks = np.asarray(draw(jax.random.split(jax.random.key(0), 500)))
    assert blocks.mean() == pytest.approx(0.15, abs=0.01)
    heights, widths = blocks.any(2).sum(1), blocks.any(1).sum(1)
    np.testing.assert_array_equal(blocks.sum((1, 2)), heights * widths)
    assert (heights / widths).min() > 0.6 and (heights / widths).max() < 1.9
    assert (blocks.any(0)).all(), "they lie everywhere"


@pytest.mark.parametrize("grid", [(8, 8), (2, 2), (16, 8), (4, 12)])
@pytest.mark.parametrize(("count", "share"), [(8, 0.15), (2, 0.7)])
def test_what_is_visible_fits_into_its_static_length(grid, count, share):
    draw = jax.jit(jax.vmap(lambda key: draw_blocks(key, grid, count, share)))
    visible = (~np.asarray(draw(jax.random.split(jax.random.key(1), 300)))).sum((1, 2))
    assert visible.max() <= visible_at_most(grid, share)
    assert visible_at_most(grid, share) < grid[0] * grid[1]
