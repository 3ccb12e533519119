"""Where the balls of `jaxwm.worlds.Bounce` are in imagined pictures, against where they really are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxwm.evaluation.parse import ball_positions
from jaxwm.evaluation.video import OpenLoop, Totals
from jaxwm.types import Array, Arrays
from jaxwm.worlds import Bounce

VANISHED = 0.25
"""A ball of which less than this share of its area is left in a picture has vanished."""


@dataclasses.dataclass(frozen=True)
class BallPositions:
    """A measure for `jaxwm.evaluation.evaluate`: are the balls of ``world`` where they should be?

    The truth is the simulator's state (``info["position"]`` and ``info["radius"]``), not a picture of it. It gives

    * ``ball/within_radius``: the share of episodes in which each ball is less than its own radius from the truth; an
      episode in which one has vanished counts as a failure;
    * ``ball/position_error``: the mean distance, in radii, of the balls that have not vanished.
    """

    world: Bounce

    def __call__(self, rollout: OpenLoop, observations: Mapping[str, Arrays]) -> Totals:
        """The totals for the model and for the last frame repeated; nothing where the truth was not recorded."""
        if "position" not in rollout.info or "radius" not in rollout.info:
            return {}
        context = rollout.context
        truth, radius, valid = (
            jnp.asarray(x)[:, context:] for x in (rollout.info["position"], rollout.info["radius"], rollout.valid)
        )
        return {
            predictor: _totals(self.world, observations[predictor]["image"], truth, radius, valid)
            for predictor in ("model", "copy")
        }


def _measure(
    world: Bounce, images: Array, truth: Array, radius: Array, valid: Array
) -> dict[str, tuple[Array, Array]]:
    """``images`` ``[B, H, h, w, 3]``, ``truth`` ``[B, H, n, 2]``, ``radius`` ``[B, H, n]``, ``valid`` ``[B, H]``."""
    balls = ball_positions(images, world.colours, world.background)
    found = balls.found & (balls.area >= VANISHED * jnp.pi * radius**2)
    error = jnp.linalg.norm(jnp.where(found[..., None], balls.position - truth, 0.0), axis=-1) / radius
    hit = jnp.all(found & (error < 1), axis=-1)
    counted = found & valid[..., None]
    return {
        "ball/within_radius": (jnp.sum(hit & valid, axis=0), jnp.sum(valid, axis=0)),
        "ball/position_error": (jnp.sum(error * counted, axis=(0, 2)), jnp.sum(counted, axis=(0, 2))),
    }


_totals = jax.jit(_measure, static_argnums=0)
