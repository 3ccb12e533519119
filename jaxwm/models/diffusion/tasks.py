"""What a diffusion model learns to do: which frames, places and actions of a window it is given.

A row is either learned as a dream goes, causal in time and with whole frames that are known, or as a clip, whose
frames see each other and of which any part may be known (the task mix of GAIA-2, Russell et al. 2025,
arXiv:2503.20523).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxwm.models.diffusion.objectives import draw_rows, split_rows
from jaxwm.types import Array, Trajectory

_SOME_FRAMES, _SOME_PLACES = 0.4, 0.4
"""Shares of the clips of which some frames, or some places in all frames, are known; of the others nothing is."""


def uniform(keys: Array, *shape: int) -> Array:
    """Numbers ``[B, *shape]`` in 0..1, each row from a key of its own."""
    return draw_rows(jax.random.uniform, keys, *shape)


def known_in_dreams(keys: Array, length: int, each_frame: bool) -> Array:
    """``[B, T]``: any of the frames, or the first ones; in each row another share, from none to (nearly) all."""
    if each_frame:
        share_keys, frame_keys = split_rows(keys, 2)
        return uniform(frame_keys, length) < uniform(share_keys, 1)
    return jnp.arange(length) < jnp.floor(length * uniform(keys, 1))


def known_in_clips(keys: Array, length: int, count: int) -> Array:
    """``[B, T, count]``: tokens of some frames, of some places, or none; each time another share of them."""
    kind_keys, share_keys, frame_keys, place_keys = split_rows(keys, 4)
    kind, share = uniform(kind_keys, 1, 1), uniform(share_keys, 1, 1)
    frames = (uniform(frame_keys, length, 1) < share) & (kind < _SOME_FRAMES)
    places = (uniform(place_keys, 1, count) < share) & (kind > 1 - _SOME_PLACES)
    return frames | places


def draw_actions(keys: Array, batch: Trajectory, level: Array, guessed: float, hidden: float) -> tuple[Array, Array]:
    """Levels ``[B, T]`` of the actions that led to frames, and which of them are to be guessed.

    Args:
      keys: ``[B]``.
      batch: the windows.
      level: ``[B, T]`` of the frames: an action that is guessed is as noisy as an unknown frame would be.
      guessed: share of the actions that are guessed.
      hidden: share of those that nothing is said about, as of those that nobody knows.
    """
    inside = batch.has_previous() & jnp.pad(batch.action_valid[:, :-1], ((0, 0), (1, 0)))
    # Whether the action before a window is known is not recorded: as good as the first one in it.
    before = jnp.zeros_like(inside).at[:, 0].set(~batch.is_first[:, 0] & batch.action_valid[:, 0])
    chance = uniform(keys, inside.shape[1])
    levels = jnp.where(chance < guessed, level, jnp.where(chance < guessed + hidden, 0.0, 1.0))
    return jnp.where(inside | before, levels, 0.0), inside & (chance < guessed)
