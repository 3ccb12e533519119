"""From noise to data: steps along the probability-flow differential equation of an `Objective`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxwm.models.diffusion.objectives import Objective
from jaxwm.types import Array

Method = Literal["euler", "heun", "ddim"]
Denoiser = Callable[[Array, Array, Array], Array]
"""Noisy tokens ``[..., C]``, their levels ``[...]`` and the sizes of the steps ``[...]`` to the expected data."""


def sample(
    objective: Objective,
    denoise: Denoiser,
    noisy: Array,
    level: Array,
    steps: int | Array,
    method: Method = "euler",
) -> Array:
    """Data from ``noisy`` tokens, all of which reach level 1 in ``steps`` steps of equal size.

    Args:
      objective: that ``denoise`` was trained with.
      denoise: the model. Heun's method asks it twice a step.
      noisy: ``[..., C]``, the tokens at ``level``; see `jaxwm.models.diffusion.mix`.
      level: ``[...]`` in 0..1: 0 for a token that is made from nothing, 1 for one that is known and stays as it is to
        the last bit, between them for one that is to be changed.
      steps: how many; an array ``[...]`` lets tokens take different numbers of them. A number that is traced compiles
        once for all.
      method: ``euler`` and ``heun`` (of second order; Karras et al. 2022, algorithm 1) in the time of the objective;
        ``ddim`` keeps expected data and noise during a step (Song et al. 2021, arXiv:2010.02502), which is the same as
        Euler's where both enter linearly.
    """
    count = jnp.broadcast_to(jnp.asarray(steps), level.shape)
    size = (1.0 - level) / count

    def at(index: Array) -> Array:
        return jnp.where(index < count, level + index * size, 1.0)

    def slope(x: Array, level: Array) -> Array:
        data, noise = _parts(objective, denoise, x, level, size)
        alpha_rate, sigma_rate = objective.rates(objective.clock(level))
        return alpha_rate[..., None] * data + sigma_rate[..., None] * noise

    def step(index: Array, x: Array) -> Array:
        now, then = at(index), at(index + 1)
        moving = (now < 1.0)[..., None]
        if method == "ddim":
            data, noise = _parts(objective, denoise, x, now, size)
            alpha, sigma = objective.scales(objective.clock(then))
            return jnp.where(moving, alpha[..., None] * data + sigma[..., None] * noise, x)
        length = (objective.clock(then) - objective.clock(now))[..., None]
        first = slope(x, now)
        following = x + length * first
        if method == "heun":
            # At level 1 there is no noise to follow any more: the last step is one of Euler's.
            second = jnp.where((then < 1.0)[..., None], slope(following, then), first)
            following = x + length * (first + second) / 2
        return jnp.where(moving, following, x)

    return jax.lax.fori_loop(0, steps if isinstance(steps, int) else jnp.max(count), step, noisy)


def _parts(objective: Objective, denoise: Denoiser, x: Array, level: Array, size: Array) -> tuple[Array, Array]:
    """The expected data in ``x``, and the noise that is then in it."""
    data = denoise(x, level, size)
    alpha, sigma = objective.scales(objective.clock(level))
    noise = (x - alpha[..., None] * data) / jnp.where(level < 1.0, sigma, 1.0)[..., None]
    return data, noise
