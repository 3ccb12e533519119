"""From pictures of coloured balls back to where they are, also where a model painted them blurred or faint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array

FAINT = 0.1
"""Coverage up to this is taken as background: a thin haze over a whole picture would pull a centroid to its middle."""


class Balls(NamedTuple):
    """What was found of ``n`` balls in pictures with leading axes ``...``.

    Attributes:
      position: ``[..., n, 2]`` centroid in sides of the picture, x to the right and y down; NaN where not found.
      area: ``[..., n]`` coloured area in squared sides; pi radius^2 for a ball that is drawn as it should be.
    """

    position: Array
    area: Array

    @property
    def radius(self) -> Array:
        """``[..., n]``: the radius, in sides, of a disc with that area."""
        return jnp.sqrt(self.area / jnp.pi)

    @property
    def found(self) -> Array:
        """``[..., n]`` bool: whether there is enough of the ball's colour to say where it is."""
        return jnp.isfinite(self.position[..., 0])


def ball_positions(
    images: Array,
    colours: Sequence[Sequence[float]],
    background: Sequence[float],
    minimum_area: float = 1e-3,
) -> Balls:
    """Where each ball is in ``images``, by the centroid of its colour.

    Each pixel is taken as a mixture of the background and the balls' colours (`coverages`). A ball's position
    is the centroid of its coverage above `FAINT`, its area the sum of the coverages that are above it.

    Args:
      images: ``[..., H, W, 3]``, uint8 or float in [0, 1].
      colours: red, green and blue in 0..255 of each of the ``n`` balls, as in `jaxwm.worlds.Bounce.colours`.
      background: red, green and blue in 0..255.
      minimum_area: a ball with less coloured area than this, in squared sides, is not found: its position is
        NaN. The default is a disc with a radius of 0.018 sides.

    Raises:
      ValueError: ``images`` are no pictures, or the colours cannot be told apart.
    """
    coverage = coverages(images, colours, background)
    height, width = coverage.shape[-3:-1]
    x = (jnp.arange(width) + 0.5) / width
    y = (jnp.arange(height) + 0.5) / height
    area = jnp.sum(jnp.where(coverage > FAINT, coverage, 0.0), axis=(-3, -2)) / (height * width)
    weight = jnp.maximum(coverage - FAINT, 0.0)
    total = jnp.sum(weight, axis=(-3, -2))
    centre_x = jnp.sum(weight * x[:, None], axis=(-3, -2))
    centre_y = jnp.sum(weight * y[:, None, None], axis=(-3, -2))
    found = area >= minimum_area
    position = jnp.stack([centre_x, centre_y], axis=-1) / jnp.where(found, total, 1.0)[..., None]
    return Balls(jnp.where(found[..., None], position, jnp.nan), area)


def coverages(images: Array, colours: Sequence[Sequence[float]], background: Sequence[float]) -> Array:
    """``[..., H, W, n]`` in [0, 1]: the share of each pixel that each colour covers.

    Three numbers a pixel part up to three colours, by least squares. Of more colours, a pixel is given to the
    one that, mixed with the background alone, comes closest to it; where two balls touch that may be a third
    one, which then seems to be up to about a pixel from where it is (in 99% of the cases less than 0.3).

    Args and errors are those of `ball_positions`.
    """
    if jnp.ndim(images) < 3 or jnp.shape(images)[-1] != 3:
        raise ValueError(f"images have shape {jnp.shape(images)}, expected [..., height, width, 3]")
    shades = np.asarray(colours, np.float32).reshape(-1, 3) - np.asarray(background, np.float32)
    n = len(shades)
    lengths = np.linalg.norm(shades, axis=-1)
    directions = shades / np.maximum(lengths, 1e-6)[:, None]
    alike = np.abs(directions @ directions.T - np.eye(n)) > 0.999
    if n == 0 or lengths.min() < 16 or alike.any() or (n <= 3 and np.linalg.svd(directions)[1].min() < 0.05):
        raise ValueError(f"colours {[tuple(c) for c in colours]} cannot be told apart on background {background}")
    images = jnp.asarray(images)
    values = images.astype(jnp.float32) * (1.0 if images.dtype == jnp.uint8 else 255.0) - np.asarray(background)
    # Sums over three channels, not matrix products, which accelerators would round to 8 bits.
    project = lambda rows: jnp.stack([jnp.sum(values * row, axis=-1) for row in rows], axis=-1)  # noqa: E731
    if n <= 3:
        return jnp.clip(project(np.linalg.pinv(shades).T), 0.0, 1.0)
    share = jnp.clip(project(shades / lengths[:, None] ** 2), 0.0, 1.0)
    misfit = jnp.sum((values[..., None, :] - share[..., None] * shades) ** 2, axis=-1)
    chosen = jnp.arange(n) == jnp.argmin(misfit, axis=-1, keepdims=True)
    return jnp.where(chosen, share, 0.0)
