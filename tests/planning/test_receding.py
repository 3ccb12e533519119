"""One plan and the agent that plans anew, with a model that knows its world exactly."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.acting import play, play_world
from jaxwm.envs.base import Step
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.planning import (
    CEM,
    ICEM,
    Goal,
    GoalDistance,
    PlanningAgent,
    PlanningParams,
    RandomShooting,
    Reward,
    Uncertainty,
    Weighted,
    imagined_cost,
    plan,
)
from tests.planning.point import SPEC, STEP, VARIABLES, Plane, Point

H = 4
SOLVER = ICEM(H, samples=32, elites=6, iterations=3, std=1.0, parts=2)
AGENT = PlanningAgent(Point(), Reward(), SOLVER)
PARAMS = PlanningParams(VARIABLES)
KEY = jax.random.key(0)
YES, NO = jnp.ones(3, bool), jnp.zeros(3, bool)


@functools.partial(jax.jit, static_argnums=0)
def act(agent, params, keys, memory, position, is_first):
    return agent.act(params, keys, memory, {"position": position}, is_first)


@pytest.mark.parametrize("space", ["position", "features"])
def test_a_plan_leads_to_the_goal(space):
    place = jnp.array([[1.0, 0.5], [-1.0, 0.0]])
    solver = CEM(H, samples=128, elites=16, iterations=8, std=1.0)
    goal, objective = Goal(place, {"position": place}), GoalDistance(space)
    found, _ = plan(Point(), VARIABLES, KEY, jnp.zeros((2, 2)), objective, solver, goal=goal)
    np.testing.assert_allclose(STEP * found.actions.sum(1), place, atol=0.1)


def test_costs_are_those_of_dreams_with_the_same_luck():
    model, actions = Point(wind=0.5), jax.random.uniform(KEY, (2, 3, H, 2), minval=-1.0)
    keys, state = jax.random.split(KEY, 2), jnp.array([[0.0, 0.0], [1.0, -1.0]])

    def make(**settings):
        return jax.jit(imagined_cost(model, VARIABLES, keys, state, Reward(), **settings))

    # without chance: by hand
    places = state[:, None, None] + STEP * jnp.cumsum(actions, axis=2)
    calm = make()(actions)
    np.testing.assert_allclose(calm, jnp.sum(jnp.square(places - 1.0), axis=(2, 3)), rtol=1e-5)
    # with chance: equal plans cost the same, and each particle has luck of its own
    twins = make(temperature=1.0)(jnp.broadcast_to(actions[:, :1], actions.shape))
    np.testing.assert_allclose(twins, np.broadcast_to(twins[:, :1], (2, 3)), rtol=1e-6)
    one, many = make(temperature=1.0)(actions), make(temperature=1.0, particles=64)(actions)
    # wind of variance 0.25 a step and dimension adds 0.25 * 2 * (1 + 2 + 3 + 4) to the expected cost
    np.testing.assert_allclose(np.mean(many - calm), 5.0, rtol=0.5)
    assert np.abs(many - calm - 5.0).mean() < np.abs(one - calm - 5.0).mean()


def test_a_penalty_on_uncertainty_keeps_a_plan_away():
    """`Point` is the less certain the larger its first coordinate."""
    careful = Weighted(((1.0, Reward()), (20.0, Uncertainty())))
    bold, _ = plan(Point(), VARIABLES, KEY, jnp.zeros((1, 2)), Reward(), SOLVER)
    shy, _ = plan(Point(), VARIABLES, KEY, jnp.zeros((1, 2)), careful, SOLVER)
    assert bold.actions[0, :, 0].sum() > 2.0
    assert abs(shy.actions[0, :, 0]).sum() < 1.0


def test_a_value_after_the_last_step_leads_plans_and_its_parameters_compile_nothing():
    traces = []

    def value(params, features):
        traces.append(1)
        return params * features[:, 0]

    def along_x(params):
        given = {"objective": Weighted(((1.0, Reward(value=value)),)), "solver": SOLVER, "params": (params,)}
        return float(plan(Point(), VARIABLES, KEY, jnp.zeros((1, 2)), **given)[0].actions[0, :, 0].sum())

    assert along_x(jnp.float32(0.0)) > 2.0
    before = len(traces)
    assert along_x(jnp.float32(-100.0)) < -2.0 and len(traces) == before


def test_the_warm_start_of_an_episode_that_begins_is_forgotten():
    keys, position = jax.random.split(KEY, 3), jnp.zeros((3, 2))
    _, used = act(AGENT, PARAMS, keys, AGENT.init(3), position + 5.0, YES)
    fresh, fresh_memory = act(AGENT, PARAMS, keys, AGENT.init(3), position, YES)
    begun, begun_memory = act(AGENT, PARAMS, keys, used, position, jnp.array([True, False, True]))
    for row in (0, 2):
        chex.assert_trees_all_close(fresh[row], begun[row])
        chex.assert_trees_all_close(*(jax.tree.map(operator.itemgetter(row), m) for m in (fresh_memory, begun_memory)))
    assert not np.allclose(fresh[1], begun[1])


def test_a_warm_start_makes_the_next_plan_better():
    poor = PlanningAgent(Point(), Reward(), CEM(H, samples=8, elites=2, iterations=1))
    keys, position = jax.random.split(KEY, 3), jnp.zeros((3, 2))
    warm, cold = [], []
    memory = poor.init(3)
    for t in range(12):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        _, memory = act(poor, PARAMS, keys, memory, position, YES if t == 0 else NO)
        warm.append(memory.plan.costs.mean())
        cold.append(act(poor, PARAMS, keys, memory, position, YES)[1].plan.costs.mean())
    assert np.mean(warm[4:]) < np.mean(cold) - 0.5


def test_a_plan_is_carried_out_before_the_next_one_is_made():
    agent = PlanningAgent(Point(), Reward(), SOLVER, every=3)
    keys, position = jax.random.split(KEY, 3), jnp.zeros((3, 2))
    memory, actions, plans = agent.init(3), [], []
    for t in range(4):
        # row 2 begins anew at t = 2, out of step with the others
        first = YES if t == 0 else jnp.array([False, False, t == 2])
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        action, memory = act(agent, PARAMS, keys, memory, position, first)
        actions.append(action)
        plans.append(memory.plan.actions)
    for row, times in ((0, [0, 0, 0, 1]), (2, [0, 0, 1, 1])):
        for t in range(1, 4):
            same = np.array_equal(plans[t][row], plans[t - 1][row])
            assert same == (times[t] == times[t - 1])
    np.testing.assert_array_equal(actions[1][0], plans[0][0, 1])
    np.testing.assert_array_equal(actions[2][0], plans[0][0, 2])
    np.testing.assert_array_equal(actions[3][0], plans[3][0, 0])
    np.testing.assert_array_equal(actions[3][2], plans[2][2, 1])


def test_rows_do_not_see_each_other():
    keys, position = jax.random.split(KEY, 3), jnp.zeros((3, 2))
    plain = act(AGENT, PARAMS, keys, AGENT.init(3), position, YES)
    other = act(AGENT, PARAMS, keys, AGENT.init(3), position.at[2].set(jnp.nan), YES)
    chex.assert_trees_all_close(*(jax.tree.map(lambda x: x[:2], part) for part in (plain, other)), rtol=1e-6)
    assert np.isfinite(other[0]).all()


def test_play_world_runs_it_compiled():
    environments = WorldEnvironments(Plane(), 8)
    planner = play_world(AGENT, PARAMS, KEY, environments, 3)
    lazy = PlanningAgent(Point(), Weighted(((0.0, Reward()),)), RandomShooting(H, samples=1))
    random = play_world(lazy, PARAMS, KEY, environments, 3)
    assert (planner.score > random.score + 2).all()
    # 4 steps to the goal at full speed cost 2 (0.75^2 + 0.5^2 + 0.25^2) = 1.75 from 0
    assert (planner.score > -3.0).all()


class Planes:
    """The same world, stepped from Python."""

    def __init__(self, count, length):
        self.count, self.length, self.spec = count, length, SPEC

    def reset(self, seed):
        self.state = np.zeros((self.count, 2), np.float32)
        self.time = np.zeros(self.count, int)
        return self._show(np.zeros(self.count), np.ones(self.count, bool))

    def step(self, action):
        begins = self.time == self.length - 1
        self.state = np.where(begins[:, None], 0.0, self.state + STEP * action).astype(np.float32)
        self.time = np.where(begins, 0, self.time + 1)
        reward = np.where(begins, 0.0, -np.square(self.state - 1.0).sum(1))
        return self._show(reward, begins)

    def close(self):
        raise AssertionError("`play` leaves the environments to whoever made them")

    def _show(self, reward, is_first):
        no = np.zeros(self.count, bool)
        return Step({"position": self.state}, reward.astype(np.float32), is_first, self.time == self.length - 1, no)


def test_play_runs_it_in_any_environment():
    played = play(AGENT, PARAMS, KEY, Planes(2, 8), 3)
    np.testing.assert_array_equal(played.length, 7)
    assert (played.score > -3.0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlanningAgent(Point(), Reward(), SOLVER, every=5), "every is 5, expected 1..4"),
        (lambda: PlanningAgent(Point(), Reward(), SOLVER, particles=0), "particles=0"),
        (lambda: PlanningAgent(Point(), Reward(), SOLVER, temperature=-1.0), "temperature=-1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
