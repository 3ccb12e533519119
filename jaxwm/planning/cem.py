"""The cross-entropy method: sample, keep the cheapest, fit the distribution to them, again.

Three members of the family: `CEM` (Rubinstein 1999; for planning in learned models Chua et al. 2018,
arXiv:1805.12114), `ICEM` with coloured noise, a shrinking population and elites that are kept (Pinneri et al. 2020,
arXiv:2008.06389), and `CategoricalCEM` for discrete actions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from jaxwm.planning import base
from jaxwm.planning.noise import coloured
from jaxwm.types import ActionSpec, Array

Share = Annotated[float, Field(ge=0, lt=1)]


class CEMMemory(struct.PyTreeNode):
    """What `CEM` and `ICEM` remember.

    Attributes:
      mean: ``[B, H, A]`` of the last distribution.
      elites: ``[B, K, H, A]``, the cheapest plans that are tried again; K is 0 for `CEM`.
      is_warm: ``[B]`` bool; there was a plan before.
    """

    mean: Array
    elites: Array
    is_warm: Array


@dataclasses.dataclass(frozen=True)
class CEM(base.EliteSearch):
    """Samples around a mean and moves mean and standard deviation to the elites; the plan is the cheapest seen.

    Args:
      horizon: length of a plan.
      samples: candidates of an iteration.
      elites: how many of the cheapest the distribution is fitted to.
      iterations: how often.
      std: standard deviation at the start of each plan, as a share of half the width of the action's bounds.
      min_std: least standard deviation, in the same unit.
      momentum: share of the old mean and standard deviation that stays.

    Raises:
      ValueError: more elites than samples.
    """

    std: PositiveFloat = 0.5
    min_std: PositiveFloat = 0.05
    momentum: Share = 0.1

    def init(self, spec: ActionSpec, batch: int) -> CEMMemory:
        """The middle of the bounds; see `jaxwm.planning.base.Solver`."""
        base.require_continuous(spec, type(self).__name__)
        mean = base.middle(spec, batch, self.horizon)
        elites = jnp.broadcast_to(mean[:, None], (batch, self._extras.kept, self.horizon, spec.dim))
        return CEMMemory(mean, elites, jnp.zeros(batch, bool))

    def solve(self, spec: ActionSpec, cost: base.Cost, keys: Array, memory: CEMMemory) -> tuple[base.Plan, CEMMemory]:
        """See `jaxwm.planning.base.Solver`."""
        return _search(self, self._extras, spec, cost, keys, memory)

    def advance(self, memory: CEMMemory, steps: int) -> CEMMemory:
        """Mean and elites, shifted in time."""
        return memory.replace(mean=base.shift(memory.mean, steps), elites=base.shift(memory.elites, steps, axis=2))

    @property
    def _extras(self) -> _Extras:
        return _Extras(parts=(1,) * self.iterations)


@dataclasses.dataclass(frozen=True)
class ICEM(CEM):
    """`CEM` with the improvements of iCEM; arguments are those of `CEM` and four more.

    Args:
      horizon: length of a plan.
      samples: candidates of the first iteration.
      elites: how many of the cheapest the distribution is fitted to.
      iterations: how often.
      std: standard deviation at the start of each plan, as a share of half the width of the action's bounds.
      min_std: least standard deviation, in the same unit.
      momentum: share of the old mean and standard deviation that stays.
      colour: beta of the noise, whose power falls with the frequency f as 1/f^beta.
      decay: factor by which the population shrinks from one iteration to the next.
      kept: share of the elites that compete again in the next iteration, and, shifted in time, in the next plan.
      parts: candidates are rolled out in this many parts of equal size, and populations shrink by whole parts.

    Raises:
      ValueError: ``samples`` does not divide into ``parts``, or a part has fewer candidates than are kept.
    """

    colour: NonNegativeFloat = 2.0
    decay: Annotated[float, Field(ge=1)] = 1.25
    kept: Share = 0.3
    parts: PositiveInt = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples % self.parts:
            raise ValueError(f"samples={self.samples} does not divide into parts={self.parts}")
        if self._extras.kept >= self.samples // self.parts:
            raise ValueError(
                f"parts={self.parts} of {self.samples // self.parts} candidates are too small "
                f"for the {self._extras.kept} elites that are kept"
            )

    @property
    def _extras(self) -> _Extras:
        parts = tuple(max(1, round(self.parts / self.decay**i)) for i in range(self.iterations))
        return _Extras(parts, math.ceil(self.kept * self.elites), self.colour)


class _Extras(NamedTuple):
    """Parts rolled out in each iteration, number of elites kept, colour of the noise."""

    parts: tuple[int, ...]
    kept: int = 0
    colour: float = 0.0


class _Search(NamedTuple):
    """Where a search stands: the distribution, the elites of this iteration in order, the cheapest plan so far."""

    mean: Array
    std: Array
    elites: Array
    elite_costs: Array
    best: Array
    best_cost: Array


def _search(
    config: CEM, extras: _Extras, spec: ActionSpec, cost: base.Cost, keys: Array, memory: CEMMemory
) -> tuple[base.Plan, CEMMemory]:
    """A scan over the parts of all iterations; the distribution moves where an iteration ends."""
    batch, count, kept = keys.shape[0], config.elites, extras.kept
    largest = max(extras.parts)
    size = config.samples // largest
    ends = np.cumsum(extras.parts) - 1
    begins = np.concatenate([[0], ends[:-1] + 1])
    parts = np.arange(sum(extras.parts))
    _, scale = base.centre_and_scale(spec)

    def step(search: _Search, inputs: tuple[Array, Array, Array]) -> tuple[_Search, Array]:
        part, is_begin, is_end = inputs
        noise = coloured(base.fold(keys, part), size, config.horizon, spec.dim, extras.colour)
        candidates = base.clip(spec, search.mean[:, None] + search.std[:, None] * noise)
        # The last mean competes with its own samples, which are all noisier than it (iCEM, section 3.2).
        is_last = part == begins[-1]
        candidates = candidates.at[:, -1].set(jnp.where(is_last, search.mean, candidates[:, -1]))
        if kept:
            old = memory.is_warm[:, None, None, None] & (part == 0)
            candidates = candidates.at[:, :kept].set(jnp.where(old, memory.elites, candidates[:, :kept]))
        costs = base.comparable(cost(candidates))
        # Elites go on through the parts of an iteration, and the first ``kept`` of them into the next one.
        stay = ~is_begin | (jnp.arange(count) < kept)
        elites, elite_costs = base.cheapest(
            jnp.concatenate([jnp.where(stay, search.elite_costs, jnp.inf), costs], axis=1),
            jnp.concatenate([search.elites, candidates], axis=1),
            count,
        )
        best_cost, best = base.better(elite_costs[:, 0], elites[:, 0], search.best_cost, search.best)
        mean, std = _fit(elites, elite_costs, search.mean, search.std, config.momentum)
        mean = jnp.where(is_end, mean, search.mean)
        std = jnp.where(is_end, jnp.maximum(std, config.min_std * scale), search.std)
        return _Search(mean, std, elites, elite_costs, best, best_cost), elite_costs[:, 0]

    mean = base.clip(spec, memory.mean)
    nothing = jnp.full((batch, count), jnp.inf)
    elites = jnp.broadcast_to(mean[:, None], (batch, count, *mean.shape[1:]))
    start = _Search(mean, jnp.broadcast_to(config.std * scale, mean.shape), elites, nothing, mean, nothing[:, 0])
    schedule = (jnp.asarray(parts), jnp.isin(parts, begins), jnp.isin(parts, ends))
    search, costs = jax.lax.scan(step, start, schedule)
    plan = base.Plan(search.best, costs[ends].swapaxes(0, 1))
    return plan, CEMMemory(search.mean, search.elites[:, :kept], jnp.ones(batch, bool))


def _fit(elites: Array, costs: Array, mean: Array, std: Array, momentum: float) -> tuple[Array, Array]:
    """Mean and standard deviation ``[B, H, A]`` of the elites of finite cost; the old ones where there are none."""
    weight = jnp.isfinite(costs)[:, :, None, None]
    total = jnp.sum(weight, axis=1)
    average = lambda x: jnp.sum(jnp.where(weight, x, 0.0), axis=1) / jnp.maximum(total, 1)  # noqa: E731
    new_mean = average(elites)
    new_std = jnp.sqrt(average(jnp.square(elites - new_mean[:, None])))
    move = jnp.where(total > 0, 1.0 - momentum, 0.0)
    return mean + move * (new_mean - mean), std + move * (new_std - std)


@dataclasses.dataclass(frozen=True)
class CategoricalCEM(base.EliteSearch):
    """The cross-entropy method for discrete actions: a distribution over the choices at every step of the plan.

    Args:
      horizon: length of a plan.
      samples: candidates of an iteration.
      elites: how many of the cheapest the distribution is fitted to.
      iterations: how often.
      momentum: share of the old probabilities that stays.
      floor: share of the uniform distribution in what is sampled, so that no choice dies out.

    Raises:
      ValueError: more elites than samples.
    """

    momentum: Share = 0.1
    floor: Share = 0.05

    def init(self, spec: ActionSpec, batch: int) -> Array:
        """Uniform probabilities ``[B, H, A]``; see `jaxwm.planning.base.Solver`."""
        base.require_discrete(spec, type(self).__name__)
        return jnp.full((batch, self.horizon, spec.dim), 1.0 / spec.dim)

    def solve(self, spec: ActionSpec, cost: base.Cost, keys: Array, memory: Array) -> tuple[base.Plan, Array]:
        """See `jaxwm.planning.base.Solver`."""

        def step(carry: tuple[Array, Array, Array], iteration: Array) -> tuple[tuple[Array, Array, Array], Array]:
            probs, best, best_cost = carry
            logits = jnp.log((1 - self.floor) * probs + self.floor / spec.dim)
            draw = lambda key, logits: jax.random.categorical(key, logits, shape=(self.samples, self.horizon))  # noqa: E731
            candidates = jax.nn.one_hot(jax.vmap(draw)(base.fold(keys, iteration), logits), spec.dim)
            candidates = candidates.at[:, -1].set(jax.nn.one_hot(jnp.argmax(probs, axis=-1), spec.dim))
            costs = base.comparable(cost(candidates))
            elites, elite_costs = base.cheapest(costs, candidates, self.elites)
            best_cost, best = base.better(elite_costs[:, 0], elites[:, 0], best_cost, best)
            probs, _ = _fit(elites, elite_costs, probs, probs, self.momentum)
            return (probs, best, best_cost), elite_costs[:, 0]

        likeliest = jax.nn.one_hot(jnp.argmax(memory, axis=-1), spec.dim)
        start = (memory, likeliest, jnp.full(keys.shape[0], jnp.inf))
        (probs, best, _), costs = jax.lax.scan(step, start, jnp.arange(self.iterations))
        return base.Plan(best, costs.swapaxes(0, 1)), probs

    def advance(self, memory: Array, steps: int) -> Array:
        """The probabilities, shifted in time."""
        return base.shift(memory, steps)
