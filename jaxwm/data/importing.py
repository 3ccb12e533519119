"""One's own files as episodes: videos (MP4, GIF ...), NPZ and HDF5.

A video is an episode without actions (``action_valid`` is False) and without rewards (zeros). An NPZ or HDF5 file is
an episode whose arrays are named like the fields of an `Episode` (``action``, ``reward``, ``is_terminal``,
``info/NAME``, ``condition/NAME``; every other name is an observation), or as ``keys`` says.

    >>> importer = Importer("demonstrations/", keys={"image": "obs/camera", "action": "actions"}, episodes="data")
    >>> import_dataset("data/demonstrations", importer)
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxwm.data.episodes import DataError, Episode, check_episode, in_32_bits, info_fields, step_flags, write_episodes
from jaxwm.envs.images import resize
from jaxwm.types import ActionSpec, Field, Spec, nearest

VIDEOS = (".mp4", ".gif", ".mkv", ".mov", ".avi", ".webm")
ARRAYS = (".npz", ".h5", ".hdf5")

_RESERVED = ("action", "reward", "is_terminal")


@dataclasses.dataclass(frozen=True)
class Importer:
    """Reads episodes from the files of a folder and the folders in it, in the order of their names.

    Args:
      source: a folder, or one file.
      keys: for NPZ and HDF5: which array of the file (``group/name``) is which field; nothing else is read.
      size: pictures are brought to ``[size, size]``.
      every: keep each such frame of a video.
      max_length: steps after which a file is cut into another episode.
      episodes: for HDF5: the group whose members are the episodes; else the file is one.
      choices: actions are integers from 0 to ``choices - 1`` and become one-hot.
      bounds: smallest and largest value of every dimension of a continuous action.
      alignment: whether ``action[t]`` and ``reward[t]`` ``follows`` or ``precedes`` ``observation[t]`` in the files.

    Raises:
      DataError: nothing to import, or a first file that cannot be read.
    """

    source: str | os.PathLike[str]
    keys: Mapping[str, str] | None = None
    size: int = 64
    every: int = 1
    max_length: int | None = None
    episodes: str | None = None
    choices: int | None = None
    bounds: tuple[float, float] | None = None
    alignment: Literal["follows", "precedes"] = "follows"
    origins: tuple[tuple[pathlib.Path, str], ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("every", 1), ("max_length", 2), ("choices", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}, expected at least {least}")
        if self.alignment not in ("follows", "precedes"):
            raise DataError(f"alignment is {self.alignment!r}, expected 'follows' or 'precedes'")
        if self.choices is not None and self.bounds is not None:
            raise DataError("choices and bounds exclude each other: an action is discrete or continuous")
        object.__setattr__(self, "origins", tuple(self._find()))

    def _find(self) -> Iterator[tuple[pathlib.Path, str]]:
        """Where each episode comes from: a file and, in HDF5, a group."""
        source = pathlib.Path(self.source)
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        files = [file for file in files if file.suffix.lower() in VIDEOS + ARRAYS and file.is_file()]
        if not source.exists():
            raise DataError(f"{source}: there is no such file or folder")
        if not files:
            known = ", ".join(VIDEOS + ARRAYS)
            raise DataError(f"{source}: there is nothing to import, expected files that end with {known}")
        for file in files:
            if self.episodes is None or file.suffix.lower() not in (".h5", ".hdf5"):
                yield file, ""
                continue
            with _opened(file) as content:
                group = content.get(self.episodes)
                if group is None or not hasattr(group, "keys"):
                    raise DataError(
                        f"{file}: there is no group {self.episodes!r}; {nearest(self.episodes, list(content))}"
                    )
                for name in sorted(group, key=_natural):
                    yield file, f"{self.episodes}/{name}"

    @functools.cached_property
    def spec(self) -> Spec:
        """What the files show and take: as the first one does, with the actions of the first that has any."""
        first = next(self._raw(*self.origins[0]))
        observation = tuple(_field(name, array) for name, array in first["observation"].items())
        condition = tuple(_field(name, array) for name, array in first["condition"].items())
        try:
            return Spec(observation, self._action_spec(), condition)
        except ValueError as error:
            raise DataError(f"{self.origins[0][0]}: {error}") from None

    def _action_spec(self) -> ActionSpec:
        if self.choices is not None:
            return ActionSpec(self.choices, discrete=True)
        for file, group in self.origins:
            action = None if file.suffix.lower() in VIDEOS else self._arrays(file, group).get("action")
            if action is None:
                continue
            if action.dtype.kind in "iub":
                raise DataError(f"{file}: action holds integers; say how many choices there are (choices=...)")
            dim = int(np.prod(action.shape[1:]))
            low, high = (None, None) if self.bounds is None else ((b,) * dim for b in self.bounds)
            return ActionSpec(dim, low=low, high=high)
        return ActionSpec(1)

    def read(self, origins: Iterable[tuple[pathlib.Path, str]]) -> Iterator[Episode]:
        """The episodes of some of `origins`.

        Raises:
          DataError: a file that cannot be read or does not fit the first one; the message names it.
        """
        info: tuple[Field, ...] | None = None
        for file, group in origins:
            for number, raw in enumerate(self._raw(file, group)):
                where = f"{file}{f' {group}' if group else ''}{f' part {number}' if number else ''}"
                episode = self._episode(raw, where)
                info = info_fields(episode) if info is None else info
                check_episode(episode, self.spec, info, where)
                yield episode

    def _raw(self, file: pathlib.Path, group: str) -> Iterator[dict[str, Any]]:
        """Pieces of at most ``max_length`` steps: pictures resized, everything else as it was found."""
        if file.suffix.lower() in VIDEOS:
            for frames in _pieces(self._frames(file), self.max_length):
                yield {"observation": {"image": np.stack(frames)}, "condition": {}, "info": {}}
            return
        arrays = self._arrays(file, group)
        raw: dict[str, Any] = {"observation": {}, "condition": {}, "info": {}}
        for name, array in arrays.items():
            head, _, tail = name.partition("/")
            if name in _RESERVED:
                raw[name] = array
            elif tail and head in raw:
                raw[head][tail] = in_32_bits(array)
            else:
                raw["observation"][name] = self._observation(array, f"{file}: {name}")
        if not raw["observation"]:
            raise DataError(f"{file}: there is no observation among {', '.join(arrays) or 'no arrays'}")
        length = len(next(iter(raw["observation"].values())))
        self._align(raw, length, str(file))
        step = self.max_length or length
        for start in range(0, length, step):
            cut = slice(start, start + step)
            yield {k: {n: a[cut] for n, a in v.items()} if isinstance(v, dict) else v[cut] for k, v in raw.items()}

    def _align(self, raw: dict[str, Any], length: int, where: str) -> None:
        """Brings actions and rewards to ``length`` entries, each following its observation."""
        for name in ("action", "reward"):
            if name not in raw:
                continue
            array = raw[name]
            if self.alignment == "precedes" and len(array) == length:
                array = array[1:]
            if len(array) == length - 1:  # the last action and its reward are void
                array = np.concatenate([array, np.zeros_like(raw[name][:1])])
            raw[name] = array
        for name in _RESERVED:
            if name in raw and len(raw[name]) != length:
                raise DataError(f"{where}: {name} has {len(raw[name])} steps, the observation has {length}")
        if "is_terminal" in raw and np.any(raw["is_terminal"][:-1]):
            step = int(np.argmax(raw["is_terminal"]))
            raise DataError(f"{where}: is_terminal at step {step} of {length}; a file holds one episode")
        if "reward" in raw and raw["reward"].size != length:
            raise DataError(f"{where}: reward is {list(raw['reward'].shape)}, expected [{length}]")

    def _episode(self, raw: dict[str, Any], where: str) -> Episode:
        length = len(next(iter(raw["observation"].values())))
        flags = step_flags(length, terminal=bool(np.any(raw.get("is_terminal", False))))
        action = np.zeros((length, self.spec.action.dim), np.float32)
        if "action" in raw:
            action = self._action(raw["action"], where)
        return Episode(
            observation=raw["observation"],
            action=action,
            reward=np.asarray(raw.get("reward", np.zeros(length)), np.float32).reshape(length),
            action_valid=np.full(length, "action" in raw),
            condition=raw["condition"],
            info=raw["info"],
            **flags,
        )

    def _action(self, action: np.ndarray, where: str) -> np.ndarray:
        count = self.choices
        if count is None or action.shape[1:] == (count,):
            return np.asarray(action, np.float32).reshape(len(action), -1)
        if action.dtype.kind not in "iu" or action.size != len(action):
            raise DataError(
                f"{where}: action is {action.dtype}{list(action.shape)}, expected integers or {count} columns"
            )
        choice = action.reshape(-1)
        if ((choice < 0) | (choice >= count)).any():
            raise DataError(
                f"{where}: action reaches from {choice.min()} to {choice.max()}, expected 0 to {count - 1}"
            )
        return np.eye(count, dtype=np.float32)[choice]

    def _observation(self, array: np.ndarray, where: str) -> np.ndarray:
        if array.dtype == np.uint8 and array.ndim in (3, 4):
            try:
                return np.stack([resize(frame, self.size) for frame in array])
            except ValueError as error:
                raise DataError(f"{where}: {error}") from None
        if array.ndim == 0 or array.dtype.kind not in "fiub":
            raise DataError(f"{where} is {array.dtype}{list(array.shape)}, expected numbers over time")
        if array.ndim >= 3:
            raise DataError(
                f"{where} is {array.dtype}{list(array.shape)}, expected pictures uint8[T, H, W, C] or vectors [T, D]"
            )
        return array.astype(np.float32).reshape(len(array), -1)

    def _frames(self, file: pathlib.Path) -> Iterator[np.ndarray]:
        import imageio.v3 as imageio

        options = {"plugin": "pillow", "mode": "RGB"} if file.suffix.lower() == ".gif" else {"plugin": "pyav"}
        count = 0
        try:
            for frame in imageio.imiter(file, **options):
                if count % self.every == 0:
                    yield resize(np.asarray(frame), self.size)
                count += 1
        except Exception as error:
            raise DataError(f"{file}: cannot read this video at frame {count} ({_reason(error)})") from None
        if not count:
            raise DataError(f"{file}: this video has no frames")

    def _arrays(self, file: pathlib.Path, group: str) -> dict[str, np.ndarray]:
        """The arrays to read, by the names that they are to have."""
        with _opened(file) as content:
            found = content[group] if group else content
            names = list(_names(found))
            wanted = self.keys or {name: name for name in names}
            for key in wanted.values():
                if key not in names:
                    raise DataError(f"{file}: there is no array {key!r}; {nearest(key, names)}")
            try:
                return {name: np.asarray(found[key]) for name, key in wanted.items()}
            except Exception as error:
                raise DataError(f"{file}: cannot read this file ({_reason(error)})") from None


def import_dataset(
    path: str | os.PathLike[str],
    importer: Importer,
    *,
    test: int | None = None,
    seed: int = 0,
    name: str | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Writes what ``importer`` reads to ``path``.

    Args:
      path: a folder that does not exist yet.
      importer: the files.
      test: how many files (or HDF5 groups) to hold out, drawn by ``seed``; a tenth if None, at least one of two.
      seed: of that draw.
      name: of the data set; the last part of ``path`` if None.
      log: gets a line at begin and end.

    Raises:
      DataError: a file that cannot be read or does not fit the others, a taken path, or too few files.
    """
    origins = importer.origins
    if test is None:
        test = max(1, len(origins) // 10) if len(origins) > 1 else 0
    if not 0 <= test < len(origins):
        raise DataError(f"test is {test}, expected fewer than the {len(origins)} files of {importer.source}")
    held_out = set(np.random.default_rng(seed).permutation(len(origins))[:test].tolist())
    chosen = {
        "train": [origin for i, origin in enumerate(origins) if i not in held_out],
        "test": [origin for i, origin in enumerate(origins) if i in held_out],
    }
    splits = {split: importer.read(members) for split, members in chosen.items() if members}
    settings = {f.name: getattr(importer, f.name) for f in dataclasses.fields(importer) if f.init}
    settings |= {"source": str(importer.source), "keys": dict(importer.keys) if importer.keys else None}
    metadata = {"import": {**settings, "test": test, "seed": seed}}
    log = log or (lambda line: None)
    log(f"importing {len(chosen['train'])} + {len(chosen['test'])} files of {importer.source} into {path}")
    begin = time.perf_counter()
    write_episodes(path, importer.spec, splits, name or pathlib.Path(path).name, metadata)
    log(f"wrote {path} in {time.perf_counter() - begin:.1f} s")


def _opened(file: pathlib.Path) -> Any:
    """An NPZ or HDF5 file as a mapping, to be closed."""
    try:
        if file.suffix.lower() == ".npz":
            return np.load(file)
        try:
            import h5py
        except ImportError:
            raise DataError(f"{file}: h5py is not installed; pip install 'jaxwm[hdf5]'") from None
        return h5py.File(file, "r")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file}: cannot read this file ({_reason(error)})") from None


def _names(content: Any, prefix: str = "") -> Iterator[str]:
    """The paths of the arrays in a file or group."""
    if isinstance(content, np.lib.npyio.NpzFile):
        yield from content.files
        return
    for name in content:
        if hasattr(content[name], "keys"):
            yield from _names(content[name], f"{prefix}{name}/")
        else:
            yield prefix + name


def _pieces(frames: Iterator[np.ndarray], length: int | None) -> Iterator[list[np.ndarray]]:
    piece: list[np.ndarray] = []
    for frame in frames:
        piece.append(frame)
        if len(piece) == length:
            yield piece
            piece = []
    if piece:
        yield piece


def _field(name: str, array: np.ndarray) -> Field:
    return Field(name, tuple(array.shape[1:]), str(array.dtype))


def _natural(name: str) -> tuple[str, int]:
    """Sorts demo_2 before demo_10."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or -1)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
