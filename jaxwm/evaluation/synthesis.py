"""Imagined episodes as a data set: what a model dreams, with what it was told, in files that every loader reads."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm import data
from jaxwm.data.episodes import Episode, step_flags
from jaxwm.evaluation import runs
from jaxwm.evaluation.dream import CHOICES, make_actions
from jaxwm.imagination import imagine, observe_sequence
from jaxwm.types import Array, Spec, Trajectory, nearest

if TYPE_CHECKING:
    from jaxwm.training import Run

_ROWS = 16
_TRIES = 20
"""As many clips are dreamt for each one that is kept before it is given up."""

Rule = Callable[[Trajectory], np.ndarray]
"""What clips ``[B, T, ...]`` have to fulfil: ``[B]`` bool, whether a clip is kept."""


@dataclasses.dataclass(frozen=True)
class Steady:
    """Nothing jumps: no picture differs more from the one before it than pictures do that were recorded.

    Args:
      most: mean absolute difference of two pictures, in 0..255.
    """

    most: float

    @classmethod
    def of(cls, clips: Trajectory, share: float) -> Steady:
        """What ``share`` of recorded ``clips`` ``[B, T, ...]`` fulfil."""
        return cls(float(np.quantile(_largest_change(clips), share)))

    def __call__(self, clips: Trajectory) -> np.ndarray:
        """See `Rule`."""
        return _largest_change(clips) <= self.most


@dataclasses.dataclass(frozen=True)
class Expected:
    """Nothing surprises the model that looks at it: the mean of its surprise is as low as in what was recorded.

    Args:
      run: the model; it may be another one than the one that dreamt.
      most: the mean surprise.
    """

    run: Run
    most: float

    @classmethod
    def of(cls, run: Run, clips: Trajectory, share: float) -> Expected:
        """What ``share`` of recorded ``clips`` ``[B, T, ...]`` fulfil."""
        return cls(run, float(np.quantile(_mean_surprise(run, clips), share)))

    def __call__(self, clips: Trajectory) -> np.ndarray:
        """See `Rule`."""
        return _mean_surprise(self.run, clips) <= self.most


def rules_of(run: Run, length: int, share: float, split: str = "train", count: int = 64) -> tuple[Rule, ...]:
    """`Steady` and `Expected`, each as ``share`` of ``count`` recorded clips of ``length`` frames fulfil it."""
    source = _source(run, split, length, count)
    chosen = [i for i, steps in enumerate(source.lengths) if steps >= length][:count]
    clips = dataclasses.replace(source.windows(chosen, [0] * len(chosen), length), info={}, condition={})
    return Steady.of(clips, share), Expected.of(run, clips, share)


def synthesize(
    run: Run,
    count: int,
    length: int,
    *,
    actions: str = "data",
    tell: Mapping[str, Any] | None = None,
    rules: tuple[Rule, ...] = (),
    temperature: float = 1.0,
    context: int | None = None,
    split: str = "train",
    seed: int = 0,
) -> Iterator[Episode]:
    """``count`` episodes of at most ``length`` imagined frames; each begins where a recorded episode was left.

    Rewards and ends are the model's, where it has them. Conditions speak of what was told: with recorded actions the
    recorded ones, with others none, in both cases but for ``tell``. What is not told is written as zeros.

    Args:
      run: what `jaxwm.load_run` returned.
      count: how many are kept.
      length: frames of an episode; it ends earlier where the model believes that it does.
      actions: ``data`` (those that were recorded next), ``random`` or ``zero``.
      tell: conditions by name, the same for all frames: an array, words, or None for what is not to be told.
      rules: clips that break one of them are left out.
      temperature: 0 for the model's mode, 1 for a sample.
      context: recorded frames that are seen before; by default as the configuration says.
      split: of the data, where episodes are begun.
      seed: of where they begin, of the model's chance and of random actions.

    Raises:
      DataError: no recorded episode is long enough, or hardly a clip fulfils the rules.
      ValueError: actions or conditions that do not fit.
    """
    spec, context = run.spec, context or run.config.evaluation.context
    if actions not in CHOICES:
        raise ValueError(f"actions is {actions!r}; {nearest(actions, CHOICES)}")
    if length < 2:
        raise ValueError(f"length is {length}, expected at least 2")
    told = {name: as_condition(spec, name, value) for name, value in (tell or {}).items()}
    needed = context + (length if actions == "data" else 0)
    source = _source(run, split, needed, 10 * _ROWS)
    usable = [i for i, steps in enumerate(source.lengths) if steps >= needed]

    # What does not fit is said at once, not where the first episode is asked for.
    def episodes() -> Iterator[Episode]:
        rng, kept, tried = np.random.default_rng(seed), 0, 0
        while kept < count:
            if tried >= _TRIES * max(count, _ROWS):
                raise data.DataError(
                    f"only {kept} of {tried} clips fulfil the rules: ask for less, or for other rules"
                )
            chosen = rng.choice(usable, _ROWS)
            starts = [int(rng.integers(source.lengths[i] - needed + 1)) for i in chosen]
            batch = dataclasses.replace(source.windows(chosen.tolist(), starts, needed), info={})
            acts = jnp.asarray(batch.action[:, context - 1 : context - 1 + length])
            if actions != "data":
                acts = jnp.asarray(make_actions(actions, run.spec.action, (_ROWS, length), int(rng.integers(2**31))))
            condition = _conditions(run.spec, batch, context, length, told, actions == "data")
            key = jax.random.fold_in(jax.random.key(seed), tried)
            clips = _dream(run, key, batch, acts, condition, context, temperature)
            tried += _ROWS
            good = np.all([np.ones(_ROWS, bool), *(rule(clips) for rule in rules)], axis=0)
            for row in np.flatnonzero(good)[: count - kept]:
                kept += 1
                yield Episode.of(jax.tree.map(lambda x, row=row: x[row], clips))

    return episodes()


def synthesize_dataset(
    path: str | os.PathLike[str],
    run: Run,
    *,
    train: int = 200,
    test: int = 16,
    length: int = 32,
    tell: Mapping[str, Any] | None = None,
    curate: float | None = None,
    actions: str = "data",
    temperature: float = 1.0,
    context: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> None:
    """Writes ``train`` and ``test`` imagined episodes to ``path``, in the format of all data sets.

    Those of ``train`` begin where recorded training episodes are left, those of ``test`` in held-out ones. With
    ``curate`` clips are left out that break `rules_of` that share of recorded ones. For the rest see `synthesize`.

    Raises:
      DataError: the path is taken, no recorded episode is long enough, or hardly a clip fulfils the rules.
      ValueError: actions, conditions or a share that do not fit.
    """
    if curate is not None and not 0 < curate <= 1:
        raise ValueError(f"curate is {curate}, expected a share above 0, at most 1")
    rules = () if curate is None else rules_of(run, length, curate)
    log = log or (lambda line: None)
    log(f"dreaming {train} + {test} episodes of {length} frames into {path}")
    begin = time.perf_counter()
    splits = {
        split: synthesize(
            run, count, length, actions=actions, tell=tell, rules=rules, temperature=temperature, context=context,
            split=split, seed=seed,
        )
        for split, count in (("train", train), ("test", test))
        if count
    }  # fmt: skip
    plain = {name: None if value is None else np.asarray(value).tolist() for name, value in (tell or {}).items()}
    about = {
        "family": run.config.model.family, "step": run.step, "actions": actions, "tell": plain, "curate": curate,
        "temperature": temperature, "length": length, "seed": seed, "train": train, "test": test,
    }  # fmt: skip
    data.write_episodes(path, run.spec, splits, "synthesized", {"synthesize": about})
    log(f"wrote {train + test} episodes to {path} in {time.perf_counter() - begin:.1f} s")


def as_condition(spec: Spec, name: str, value: Any) -> np.ndarray | None:
    """``value`` as the condition ``name`` of ``spec`` for one frame: an array, the words of a caption, or None.

    Raises:
      ValueError: no such condition, words that no world knows, or another shape.
    """
    fields = {field.name: field for field in spec.condition}
    if name not in fields:
        raise ValueError(f"condition {name!r} is not part of the spec; {nearest(name, list(fields))}")
    if value is None:
        return None
    if isinstance(value, str):
        from jaxwm.worlds import captions

        value = captions.encode(value)
    array = np.asarray(value).astype(fields[name].dtype)
    if array.shape != fields[name].shape:
        raise ValueError(f"condition {name!r} has shape {array.shape}, expected {fields[name].shape}")
    return array


def _conditions(
    spec: Spec,
    batch: Trajectory,
    context: int,
    length: int,
    told: Mapping[str, np.ndarray | None],
    recorded: bool,
) -> dict[str, Array]:
    """What the imagined frames ``[B, length, ...]`` are told."""
    found = {}
    for field in spec.condition:
        if field.name in told:
            value = told[field.name]
            if value is not None:
                found[field.name] = jnp.broadcast_to(value, (_ROWS, length, *field.shape))
        elif recorded and field.name in batch.condition:
            found[field.name] = jnp.asarray(batch.condition[field.name][:, context : context + length])
    return found


def _dream(
    run: Run,
    key: Array,
    batch: Trajectory,
    actions: Array,
    condition: Mapping[str, Array],
    context: int,
    temperature: float,
) -> Trajectory:
    """Clips ``[B, length, ...]`` that follow on the first ``context`` frames of ``batch``, as numpy arrays."""
    seen_key, key = jax.random.split(key)
    first = jax.tree.map(jnp.asarray, batch.cut(0, context))
    seen = observe_sequence(run.model, run.variables, seen_key, first, temperature=temperature)
    rows, length = actions.shape[:2]
    controls = {"temperature": jnp.full(rows, temperature)}
    dreamt = imagine(
        run.model, run.variables, key, seen.final_state, actions, decode=True, condition={**condition, **controls}
    )
    said = jax.device_get(dreamt.prediction)
    assert said is not None
    images = {field.name for field in run.spec.images}
    observation = {
        name: np.round(255 * np.clip(x[:, 1:], 0, 1)).astype(np.uint8) if name in images else np.asarray(x[:, 1:])
        for name, x in said.observation.items()
    }
    ends = np.zeros((rows, length), bool) if said.continuation is None else said.continuation[:, 1:] < 0.5
    ends[:, 0] = False
    last = np.where(ends.any(1), ends.argmax(1), length - 1)
    at = np.arange(length)
    goes_on, flags = at < last[:, None], step_flags(length)
    reward = np.zeros((rows, length + 1)) if said.reward is None else said.reward
    # Entry 0 is the last frame that was seen; what is decoded of an entry follows the action before it.
    reward = np.pad(reward[:, 2:], ((0, 0), (0, 1)))
    done = np.pad(np.asarray(actions)[:, 1:], ((0, 0), (0, 1), (0, 0)))
    silent = {f.name: np.zeros((rows, length, *f.shape), f.dtype) for f in run.spec.condition}
    fields: dict[str, Any] = dict(
        observation=observation,
        action=np.where(goes_on[..., None], done, 0.0).astype(np.float32),
        previous_action=np.zeros((rows, actions.shape[-1]), np.float32),
        reward=np.where(goes_on, reward, 0.0).astype(np.float32),
        is_first=np.broadcast_to(flags["is_first"], (rows, length)),
        is_last=at == last[:, None],
        is_terminal=ends & (at == last[:, None]),
        valid=at <= last[:, None],
        action_valid=np.ones((rows, length), bool),
        condition={**silent, **jax.device_get(dict(condition))},
        info={},
    )
    return Trajectory(**fields)


def _source(run: Run, split: str, length: int, count: int) -> runs.Episodes:
    source = runs.matching_split(run.config, run.spec, split, count)
    longest = int(source.lengths.max(initial=0))
    if longest < length:
        raise data.DataError(f"{split}: the longest recorded episode has {longest} steps, {length} are needed")
    return source


def _largest_change(clips: Trajectory) -> np.ndarray:
    """``[B]``: the largest mean absolute difference of two pictures in a row that are both there."""
    both = np.asarray(clips.valid)[:, 1:] & np.asarray(clips.valid)[:, :-1]
    largest = np.zeros(len(both))
    for image in clips.observation.values():
        if np.ndim(image) == 5:
            change = np.abs(np.diff(np.asarray(image, np.float32), axis=1)).mean((2, 3, 4))
            largest = np.maximum(largest, np.where(both, change, 0.0).max(1))
    return largest


def _mean_surprise(run: Run, clips: Trajectory) -> np.ndarray:
    """``[B]``."""
    found = observe_sequence(
        run.model, run.variables, jax.random.key(0), jax.tree.map(jnp.asarray, clips), surprise=True
    ).surprise
    valid = np.asarray(clips.valid)[:, 1:]
    return np.sum(np.asarray(found)[:, 1:] * valid, axis=1) / np.maximum(valid.sum(1), 1)
