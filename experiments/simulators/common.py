"""What all claims about simulators need: episodes that no training saw, and pictures out of a model."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxwm
from experiments import dreams
from experiments.record import picture
from jaxwm.data.generate import simulate

CONTEXT = 7
"""Frames that a dream is shown before."""


@functools.cache
def held_out(world, count, length, policy, seed=1, only=None):
    """``count`` episodes of ``world`` that go on for ``length`` frames, ``[count, length, ...]``; all combinations.

    Those for which ``only`` is not False, if it is given.
    """
    kept = []
    for episode in simulate(world, seed, 100 * count, length, policy, "test"):
        if len(episode.reward) == length and (only is None or only(episode)):
            kept.append(episode)
        if len(kept) == count:
            break
    names = [field.name for field in dataclasses.fields(jaxwm.Trajectory) if hasattr(kept[0], field.name)]
    rows = [{name: getattr(episode, name) for name in names} for episode in kept]
    return jaxwm.Trajectory(**jax.tree.map(lambda *x: jnp.stack(x), *rows))


def dream(run, batch, *, context=CONTEXT, temperature=0.0, **options):
    """Pictures by camera, of the mode if nothing else is asked for; see `experiments.dreams.dream`."""
    pictures = dreams.dream(run, batch, context, temperature=temperature, **options)
    return {name: np.asarray(x) for name, x in pictures.items()}


def clips(run, batch, condition, known=None, guidance=None, steps=8, seed=0):
    """Clips ``[B, T, H, W, 3]`` by camera under the actions of ``batch`` that are told ``condition`` and no more."""
    told = dataclasses.replace(batch, condition=condition, info={})
    known = {"action": jnp.ones(batch.reward.shape), **(known or {})}
    guidance = None if guidance is None else jnp.full(len(batch.reward), guidance)
    made = _sample(run.model, run.variables, jax.random.key(seed), told, known, steps, guidance)
    return {name: np.asarray(x) for name, x in made.observation.items()}


@functools.partial(jax.jit, static_argnums=0)
def _sample(model, variables, key, trajectory, known, steps, guidance):
    return model.sample(variables, key, trajectory, known, steps=steps, guidance=guidance)


def psnr(pictures, truth):
    """By frame, of the mean error of ``[B, T, H, W, 3]`` in 0..1."""
    return -10 * np.log10(np.mean(np.square(pictures - truth), axis=(0, 2, 3, 4)))


def draw(name, rows, every=1):
    """Writes ``name``.png: every so many frames of clips ``[T, H, W, 3]``, in bytes or in 0..1, under their titles."""
    shown = {title: np.asarray(frames)[::every] for title, frames in rows.items()}
    longest = max(len(frames) for frames in shown.values())
    figure, axes = plt.subplots(len(rows), 1, figsize=(longest, 1.25 * len(rows)))
    for axis, (title, frames) in zip(axes, shown.items(), strict=True):
        axis.imshow(np.concatenate(np.clip(frames / (255.0 if frames.dtype == np.uint8 else 1.0), 0.0, 1.0), axis=1))
        axis.set_title(title, fontsize=8, loc="left")
        axis.axis("off")
    picture(figure, pathlib.Path(__file__).parent / f"{name}.png")
