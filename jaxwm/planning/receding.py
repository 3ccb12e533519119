"""From a world model and an objective to actions: one plan, and an agent that plans anew as it goes.

The candidates of all episodes are imagined as one batch by `jaxwm.imagination.rollout`, so any family will do. All
candidates of an episode have the same luck: only their actions differ.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxwm.imagination import rollout, row_keys, where_rows
from jaxwm.planning import base
from jaxwm.planning.objectives import Goal, Objective, repeat_goal
from jaxwm.types import Array, Arrays, PyTree, Spec, Variables, WorldModel


def imagined_cost(
    model: WorldModel,
    variables: Variables,
    keys: Array,
    state: PyTree,
    objective: Objective,
    *,
    goal: Goal | None = None,
    params: PyTree = None,
    temperature: float | Array = 0.0,
    particles: int = 1,
) -> base.Cost:
    """The cost of action sequences from ``state``: ``objective`` of what ``model`` imagines under them.

    Args:
      model: any world model.
      variables: its variables.
      keys: ``[B]``.
      state: ``[B, ...]``.
      objective: what a dream costs.
      goal: for objectives that have one, ``[B, ...]``.
      params: of the objective.
      temperature: 0 imagines the likeliest future, 1 a random one.
      particles: random futures that the cost is a mean of.
    """
    batch = keys.shape[0]

    def cost(actions: Array) -> Array:
        count, horizon, dim = actions.shape[1:]
        repeat = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, count * particles, axis=0), tree)  # noqa: E731
        luck = jax.vmap(lambda key: row_keys(key, particles))(keys)
        luck = jnp.broadcast_to(luck[:, None], (batch, count, particles)).reshape(-1)
        tried = jnp.repeat(actions.reshape(batch * count, horizon, dim), particles, axis=0)
        controls = {"temperature": jnp.full(luck.shape, temperature, jnp.float32)}
        dream = rollout(
            model, None, horizon, objective.decode, False, variables, luck, repeat(state), tried, None, None, controls
        )
        costs = objective(params, dream, repeat_goal(goal, count * particles))
        return jnp.mean(costs.reshape(batch, count, particles), axis=-1)

    return cost


@functools.partial(jax.jit, static_argnames=("model", "objective", "solver", "particles"))
def plan(
    model: WorldModel,
    variables: Variables,
    key: Array,
    state: PyTree,
    objective: Objective,
    solver: base.Solver,
    *,
    goal: Goal | None = None,
    params: PyTree = None,
    memory: PyTree = None,
    temperature: float | Array = 0.0,
    particles: int = 1,
) -> tuple[base.Plan, PyTree]:
    """The cheapest actions from ``state`` that ``solver`` finds in what ``model`` imagines; compiled once.

    Args:
      model: any world model.
      variables: its variables.
      key: one PRNG key.
      state: the model's state, ``[B, ...]``.
      objective: what a dream costs.
      solver: how to search.
      goal: for objectives that have one, ``[B, ...]``; see `encode_goal`.
      params: of the objective.
      memory: of the solver, from an earlier call and advanced; by default it starts cold.
      temperature: 0 imagines the likeliest future, 1 a random one.
      particles: random futures that a cost is the mean of.

    Returns:
      The `Plan`, and the memory of the solver.

    Raises:
      ValueError: a solver or an objective that does not fit the model.
    """
    batch = jax.tree.leaves(state)[0].shape[0]
    both = jax.vmap(jax.random.split)(row_keys(key, batch))
    cost = imagined_cost(
        model, variables, both[:, 0], state, objective,
        goal=goal, params=params, temperature=temperature, particles=particles,
    )  # fmt: skip
    fresh = solver.init(model.spec.action, batch)
    return solver.solve(model.spec.action, cost, both[:, 1], fresh if memory is None else memory)


class PlanningParams(struct.PyTreeNode):
    """What a `PlanningAgent` acts by.

    Attributes:
      variables: of the model.
      goal: ``[N, ...]``, or None.
      objective: parameters of the objective.
    """

    variables: Variables
    goal: Goal | None = None
    objective: PyTree = None


class PlanningMemory(struct.PyTreeNode):
    """What a `PlanningAgent` remembers.

    Attributes:
      state: of the model, ``[N, ...]``.
      action: ``[N, A]``, the last one.
      plan: the plan that is being carried out, ``[N, ...]``.
      done: ``[N]`` int32; how many of its actions are done.
      solver: memory of the solver, ``[N, ...]``.
    """

    state: PyTree
    action: Array
    plan: base.Plan
    done: Array
    solver: PyTree


@dataclasses.dataclass(frozen=True)
class PlanningAgent:
    """Receding horizon: follows the frames with a model, plans, does the first actions of the plan, plans again.

    It is an `jaxwm.acting.Agent`; its ``params`` are `PlanningParams`. A new plan starts from the last one, shifted in
    time; where an episode begins it starts anew.

    Args:
      model: any world model.
      objective: what a dream costs.
      solver: how to search.
      every: actions that are done of each plan.
      temperature: 0 imagines the likeliest future, 1 a random one.
      particles: random futures that a cost is the mean of.

    Raises:
      ValueError: ``every`` is not within the horizon, or a setting is out of its range.
    """

    model: WorldModel
    objective: Objective
    solver: base.Solver
    every: int = 1
    temperature: float = 0.0
    particles: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.solver.horizon:
            raise ValueError(f"every is {self.every}, expected 1..{self.solver.horizon}, the horizon of the solver")
        if self.particles < 1 or not self.temperature >= 0:
            raise ValueError(f"particles={self.particles}, temperature={self.temperature}: expected >= 1 and >= 0")

    @property
    def spec(self) -> Spec:
        """The model's."""
        return self.model.spec

    def init(self, count: int) -> PlanningMemory:
        """A state that knows nothing, and no plan."""
        action = self.spec.action
        solver = self.solver.init(action, count)
        shapes = jax.eval_shape(functools.partial(self._solve_nothing, count), solver)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        done = jnp.full(count, self.every, jnp.int32)
        return PlanningMemory(self.model.init_state(count), jnp.zeros((count, action.dim)), blank, done, solver)

    def act(
        self, params: PlanningParams, keys: Array, memory: PlanningMemory, observation: Arrays, is_first: Array
    ) -> tuple[Array, PlanningMemory]:
        """See `jaxwm.acting.Agent`."""
        count = is_first.shape[0]
        keys = jax.vmap(functools.partial(jax.random.split, num=3))(keys)
        controls = {"temperature": jnp.full(count, self.temperature, jnp.float32)}
        previous = jnp.where(is_first[:, None], 0.0, memory.action)
        state = self.model.observe(
            params.variables, keys[:, 0], memory.state, previous, observation, is_first, controls
        )  # fmt: skip
        due = is_first | (memory.done >= self.every)

        def replan(old: tuple[base.Plan, PyTree]) -> tuple[base.Plan, PyTree]:
            cost = imagined_cost(
                self.model, params.variables, keys[:, 1], state, self.objective,
                goal=params.goal, params=params.objective, temperature=self.temperature, particles=self.particles,
            )  # fmt: skip
            warm = self.solver.advance(old[1], self.every)
            start = where_rows(is_first, self.solver.init(self.spec.action, count), warm)
            return where_rows(due, self.solver.solve(self.spec.action, cost, keys[:, 2], start), old)

        old = (memory.plan, memory.solver)
        found, solver = jax.lax.cond(jnp.any(due), replan, lambda old: old, old)
        done = jnp.where(due, 0, memory.done)
        action = jnp.take_along_axis(found.actions, done[:, None, None], axis=1)[:, 0]
        return action, PlanningMemory(state, action, found, done + 1, solver)

    def _solve_nothing(self, count: int, memory: PyTree) -> base.Plan:
        """A plan at no cost, for its shapes."""
        keys = jax.random.split(jax.random.key(0), count)
        nothing = lambda actions: jnp.sum(actions, axis=(2, 3))  # noqa: E731
        return self.solver.solve(self.spec.action, nothing, keys, memory)[0]
