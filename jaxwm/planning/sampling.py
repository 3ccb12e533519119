"""Solvers that sample around one plan or none: random shooting, predictive sampling and MPPI."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from jaxwm.planning import base
from jaxwm.planning.cem import Share
from jaxwm.planning.noise import coloured
from jaxwm.types import ActionSpec, Array, PyTree


@dataclasses.dataclass(frozen=True)
class RandomShooting:
    """The cheapest of many random plans: uniform within the bounds, normal where there are none, any choices.

    Args:
      horizon: length of a plan.
      samples: candidates.
    """

    horizon: PositiveInt = 15
    samples: PositiveInt = 1024

    def init(self, spec: ActionSpec, batch: int) -> PyTree:
        """Nothing: every plan starts anew."""
        return ()

    def solve(self, spec: ActionSpec, cost: base.Cost, keys: Array, memory: PyTree) -> tuple[base.Plan, PyTree]:
        """See `jaxwm.planning.base.Solver`."""
        shape = (self.samples, self.horizon, spec.dim)

        def draw(key: Array) -> Array:
            if spec.discrete:
                return jax.nn.one_hot(jax.random.randint(key, shape[:2], 0, spec.dim), spec.dim)
            if spec.low is None or spec.high is None:
                return jax.random.normal(key, shape)
            low, high = np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32)
            return jax.random.uniform(key, shape, minval=low, maxval=high)

        candidates = base.clip(spec, jax.vmap(draw)(keys))
        best, costs = base.cheapest(base.comparable(cost(candidates)), candidates, 1)
        return base.Plan(best[:, 0], costs), memory

    def advance(self, memory: PyTree, steps: int) -> PyTree:
        """Nothing."""
        return memory


@dataclasses.dataclass(frozen=True)
class PredictiveSampling(base.WarmStart):
    """The cheapest of the last plan and of noisy copies of it (Howell et al. 2022, arXiv:2212.00541).

    The noise is drawn at a few knots and interpolated linearly between them.

    Args:
      horizon: length of a plan.
      samples: candidates, the last plan among them.
      knots: points at which the noise is independent.
      std: standard deviation of the noise, as a share of half the width of the action's bounds.

    Raises:
      ValueError: more knots than steps.
    """

    samples: PositiveInt = 256
    knots: PositiveInt = 5
    std: PositiveFloat = 0.5

    def __post_init__(self) -> None:
        if self.knots > self.horizon:
            raise ValueError(f"knots is {self.knots}, expected at most horizon={self.horizon}")

    def solve(self, spec: ActionSpec, cost: base.Cost, keys: Array, memory: Array) -> tuple[base.Plan, Array]:
        """See `jaxwm.planning.base.Solver`."""
        _, scale = base.centre_and_scale(spec)
        place = np.linspace(0, self.knots - 1, self.horizon)
        between = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(self.knots))).astype(np.float32)
        noise = between @ coloured(keys, self.samples - 1, self.knots, spec.dim, 0.0)
        noisy = base.clip(spec, memory[:, None] + self.std * scale * noise)
        candidates = jnp.concatenate([memory[:, None], noisy], axis=1)
        best, costs = base.cheapest(base.comparable(cost(candidates)), candidates, 1)
        return base.Plan(best[:, 0], costs), best[:, 0]


@dataclasses.dataclass(frozen=True)
class MPPI(base.EliteSearch, base.WarmStart):
    """Model predictive path integral control: the plan is a weighted mean of candidates, the cheap ones weigh most.

    A candidate of cost c weighs exp(-(c - min c) / temperature) among the ``elites`` cheapest, the others nothing. So
    the temperature is in the unit of the cost: candidates that are dearer than the best by much less than it count
    alike, those dearer by much more not at all; towards 0 the plan is the cheapest candidate, towards infinity the
    mean of the elites. Mean and standard deviation follow the weights (Williams et al. 2017, arXiv:1707.02342;
    adaptive standard deviation and elites as in TD-MPC, Hansen et al. 2022, arXiv:2203.04955, where the factor called
    temperature is the inverse of this one).

    Args:
      horizon: length of a plan.
      samples: candidates of an iteration, the mean among them.
      elites: how many of the cheapest have a weight.
      iterations: how often.
      temperature: see above.
      std: standard deviation at the start of each plan and its upper limit, as a share of half the width of the
        action's bounds.
      min_std: least standard deviation, in the same unit.
      momentum: share of the old mean that stays.
      colour: beta of the noise, whose power falls with the frequency f as 1/f^beta; 0 is white.

    Raises:
      ValueError: more elites than samples, or ``min_std`` above ``std``.
    """

    elites: PositiveInt = 64
    temperature: PositiveFloat = 0.1
    std: PositiveFloat = 0.5
    min_std: PositiveFloat = 0.05
    momentum: Share = 0.1
    colour: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_std > self.std:
            raise ValueError(f"min_std is {self.min_std}, expected at most std={self.std}")

    def solve(self, spec: ActionSpec, cost: base.Cost, keys: Array, memory: Array) -> tuple[base.Plan, Array]:
        """See `jaxwm.planning.base.Solver`."""
        _, scale = base.centre_and_scale(spec)

        def step(carry: tuple[Array, Array], iteration: Array) -> tuple[tuple[Array, Array], Array]:
            mean, std = carry
            noise = coloured(base.fold(keys, iteration), self.samples, self.horizon, spec.dim, self.colour)
            candidates = base.clip(spec, mean[:, None] + std[:, None] * noise.at[:, 0].set(0.0))
            costs = base.comparable(cost(candidates))
            elites, elite_costs = base.cheapest(costs, candidates, self.elites)
            weights = path_weights(elite_costs, self.temperature)[:, :, None, None]
            new_mean = jnp.sum(weights * elites, axis=1)
            new_std = jnp.sqrt(jnp.sum(weights * jnp.square(elites - new_mean[:, None]), axis=1))
            found = jnp.isfinite(elite_costs[:, 0])[:, None, None]
            mean = jnp.where(found, self.momentum * mean + (1 - self.momentum) * new_mean, mean)
            std = jnp.where(found, jnp.clip(new_std, self.min_std * scale, self.std * scale), std)
            return (mean, std), elite_costs[:, 0]

        mean = base.clip(spec, memory)
        start = (mean, jnp.broadcast_to(self.std * scale, mean.shape))
        (mean, _), costs = jax.lax.scan(step, start, jnp.arange(self.iterations))
        mean = base.clip(spec, mean)
        return base.Plan(mean, costs.swapaxes(0, 1)), mean


def path_weights(costs: Array, temperature: float | Array) -> Array:
    """``[B, N]``: weights exp(-(cost - min) / temperature) that sum to 1; 0 for infinite costs, all 0 if all are."""
    lowest = jnp.min(costs, axis=-1, keepdims=True)
    weights = jnp.where(jnp.isfinite(costs), jnp.exp(-(costs - lowest) / temperature), 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
