"""What a diffusion model learns to do: which frames, places and actions of a window it is given.

A window goes through the network twice, side by side, as ``[B, 2T]`` frames. In most rows the first copy is as good
as known and the second all noise: each noisy frame sees the known ones before it and itself, which is what a step of a
dream is, and every frame of a window is learned from (Hu et al. 2024, arXiv:2412.07720). In the other rows the copies
are clips that do not know of each other, whose frames see those to come as well, and of which any part may be known
(the task mix of GAIA-2, Russell et al. 2025, arXiv:2503.20523).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.models.diffusion.frames import FrameTokens
from jaxwm.models.diffusion.objectives import Objective, draw_rows, split_rows
from jaxwm.nn.transformer import window_mask
from jaxwm.types import Array, Trajectory

_SOME_FRAMES, _SOME_PLACES, _ALL = 0.25, 0.25, 0.3
"""Shares of the clips of which some frames, some places in all frames, or all is known; of the others nothing is."""


class Task(NamedTuple):
    """What is to be learned from windows, both copies side by side.

    Attributes:
      level: ``[B, 2T, M]`` of all tokens.
      step: ``[B, 2T, M]`` sizes of the steps that are asked for; 0 for what is not to be made, as in a sampler.
      mask: ``[B, 2T, 2T]``, which frames see which.
      unknown: ``[B, 2T, N]``, which tokens of pictures and vectors are to be made.
      guessed: ``[B, 2T]``, which actions are.
      weight: ``[B, 2T]`` of the errors of frames.
      dreamt: ``[B]``, which rows are dreams and not clips.
    """

    level: Array
    step: Array
    mask: Array
    unknown: Array
    guessed: Array
    weight: Array
    dreamt: Array


def draw(
    keys: Array,
    batch: Trajectory,
    segments: Array,
    objective: Objective,
    frames: FrameTokens,
    *,
    window: int,
    clips: float,
    context_noise: float,
    guess_action: float,
    drop_action: float,
) -> Task:
    """A task for each of the windows ``[B, T, ...]``; for the shares see `jaxwm.models.diffusion.DiffusionModel`."""
    level_keys, clip_keys, context_keys, *copy_keys = split_rows(keys, 7)
    length, acts = segments.shape[1], frames.actions
    clip = uniform(clip_keys, 1) < clips

    level, step = objective.draw(level_keys, 2 * length)
    # The frames of a clip are made together, so they have one level.
    alike = lambda x: jnp.repeat(x[:, ::length], length, axis=1)  # noqa: E731
    level, step = (jnp.where(clip, alike(x), x) for x in (level, step))
    parts = [known_in_clips(key, length, frames.groups[1:], frames.cameras.count) for key in copy_keys[:2]]
    context = jnp.arange(2 * length) < length
    known = jnp.where(clip[..., None], jnp.concatenate(parts, axis=1), context[:, None])
    # What a frame of a dream is built on is a little noisy; what is known of a clip is not.
    quiet = jnp.where(clip, 1.0, 1.0 - context_noise * uniform(context_keys, 2 * length))
    shown = jnp.where(known, quiet[..., None], level[..., None])

    # Of clips whose frames are all known there is nothing else to learn than the actions.
    shares = [jnp.where(clip & part.all((1, 2))[:, None], 1.0, guess_action) for part in parts]
    drawn = [
        draw_actions(key, batch, part, share, drop_action)
        for key, part, share in zip(copy_keys[2:], jnp.split(level, 2, axis=1), shares, strict=True)
    ]
    acted, guessed = (jnp.concatenate(copies, axis=1) for copies in zip(*drawn, strict=True))
    levels = jnp.concatenate([jnp.repeat(acted[..., None], acts, axis=-1), shown], axis=2)
    made = jnp.concatenate([jnp.repeat(guessed[..., None], acts, axis=-1), ~known], axis=2)

    # Where less than two frames come before, nothing says what moves and whither: the errors of very noisy frames are
    # chance there, and in full (that is, without the weight 0.9 t + 0.1 of Dreamer 4) they drown those of motion.
    follows = batch.has_previous()
    moving = jnp.tile(follows & jnp.pad(follows[:, :-1], ((0, 0), (1, 0))), 2)
    return Task(
        level=levels,
        step=jnp.where(made, step[..., None], 0.0),
        mask=jnp.where(clip[..., None], see_clips(segments, window), see_dreams(segments, window)),
        unknown=~known,
        guessed=guessed,
        weight=jnp.where(clip | ~moving, 0.1 + 0.9 * level, 1.0),
        dreamt=~clip[:, 0],
    )


def uniform(keys: Array, *shape: int) -> Array:
    """Numbers ``[B, *shape]`` in 0..1, each row from a key of its own."""
    return draw_rows(jax.random.uniform, keys, *shape)


def see_dreams(segments: Array, window: int) -> Array:
    """``[B, 2T, 2T]``: known frames see those before them and themselves, noisy ones the known ones before them.

    Args:
      segments: ``[B, T]`` numbers of episodes, within which frames see each other.
      window: how many frames back they see.
    """
    seen = window_mask(segments.shape[1], window, segments)
    itself = jnp.broadcast_to(jnp.eye(segments.shape[1], dtype=bool), seen.shape)
    return jnp.block([[seen, jnp.zeros_like(seen)], [seen & ~itself, itself]])


def see_clips(segments: Array, window: int) -> Array:
    """``[B, 2T, 2T]``: frames see those of their own copy, as far ahead as back."""
    near = see_both_ways(segments, window)
    return jnp.block([[near, jnp.zeros_like(near)], [jnp.zeros_like(near), near]])


def see_both_ways(segments: Array, window: int) -> Array:
    """``[B, T, T]``: frames see ``window`` frames before and after their own."""
    before = window_mask(segments.shape[1], window, segments)
    return before | before.swapaxes(1, 2)


def known_in_clips(keys: Array, length: int, groups: tuple[int, ...], cameras: int) -> Array:
    """``[B, T, M]``: tokens of some frames or some places, each time another share of them, or all, or none.

    Args:
      keys: ``[B]``.
      length: T.
      groups: how many tokens there are of each kind, M together, those of the images first.
      cameras: how many images; if several, half of the places are whole images, in all frames.
    """
    kind_keys, share_keys, frame_keys, place_keys = split_rows(keys, 4)
    kind, share = uniform(kind_keys, 1, 1), uniform(share_keys, 1, 1)
    if cameras == 1:
        drawn = uniform(place_keys, 1, sum(groups))
    else:
        place_keys, camera_keys, whole_keys = split_rows(place_keys, 3)
        each = jnp.repeat(uniform(camera_keys, 1, len(groups)), np.array(groups), axis=2)
        drawn = jnp.where(uniform(whole_keys, 1, 1) < 0.5, each, uniform(place_keys, 1, sum(groups)))
    frames = (uniform(frame_keys, length, 1) < share) & (kind < _SOME_FRAMES)
    places = (drawn < share) & (kind > 1 - _SOME_PLACES)
    return frames | places | ((kind > _SOME_FRAMES) & (kind < _SOME_FRAMES + _ALL))


def draw_actions(keys: Array, batch: Trajectory, level: Array, guessed: Array, hidden: float) -> tuple[Array, Array]:
    """Levels ``[B, T]`` of the actions that led to frames, and which of them are to be guessed.

    Args:
      keys: ``[B]``.
      batch: the windows.
      level: ``[B, T]`` of the frames: an action that is guessed is as noisy as an unknown frame would be.
      guessed: ``[B, 1]`` share of the actions that are guessed.
      hidden: share of those that nothing is said about, as of those that nobody knows.
    """
    inside = batch.has_previous() & jnp.pad(batch.action_valid[:, :-1], ((0, 0), (1, 0)))
    # Whether the action before a window is known is not recorded: as good as the first one in it.
    before = jnp.zeros_like(inside).at[:, 0].set(~batch.is_first[:, 0] & batch.action_valid[:, 0])
    chance = uniform(keys, inside.shape[1])
    levels = jnp.where(chance < guessed, level, jnp.where(chance < guessed + hidden, 0.0, 1.0))
    return jnp.where(inside | before, levels, 0.0), inside & (chance < guessed)
