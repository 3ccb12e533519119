"""What a solver is, and the few things that all of them share.

A solver looks for cheap action sequences and knows nothing of models: it is given a function that says what each of
``[B, N, H, A]`` sequences costs, N candidates for each of B episodes. `jaxwm.planning.receding` makes such a function
of any world model; any other one will do as well.

Three rules hold for all solvers. Whatever they propose lies within the bounds of the action. A cost that is not finite
is worse than every finite one. Rows of the batch do not see each other: each has its own key and its own memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from pydantic import PositiveInt

from jaxwm.types import ActionSpec, Array, PyTree

Cost = Callable[[Array], Array]
"""``cost(actions [B, N, H, A]) -> [B, N]``: actions in raw units, less is better; N differs between calls."""


class Plan(struct.PyTreeNode):
    """What a solver found.

    Attributes:
      actions: ``[B, H, A]`` in raw units and within their bounds.
      costs: ``[B, I]`` the cost of the cheapest candidate of each iteration; inf where none was finite.
    """

    actions: Array
    costs: Array


@runtime_checkable
class Solver(Protocol):
    """Frozen, hashable and pure: its fields are its configuration, what it remembers is handed to it and back."""

    @property
    def horizon(self) -> int:
        """H, the length of a plan."""
        ...

    def init(self, spec: ActionSpec, batch: int) -> PyTree:
        """What it remembers before the first plan of ``batch`` episodes, ``[B, ...]``.

        Raises:
          ValueError: the solver cannot work with such actions.
        """
        ...

    def solve(self, spec: ActionSpec, cost: Cost, keys: Array, memory: PyTree) -> tuple[Plan, PyTree]:
        """Plans for each row, with ``keys`` ``[B]``; the memory it returns makes the next plan start warm."""
        ...

    def advance(self, memory: PyTree, steps: int) -> PyTree:
        """``memory`` after the first ``steps`` actions of its plan were done."""
        ...


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """The memory of solvers of continuous actions that start from their last plan: that plan, ``[B, H, A]``."""

    horizon: PositiveInt = 15

    def init(self, spec: ActionSpec, batch: int) -> Array:
        """The middle of the bounds, ``[B, H, A]``; see `Solver.init`."""
        require_continuous(spec, type(self).__name__)
        return middle(spec, batch, self.horizon)

    def advance(self, memory: Array, steps: int) -> Array:
        """The plan, shifted in time."""
        return shift(memory, steps)


@dataclasses.dataclass(frozen=True)
class EliteSearch:
    """The fields of solvers that draw ``samples`` and move to the ``elites`` among them, ``iterations`` times."""

    horizon: PositiveInt = 15
    samples: PositiveInt = 256
    elites: PositiveInt = 32
    iterations: PositiveInt = 5

    def __post_init__(self) -> None:
        if self.elites > self.samples:
            raise ValueError(f"elites is {self.elites}, expected at most samples={self.samples}")


def require_continuous(spec: ActionSpec, solver: str) -> None:
    """Raises ValueError if actions are discrete."""
    if spec.discrete:
        raise ValueError(
            f"the action is discrete (one of {spec.dim}), {solver} plans continuous ones; "
            "use categorical_cem or random_shooting"
        )


def require_discrete(spec: ActionSpec, solver: str) -> None:
    """Raises ValueError if actions are continuous."""
    if not spec.discrete:
        raise ValueError(f"the action is continuous ({spec.dim} dimensions), {solver} plans discrete ones; use icem")


def centre_and_scale(spec: ActionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half the width of the bounds, ``[A]`` each; 0 and 1 where there are none.

    The widths of all solvers' distributions are shares of this scale.
    """
    if spec.low is None or spec.high is None:
        return np.zeros(spec.dim, np.float32), np.ones(spec.dim, np.float32)
    low, high = np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32)
    return (high + low) / 2, (high - low) / 2


def clip(spec: ActionSpec, actions: Array) -> Array:
    """``actions`` ``[..., A]`` within the bounds of ``spec``, as they are where there are none."""
    if spec.low is None or spec.high is None:
        return actions
    return jnp.clip(actions, np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32))


def middle(spec: ActionSpec, batch: int, horizon: int) -> Array:
    """``[B, H, A]``: what a plan starts from when nothing is known, the middle of the bounds."""
    return jnp.broadcast_to(centre_and_scale(spec)[0], (batch, horizon, spec.dim))


def comparable(costs: Array) -> Array:
    """``costs`` with inf in place of everything that is not finite: a model that breaks down must never look good."""
    return jnp.where(jnp.isfinite(costs), costs, jnp.inf)


def cheapest(costs: Array, candidates: Array, count: int) -> tuple[Array, Array]:
    """The ``count`` cheapest of ``candidates`` ``[B, N, ...]`` and their ``costs`` ``[B, N]``, in order."""
    negative, indices = jax.lax.top_k(-costs, count)
    indices = indices.reshape(*indices.shape, *[1] * (candidates.ndim - 2))
    return jnp.take_along_axis(candidates, indices, axis=1), -negative


def better(cost: Array, actions: Array, best_cost: Array, best: Array) -> tuple[Array, Array]:
    """Row by row the cheaper of two plans ``[B, H, A]``, the second one in doubt, and its cost ``[B]``."""
    is_better = cost < best_cost
    return jnp.where(is_better, cost, best_cost), jnp.where(is_better[:, None, None], actions, best)


def shift(plan: Array, steps: int, axis: int = 1) -> Array:
    """``plan`` ``[B, ..., H, A]`` without its first ``steps`` entries along ``axis``, its last one repeated."""
    length = plan.shape[axis]
    return jnp.take(plan, np.minimum(np.arange(length) + steps, length - 1), axis=axis)


def fold(keys: Array, number: Array | int) -> Array:
    """``[B]`` keys, each with ``number`` folded in."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
