"""What is in a data set: counts, statistics, and a sheet of its pictures."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxwm.data.episodes import DataError, Episode, Episodes, open_episodes, splits_of

_BINS = 10


@dataclasses.dataclass(frozen=True)
class FieldStatistics:
    """Over all entries of a field; those of actions and rewards that are void are left out."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    min: float
    mean: float
    max: float
    std: float


@dataclasses.dataclass(frozen=True)
class SplitStatistics:
    """What a split holds.

    Attributes:
      split: its name.
      episodes: how many.
      steps: how many, over all episodes.
      lengths: shortest, mean and longest episode in steps.
      read: how many episodes the rest of the figures come from.
      terminal: fraction of these that the world ended.
      labelled: fraction of their steps whose action is known.
      returns: smallest, mean and largest sum of rewards of an episode.
      fields: one entry an array.
      actions: for discrete actions the number of times that each was chosen, ``[A]``; else for each dimension a
        histogram over ``action_edges``, ``[A, bins]``.
      action_edges: ``[A, bins + 1]``, empty for discrete actions.
    """

    split: str
    episodes: int
    steps: int
    lengths: tuple[int, float, int]
    read: int
    terminal: float
    labelled: float
    returns: tuple[float, float, float]
    fields: tuple[FieldStatistics, ...]
    actions: tuple[Any, ...]
    action_edges: tuple[Any, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def inspect_dataset(path: str | os.PathLike[str], limit: int | None = 256) -> list[SplitStatistics]:
    """The statistics of every split of the data set at ``path``.

    Args:
      path: the data set.
      limit: how many episodes of a split to read, spread evenly over it; None for all.

    Raises:
      DataError: no data set, or a damaged one.
    """
    return [_split_statistics(open_episodes(path, split), limit) for split in splits_of(path)]


def contact_sheet(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str = "train",
    rows: int = 8,
    columns: int = 12,
    field: str | None = None,
) -> None:
    """Writes a PNG with one episode a row: ``columns`` frames, spread evenly from its first to its last.

    The episodes are spread evenly over the split. Episodes with fewer frames leave the rest of their row empty.

    Args:
      path: the data set.
      out: the picture to write.
      split: of the data set.
      rows: how many episodes.
      columns: how many frames.
      field: which picture of the observation; the first if None.

    Raises:
      DataError: no such split or field, or no pictures.
    """
    from PIL import Image

    episodes = open_episodes(path, split)
    images = {image.name: image for image in episodes.spec.images}
    if not images:
        raise DataError(f"{path}: there are no pictures to show, only {[f.name for f in episodes.spec.observation]}")
    field = field or next(iter(images))
    if field not in images:
        raise DataError(f"{path}: there is no picture {field!r}, only {', '.join(images)}")
    height, width, channels = images[field].shape
    chosen = list(_spread(len(episodes), rows))
    sheet = np.full((len(chosen) * (height + 2) + 2, columns * (width + 2) + 2, 3), 255, np.uint8)
    for row, index in enumerate(chosen):
        frames = episodes[index].observation[field]
        for column, step in enumerate(_spread(len(frames), columns)):
            top, left = row * (height + 2) + 2, column * (width + 2) + 2
            sheet[top : top + height, left : left + width] = frames[step][..., :3] if channels > 1 else frames[step]
    out = pathlib.Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(out, format="PNG")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None


def _spread(count: int, most: int) -> Iterator[int]:
    """At most ``most`` numbers below ``count``, evenly from the first to the last."""
    wanted = min(count, most)
    return (round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted))


class _Moments:
    """Count, sum, sum of squares, least and largest of a stream of numbers."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0
        self.min, self.max = np.inf, -np.inf

    def add(self, array: np.ndarray) -> None:
        if not array.size:
            return
        if array.dtype == np.uint8:  # pictures: 256 values, counted
            counts = np.bincount(array.ravel(), minlength=256)
            values, weights = np.flatnonzero(counts).astype(float), counts[counts > 0].astype(float)
        else:
            values = array.ravel().astype(np.float64)
            weights = np.ones_like(values)
        self.count += array.size
        self.sum += float(values @ weights)
        self.squares += float(values**2 @ weights)
        self.min, self.max = min(self.min, float(values.min())), max(self.max, float(values.max()))

    def summary(self) -> tuple[float, float, float, float]:
        """Least, mean, largest, standard deviation; NaN where there was nothing."""
        if not self.count:
            return (np.nan,) * 4
        mean = self.sum / self.count
        return self.min, mean, self.max, float(np.sqrt(max(self.squares / self.count - mean**2, 0.0)))


def _arrays(episode: Episode) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays to summarise by name, without what is void."""
    known = episode.action_valid & ~episode.is_last
    yield from ((name, array) for name, array in episode.observation.items())
    yield "action", episode.action[known]
    yield "reward", episode.reward[~episode.is_last]
    yield from ((f"condition/{name}", array) for name, array in episode.condition.items())
    yield from ((f"info/{name}", array) for name, array in episode.info.items())


def _split_statistics(episodes: Episodes, limit: int | None) -> SplitStatistics:
    moments: dict[str, _Moments] = {}
    kinds: dict[str, tuple[tuple[int, ...], str]] = {}
    returns, terminal, labelled, steps = [], 0, 0, 0
    known_actions = []
    chosen = list(_spread(len(episodes), limit or len(episodes)))
    for index in chosen:
        episode = episodes[index]
        for name, array in _arrays(episode):
            moments.setdefault(name, _Moments()).add(array)
            kinds[name] = (array.shape[1:], str(array.dtype))
        known_actions.append(episode.action[episode.action_valid & ~episode.is_last])
        returns.append(float(episode.reward[~episode.is_last].sum()))
        terminal += bool(episode.is_terminal.any())
        labelled += int(episode.action_valid.sum())
        steps += len(episode)
    actions, edges = _histogram(np.concatenate(known_actions), episodes.spec.action.discrete)
    lengths = episodes.lengths
    return SplitStatistics(
        split=episodes.split,
        episodes=len(episodes),
        steps=int(lengths.sum()),
        lengths=(int(lengths.min()), float(lengths.mean()), int(lengths.max())),
        read=len(chosen),
        terminal=terminal / len(chosen),
        labelled=labelled / steps,
        returns=(min(returns), float(np.mean(returns)), max(returns)),
        fields=tuple(FieldStatistics(name, *kinds[name], *moments[name].summary()) for name in moments),
        actions=actions,
        action_edges=edges,
    )


def _histogram(actions: np.ndarray, discrete: bool) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    if discrete:
        return tuple(int(n) for n in actions.sum(0)), ()
    counts, edges = [], []
    for dimension in range(actions.shape[1]):
        count, edge = np.histogram(actions[:, dimension], bins=_BINS)
        counts.append(tuple(count.tolist()))
        edges.append(tuple(edge.tolist()))
    return tuple(counts), tuple(edges)
