"""Batches of random windows, through grain: a pure function of the seed and the global step.

Window i of a run is drawn by a counter-based generator from (seed, i), and the batch of step s is the windows
``s * batch ... (s + 1) * batch - 1``. So a batch does not depend on the number of hosts, threads or restarts, and a
run restored at step s goes on with ``start=s``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxwm.data.blocks import Blocks
from jaxwm.data.episodes import DataError, Episodes, open_episodes, read_header
from jaxwm.types import Spec, Trajectory

if TYPE_CHECKING:
    from jaxwm.config import Config, DataConfig
    from jaxwm.worlds import World

_ENDLESS = 2**62
"""Batches until the windows run out."""


class WindowSampler:
    """Draws windows, uniform over all places in a split where one fits.

    Args:
      places: ``[N]``, how many there are in each episode; see `jaxwm.data.Episodes.places`.
      seed: of the draws.
    """

    def __init__(self, places: np.ndarray, seed: int) -> None:
        self._ends = np.cumsum(np.asarray(places, np.int64))
        self._seed = seed

    def __call__(self, window: int) -> tuple[int, int]:
        """The episode and the first step of window number ``window``."""
        # Philox depends on (key, counter) alone, in every NumPy; the product's upper half is uniform below the total.
        draw = int(np.random.Philox(key=self._seed, counter=window).random_raw())
        place = draw * int(self._ends[-1]) >> 64
        episode = int(np.searchsorted(self._ends, place, side="right"))
        return episode, place - (int(self._ends[episode - 1]) if episode else 0)


class _Batches:
    """Random access to the batches that one process loads: what grain reads from."""

    def __init__(
        self, episodes: Episodes | Blocks, sampler: WindowSampler, rows: range, batch: int, length: int, start: int
    ):
        self._episodes, self._sampler, self._rows = episodes, sampler, rows
        self._batch, self._length, self._start = batch, length, start

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: Any) -> Trajectory:
        first = (self._start + int(index)) * self._batch
        places = [self._sampler(first + row) for row in self._rows]
        return self._episodes.windows([p[0] for p in places], [p[1] for p in places], self._length)


def windows(
    episodes: Episodes | Blocks,
    *,
    batch: int,
    length: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 8,
) -> Iterator[Trajectory]:
    """Batches of random windows for steps ``start``, ``start + 1``, ..., without end.

    Close the iterator (``.close()``) to end its threads; losing the last reference to it does so as well.

    Args:
      episodes: one split.
      batch: windows in a global batch, over all processes.
      length: steps of a window.
      seed: of the draws.
      start: the global step to begin with.
      process_index: which share of each batch to load: a contiguous ``batch / process_count`` rows.
      process_count: how many processes share a batch.
      threads: that read and unzip.
      prefetch: batches kept ready.

    Yields:
      Trajectories of numpy arrays ``[batch / process_count, length, ...]``.

    Raises:
      DataError: ``batch`` does not divide by ``process_count``, or a count is out of range; at once.
    """
    counts = {"batch": batch, "length": length, "threads": threads, "prefetch": prefetch}
    for name, value, least in [*((n, c, 1) for n, c in counts.items()), ("seed", seed, 0), ("start", start, 0)]:
        if value < least:
            raise DataError(f"{name} is {value}, expected at least {least}")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index is {process_index}, expected one below process_count {process_count}")
    if batch % process_count:
        raise DataError(f"batch {batch} does not divide by the {process_count} processes that share it")
    share = batch // process_count
    rows = range(process_index * share, (process_index + 1) * share)
    sampler = WindowSampler(episodes.places(length), seed)
    return _iterate(_Batches(episodes, sampler, rows, batch, length, start), threads, prefetch)


def _iterate(batches: _Batches, threads: int, prefetch: int) -> Iterator[Trajectory]:
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def episode_batch(episodes: Episodes | Blocks, indices: Sequence[int], length: int, start: int = 0) -> Trajectory:
    """Steps ``start .. start + length`` of the episodes ``indices``, ``[B, length, ...]`` numpy, for evaluation.

    Raises:
      DataError: an index or a start outside the data.
    """
    for index in indices:
        if not 0 <= index < len(episodes):
            raise DataError(f"{episodes.path}: {episodes.split} has no episode {index}, only {len(episodes)}")
    return episodes.windows(indices, [start] * len(indices), length)


def load_spec(config: Config) -> Spec:
    """What the world of ``config`` shows and takes: from its data, or from the world that they would come from.

    Raises:
      DataError: the data are missing and neither ``data.generate`` nor ``data.collect`` says where to get them.
      EnvError: the environment of ``data.collect`` cannot be made.
    """
    if config.data.collect is not None:
        from jaxwm.envs.opening import environment_spec

        return environment_spec(config.data.collect)
    if _exists(config.data.path):
        spec: Spec = read_header(config.data.path)["spec"]
    else:
        spec = _world(config.data).spec
    return _blocked(spec, config.data.frame_skip)


def open_data(config: DataConfig, split: str, info: bool = True) -> Episodes | Blocks:
    """The episodes of a split, in blocks of ``frame_skip`` actions; ``info`` as in `open_episodes`.

    Raises:
      DataError: as `open_episodes`, or discrete actions that cannot be joined.
    """
    return in_blocks(open_episodes(config.path, split, info), config.frame_skip)


def in_blocks(episodes: Any, size: int) -> Any:
    """``episodes`` themselves, or in blocks of several actions.

    Raises:
      DataError: discrete actions, which cannot be joined.
    """
    _blocked(episodes.spec, size)
    return episodes if size == 1 else Blocks(episodes, size)


def _blocked(spec: Spec, size: int) -> Spec:
    try:
        return spec.blocked(size)
    except ValueError as error:
        raise DataError(f"data.{error}") from None


def ensure_dataset(config: DataConfig, log: Callable[[str], None] | None = None) -> None:
    """Generates the data of ``config`` where they are missing; ``log`` gets a line at its begin and end.

    Raises:
      DataError: the data are missing and ``generate`` does not say how to make them, or the folder holds data that
        were made differently; the message lists the differences.
    """
    from jaxwm.data.generate import generate_dataset, parameters

    if config.generate is None:
        if not _exists(config.path):
            _world(config)
        return
    world, settings = _world(config), config.generate
    counts = {name: getattr(settings, name) for name in ("train", "test", "length", "policy", "seed")}
    if not _exists(config.path):
        try:
            generate_dataset(config.path, world, **counts, log=log)
        except DataError:
            if not _exists(config.path):  # another process may have been faster
                raise
    wanted = parameters(world, **counts)
    found = read_header(config.path)["metadata"].get("generate")
    if found is None:
        raise DataError(f"{config.path}: these data were not generated; remove data.generate from the configuration")
    # A parameter that came into the world after the data were made had its default value.
    found = {**found, "world": parameters(type(world)(), **counts)["world"] | found["world"]}
    if differences := _differences(found, wanted):
        raise DataError(
            f"{config.path}: these data were generated differently: {'; '.join(differences)}; "
            "choose another data.path or remove the folder"
        )


def _exists(path: str | os.PathLike[str]) -> bool:
    return os.path.isdir(path) and bool(os.listdir(path))


def _world(config: DataConfig) -> World:
    from jaxwm.config import build_world

    if config.generate is None and not config.path:
        raise DataError("data.path is empty: this agent lives through its own episodes; name some that lie on disk")
    if config.generate is None:
        raise DataError(
            f"data.path: there are no episodes in {config.path}; make them with jaxwm data generate, record or "
            "import, or say how in data.generate"
        )
    return build_world(config.generate.world)


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for name in dict.fromkeys([*wanted, *found]):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name} is {json.dumps(a)} in the data, {json.dumps(b)} in the configuration")
    return lines
