"""The planner of a run: by its configuration, by other words, on the command line."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest
from half_solved import HalfSolved
from PIL import Image

from jaxwm import cli, load_config, load_spec, train
from jaxwm.config import ConfigError, build_model
from jaxwm.data import DataError
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation import evaluate_run, planners
from jaxwm.evaluation.planners import (
    configure_planning,
    plan_run,
    planning_agent,
    planning_params,
    run_environments,
    run_goals,
)
from jaxwm.nn import TwoHot
from jaxwm.planning import ICEM, MPPI, Reward, Weighted
from jaxwm.training import Run
from jaxwm.types import example_batch

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_a_run_that_says_nothing_of_planning_plans_for_reward(toy_run):
    agent = planning_agent(toy_run)
    assert agent.objective == Weighted(((1.0, Reward()),)) and agent.solver == ICEM()


def test_the_planner_of_a_run_is_configured(toy_run):
    overrides = ["planning.solver.horizon=7", "planning.every=2", "planning.objective.reward.discount=0.9"]
    run = configure_planning(toy_run, overrides)
    agent = planning_agent(run)
    assert agent.objective == Weighted(((1.0, Reward(0.9)),)) and (agent.every, agent.solver.horizon) == (2, 7)
    other = planning_agent(configure_planning(run, ["planning.solver.temperature=0.5"], solver="mppi"))
    assert other.solver == MPPI(7, samples=256, elites=32, temperature=0.5, colour=2.0)
    assert run.config.model.model_dump() == toy_run.config.model.model_dump()


@pytest.mark.parametrize(
    ("overrides", "solver", "message"),
    [
        (["model.fade=0.5"], None, "what is trained cannot change"),
        (["planning.evry=2"], None, "did you mean 'every'"),
        (["planning.solver.elites=300"], None, "planning.solver: elites is 300"),
        ([], "icm", "solver 'icm' is unknown; did you mean 'icem'"),
        (["planning.objective.far.kind=gaol"], None, "'gaol' is unknown; did you mean 'goal'"),
        (
            ["planning.objective.reward.value=critic"],
            None,
            r"objective\.reward\.value: Toy has no critic, dreamer has",
        ),
        (
            ["planning.objective.reward.value=critc"],
            None,
            r"objective\.reward\.value='critc': input should be 'critic'",
        ),
    ],
)
def test_mistakes_are_named(toy_run, overrides, solver, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        planning_agent(configure_planning(toy_run, overrides, solver))


def test_runs_of_other_episodes_cannot_be_played(toy_run):
    data = toy_run.config.data.model_copy(update={"generate": None})
    run = dataclasses.replace(toy_run, config=toy_run.config.model_copy(update={"data": data}))
    with pytest.raises(
        ValueError, match=r"no simulated world \(data\.generate or .*jaxwm\.acting\.play plays its planner"
    ):
        plan_run(run, 1)


def test_the_critic_of_an_agent_follows_the_last_step_of_its_plans():
    """The shipped configuration asks for it; what the critic says is in the costs, and is no part of the program."""
    config = load_config(CONFIGS / "dreamer_tiny.yaml", ["planning.length=4"])
    spec = load_spec(config)
    model = build_model(config.model, spec)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch(spec, 1, 2))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    run = Run(config, spec, model, variables, 0)
    ((weight, objective),) = planning_agent(run).objective.terms
    assert (weight, objective) == (1.0, Reward(0.997, model.critic))
    # Whatever happens, the return is known to be about 10: its logarithm is in a single bin.
    bias = variables["params"]["critic"]["output"]["bias"]
    found = np.argmin(np.abs(np.asarray(TwoHot.bins()) - 10.0))
    sure = {**variables["params"]["critic"]["output"], "bias": np.where(np.arange(bias.size) == found, 50.0, 0.0)}
    critic = {**variables["params"]["critic"], "output": sure}
    other = dataclasses.replace(run, variables={**variables, "params": {**variables["params"], "critic": critic}})
    assert planning_params(other).objective == (critic,)
    nothing, much = (plan_run(run, 2, batch=2).scores.costs for run in (run, other))
    np.testing.assert_allclose(nothing, 0.0, atol=1e-4)
    # A model of zeros gives each of the 3 steps even odds to be the last.
    expected = 0.997**3 * 0.5**3 * float(TwoHot.bins()[found])
    np.testing.assert_allclose(much, -expected, rtol=1e-3)
    without = configure_planning(run, ["planning.objective.return.value=null"])
    assert planning_agent(without).objective.terms == ((1.0, Reward(0.997)),)
    assert planning_params(without).objective == (None,)


def test_a_run_in_blocks_of_actions_is_played_in_blocks(tmp_path):
    config = load_config(CONFIGS / "jepa_lewm.yaml", [f"data.path={tmp_path / 'none'}"])
    environments = run_environments(types.SimpleNamespace(config=config))
    assert environments.spec == load_spec(config) and environments.spec.action.dim == 5 * 2
    assert (environments.frame_skip, environments.length) == (5, 11), "51 frames"
    with pytest.raises(DataError, match=r"data\.frame_skip is 5, but a block of discrete actions"):
        load_spec(load_config(CONFIGS / "jepa_lewm.yaml", ["data.path=x", "data.generate.world={name: dodge}"]))
    with pytest.raises(ConfigError, match=r"frame_skip is for recorded episodes"):
        load_config(CONFIGS / "dreamer_reach.yaml", ["data.frame_skip=2"])


def test_a_model_of_blocks_is_trained_scored_and_plans_to_goals_by_offset(tmp_path):
    overrides = [
        f"data.path={tmp_path / 'rooms'}", "data.frame_skip=2", "data.length=6", "model.memory=0",
        "data.generate.world={name: rooms, size: 16, show_goal: true}", "data.generate.length=16",
        "stages.train.steps=2", "training.checkpoint_every=2", "training.evaluate_every=2", "evaluation.context=1",
        "evaluation.horizon=5",
        "planning={solver: {name: icem, horizon: 3, samples: 8, elites: 2, iterations: 2}, goal_offset: 3, length: 9, "
        "objective: {there: {kind: goal, first: 8}}}",
    ]  # fmt: skip
    run = train(load_config(CONFIGS / "jepa_tiny.yaml", overrides), tmp_path / "run", progress=False)
    assert run.spec.action.dim == 4
    assert evaluate_run(run, 4).episodes == 4
    scores = plan_run(run, 4, batch=4).scores
    assert scores.episodes + scores.solved_at_start == 4 and run_goals(run).offset == 3
    assert scores.frames_to_goal is None or scores.frames_to_goal <= 8


def test_the_command_writes_scores_costs_and_a_video(planned, toy_run_dir, tmp_path, monkeypatch, capsys):
    seen = []

    def plan_run(run, episodes, *, batch, seed, shown):
        seen.append(
            (planning_agent(run).solver.horizon, type(planning_agent(run).solver), episodes, batch, seed, shown)
        )
        return planned

    monkeypatch.setattr(planners, "plan_run", plan_run)
    monkeypatch.setattr(planners, "run_environments", lambda run: WorldEnvironments(HalfSolved(), 12))
    words = ["--episodes", "7", "--solver", "mppi", "--out", str(tmp_path / "x"), "planning.solver.horizon=9"]
    assert cli.main(["plan", str(toy_run_dir), *words]) == 0
    assert seen == [(9, MPPI, 7, 32, 0, 4)]
    output = capsys.readouterr().out
    assert "100.0% (95%:" in output and f"wrote {tmp_path / 'x' / 'scores.json'}" in output
    assert json.loads((tmp_path / "x" / "scores.json").read_text())["success"] == 1.0
    assert Image.open(tmp_path / "x" / "episodes.gif").n_frames == planned.ends.max() + 1
    assert (tmp_path / "x" / "costs.png").stat().st_size > 1000


def test_a_model_without_reward_cannot_plan_for_it(toy_run_dir, capsys):
    assert cli.main(["plan", str(toy_run_dir), "--episodes", "1"]) == 2
    assert "predicts no reward" in capsys.readouterr().err
