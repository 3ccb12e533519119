"""Data sets recorded in real environments."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxwm.data.episodes import Episode, write_episodes
from jaxwm.envs import GymnasiumEnvironments, Recorder


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
    log = log or (lambda line: None)
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
    log(f"recording {train} + {test} episodes of {recorder.env_id} into {path}")
    begin = time.perf_counter()
    write_episodes(path, recorder.spec, splits, recorder.env_id, metadata)
    log(f"wrote {train + test} episodes to {path} in {time.perf_counter() - begin:.1f} s")


def reopen(recorded: Mapping[str, Any], count: int, max_length: int) -> GymnasiumEnvironments:
    """``count`` copies of the environment of a data set whose ``metadata["record"]`` is ``recorded``."""
    return GymnasiumEnvironments(
        recorded["environment"], count, observe=recorded["observe"], size=recorded["size"],
        repeat=recorded.get("repeat", 1), max_length=max_length, options=recorded["options"],
    )  # fmt: skip
