"""A dream on demand: some frames of an episode, then actions of one's choice, and what the model makes of them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.evaluation import clips, runs, video
from jaxwm.types import ActionSpec, nearest

if TYPE_CHECKING:
    from jaxwm.training import Run

HORIZON = 40
"""Frames to imagine when nothing says how many."""

CHOICES = ("data", "random", "zero")


@dataclasses.dataclass(frozen=True)
class Dreamt:
    """What `dream_run` imagined.

    Attributes:
      rollout: numpy arrays, ``[B, C+H, ...]``.
      action: ``[B, H, A]``, what led to each imagined frame.
      has_truth: whether ``rollout.observation`` is what really followed: the actions were those of the episode.
    """

    rollout: video.OpenLoop
    action: np.ndarray
    has_truth: bool

    def picture_name(self) -> str:
        """The first image of the observation that can be drawn.

        Raises:
          ValueError: there is none.
        """
        name = clips.drawable(self.rollout.observation)
        if name is None:
            shapes = {name: list(value.shape[2:]) for name, value in self.rollout.observation.items()}
            raise ValueError(
                f"this world shows nothing that can be drawn ({shapes}); write its numbers to an .npz file"
            )
        return name

    def film(self, scale: int = 4, labels: bool = True) -> clips.Pixels:
        """A video uint8 ``[T, H, W, 3]`` of all rows: truth | imagined | error, or the imagined frames alone."""
        name = self.picture_name()
        truth, imagined = self.rollout.observation[name], self.rollout.prediction.observation[name]
        context = self.rollout.context
        if self.has_truth:
            videos = [
                clips.side_by_side(a, b, context, scale=scale, labels=labels)
                for a, b in zip(truth, imagined, strict=True)
            ]
            return clips.tile(videos, 1 if len(videos) < 4 else 2)
        videos = [clips.film(row, context, scale=scale, labels=labels) for row in imagined]
        return clips.tile(videos, min(4, len(videos)))

    def sheet(self, scale: int = 1, labels: bool = True) -> clips.Pixels:
        """A contact sheet uint8 ``[H, W, 3]`` of all rows."""
        name = self.picture_name()
        truth, imagined = self.rollout.observation[name], self.rollout.prediction.observation[name]
        rows = [
            clips.contact_sheet(a if self.has_truth else None, b, self.rollout.context, scale=scale, labels=labels)
            for a, b in zip(truth, imagined, strict=True)
        ]
        return np.concatenate(rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the numbers to an .npz file: actions, ``imagined/NAME`` (images in [0, 1]) and ``truth/NAME``."""
        rollout = self.rollout
        arrays = {f"imagined/{name}": value for name, value in rollout.prediction.observation.items()}
        if self.has_truth:
            arrays |= {f"truth/{name}": value for name, value in rollout.observation.items()}
        for name in ("reward", "continuation", "uncertainty"):
            if (value := getattr(rollout.prediction, name)) is not None:
                arrays[f"imagined/{name}"] = value
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, action=self.action, context=np.array(rollout.context), **arrays)


def dream_run(
    run: Run,
    actions: str = "data",
    horizon: int | None = None,
    *,
    context: int | None = None,
    start: int = 0,
    count: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    split: str = "test",
) -> Dreamt:
    """Shows a model the first frames of held-out episodes and lets it imagine what actions of one's choice lead to.

    Args:
      run: what `jaxwm.load_run` returned.
      actions: ``data`` (those of the episode), ``random`` (uniform within their bounds, normal where there are none),
        ``zero``, or a .npy or .csv file with a line for each step.
      horizon: frames to imagine; by default as many as the file has actions, else `HORIZON`, or what the episode has.
      context: frames to show; by default as the configuration says.
      start: the first episode.
      count: how many episodes, from ``start``.
      temperature: 0 for the model's mode, 1 for a sample.
      seed: of the model's randomness and of random actions.
      split: of the data.

    Raises:
      DataError: no such episodes.
      ValueError: actions or a horizon that do not fit.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, expected at least 0")
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon is {horizon}, expected at least 1")
    context = context or run.config.evaluation.context
    source = runs.matching_split(run.config, run.spec, split, start + count)
    available = len(source.lengths)
    if not 0 <= start < available or not 1 <= count <= available - start:
        raise ValueError(f"episodes {start}..{start + count - 1}: {split} has the episodes 0..{available - 1}")
    indices = list(range(start, start + count))
    shortest = int(source.lengths[indices].min())
    if context > shortest:
        raise ValueError(f"context is {context}, but an episode has only {shortest} frames")
    spec = run.spec.action
    given = None if actions in CHOICES else read_actions(actions, spec)
    limit = {"data": shortest - context}.get(actions, HORIZON if given is None else len(given))
    horizon = min(HORIZON, limit) if horizon is None and given is None else horizon or limit
    if actions == "data" and not 1 <= horizon <= limit:
        raise ValueError(
            f"horizon is {horizon}, but only {limit} recorded actions follow a context of {context}; "
            "take fewer, or other actions (random, zero, a file)"
        )
    if given is not None and horizon > len(given):
        raise ValueError(f"horizon is {horizon}, but {actions} has only {len(given)} actions")
    trajectory = source.windows(indices, [0] * count, context + horizon)
    steps = slice(context - 1, context - 1 + horizon)
    action = np.array(trajectory.action)
    chosen = action[:, steps].copy()
    if actions != "data":
        made = given[:horizon] if given is not None else make_actions(actions, spec, (count, horizon), seed)
        chosen = np.broadcast_to(made, (count, horizon, spec.dim))
    action[:, steps] = chosen
    trajectory = dataclasses.replace(trajectory, action=jnp.asarray(action))
    key = jax.random.key(seed)
    rollout = video.predict(run.model, run.variables, key, trajectory, context, horizon, temperature)
    return Dreamt(jax.device_get(rollout), chosen, has_truth=actions == "data")


def make_actions(choice: str, spec: ActionSpec, leading: tuple[int, ...], seed: int) -> np.ndarray:
    """``leading + [A]`` float32: ``random`` or ``zero`` ones (zero: the first choice, if discrete)."""
    if spec.discrete:
        index = np.zeros(leading, int)
        if choice == "random":
            index = np.random.default_rng(seed).integers(spec.dim, size=leading)
        return np.eye(spec.dim, dtype=np.float32)[index]
    if choice == "zero":
        values = np.zeros((*leading, spec.dim))
    elif spec.low is None or spec.high is None:
        values = np.random.default_rng(seed).normal(size=(*leading, spec.dim))
    else:
        values = np.random.default_rng(seed).uniform(spec.low, spec.high, size=(*leading, spec.dim))
    if spec.low is not None and spec.high is not None:
        values = np.clip(values, spec.low, spec.high)
    return values.astype(np.float32)


def read_actions(path: str | os.PathLike[str], spec: ActionSpec) -> np.ndarray:
    """``[T, A]`` float32 from a .npy file or a .csv file with a line for each step.

    Discrete actions may be given as one number a step, the index of the choice.

    Raises:
      ValueError: a file that cannot be read, or actions that do not fit ``spec``; names the file.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".npy", ".csv"):
        raise ValueError(f"actions: {str(path)!r} is neither a .npy or .csv file nor one of "
                         f"{', '.join(CHOICES)}; {nearest(str(path), CHOICES)}")  # fmt: skip
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.loadtxt(path, delimiter=",", ndmin=2, comments="#")
    except OSError as error:
        raise ValueError(f"{path}: cannot read these actions ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a table of numbers ({' '.join(str(error).split())[:120]})") from None
    if values.dtype.kind not in "fiub" or values.size == 0:
        raise ValueError(f"{path}: {values.dtype}{list(values.shape)} is not a table of numbers")
    if spec.discrete and (values.ndim == 1 or values.shape[-1:] == (1,)) and spec.dim > 1:
        values = _one_hot(values.reshape(-1), spec.dim, path)
    if values.ndim == 1 and spec.dim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != spec.dim:
        raise ValueError(f"{path}: actions have the shape {list(values.shape)}, expected [T, {spec.dim}]")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: the action of step {int(np.argwhere(~np.isfinite(values))[0, 0])} is not finite")
    if spec.low is not None and spec.high is not None:
        low, high = np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32)
        outside = ((values < low) | (values > high)).any(axis=1)
        if outside.any():
            step = int(np.argmax(outside))
            raise ValueError(
                f"{path}: the action of step {step}, {values[step].tolist()}, is not within {spec.low} and {spec.high}"
            )
    if spec.discrete and not (((values == 0) | (values == 1)).all(1) & (values.sum(1) == 1)).all():
        raise ValueError(f"{path}: discrete actions are one-hot rows of {spec.dim}, or one index a step")
    return values


def _one_hot(indices: np.ndarray, dim: int, path: pathlib.Path) -> np.ndarray:
    wrong = (indices != np.floor(indices)) | (indices < 0) | (indices >= dim)
    if wrong.any():
        step = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: the action of step {step} is {indices[step]:g}, expected a whole number 0..{dim - 1}"
        )
    return np.eye(dim, dtype=np.float32)[indices.astype(int)]
