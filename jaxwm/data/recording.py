"""Data sets recorded in real environments."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxwm.data.episodes import Episode, Source, write_episodes
from jaxwm.envs import GymnasiumEnvironments, Recorder
from jaxwm.envs.gymnasium import Observe


@dataclasses.dataclass(frozen=True)
class Recording:
    """A data set that can be recorded: an environment and how much of it.

    Args:
      env_id: see `jaxwm.envs.Recorder`, as for all that is not said here.
      train: episodes for training.
      test: episodes held out; they come from another seed.
      observe: which observations to keep.
      max_length: observations after which an episode is cut.
      parallel: copies of the environment.
      seed: of everything random.
    """

    env_id: str
    train: int
    test: int = 0
    observe: Observe = "pixels"
    max_length: int | None = None
    parallel: int = 4
    seed: int = 0

    def source(self) -> Source:
        """The data set, not recorded yet.

        Raises:
          EnvError: gymnasium is missing, or there is no such environment.
        """
        recorder = Recorder(self.env_id, observe=self.observe, max_length=self.max_length, parallel=self.parallel)
        return recorded(recorder, self.train, self.test, self.seed)


RECORDINGS: Mapping[str, Recording] = {
    "breakout": Recording("ALE/Breakout-v5", train=400, test=24, max_length=400),
    "car_racing": Recording("CarRacing-v3", train=200, test=8, max_length=400),
    "cartpole": Recording("CartPole-v1", train=600, test=40, observe="vectors", parallel=8),
}
"""The data sets of the shipped configurations, by their TFDS name; see `jaxwm.data.builder`."""


def recorded(recorder: Recorder, train: int, test: int = 0, seed: int = 0) -> Source:
    """The data set that `record_dataset` writes, not recorded yet."""
    counts = {"train": train, "test": test}
    splits = {
        split: map(Episode.of, recorder.episodes(count, seed, stream))
        for stream, (split, count) in enumerate(counts.items())
        if count
    }
    policy = recorder.policy if isinstance(recorder.policy, str) else getattr(recorder.policy, "__name__", "given")
    metadata = {
        "record": {
            "environment": recorder.env_id,
            "options": dict(recorder.options),
            "policy": policy,
            "size": recorder.size,
            "observe": recorder.observe,
            "repeat": recorder.repeat,
            "max_length": recorder.max_length,
            "parallel": recorder.parallel,
            "seed": seed,
            **counts,
        }
    }
    return Source(recorder.env_id, recorder.spec, splits, metadata)


def record_dataset(
    path: str | os.PathLike[str],
    recorder: Recorder,
    *,
    train: int,
    test: int = 0,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> None:
    """Records ``train`` and ``test`` episodes with ``recorder`` and writes them to ``path``.

    The splits come from different seeds. The same recorder, counts and seed give the same data.

    Raises:
      DataError: the path is taken, or an episode holds numbers that are not finite.
      EnvError: an environment failed, or the policy returned something that is not an action.
    """
    source = recorded(recorder, train, test, seed)
    log = log or (lambda line: None)
    log(f"recording {train} + {test} episodes of {source.name} into {path}")
    begin = time.perf_counter()
    write_episodes(path, source.spec, source.splits, source.name, source.metadata)
    log(f"wrote {train + test} episodes to {path} in {time.perf_counter() - begin:.1f} s")


def reopen(recorded: Mapping[str, Any], count: int, max_length: int) -> GymnasiumEnvironments:
    """``count`` copies of the environment of a data set whose ``metadata["record"]`` is ``recorded``."""
    return GymnasiumEnvironments(
        recorded["environment"], count, observe=recorded["observe"], size=recorded["size"],
        repeat=recorded.get("repeat", 1), max_length=max_length, options=recorded["options"],
    )  # fmt: skip
