"""Success, time and the video of planners, in a world and with a model that are known exactly."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from half_solved import HalfSolved

from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.evaluation import control, evaluate_planning, wilson_interval
from jaxwm.evaluation.control import Goals, pool
from jaxwm.planning import CEM, GoalDistance, PlanningAgent, RandomShooting, Reward, Weighted
from jaxwm.worlds import Bounce, Rooms
from tests.planning.point import VARIABLES, Plane, Point

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (192, 200, (0.9231, 0.9796))],
)
def test_wilson_intervals_of_the_tables(successes, trials, expected):
    np.testing.assert_allclose(wilson_interval(successes, trials), expected, atol=2e-4)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_intervals_of_nothing_are_refused(successes, trials):
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
        wilson_interval(successes, trials)


def test_solved_starts_are_no_successes(planned):
    starts = np.array([bool(jax.random.bernoulli(_reset_key(i))) for i in range(7)])
    assert 0 < starts.sum() < 7
    np.testing.assert_array_equal(planned.is_scored, ~starts)
    scores = planned.scores
    assert (scores.episodes, scores.solved_at_start) == (7 - starts.sum(), starts.sum())
    assert scores.success == 1.0 and not planned.succeeded[starts].any()
    assert scores.success_interval == wilson_interval(scores.episodes, scores.episodes)


def _reset_key(episode):
    return jax.random.fold_in(KEY, episode)


def test_an_episode_is_over_when_the_goal_is_reached(planned):
    scores = planned.scores
    # from 0 with 0.25 a step the first place within 0.3 of (1, 1) is reached in 4 steps
    assert 4 <= scores.frames_to_goal <= 6
    # rewards end with the episode: each step costs at most 2
    assert -2 * scores.frames_to_goal < scores.score < -1


def test_time_and_costs_are_reported(planned):
    scores = planned.scores
    assert scores.batch == 3 and len(scores.costs) == 3
    assert scores.costs[0] >= scores.costs[-1] > 0
    assert 0 < scores.plan_milliseconds < 1e5 and scores.planning_seconds > 0
    assert json.loads(scores.to_json())["episodes"] == scores.episodes
    assert "CEM" in scores.planner


def test_the_video_shows_episode_and_goal_and_stops_with_it(planned, tmp_path):
    film = planned.film(HalfSolved(), size=16)
    assert film.shape[0] == planned.ends.max() + 1 < 12
    assert film.dtype == np.uint8 and film.shape[2] > 2 * 2 * 16
    assert planned.scores.plot(tmp_path / "costs.png").stat().st_size > 1000


def test_who_does_nothing_fails():
    lazy = PlanningAgent(Point(), Weighted(((0.0, Reward()),)), RandomShooting(2, samples=1))
    scores = evaluate_planning(lazy, VARIABLES, KEY, WorldEnvironments(Plane(), 5), 4, batch=4).scores
    assert scores.success == 0.0 and scores.frames_to_goal is None
    assert math.isclose(scores.success_interval[1], wilson_interval(0, 4)[1])


def test_another_world_is_refused():
    agent = PlanningAgent(Point(), Reward(), RandomShooting(2, samples=1))
    with pytest.raises(ValueError, match="other things than those that the model was made for"):
        evaluate_planning(agent, VARIABLES, KEY, WorldEnvironments(Rooms(), 5), 1)
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate_planning(agent, VARIABLES, KEY, WorldEnvironments(Plane(), 5), 0)


def to_the_right(world, key, state):
    """Full speed along x."""
    return jnp.array([1.0, 0.0])


def test_goals_may_be_what_a_policy_reaches():
    world = Rooms(observe="state", goal_radius=0.03)
    keys = jax.random.split(KEY, 5)
    state, step, goals, wanted = control._reset(WorldEnvironments(world, 9), Goals(3, to_the_right), keys)
    for row in range(5):
        reached = start = jax.tree.map(lambda x: x[row], state.physical)  # noqa: B023
        for t in range(3):
            reached = world.step(jax.random.key(t), reached, jnp.array([1.0, 0.0])).state
        np.testing.assert_allclose(start.goal, reached.position, atol=1e-6)
        for name in ("position", "goal"):
            np.testing.assert_allclose(wanted[name][row], reached.position, atol=1e-6)
        np.testing.assert_allclose(goals.position[row], reached.position, atol=1e-6)
        np.testing.assert_allclose(step.observation["goal"][row], reached.position, atol=1e-6)
        assert np.linalg.norm(start.position - start.goal) > 0.01
    _, _, _, own = control._reset(WorldEnvironments(world, 9), None, keys)
    assert np.abs(own["position"] - wanted["position"]).max() > 0.1
    with pytest.raises(ValueError, match="expected at least 1 frame"):
        Goals(0)
    agent = PlanningAgent(Point(), GoalDistance("position"), CEM(4))
    with pytest.raises(ValueError, match="for worlds with goals"):
        evaluate_planning(agent, VARIABLES, KEY, WorldEnvironments(Bounce(size=8), 5), 4, goals=Goals(2))


def test_nothing_to_do_is_no_error(planned):
    """One episode at a time: some of them are solved at the start."""
    agent = PlanningAgent(Point(), GoalDistance("position"), CEM(4, samples=32, elites=6, iterations=3), every=2)
    environments = WorldEnvironments(HalfSolved(), 12)
    one_by_one = evaluate_planning(agent, VARIABLES, KEY, environments, 7, batch=1, shown=1)
    np.testing.assert_array_equal(one_by_one.is_scored, planned.is_scored)
    np.testing.assert_array_equal(one_by_one.succeeded, planned.succeeded)
    first = int(np.argmin(planned.is_scored))
    nothing = dataclasses.replace(planned.scores, episodes=0, success=None, frames_to_goal=None)
    assert first < 7 and pool([nothing])["success"] is None


def test_several_planners_are_pooled_by_their_episodes(planned):
    parts = [
        dataclasses.replace(planned.scores, episodes=count, success=success, frames_to_goal=frames)
        for count, success, frames in ((10, 0.5, 8.0), (30, 1.0, 4.0), (5, 0.0, None))
    ]
    pooled = pool(parts)
    assert (pooled["episodes"], pooled["success"], pooled["seeds"]) == (45, 35 / 45, [0.5, 1.0, 0.0])
    assert pooled["interval"] == wilson_interval(35, 45) and pooled["frames_to_goal"] == 6.0
