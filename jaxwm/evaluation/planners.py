"""The planner of a run: as its configuration says or otherwise, built, and played in its world."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from jaxwm.data.generate import find_policy
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation.control import Goals, Planned, evaluate_planning
from jaxwm.planning import SOLVERS, Goal, PlanningAgent, PlanningParams, Reward, Weighted
from jaxwm.types import nearest

if TYPE_CHECKING:
    from jaxwm.training import Run


def configure_planning(run: Run, overrides: Sequence[str] = (), solver: str | None = None) -> Run:
    """``run`` with other settings of its planner; one that says nothing of planning plans for predicted reward.

    Args:
      run: what `jaxwm.load_run` returned.
      overrides: such as ``planning.every=3``.
      solver: another one; what it has in common with the configured one (horizon, samples ...) stays.

    Raises:
      ConfigError: a planner that cannot be.
      ValueError: an override of something else, or an unknown solver.
    """
    from jaxwm.config import parse_config

    for override in overrides:
        if not override.startswith("planning."):
            raise ValueError(f"{override}: what is trained cannot change any more, expected planning.KEY=VALUE")
    values = run.config.model_dump(mode="json", serialize_as_any=True)
    if values["planning"] is None:
        name = "categorical_cem" if run.spec.action.discrete else "icem"
        values["planning"] = {"solver": {"name": name}, "objective": {"reward": {"kind": "reward"}}}
    if solver is not None:
        if solver not in SOLVERS:
            raise ValueError(f"solver {solver!r} is unknown; {nearest(solver, list(SOLVERS))}")
        known = {field.name for field in dataclasses.fields(SOLVERS[solver])}
        common = {name: x for name, x in values["planning"]["solver"].items() if name in known}
        values["planning"]["solver"] = common | {"name": solver}
    return dataclasses.replace(run, config=parse_config(values, overrides, source="planning"))


def planning_agent(run: Run) -> PlanningAgent:
    """The agent that ``planning`` of the run's configuration describes; see `configure_planning`.

    It acts by `planning_params`, in any environment:

        >>> jaxwm.acting.play(planning_agent(run), planning_params(run), key, environments, episodes=10)

    Raises:
      ConfigError: a solver or an objective that cannot be.
    """
    from jaxwm.config import build_objective, build_solver

    settings = run.config.planning or configure_planning(run).config.planning
    assert settings is not None
    solver, objective = build_solver(settings.solver), build_objective(settings.objective, run.model)
    return PlanningAgent(run.model, objective, solver, settings.every, settings.temperature, settings.particles)


def planning_params(run: Run, goal: Goal | None = None) -> PlanningParams:
    """What `planning_agent` of ``run`` acts by: its variables, the goal, and for the objective its critic where asked.

    Raises:
      ConfigError: a solver or an objective that cannot be.
    """
    objective = planning_agent(run).objective
    assert isinstance(objective, Weighted)
    wants_critic = [isinstance(term, Reward) and term.value is not None for _, term in objective.terms]
    given = tuple(run.variables["params"]["critic"] if wanted else None for wanted in wants_critic)
    return PlanningParams(run.variables, goal, given)


def plan_run(run: Run, episodes: int = 64, *, batch: int = 32, seed: int = 0, shown: int = 4) -> Planned:
    """Plays in the world of a run by planning in its model, as ``planning`` of its configuration says.

    Args:
      run: what `jaxwm.load_run` returned.
      episodes: how many.
      batch: how many at once.
      seed: of the episodes and of the planner.
      shown: how many to keep for the video.

    Raises:
      ValueError: the run's episodes are not of a simulated world.
      ConfigError: a planner that cannot be.
    """
    agent = planning_agent(run)
    return evaluate_planning(
        agent, run.variables, jax.random.key(seed), run_environments(run), episodes,
        batch=batch, objective_params=planning_params(run).objective, goals=run_goals(run), shown=shown,
    )  # fmt: skip


def run_environments(run: Run) -> WorldEnvironments:
    """The simulated world of a run, its episodes as long as ``planning.length`` or as those that it learned from.

    Raises:
      ValueError: the run's episodes are not of a simulated world.
    """
    from jaxwm.config import build_world

    data, settings = run.config.data, run.config.planning
    source = data.simulation
    if source is None:
        raise ValueError(
            "this run has no simulated world (data.generate or data.collect.world) to score planning in; in another "
            "environment jaxwm.acting.play plays its planner, see jaxwm.evaluation.planners.planning_agent"
        )
    length = settings.length if settings is not None and settings.length is not None else source.length
    # At most so many frames, in whole blocks.
    steps = (length - 1) // data.frame_skip + 1
    return WorldEnvironments(build_world(source.world), steps, data.frame_skip)


def run_goals(run: Run) -> Goals | None:
    """Goals by offset, if ``planning.goal_offset`` of the run's configuration asks for them.

    Raises:
      DataError: the policy of the data is not one of the world.
    """
    settings, source = run.config.planning, run.config.data.simulation
    if settings is None or settings.goal_offset is None:
        return None
    names = source.policy if source is not None else "random"
    return Goals(settings.goal_offset, find_policy(run_environments(run).world, names.split("+")[0].strip()))
