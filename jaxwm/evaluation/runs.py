"""Trained runs: their held-out episodes, and how well they predict them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import data
from jaxwm.evaluation import video
from jaxwm.evaluation.scores import Scores
from jaxwm.types import Spec, Trajectory

if TYPE_CHECKING:
    from jaxwm.config import Config
    from jaxwm.training import Run

MEAN_EPISODES = 64
"""Training episodes whose mean frame is the baseline."""


class Episodes(Protocol):
    """The part of `jaxwm.data.Episodes` that evaluation reads; simulated episodes have it as well."""

    spec: Spec
    lengths: np.ndarray

    def windows(self, indices: Sequence[int], starts: Sequence[int], length: int) -> Trajectory:
        """Windows ``[B, length, ...]``, padded beyond the ends of their episodes."""
        ...


class SimulatedEpisodes:
    """The first ``count`` episodes of a split that is not on disk, as it would be generated: the very same ones.

    Raises:
      DataError: the configuration does not say how to simulate them.
    """

    def __init__(self, config: Config, split: str, count: int) -> None:
        from jaxwm.config import build_world

        settings = config.data.simulation
        if settings is None:
            raise data.DataError(f"data.path: there are no episodes in {config.data.path}, and no data.generate")
        world = build_world(settings.world)
        count = min(count, getattr(settings, split, 0))
        made = data.simulate(world, settings.seed, count, settings.length, settings.policy, split)
        self.spec = world.spec
        self._episodes = list(made)
        self.lengths = np.array([len(episode) for episode in self._episodes], np.int64)

    def windows(self, indices: Sequence[int], starts: Sequence[int], length: int) -> Trajectory:
        """As `jaxwm.data.Episodes.windows`."""
        rows = []
        for index, start in zip(indices, starts, strict=True):
            if not 0 <= index < len(self._episodes):
                raise data.DataError(f"there is no simulated episode {index}, only {len(self._episodes)}")
            episode = self._episodes[index]
            fields = {name: getattr(episode, name) for name in _STEP_FIELDS}
            steps = jax.tree.map(functools.partial(_cut, start=start, length=length), fields)
            previous = episode.action[start - 1] if start else episode.previous_action
            rows.append(Trajectory(previous_action=jnp.asarray(previous), **steps))
        return jax.tree.map(lambda *parts: np.stack(parts), *rows)


_STEP_FIELDS = tuple(
    field.name for field in dataclasses.fields(Trajectory) if field.name not in ("previous_action", "initial_state")
)


def _cut(array: np.ndarray, start: int, length: int) -> np.ndarray:
    """Steps ``start .. start + length``, zeros beyond the end."""
    steps = array[start : start + length]
    return np.pad(steps, ((0, length - len(steps)), *[(0, 0)] * (array.ndim - 1)))


def open_split(config: Config, split: str, count: int) -> Episodes:
    """The episodes of ``split``: those on disk, or (at most ``count``) simulated ones where none are.

    Raises:
      DataError: there are none, and the configuration does not say how to simulate them.
    """
    is_there, collect = os.path.isdir(config.data.path), config.data.collect
    if not is_there and collect is not None and collect.environment is not None:
        options = f"--observe {collect.observe} --size {collect.size} --repeat {collect.repeat}"
        options += "".join(f" env.{name}={value}" for name, value in collect.options.items())
        raise data.DataError(
            f"this agent lived in {collect.environment} and left no episodes on disk: record some, 'jaxwm data record "
            f"{collect.environment} --out FOLDER {options}', and name them, --data FOLDER (in Python data=)"
        )
    if is_there or config.data.simulation is None:
        return data.open_data(config.data, split)
    episodes: Episodes = data.in_blocks(SimulatedEpisodes(config, split, count), config.data.frame_skip)
    return episodes


def batches(episodes: Episodes, count: int, length: int, batch: int = 16) -> Iterator[Trajectory]:
    """The first ``length`` steps of the first ``count`` episodes, in batches of numpy arrays."""
    count = min(count, len(episodes.lengths))
    for start in range(0, count, batch):
        rows = range(start, min(start + batch, count))
        yield episodes.windows(rows, [0] * len(rows), length)


def longest_first(episodes: Episodes, count: int, length: int) -> list[int]:
    """``count`` episodes to look at: those of at least ``length`` steps in order, then the others."""
    lengths = episodes.lengths.tolist()
    return sorted(range(len(lengths)), key=lambda index: (lengths[index] < length, index))[:count]


def evaluate_run(
    run: Run,
    episodes: int | None = None,
    context: int | None = None,
    horizon: int | None = None,
    *,
    estimate: video.Estimate = "mode",
    samples: int = 1,
    split: str = "test",
    batch: int = 16,
    seed: int = 0,
) -> Scores:
    """Scores open-loop prediction on the held-out episodes of a run, a batch in memory at a time.

    Args:
      run: what `jaxwm.load_run` returned.
      episodes: how many, from the first; this and the next two by default as ``evaluation`` of the configuration says.
      context: the number of frames seen.
      horizon: the number of frames imagined.
      estimate: what is scored, see `jaxwm.evaluation.video.evaluate`.
      samples: the number of sampled futures for each episode.
      split: of the data.
      batch: episodes at a time.
      seed: of the model's randomness.

    Raises:
      DataError: no episodes, or of another kind than the model was made for.
      ValueError: a context and horizon that no episode is long enough for.
    """
    settings = run.config.evaluation
    episodes, context = episodes or settings.episodes, context or settings.context
    horizon = horizon or settings.horizon
    source = checked_split(run.config, run.spec, split, episodes, context, horizon)
    return video.evaluate(
        run.model,
        run.variables,
        batches(source, episodes, context + horizon, batch),
        context,
        horizon,
        key=jax.random.key(seed),
        estimate=estimate,
        samples=samples,
        mean=training_mean(run.config),
        extra=ball_measure(run.config),
    )


def matching_split(config: Config, spec: Spec, split: str, count: int) -> Episodes:
    """`open_split`, if its episodes are of ``spec``.

    Raises:
      DataError: they are not.
    """
    source = open_split(config, split, count)
    if source.spec != spec:
        raise data.DataError(
            f"{config.data.path}: these episodes have {_describe(source.spec)}, "
            f"the model was made for {_describe(spec)}"
        )
    return source


def _describe(spec: Spec) -> str:
    """A specification in a few words."""
    fields = [f"{field.name} {field.dtype}{list(field.shape)}" for field in (*spec.observation, *spec.condition)]
    action = spec.action
    bounds = "" if action.low is None else f" within {list(action.low)} and {list(action.high or ())}"
    actions = f"one of {action.dim} actions" if action.discrete else f"{action.dim} actions{bounds}"
    return f"{', '.join(fields)} and {actions}"


def checked_split(config: Config, spec: Spec, split: str, count: int, context: int, horizon: int) -> Episodes:
    """`matching_split`, if at least one of its episodes is long enough.

    Raises:
      DataError: they are of another spec.
      ValueError: all are too short.
    """
    source = matching_split(config, spec, split, count)
    longest = int(source.lengths.max(initial=0))
    if context + horizon > longest:
        raise ValueError(
            f"horizon is {horizon}, but the longest of these episodes has {longest} steps: "
            f"at most {max(longest - context, 0)} can follow a context of {context}"
        )
    return source


def training_mean(config: Config, episodes: int = MEAN_EPISODES) -> dict[str, np.ndarray]:
    """The mean frame (and vector, reward, continuation) of the first training episodes."""
    source = open_split(config, "train", episodes)
    length = int(source.lengths[:episodes].max(initial=1))
    return video.mean_observation(batches(source, episodes, length))


def ball_measure(config: Config) -> video.Extra | None:
    """The measure of ball positions, where the episodes are of the world ``bounce``."""
    from jaxwm.config import build_world
    from jaxwm.evaluation.balls import BallPositions
    from jaxwm.worlds import Bounce

    settings = config.data.simulation
    world = None if settings is None else build_world(settings.world)
    return BallPositions(world) if isinstance(world, Bounce) else None


def watch_run(
    run: Run, count: int, context: int, horizon: int, *, temperature: float = 0.0, split: str = "test", seed: int = 0
) -> video.OpenLoop:
    """Open-loop predictions of ``count`` episodes, as numpy arrays, to look at."""
    source = checked_split(run.config, run.spec, split, count, context, horizon)
    chosen = longest_first(source, count, context + horizon)
    trajectory = source.windows(chosen, [0] * len(chosen), context + horizon)
    key = jax.random.key(seed)
    rollout = video.predict(run.model, run.variables, key, trajectory, context, horizon, temperature)
    return jax.device_get(rollout)
