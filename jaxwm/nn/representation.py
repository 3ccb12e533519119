"""What keeps learned representations from collapsing, and how to see whether they have.

A model that predicts its own representation can win by making it say nothing. Each function takes representations
``[..., D]`` with a mask ``[...]`` of those that count; statistics are over the whole batch, on however many devices it
lies.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxwm.types import Array

Waves = tuple[Array, Array, Array, Array]
_EPSILON = 1e-4
_KNOTS = 17
_REACH = 3.0


def variance_hinge(x: Array, valid: Array) -> Array:
    """How far the standard deviation of each dimension is below 1, a mean over the dimensions.

    Equation 1 of VICReg (Bardes et al. 2022, arXiv:2105.04906).
    """
    variance = jnp.diagonal(_covariance(x, valid))
    return jnp.mean(jnp.maximum(0.0, 1.0 - jnp.sqrt(variance + _EPSILON)))


def covariance_penalty(x: Array, valid: Array) -> Array:
    """The squared covariances of different dimensions, summed, over their number D; equation 4 of VICReg."""
    covariance = _covariance(x, valid)
    own = jnp.square(jnp.diagonal(covariance))
    return (jnp.sum(jnp.square(covariance)) - jnp.sum(own)) / x.shape[-1]


def sketched_gaussianity(key: Array, x: Array, valid: Array, directions: int = 256) -> Array:
    """How far the representations are from a standard normal distribution, seen along random directions.

    SIGReg (Balestriero & LeCun 2025, arXiv:2511.08544): the statistic of Epps and Pulley, i.e. the squared distance of
    the empirical characteristic function from exp(-t^2/2), weighted by the same and integrated over [-3, 3] (17 knots
    in its positive half); times the number of samples, a mean over the directions. About 1 for normal samples.

    Args:
      key: draws the directions.
      x: ``[..., D]``.
      valid: ``[...]``.
      directions: how many.
    """
    size = x.shape[-1]
    samples, counts = x.reshape(-1, size).astype(jnp.float32), valid.reshape(-1).astype(jnp.float32)
    total = jnp.maximum(jnp.sum(counts), 1.0)
    drawn = jax.random.normal(key, (size, directions))
    projected = samples @ (drawn / jnp.linalg.norm(drawn, axis=0))
    step = _REACH / (_KNOTS - 1)
    weights = jnp.full(_KNOTS, step).at[jnp.array([0, _KNOTS - 1])].set(step / 2)
    expected = jnp.exp(-0.5 * jnp.square(step * jnp.arange(_KNOTS)))
    # The knots lie at equal distances: each cosine and sine follows from the two before, without another call.
    cos, sin = jnp.cos(step * projected), jnp.sin(step * projected)

    def knot(carry: Waves, given: tuple[Array, Array]) -> tuple[Waves, Array]:
        cos_before, sin_before, cos_now, sin_now = carry
        normal, weight = given
        real, imaginary = counts @ cos_now / total, counts @ sin_now / total
        apart = weight * normal * (jnp.square(real - normal) + jnp.square(imaginary))
        following = (cos_now, sin_now, 2 * cos * cos_now - cos_before, 2 * cos * sin_now - sin_before)
        return following, apart

    start = (cos, -sin, jnp.ones_like(cos), jnp.zeros_like(sin))
    _, parts = jax.lax.scan(knot, start, (expected, weights))
    return 2.0 * total * jnp.mean(jnp.sum(parts, axis=0))


def watch_collapse(x: Array, valid: Array) -> dict[str, Array]:
    """Figures that tell whether representations still differ, for the metrics of a training step.

    ``representation/std`` and ``representation/std_min`` are the mean and the least standard deviation of a dimension;
    ``representation/rank`` is the effective number of dimensions, (sum of the covariance's eigenvalues)^2 over the sum
    of their squares. ``alarm/collapse`` is 1 where the representations are all but alike (std below 0.02) or lie on a
    line (rank below 1.5). Scale representations of another size than about 1 before.
    """
    covariance = _covariance(jax.lax.stop_gradient(x), valid)
    std = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance), 0.0))
    rank = jnp.square(jnp.trace(covariance)) / jnp.maximum(jnp.sum(jnp.square(covariance)), 1e-12)
    collapsed = (jnp.mean(std) < 0.02) | (rank < min(1.5, 0.75 * x.shape[-1]))
    return {
        "representation/std": jnp.mean(std),
        "representation/std_min": jnp.min(std),
        "representation/rank": rank,
        "alarm/collapse": collapsed.astype(jnp.float32),
    }


def watch_places(x: Array, valid: Array) -> dict[str, Array]:
    """`watch_collapse` of patches ``[B, T, N, D]`` in frames that are ``valid`` ``[B, T]``.

    Patches differ by where they are in any case: what counts is whether frames differ in a place.
    """
    x, places = jax.lax.stop_gradient(x), jnp.broadcast_to(valid[..., None], x.shape[:3])
    usual = jnp.sum(x * places[..., None], axis=(0, 1)) / jnp.maximum(jnp.sum(valid), 1)
    return watch_collapse(x - usual, places)


def _covariance(x: Array, valid: Array) -> Array:
    """``[D, D]`` over the entries that count."""
    size = x.shape[-1]
    samples, counts = x.reshape(-1, size).astype(jnp.float32), valid.reshape(-1, 1).astype(jnp.float32)
    total = jnp.maximum(jnp.sum(counts), 1.0)
    centred = counts * (samples - jnp.sum(counts * samples, axis=0) / total)
    return centred.T @ centred / jnp.maximum(total - 1.0, 1.0)
