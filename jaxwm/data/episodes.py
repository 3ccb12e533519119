"""Episodes on disk: TFDS in ArrayRecord format, written whole or not at all, read one window at a time.

A data set is a folder with one or two splits (``train``, ``test``). An episode lies there as consecutive
records of up to `CHUNK` steps, and ``index-SPLIT.npy`` says where each begins, so that a window is read without
unzipping the rest of its episode. ``spec.json`` holds the `Spec`, the version of this layout and where the data
come from. `tfds.builder_from_directory` opens the folder as well; TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxwm.types import Field, Spec, Trajectory, check_arrays, nearest

FORMAT = 1
"""Version of the layout that this code writes and reads."""

CHUNK = 16
"""Steps in a record: what is unzipped together."""

_STEP_FIELDS = ("is_first", "is_last", "is_terminal", "action_valid")
_GROUPS = ("observation", "condition", "info")


class DataError(ValueError):
    """Data that cannot be used; the message is one line that names the file or split, the episode and the field."""


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode, or a window of one: the fields of `Trajectory` as numpy arrays without the batch axis.

    Attributes:
      observation: images ``[T, H, W, C]`` uint8 and vectors ``[T, D]`` float32, by name.
      action: ``[T, A]`` float32; done in ``observation[t]``.
      reward: ``[T]`` float32; follows ``action[t]``.
      is_first: ``[T]`` bool.
      is_last: ``[T]`` bool.
      is_terminal: ``[T]`` bool.
      action_valid: ``[T]`` bool; False where the action is unknown. All True when left out.
      valid: ``[T]`` bool; False on padding. All True when left out.
      previous_action: ``[A]`` float32; the action before entry 0. Zeros when left out.
      condition: named arrays ``[T, ...]``.
      info: named arrays ``[T, ...]``, physical truth.
    """

    observation: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    action_valid: np.ndarray = None  # type: ignore[assignment]
    valid: np.ndarray = None  # type: ignore[assignment]
    previous_action: np.ndarray = None  # type: ignore[assignment]
    condition: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    info: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        length = len(self)
        if self.action_valid is None:
            object.__setattr__(self, "action_valid", np.ones(length, bool))
        if self.valid is None:
            object.__setattr__(self, "valid", np.ones(length, bool))
        if self.previous_action is None:
            object.__setattr__(self, "previous_action", np.zeros(np.shape(self.action)[1:], np.float32))

    def __len__(self) -> int:
        return int(np.shape(self.reward)[0]) if np.ndim(self.reward) else 0

    @classmethod
    def of(cls, trajectory: Trajectory) -> Episode:
        """The episode that an unbatched ``trajectory`` ``[T, ...]`` holds, without its padding."""
        steps = int(np.sum(trajectory.valid))
        names = [field.name for field in dataclasses.fields(cls) if field.name != "previous_action"]
        cut = jax.tree.map(
            lambda array: np.asarray(array)[:steps], {name: getattr(trajectory, name) for name in names}
        )
        return cls(**cut)


def step_flags(length: int, terminal: bool = False) -> dict[str, Any]:
    """``is_first``, ``is_last`` and ``is_terminal`` ``[length]`` of a whole episode, for ``Episode(**...)``."""
    steps = np.arange(length)
    last = steps == length - 1
    return {"is_first": steps == 0, "is_last": last, "is_terminal": last & terminal}


def in_32_bits(array: np.ndarray) -> np.ndarray:
    """``array`` in the precision that JAX computes with: float64 as float32, int64 as int32."""
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}.get(array.dtype)
    return array if narrow is None else array.astype(narrow)


def info_fields(episode: Episode) -> tuple[Field, ...]:
    """The fields of ``episode.info``: names, shapes without time, dtypes."""
    return tuple(Field(name, tuple(np.shape(v)[1:]), str(np.asarray(v).dtype)) for name, v in episode.info.items())


def check_episode(episode: Episode, spec: Spec, info: Sequence[Field], where: str) -> None:
    """Refuses an episode that a model could not learn from; ``where`` (split and episode) begins the message.

    Raises:
      DataError: fields of unequal length, of another shape or dtype than ``spec`` says, with numbers that are not
        finite, with flags that do not mark exactly the first and the last step, or with impossible actions.
    """
    arrays = flatten(episode)
    length = len(episode)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: {name} is a {type(array).__name__}, expected a numpy array")
        if array.ndim == 0 or len(array) != length:
            steps = len(array) if array.ndim else "no"
            raise DataError(f"{where}: {name} has {steps} steps, reward has {length}")
    if length == 0:
        raise DataError(f"{where}: the episode is empty")
    try:
        spec.check_observation(episode.observation, (length,))
        spec.check_action(episode.action, (length,))
        check_arrays("condition", spec.condition, episode.condition, (length,))
        check_arrays("info", info, episode.info, (length,))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    for name, dtype in [("reward", "float32"), *((name, "bool") for name in _STEP_FIELDS)]:
        if arrays[name].shape != (length,) or arrays[name].dtype != dtype:
            raise DataError(
                f"{where}: {name} is {arrays[name].dtype}{list(arrays[name].shape)}, expected {dtype}[{length}]"
            )
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not name.startswith("info/") and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0][0])
            raise DataError(f"{where}: {name} is not finite at step {step}")
    _check_flags(episode, where)
    _check_actions(episode, spec, where)


def _check_flags(episode: Episode, where: str) -> None:
    expected = step_flags(len(episode))
    for name in ("is_first", "is_last"):
        if not np.array_equal(getattr(episode, name), expected[name]):
            place = "first" if name == "is_first" else "last"
            marked = np.flatnonzero(getattr(episode, name)).tolist()
            raise DataError(f"{where}: {name} marks the steps {marked[:8]}, expected only the {place} one")
    if episode.is_terminal[:-1].any():
        step = int(np.argmax(episode.is_terminal))
        raise DataError(f"{where}: is_terminal at step {step}, before the last step {len(episode) - 1}")


def _check_actions(episode: Episode, spec: Spec, where: str) -> None:
    known = episode.action_valid & ~episode.is_last
    action = episode.action[known]
    if spec.action.discrete:
        wrong = ~(((action == 0) | (action == 1)).all(-1) & (action.sum(-1) == 1))
        expected = "a one-hot vector"
    elif spec.action.low is not None and spec.action.high is not None:
        low, high = np.asarray(spec.action.low, np.float32), np.asarray(spec.action.high, np.float32)
        slack = 1e-4 * (high - low)  # what rounding may add
        wrong = ((action < low - slack) | (action > high + slack)).any(-1)
        expected = f"within {spec.action.low} and {spec.action.high}"
    else:
        return
    if wrong.any():
        step = int(np.flatnonzero(known)[np.argmax(wrong)])
        raise DataError(f"{where}: action at step {step} is {episode.action[step].tolist()}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the episodes of a data set come from: the arguments of `jaxwm.data.write_episodes`."""

    name: str
    spec: Spec
    splits: Mapping[str, Iterable[Episode]]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_episodes(
    path: str | os.PathLike[str],
    spec: Spec,
    splits: Mapping[str, Iterable[Episode]],
    name: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a data set to the folder ``path``, which appears when everything is in it.

    Episodes are taken from the iterables one by one. An interrupted run leaves a hidden folder beside ``path``, which
    nothing reads and which the next run removes; a second writer of the same path waits for the first.

    Args:
      path: a folder that does not exist yet.
      spec: what the episodes show and take.
      splits: episodes by split, for example ``{"train": ..., "test": ...}``; each split has at least one.
      name: of the world or environment; names the TFDS builder config.
      metadata: plain values to keep beside the data, for example how they were made.

    Raises:
      DataError: an episode that `check_episode` refuses, a split without episodes, or a path that is taken.
    """
    from jaxwm.data.builder import prepare

    path = pathlib.Path(path)
    with _staging(path) as staging:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DataError(f"{path}: there is something already; remove it or choose another folder")
        made = prepare(Source(name, spec, splits, dict(metadata or {})), staging)
        if path.exists():
            path.rmdir()
        made.rename(path)


@contextlib.contextmanager
def _staging(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside ``path``, held by one process at a time; what a dead one left in it is removed.

    The lock lies on the folder itself, so it ends with its process, however that dies.
    """
    import fcntl

    staging = path.parent / f".{path.name}.incomplete"
    while True:
        try:
            staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot write here ({error.strerror})") from None
        try:
            handle = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:  # another writer finished between the two calls
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(staging).st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)
    try:
        for leftover in staging.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``spec.json`` of the data set at ``path`` says: ``name, spec, info, chunk, metadata``.

    Raises:
      DataError: there is no data set, or one in a layout that this version does not know.
    """
    file = pathlib.Path(path) / "spec.json"
    try:
        header = json.loads(file.read_text())
    except FileNotFoundError:
        raise DataError(f"{path}: there are no episodes here (no spec.json)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot read this file ({error})") from None
    version = header.get("version") if isinstance(header, dict) else None
    if version != FORMAT:
        raise DataError(f"{file}: format version {version!r} is unknown, this jaxwm reads version {FORMAT}")
    try:
        return {
            **header,
            "spec": Spec.from_dict(header["spec"]),
            "info": tuple(Field(n, tuple(s), d) for n, s, d in header["info"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged ({type(error).__name__}: {error})") from None


def splits_of(path: str | os.PathLike[str]) -> list[str]:
    """The splits of the data set at ``path``: ``train`` first, the others by name.

    Raises:
      DataError: there is no data set.
    """
    read_header(path)
    names = [file.name[len("index-") : -len(".npy")] for file in pathlib.Path(path).glob("index-*.npy")]
    return sorted(names, key=lambda name: (name != "train", name))


def open_episodes(path: str | os.PathLike[str], split: str, info: bool = True) -> Episodes:
    """Opens one split of the data set at ``path`` for random access.

    Args:
      path: the data set's folder.
      split: the split's name.
      info: whether to read the physical truth too; what learns does without, which saves time.

    Raises:
      DataError: no data set, no such split, an unknown format version, or files that are damaged.
    """
    return Episodes(path, split, info)


class Episodes(Sequence[Episode]):
    """The episodes of one split, read on demand; safe to use from several threads.

    Attributes:
      path: the data set's folder.
      split: the split's name.
      spec: what the episodes show and take.
      info: the fields of ``info`` that are read.
      metadata: what was kept beside the data.
      lengths: ``[N]`` int64, steps of each episode.
    """

    def __init__(self, path: str | os.PathLike[str], split: str, info: bool = True) -> None:
        from jaxwm.data.builder import open_records

        header = read_header(path)
        self.path, self.split = pathlib.Path(path), split
        self.spec: Spec = header["spec"]
        self.info: tuple[Field, ...] = header["info"] if info else ()
        self.metadata: dict[str, Any] = header["metadata"]
        self._chunk = int(header["chunk"])
        file = self.path / f"index-{split}.npy"
        if split not in (splits := splits_of(path)):
            raise DataError(f"{path}: there is no split {split!r}; {nearest(split, splits)}")
        try:
            index = np.load(file)
            self._first, self.lengths = index[:, 0], index[:, 1]
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"{file}: damaged ({error})") from None
        self._layout = layout(self.spec, self.info)
        self._records = open_records(self.path, split, self._layout)
        expected = int(self._first[-1] + -(-self.lengths[-1] // self._chunk))
        if len(self._records) != expected:
            raise DataError(f"{self.path}: split {split} has {len(self._records)} records, its index says {expected}")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:  # type: ignore[override]
        index = range(len(self))[index]
        return self.window(index, 0, int(self.lengths[index]))

    def window(self, index: int, start: int, length: int) -> Episode:
        """Steps ``start .. start + length`` of episode ``index``; beyond its end zeros with ``valid`` False."""
        batch = self.windows([index], [start], length)
        row: dict[str, Any] = {}
        for field in dataclasses.fields(Episode):
            value = getattr(batch, field.name)
            row[field.name] = {n: a[0] for n, a in value.items()} if field.name in _GROUPS else value[0]
        return Episode(**row)

    def places(self, length: int) -> np.ndarray:
        """``[N]``: at how many frames of each episode a window of ``length`` steps may begin.

        An episode that is shorter has one such place, its beginning.
        """
        return np.maximum(np.asarray(self.lengths, np.int64) - length, 0) + 1

    def windows(self, indices: Sequence[int], starts: Sequence[int], length: int) -> Trajectory:
        """One `window` a row, as a `Trajectory` of numpy arrays ``[B, length, ...]``.

        Raises:
          DataError: a window that lies outside its episode, or a record that cannot be read.
        """
        batch = len(indices)
        arrays = {name: np.zeros((batch, length, *shape), dtype) for name, (shape, dtype) in self._layout.items()}
        valid = np.zeros((batch, length), bool)
        previous = np.zeros((batch, self.spec.action.dim), np.float32)
        for row, (index, start) in enumerate(zip(indices, starts, strict=True)):
            steps = int(self.lengths[index])
            if not 0 <= start < steps:
                raise DataError(f"{self.path}: {self.split} episode {index} has no step {start}, only {steps}")
            stop = min(start + length, steps)
            valid[row, : stop - start] = True
            for chunk in range(start // self._chunk, (stop - 1) // self._chunk + 1):
                offset = chunk * self._chunk
                low, high = max(start, offset), min(stop, offset + self._chunk)
                record = self._read(index, chunk, self._layout, high - offset)
                for name, array in arrays.items():
                    array[row, low - start : high - start] = record[name][low - offset : high - offset]
                if start > low - 1 >= offset:
                    previous[row] = record["action"][low - 1 - offset]
            if start and start % self._chunk == 0:
                before = self._read(index, start // self._chunk - 1, ["action"], self._chunk)
                previous[row] = before["action"][-1]
        return Trajectory(previous_action=previous, valid=valid, **unflatten(arrays))  # type: ignore[arg-type]

    def _read(self, index: int, chunk: int, names: Iterable[str], steps: int) -> dict[str, np.ndarray]:
        """The first ``steps`` steps of the arrays ``names`` of record ``chunk`` of episode ``index``."""
        number = int(self._first[index]) + chunk
        try:
            return self._records.read(number, names, steps)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            file = self._records.file_of(number)
            raise DataError(f"{file}: {self.split} episode {index} cannot be read, damaged ({reason})") from None


def layout(spec: Spec, info: Sequence[Field]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Every stored array by flat name (``observation/image``), with its shape without time and its dtype."""
    groups = {"observation": spec.observation, "condition": spec.condition, "info": info}
    fields = {f"{group}/{f.name}": (tuple(f.shape), f.dtype) for group, members in groups.items() for f in members}
    fields |= {"action": ((spec.action.dim,), "float32"), "reward": ((), "float32")}
    return fields | dict.fromkeys(_STEP_FIELDS, ((), "bool"))


def flatten(episode: Any) -> dict[str, Any]:
    """Arrays by flat name (``observation/image``) of an `Episode` or a record."""
    get = episode.get if isinstance(episode, dict) else lambda name: getattr(episode, name)
    flat = {f"{group}/{name}": array for group in _GROUPS for name, array in (get(group) or {}).items()}
    return flat | {name: get(name) for name in ("action", "reward", *_STEP_FIELDS)}


def unflatten(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, as a nested dict."""
    nested: dict[str, Any] = {group: {} for group in _GROUPS}
    for name, array in arrays.items():
        group, _, field = name.partition("/")
        if field:
            nested[group][field] = array
        else:
            nested[name] = array
    return nested
