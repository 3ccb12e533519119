"""Planning by gradient: the model is differentiable, so the plan can be improved like a parameter."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from pydantic import PositiveFloat, PositiveInt

from jaxwm.planning import base
from jaxwm.planning.noise import coloured
from jaxwm.types import ActionSpec, Array, PyTree


@dataclasses.dataclass(frozen=True)
class Gradient(base.WarmStart):
    """Adam on several plans at once, through the model; each step is projected back into the bounds.

    The plan is the cheapest that any of them was on its way. A gradient that is not finite counts as 0.

    Args:
      horizon: length of a plan.
      starts: plans that are improved side by side: the last plan, the others noisy copies of it.
      iterations: steps of Adam.
      learning_rate: of Adam, in halves of the width of the action's bounds.
      std: standard deviation of the noise of the starts, in the same unit.
    """

    starts: PositiveInt = 8
    iterations: PositiveInt = 30
    learning_rate: PositiveFloat = 0.1
    std: PositiveFloat = 0.5

    def solve(self, spec: ActionSpec, cost: base.Cost, keys: Array, memory: Array) -> tuple[base.Plan, Array]:
        """See `jaxwm.planning.base.Solver`; ``cost`` must be differentiable."""
        centre, scale = base.centre_and_scale(spec)
        # A plan gets tens of steps: with the usual memory of a thousand the first, large gradients slow all others.
        optimizer = optax.adam(self.learning_rate, b2=0.95)

        def project(units: Array) -> Array:
            return (base.clip(spec, centre + scale * units) - centre) / scale

        def total(units: Array) -> tuple[Array, tuple[Array, Array]]:
            actions = centre + scale * units
            # Within bounds but for rounding: the gradient at a bound, which clipping would halve, stays whole.
            actions += jax.lax.stop_gradient(base.clip(spec, actions) - actions)
            costs = cost(actions)
            return jnp.sum(costs), (costs, base.clip(spec, actions))

        def step(
            carry: tuple[Array, PyTree, Array, Array], _: None
        ) -> tuple[tuple[Array, PyTree, Array, Array], Array]:
            units, state, best, best_cost = carry
            (_, (costs, actions)), gradient = jax.value_and_grad(total, has_aux=True)(units)
            cheapest, lowest = base.cheapest(base.comparable(costs), actions, 1)
            best_cost, best = base.better(lowest[:, 0], cheapest[:, 0], best_cost, best)
            # A row's gradient is its own: the sum over candidates only adds what does not depend on it.
            gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
            updates, state = optimizer.update(gradient, state)
            return (project(units + updates), state, best, best_cost), lowest[:, 0]

        noise = self.std * coloured(keys, self.starts, self.horizon, spec.dim, 0.0)
        units = project((memory[:, None] - centre) / scale + noise.at[:, 0].set(0.0))
        start = (units, optimizer.init(units), base.clip(spec, memory), jnp.full(keys.shape[0], jnp.inf))
        (_, _, best, _), costs = jax.lax.scan(step, start, length=self.iterations)
        return base.Plan(best, costs.swapaxes(0, 1)), best
