"""Public TFDS and RLDS data sets as episodes (extra ``rlds``: their TFRecord files need TensorFlow to be read).

RLDS aligns as jaxwm does: ``action[t]`` is done in ``observation[t]``, ``reward[t]`` follows it, and what stands
beside the last observation is void (Ramos et al. 2021, "RLDS: an Ecosystem to Generate, Share and Use Datasets in
Reinforcement Learning"). A `FieldMap` says which arrays of a set become which fields; the functions that apply it
are pure and take nested dicts of numpy.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jaxwm.data.episodes import DataError, Episode, in_32_bits, step_flags, write_episodes
from jaxwm.envs.images import resize
from jaxwm.types import ActionSpec, Field, Spec, nearest


@dataclasses.dataclass(frozen=True)
class FieldMap:
    """Which arrays of an example become which fields; paths are ``outer/inner`` within a step.

    Args:
      observation: path by field; None takes every picture and every float vector below ``observation``.
      action: path; floats below it are put beside each other in the order of their names. None: unlabelled.
      reward: path, or None where the set has none (zeros then).
      info: path by name.
      steps: where an example holds its steps; empty if it is the sequence itself.
      choices: actions are integers below it and become one-hot.
      invented_ending: a terminal episode ends with an observation of zeros that nobody saw; it is dropped.
    """

    observation: Mapping[str, str] | None = None
    action: str | None = "action"
    reward: str | None = "reward"
    info: Mapping[str, str] = dataclasses.field(default_factory=dict)
    steps: str = "steps"
    choices: int | None = None
    invented_ending: bool = False


FIELD_MAPS: dict[str, FieldMap] = {
    "bair_robot_pushing_small": FieldMap(
        observation={"image": "image_main", "effector": "endeffector_pos"}, reward=None, steps=""
    ),
    "rlu_control_suite": FieldMap(),
    "rlu_atari": FieldMap(observation={"image": "observation"}, choices=18),
    "d4rl_mujoco_*": FieldMap(observation={"vector": "observation"}, invented_ending=True),
}
"""How known sets are read, by name or pattern of names; every other one is taken for plain RLDS."""


def find_field_map(name: str) -> FieldMap:
    """The map for the set ``name`` (``set`` or ``set/config``)."""
    for pattern, field_map in FIELD_MAPS.items():
        if fnmatch.fnmatchcase(name.split("/")[0], pattern):
            return field_map
    return FieldMap()


def to_episode(example: Mapping[str, Any], field_map: FieldMap, where: str = "example", size: int = 64) -> Episode:
    """One example of a TFDS set as an `Episode`.

    Args:
      example: nested dict of numpy; its steps are an iterable of dicts, or a dict of arrays ``[T, ...]``.
      field_map: what becomes what.
      where: names the example in errors.
      size: pictures are brought to ``[size, size]``.

    Raises:
      DataError: a path that is not there, or an array that cannot be what it is mapped to.
    """
    steps: Any = example
    if field_map.steps:
        if field_map.steps not in example:
            raise DataError(f"{where}: there is no {field_map.steps!r}; {nearest(field_map.steps, list(example))}")
        steps = example[field_map.steps]
    arrays = _stacked(steps, where)
    observation = {}
    for name, path in _observed(arrays, field_map).items():
        observation[name] = _observation(_get(arrays, path, where), f"{where}: {path}", size)
    if not observation:
        raise DataError(f"{where}: no picture or float vector among {', '.join(arrays)}")
    length = len(next(iter(observation.values())))
    terminal = np.asarray(arrays.get("is_terminal", np.zeros(length)), bool)
    if field_map.invented_ending and terminal[-1] and length > 1:
        length, terminal = length - 1, np.zeros(length - 1, bool)
        observation = {name: array[:length] for name, array in observation.items()}
    if terminal[:-1].any():
        raise DataError(f"{where}: is_terminal at step {int(np.argmax(terminal))} of {length}")
    action = _action(arrays, field_map, where)[:length]
    action[-1:] = 0
    reward = np.zeros(length, np.float32)
    if field_map.reward is not None:
        reward[:-1] = _get(arrays, field_map.reward, where)[: length - 1]
    return Episode(
        observation=observation,
        action=action,
        reward=reward,
        action_valid=np.full(length, field_map.action is not None),
        info={name: in_32_bits(_get(arrays, path, where))[:length] for name, path in field_map.info.items()},
        **step_flags(length, bool(terminal[-1])),
    )


def spec_of(episode: Episode, field_map: FieldMap) -> Spec:
    """The spec of a set whose first episode is ``episode``; what its actions range over is not recorded."""
    fields = tuple(Field(n, tuple(a.shape[1:]), str(a.dtype)) for n, a in episode.observation.items())
    return Spec(fields, ActionSpec(episode.action.shape[1], discrete=field_map.choices is not None))


def import_public(
    path: str | os.PathLike[str],
    name: str,
    *,
    train: int,
    test: int = 0,
    split: str = "train",
    size: int = 64,
    field_map: FieldMap | None = None,
    folder: str | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Downloads a public set where it is missing and writes some of its episodes to ``path``.

    Args:
      path: a folder that does not exist yet.
      name: as TFDS knows it, for example ``rlu_control_suite/cartpole_swingup``.
      train: episodes of the split ``train``: those after the first ``test`` ones.
      test: episodes of the split ``test``: the first ones.
      split: of the public set to take both from.
      size: pictures are brought to ``[size, size]``.
      field_map: what becomes what; by default what `FIELD_MAPS` says.
      folder: where TFDS keeps its data.
      log: gets a line at begin and end.

    Raises:
      DataError: TensorFlow is missing, there is no such set, or its episodes do not fit ``field_map``.
    """
    field_map = field_map or find_field_map(name)
    if train < 1 or test < 0:
        raise DataError(f"train is {train} and test is {test}, expected at least 1 and 0")
    log = log or (lambda line: None)
    log(f"reading {train} + {test} episodes of {name} into {path}")
    begin = time.perf_counter()
    ranges = {"train": (test, test + train), "test": (0, test)}
    splits = {
        kind: _episodes(_examples(name, f"{split}[{first}:{last}]", folder), field_map, f"{name} {split}", first, size)
        for kind, (first, last) in ranges.items()
        if last > first
    }
    first = next(splits["train"], None)
    if first is None:
        raise DataError(f"{name}: the split {split} has no more than {test} episodes")
    settings = {"name": name, "split": split, "train": train, "test": test, "size": size}
    write_episodes(
        path,
        spec_of(first, field_map),
        {**splits, "train": _chain(first, splits["train"])},
        name.replace("/", "_"),
        {"public": settings},
    )
    log(f"wrote {path} in {time.perf_counter() - begin:.1f} s")


def _chain(first: Episode, others: Iterator[Episode]) -> Iterator[Episode]:
    yield first
    yield from others


def _episodes(examples: Iterable[Any], field_map: FieldMap, name: str, first: int, size: int) -> Iterator[Episode]:
    for number, example in enumerate(examples, first):
        yield to_episode(example, field_map, f"{name} episode {number}", size)


def _examples(name: str, split: str, folder: str | None) -> Iterator[Any]:
    """The examples of a public set, as nested dicts of numpy."""
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise DataError(
            f"{name}: TensorFlow is not installed, which this set needs; pip install 'jaxwm[rlds]'"
        ) from None
    import tensorflow_datasets as tfds

    try:
        dataset = tfds.load(name, split=split, data_dir=folder)
    except Exception as error:
        raise DataError(f"{name}: cannot be loaded ({' '.join(str(error).split())[:300]})") from None
    return iter(tfds.as_numpy(dataset))


def _stacked(steps: Any, where: str) -> dict[str, np.ndarray]:
    """The arrays ``[T, ...]`` of an episode by path."""
    if isinstance(steps, Mapping):
        return {path: np.asarray(array) for path, array in flatten_dict(steps, sep="/").items()}
    rows = [flatten_dict(step, sep="/") for step in steps]
    if not rows:
        raise DataError(f"{where}: the episode is empty")
    return {path: np.stack([row[path] for row in rows]) for path in rows[0]}


def _get(arrays: Mapping[str, np.ndarray], path: str, where: str) -> np.ndarray:
    if path not in arrays:
        raise DataError(f"{where}: there is no {path!r}; {nearest(path, list(arrays))}")
    return arrays[path]


def _observed(arrays: Mapping[str, np.ndarray], field_map: FieldMap) -> Mapping[str, str]:
    """Path by field of the observation."""
    if field_map.observation is not None:
        return field_map.observation
    found = {}
    for path, array in arrays.items():
        head, _, tail = path.partition("/")
        is_image = array.dtype == np.uint8 and array.ndim == 4
        if head == "observation" and (is_image or (array.dtype.kind == "f" and array.ndim <= 2)):
            found[tail.replace("/", ".") or ("image" if is_image else "vector")] = path
    return found


def _observation(array: np.ndarray, where: str, size: int) -> np.ndarray:
    if array.dtype == np.uint8 and array.ndim == 4:
        return np.stack([resize(frame, size) for frame in array])
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise DataError(f"{where} is {array.dtype}{list(array.shape)}, expected pictures or numbers")
    return array.astype(np.float32).reshape(len(array), -1)


def _action(arrays: Mapping[str, np.ndarray], field_map: FieldMap, where: str) -> np.ndarray:
    """``[T, A]`` float32, a copy."""
    length = len(next(iter(arrays.values())))
    if field_map.action is None:
        return np.zeros((length, field_map.choices or 1), np.float32)
    head = field_map.action
    parts = [array for path, array in sorted(arrays.items()) if path == head or path.startswith(f"{head}/")]
    if field_map.choices is None:
        parts = [part.astype(np.float32).reshape(length, -1) for part in parts if part.dtype.kind == "f"]
        if not parts:
            found = arrays.get(head)
            kind = "there is none" if found is None else f"it is {found.dtype}{list(found.shape)}"
            raise DataError(f"{where}: {head} should hold floats, but {kind}; integers need choices=...")
        return np.concatenate(parts, -1)
    choice = _get(arrays, head, where).reshape(-1)
    if len(choice) != length or choice.dtype.kind not in "iu" or choice.min() < 0 or choice.max() >= field_map.choices:
        raise DataError(f"{where}: {head} should hold integers from 0 to {field_map.choices - 1}")
    return np.eye(field_map.choices, dtype=np.float32)[choice]
