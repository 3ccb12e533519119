"""How well a planner acts: success over many episodes of a simulated world, what a plan costs in time, a video.

Episodes are played in step, ``batch`` of them at once, so that their candidates are imagined as one batch. A start
that is solved already is no success: it is counted apart and left out of every figure.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation import clips
from jaxwm.evaluation.scores import style_axes
from jaxwm.planning import PlanningAgent, PlanningMemory, PlanningParams, encode_goal
from jaxwm.types import Array, Arrays, PyTree, Variables
from jaxwm.worlds.base import GoalWorld, Policy, World, clip_action, random_policy

if TYPE_CHECKING:
    from rich.table import Table

QUANTILE = 1.959964
"""Of the standard normal distribution, for intervals of 95%."""


@dataclasses.dataclass(frozen=True)
class PlanningScores:
    """How a planner did.

    Attributes:
      episodes: how many are scored.
      solved_at_start: further episodes, left out because there was nothing to do.
      success: share of the scored episodes that reached the goal; None in a world without goals.
      success_interval: Wilson's interval of 95% around it.
      score: mean sum of rewards.
      score_interval: 95% of the mean, by the normal approximation.
      frames_to_goal: mean number of frames until those that reached the goal were there; None where none did.
      batch: episodes that are planned for at once.
      plan_milliseconds: median time of a call that plans, for ``batch`` episodes, without compilation.
      planning_seconds: time of all calls of the agent, for each episode.
      costs: mean cost of the cheapest candidate in each iteration of a plan.
      planner: solver, objective and agent, in words.
    """

    episodes: int
    solved_at_start: int
    success: float | None
    success_interval: tuple[float, float] | None
    score: float
    score_interval: tuple[float, float]
    frames_to_goal: float | None
    batch: int
    plan_milliseconds: float
    planning_seconds: float
    costs: tuple[float, ...]
    planner: str

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def table(self) -> Table:
        """What there is to say, a line each."""
        from rich.table import Table

        table = Table(show_header=False)
        rows = {"episodes": f"{self.episodes} ({self.solved_at_start} more were solved at the start)"}
        if self.success is not None and self.success_interval is not None:
            low, high = self.success_interval
            rows["success"] = f"{self.success:.1%} (95%: {low:.1%} to {high:.1%})"
            rows["frames to the goal"] = "-" if self.frames_to_goal is None else f"{self.frames_to_goal:.1f}"
        rows |= {
            "score": f"{self.score:.3f} (95%: {self.score_interval[0]:.3f} to {self.score_interval[1]:.3f})",
            "a plan": f"{self.plan_milliseconds:.1f} ms for {self.batch} episodes at once",
            "planning": f"{self.planning_seconds:.3f} s an episode",
            "cost by iteration": " ".join(f"{cost:.3g}" for cost in self.costs),
        }
        for name, text in rows.items():
            table.add_row(name, text)
        return table

    def plot(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Draws the cost by iteration into a PNG, PDF or SVG file."""
        from matplotlib.figure import Figure

        path = pathlib.Path(path)
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(range(1, len(self.costs) + 1), self.costs, marker="o", color="#2f6fde")
        style_axes(axes, "cost of the cheapest candidate, mean over plans", "iteration")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        return path


def pool(parts: Sequence[PlanningScores]) -> dict[str, Any]:
    """The same planner in several models or worlds as one: plain values by name, for tables.

    Success and its interval are over all episodes together, the rest are means of the parts; ``seeds`` are their
    successes.
    """
    count = sum(part.episodes for part in parts)
    hits = sum(round((part.success or 0.0) * part.episodes) for part in parts)
    to_goal = [part.frames_to_goal for part in parts if part.frames_to_goal is not None]
    return {
        "episodes": count,
        "success": hits / count if count else None,
        "interval": wilson_interval(hits, count) if count else None,
        "seeds": [part.success for part in parts],
        "frames_to_goal": float(np.mean(to_goal)) if to_goal else None,
        "solved_at_start": sum(part.solved_at_start for part in parts),
        "ms_per_plan_in_batch": float(np.mean([part.plan_milliseconds / part.batch for part in parts])),
        "planning_seconds_per_episode_in_batch": float(np.mean([part.planning_seconds for part in parts])),
        "planner": parts[0].planner,
    }


@dataclasses.dataclass(frozen=True)
class Planned:
    """What `evaluate_planning` saw.

    Attributes:
      scores: the figures.
      succeeded: ``[N]`` bool; reached the goal. False throughout in a world without goals.
      is_scored: ``[N]`` bool; was not solved at the start.
      states: the physical states, ``[T, shown, ...]``.
      goals: those to reach, ``[shown, ...]``, or None in a world without goals.
      ends: ``[shown]``; the frame at which each of these episodes was over.
    """

    scores: PlanningScores
    succeeded: np.ndarray
    is_scored: np.ndarray
    states: PyTree
    goals: PyTree
    ends: np.ndarray

    def film(self, world: Any, size: int = 96) -> clips.Pixels:
        """A video uint8 ``[T, H, W, 3]`` of the episodes shown, beside each its goal where the world has goals."""
        draw = jax.jit(jax.vmap(jax.vmap(functools.partial(world.render, size=size))))
        length = int(self.ends.max()) + 1
        # What comes after the end of an episode is another one: the last frame stays.
        times = np.minimum(np.arange(length)[:, None], self.ends)
        rows = np.arange(len(self.ends))
        states = jax.tree.map(lambda x: x[times, rows], self.states)
        frames = np.asarray(draw(states))
        if self.goals is not None:
            goals = jax.tree.map(lambda x: np.broadcast_to(x, (length, *x.shape)), self.goals)
            frames = np.concatenate([frames, np.asarray(draw(goals))], axis=3)
        name = "now" if self.goals is None else "now, goal"
        videos = [clips.film(frames[:, row], None, scale=1, name=name) for row in rows]
        return clips.tile(videos, min(2, len(videos)))


def evaluate_planning(
    agent: PlanningAgent,
    variables: Variables,
    key: Array,
    environments: WorldEnvironments,
    episodes: int,
    *,
    batch: int = 32,
    objective_params: PyTree = None,
    goals: Goals | None = None,
    shown: int = 4,
) -> Planned:
    """Plays ``episodes`` episodes with ``agent`` and measures success, score and time.

    In a `GoalWorld` the agent is shown what would be seen in the goal, and has succeeded when it is there at the end
    of one of its steps before the time limit; it then stops. A step is a block of actions where the environments skip
    frames: who passes the goal within one has not reached it.

    Args:
      agent: who plans.
      variables: of its model.
      key: one PRNG key; episode i depends on it and on i alone, whatever ``batch`` is.
      environments: the world, and the frames after which an episode has failed.
      episodes: how many.
      batch: how many at once.
      objective_params: parameters of the objective.
      goals: where the goals come from; by default the world's own.
      shown: how many to keep for the video.

    Raises:
      ValueError: a count below 1, goals in a world that has none, or a world that shows or takes other things than
        the model knows.
    """
    if min(episodes, batch, shown) < 1:
        raise ValueError(f"episodes={episodes}, batch={batch}, shown={shown}: expected at least 1 each")
    if goals is not None and not hasattr(environments.world, "with_goal"):
        raise ValueError("goals by offset are for worlds with goals that can be set (with_goal)")
    if environments.spec != agent.spec:
        raise ValueError("the world shows or takes other things than those that the model was made for")
    batch = min(batch, episodes)
    rounds = [_play(agent, variables, key, environments, start, batch, objective_params, goals, shown)
              for start in range(0, episodes, batch)]  # fmt: skip
    join = lambda name: np.concatenate([getattr(part, name) for part in rounds])[:episodes]  # noqa: E731
    succeeded, solved, score, frames = (join(name) for name in ("succeeded", "solved", "score", "frames"))
    scored = ~solved
    count, hits = int(scored.sum()), int(succeeded[scored].sum())
    has_goals = isinstance(environments.world, GoalWorld)
    spread = QUANTILE * float(score[scored].std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    mean = float(score[scored].mean()) if count else 0.0
    costs = np.concatenate([part.costs for part in rounds])
    plan_times = [seconds for part in rounds for seconds in part.plan_times]
    scores = PlanningScores(
        episodes=count,
        solved_at_start=int(solved.sum()),
        success=hits / count if has_goals and count else None,
        success_interval=wilson_interval(hits, count) if has_goals and count else None,
        score=mean,
        score_interval=(mean - spread, mean + spread),
        frames_to_goal=float(frames[succeeded & scored].mean()) if hits else None,
        batch=batch,
        plan_milliseconds=1e3 * float(np.median(plan_times)) if plan_times else math.nan,
        planning_seconds=sum(part.seconds for part in rounds) / (batch * len(rounds)),
        costs=tuple(float(np.mean(column[np.isfinite(column)])) for column in costs.T if np.isfinite(column).any()),
        planner=f"{agent.solver}, {agent.objective}, every {agent.every}, temperature {agent.temperature:g}",
    )
    first = rounds[0]
    return Planned(scores, succeeded, scored, first.states, first.goals, first.steps[: min(shown, batch)])


@dataclasses.dataclass(frozen=True)
class Goals:
    """Goals as in recorded episodes: what is seen ``offset`` frames later, if somebody acts by ``policy``.

    The usual protocol of planning from offline data (DINO-WM, arXiv:2411.04983): every goal can be reached, in that
    many frames or fewer.

    Args:
      offset: frames from start to goal.
      policy: who acts on the way.

    Raises:
      ValueError: ``offset`` is below 1.
    """

    offset: int
    policy: Policy = random_policy

    def __post_init__(self) -> None:
        if self.offset < 1:
            raise ValueError(f"the offset of goals is {self.offset}, expected at least 1 frame")

    def reach(self, world: World, key: Array, state: PyTree) -> PyTree:
        """The state ``offset`` frames after ``state``; both are unbatched."""

        def frame(state: PyTree, key: Array) -> tuple[PyTree, None]:
            policy_key, step_key = jax.random.split(key)
            action = clip_action(world.spec.action, self.policy(world, policy_key, state))
            return world.step(step_key, state, action).state, None

        return jax.lax.scan(frame, state, jax.random.split(key, self.offset))[0]


@dataclasses.dataclass(frozen=True)
class _Round:
    """One batch of episodes: what `_play` measured."""

    succeeded: np.ndarray
    solved: np.ndarray
    score: np.ndarray
    steps: np.ndarray
    frames: np.ndarray
    plan_times: list[float]
    seconds: float
    costs: np.ndarray
    states: PyTree
    goals: PyTree


def _play(
    agent: PlanningAgent,
    variables: Variables,
    key: Array,
    environments: WorldEnvironments,
    start: int,
    batch: int,
    objective_params: PyTree,
    goals: Goals | None,
    shown: int,
) -> _Round:
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(batch))
    world_state, step, goal_state, wanted = _reset(environments, goals, row_keys)
    goal = None if wanted is None else encode_goal(agent.model, variables, row_keys, wanted)
    params = PlanningParams(variables, goal, objective_params)
    memory = agent.init(batch)
    # Compiled outside of the clock.
    jax.block_until_ready(_act(agent, params, row_keys, jnp.int32(0), memory, step.observation, step.is_first))
    solved = _solved(environments, world_state.physical)
    succeeded, over = np.zeros(batch, bool), solved.copy()
    score, steps, frames = np.zeros(batch), np.zeros(batch, int), np.zeros(batch, int)
    times, plan_times, costs, states = [], [], [], []
    for t in range(environments.length):
        states.append(jax.device_get(jax.tree.map(lambda x: x[:shown], world_state.physical)))
        if over.all() or t == environments.length - 1:
            break
        begin = time.perf_counter()
        action, memory = _act(agent, params, row_keys, jnp.int32(t), memory, step.observation, step.is_first)
        jax.block_until_ready((action, memory))
        times.append(time.perf_counter() - begin)
        if t % agent.every == 0:
            plan_times.append(times[-1])
            costs.append(np.asarray(memory.plan.costs)[~over])
        world_state, step = _step(environments, row_keys, jnp.int32(t), world_state, action)
        score += np.where(over, 0.0, step.reward)
        steps += ~over
        frames = np.where(over, frames, world_state.time)
        succeeded |= ~over & _solved(environments, world_state.physical)
        over |= succeeded | np.asarray(step.is_last)
    stacked = jax.tree.map(lambda *x: np.stack(x), *states)
    goal_state = jax.device_get(jax.tree.map(lambda x: x[:shown], goal_state))
    # Where all of them were solved at the start there was nothing to plan.
    found = np.concatenate(costs) if costs else np.zeros((0, memory.plan.costs.shape[1]))
    return _Round(succeeded, solved, score, steps, frames, plan_times, sum(times), found, stacked, goal_state)


def _solved(environments: WorldEnvironments, physical: PyTree) -> np.ndarray:
    if not isinstance(environments.world, GoalWorld):
        return np.zeros(jax.tree.leaves(physical)[0].shape[0], bool)
    return np.array(_is_solved(environments, physical))


@functools.partial(jax.jit, static_argnums=0)
def _is_solved(environments: WorldEnvironments, physical: PyTree) -> Array:
    return jax.vmap(cast("GoalWorld", environments.world).is_solved)(physical)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _reset(
    environments: WorldEnvironments, goals: Goals | None, keys: Array
) -> tuple[Any, Any, PyTree, Arrays | None]:
    """The worlds at their start, what they show, and in a `GoalWorld` the goals and what is seen in them."""
    state, step = environments.reset(keys)
    world = environments.world
    if not isinstance(world, GoalWorld):
        return state, step, None, None
    see = jax.vmap(world.observation)
    if goals is None:
        wanted = jax.vmap(world.goal_state)(state.physical)
        return state, step, wanted, see(wanted)
    reached = jax.vmap(functools.partial(goals.reach, world))(_at(keys, jnp.int32(0), 2), state.physical)
    set_goal = jax.vmap(cast("Any", world).with_goal)
    physical, wanted = set_goal(state.physical, reached), set_goal(reached, reached)
    return state.replace(physical=physical), step.replace(observation=see(physical)), wanted, see(wanted)


@functools.partial(jax.jit, static_argnums=0)
def _step(environments: WorldEnvironments, keys: Array, t: Array, state: PyTree, action: Array) -> Any:
    return environments.step(_at(keys, t, 0), state, action)


@functools.partial(jax.jit, static_argnums=0)
def _act(
    agent: PlanningAgent,
    params: PlanningParams,
    keys: Array,
    t: Array,
    memory: PlanningMemory,
    observation: Arrays,
    is_first: Array,
) -> tuple[Array, PlanningMemory]:
    return agent.act(params, _at(keys, t, 1), memory, observation, is_first)


def _at(keys: Array, t: Array, stream: int) -> Array:
    """The keys of step ``t``: ``stream`` 0 for the world, 1 for the agent, 2 for goals."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, t), stream))(keys)


def wilson_interval(successes: int, trials: int, quantile: float = QUANTILE) -> tuple[float, float]:
    """The interval of a success rate that holds 95% (Wilson 1927); honest near 0 and 1 and for few trials.

    Raises:
      ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials: expected 0 <= successes <= trials, trials >= 1")
    rate, square = successes / trials, quantile**2 / trials
    middle = (rate + square / 2) / (1 + square)
    half = quantile / (1 + square) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
