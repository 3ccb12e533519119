"""Probes: how much of the physical truth can be read from what a model remembers.

A probe is a small map from the features of a state to a quantity that the model was never told (``Trajectory.info``).
It is fitted on training episodes, chosen on others of them, and scored on held-out ones by R^2, the share of the
variance that it explains. Beside it stands the same for the model as it was before training, because random features
tell much already.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxwm.evaluation import runs
from jaxwm.imagination import observe_sequence
from jaxwm.nn import MLP, Linear
from jaxwm.types import Array, PyTree, Spec, Trajectory, Variables, WorldModel, example_batch

if TYPE_CHECKING:
    from rich.table import Table

    from jaxwm.config import Config
    from jaxwm.training import Run

Read = tuple[list[np.ndarray], dict[str, list[np.ndarray]]]
"""Features and truth as `read_features` returns them."""
RIDGES = tuple(10.0**k for k in range(-7, 2))
"""Penalties of the linear probe; the best on the validation episodes is taken."""
_HIDDEN, _BATCH, _STEPS, _ROUNDS = 128, 256, 100, 20
_OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(2e-3, _STEPS * _ROUNDS), weight_decay=1e-3)


@dataclasses.dataclass(frozen=True)
class Probes:
    """What can be read from a model.

    Attributes:
      trained: ``{quantity: {"linear": R^2, "mlp": R^2}}`` on held-out episodes; quantities are the numbers of
        ``Trajectory.info`` that vary, those of several bodies or axes as a mean over them.
      untrained: the same for fresh parameters.
      features: F, the size of what was read from.
      frames: how many held-out frames were scored.
      context: frames at the beginning of an episode that were not scored, as nothing is known yet.
    """

    trained: Mapping[str, Mapping[str, float]]
    untrained: Mapping[str, Mapping[str, float]]
    features: int
    frames: int
    context: int

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def table(self) -> Table:
        """The figures as a rich table."""
        from rich.table import Table

        caption = (
            f"R² on {self.frames:,} held-out frames from {self.features} features, the first {self.context} left out"
        )
        table = Table(title="What can be read from the model", caption=caption, caption_justify="left")
        table.add_column("quantity")
        for name in ("linear", "MLP", "linear, untrained", "MLP, untrained"):
            table.add_column(name, justify="right")
        for quantity, found in self.trained.items():
            values = [part[kind] for part in (found, self.untrained[quantity]) for kind in ("linear", "mlp")]
            table.add_row(quantity, *(f"{value:.3f}" for value in values))
        return table


def probe_run(run: Run, episodes: int = 256, context: int = 5, *, length: int | None = None, seed: int = 0) -> Probes:
    """Probes a run on the episodes that it was trained and is evaluated on.

    Args:
      run: what `jaxwm.load_run` returned.
      episodes: training episodes to fit on; a fifth of them choose the penalty and when to stop.
      context: frames at the beginning of each episode that do not count.
      length: frames of an episode to take; by default all.
      seed: of the model's randomness and of the probes.

    Raises:
      DataError: no episodes, or of another kind than the model was made for.
      ValueError: the episodes hold no physical truth, or are not longer than ``context``.
    """
    truth = open_truth(run.config, run.spec, episodes, context, length)
    fresh = jax.jit(run.model.init)(jax.random.key(seed + 1), example_batch(run.spec, 1, 2))
    found = []
    for variables in (run.variables, fresh):
        reading = truth.read(run.model, variables, seed)
        scores = {kind: fit(reading, seed) for kind, fit in KINDS.items()}
        found.append({name: {kind: score[name] for kind, score in scores.items()} for name in reading.truth})
    frames, features = reading.features.testing.shape
    return Probes(found[0], found[1], features - 1, frames, context)


@dataclasses.dataclass(frozen=True)
class Truth:
    """Episodes that hold the physical truth: ``train`` and ``test`` give their batches anew at each call."""

    train: Callable[[], Iterable[Trajectory]]
    test: Callable[[], Iterable[Trajectory]]
    context: int

    def read(self, model: WorldModel, variables: Variables, seed: int = 0) -> Reading:
        """What ``model`` makes of them, beside what there is to be read."""
        read = (read_features(model, variables, split(), self.context, seed) for split in (self.train, self.test))
        return divide(*read)


def open_truth(config: Config, spec: Spec, episodes: int, context: int, length: int | None = None) -> Truth:
    """The first ``episodes`` training episodes and the held-out ones of ``evaluation``; see `probe_run`.

    Raises:
      DataError: no episodes, or of another kind than ``spec``.
      ValueError: the episodes hold no physical truth, or are not longer than ``context``.
    """
    counts = {"train": episodes, "test": config.evaluation.episodes}
    sources = {split: runs.matching_split(config, spec, split, count) for split, count in counts.items()}
    longest = min(int(source.lengths[: counts[split]].max(initial=0)) for split, source in sources.items())
    steps = min(length or longest, longest)
    if steps <= context:
        raise ValueError(
            f"context is {context}, but {steps} steps of an episode are read, of {longest} in the longest"
        )
    batches = {split: functools.partial(runs.batches, sources[split], counts[split], steps) for split in counts}
    if not next(batches["train"]()).info:
        raise ValueError(f"{config.data.path}: these episodes hold no physical truth, so there is nothing to probe")
    return Truth(**batches, context=context)


def read_features(
    model: WorldModel, variables: Variables, batches: Iterable[Trajectory], context: int, seed: int = 0
) -> Read:
    """Features ``[frames, F]`` and truth ``{quantity: [frames, D]}``, both as lists with an entry for each episode."""
    features: list[np.ndarray] = []
    truth: dict[str, list[np.ndarray]] = {}
    for index, batch in enumerate(batches):
        seen = _observe(model, variables, jax.random.fold_in(jax.random.key(seed), index), batch)
        for row in range(len(batch.valid)):
            counts = np.flatnonzero(np.asarray(batch.valid[row]))[context:]
            features.append(np.asarray(seen[row])[counts])
            for name, values in batch.info.items():
                numbers = np.asarray(values[row])[counts].astype(np.float32)
                truth.setdefault(name, []).append(numbers.reshape(len(counts), -1))
    return features, truth


@functools.partial(jax.jit, static_argnums=0)
def _observe(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> Array:
    return observe_sequence(model, variables, key, batch).features


class Purposes(NamedTuple):
    """Arrays ``[frames, ...]``: of training episodes to fit on and others to choose by, of held-out ones to score."""

    fitting: np.ndarray
    choosing: np.ndarray
    testing: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
    """What there is to read from and to be read, standardised by the frames to fit on.

    Attributes:
      features: ``[frames, F + 1]``, the last a column of ones.
      truth: ``{quantity: [frames, D]}``, the numbers of each that vary; quantities without any are left out.
    """

    features: Purposes
    truth: dict[str, Purposes]

    def score(self, name: str, predicted: np.ndarray) -> float:
        """R^2 on the held-out frames, a mean over the numbers of the quantity."""
        truth = self.truth[name].testing
        return float(np.mean(1.0 - np.mean(np.square(predicted - truth), axis=0) / np.var(truth, axis=0)))


def divide(train: Read, test: Read) -> Reading:
    """Every fifth training episode is for choosing; no episode is torn apart."""
    count = len(train[0])
    kept = [index for index in range(count) if index % 5 == 4] or [0]
    rest = [index for index in range(count) if index not in kept] or [0]

    def purposes(training: list[np.ndarray], held_out: list[np.ndarray]) -> Purposes:
        parts = [training[index] for index in rest], [training[index] for index in kept], held_out
        fitting, choosing, testing = (np.concatenate(part).astype(np.float32) for part in parts)
        mean, spread = fitting.mean(0), fitting.std(0)
        spread = np.where(spread > 1e-6, spread, 1.0)
        return Purposes(*((part - mean) / spread for part in (fitting, choosing, testing)))

    features = Purposes(*(np.pad(x, ((0, 0), (0, 1)), constant_values=1.0) for x in purposes(train[0], test[0])))
    truth = {}
    for name, values in train[1].items():
        numbers = purposes(values, test[1][name])
        varies = (np.var(numbers.fitting, axis=0) > 1e-8) & (np.var(numbers.testing, axis=0) > 1e-8)
        if varies.any():
            truth[name] = Purposes(*(part[:, varies] for part in numbers))
    return Reading(features, truth)


def fit_linear(reading: Reading, seed: int = 0) -> dict[str, float]:
    """R^2 of ridge regression by quantity, the penalty of each chosen on the episodes kept for that."""
    del seed
    x = reading.features.fitting.astype(np.float64)
    sizes, axes = np.linalg.eigh(x.T @ x)
    choosing, testing = reading.features.choosing @ axes, reading.features.testing @ axes
    scores = {}
    for name, truth in reading.truth.items():
        moment = axes.T @ (x.T @ truth.fitting)
        candidates = [moment / (sizes + ridge * len(x))[:, None] for ridge in RIDGES]
        errors = [np.mean(np.square(choosing @ weights - truth.choosing)) for weights in candidates]
        scores[name] = reading.score(name, testing @ candidates[int(np.argmin(errors))])
    return scores


def fit_mlp(reading: Reading, seed: int = 0) -> dict[str, float]:
    """R^2 of an MLP with two hidden layers for each quantity, as it was when it did best on the episodes for that."""
    features, scores = Purposes(*jax.device_put(tuple(reading.features))), {}
    for name, truth in reading.truth.items():
        probe = _Probe(truth.fitting.shape[1])
        key = jax.random.key(seed)
        params = probe.init(key, features.fitting[:1])
        best, best_error, state = params, np.inf, _OPTIMIZER.init(params)
        fitting, choosing = jax.device_put(((features.fitting, truth.fitting), (features.choosing, truth.choosing)))
        for index in range(_ROUNDS):
            params, state, error = _improve(probe, params, state, jax.random.fold_in(key, index), fitting, choosing)
            if error < best_error:
                best, best_error = params, float(error)
        scores[name] = reading.score(name, np.asarray(jax.jit(probe.apply)(best, features.testing)))
    return scores


class _Probe(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        return Linear(self.outputs, name="output")(MLP(_HIDDEN, 2, name="hidden")(features))


@functools.partial(jax.jit, static_argnums=0)
def _improve(
    probe: _Probe,
    params: PyTree,
    state: PyTree,
    key: Array,
    fitting: tuple[Array, Array],
    choosing: tuple[Array, Array],
) -> tuple[PyTree, PyTree, Array]:
    """A round of steps, and the error on the episodes kept for choosing."""
    loss = lambda params, x, y: jnp.mean(jnp.square(probe.apply(params, x) - y))  # noqa: E731

    def step(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, state = carry
        rows = jax.random.randint(key, (_BATCH,), 0, len(fitting[0]))
        updates, state = _OPTIMIZER.update(jax.grad(loss)(params, fitting[0][rows], fitting[1][rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), jax.random.split(key, _STEPS))
    return params, state, loss(params, *choosing)


KINDS: dict[str, Callable[[Reading, int], dict[str, float]]] = {"linear": fit_linear, "mlp": fit_mlp}
"""The kinds of probes by name."""
