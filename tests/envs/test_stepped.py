"""Compiled environments behind the protocol of those that are stepped from Python."""

import jax
import jax.numpy as jnp
import ladder
import numpy as np
import pytest

from jaxwm.acting import play
from jaxwm.envs import EnvError, Environments, SteppedEnvironments, WorldEnvironments
from jaxwm.worlds import Bounce


def test_a_world_stepped_from_python_is_the_world_in_compiled_code():
    world = WorldEnvironments(Bounce(size=8), 3)
    stepped = SteppedEnvironments(world, 2)
    assert isinstance(stepped, Environments)
    assert (stepped.spec, stepped.count) == (world.spec, 2)
    action = np.full((2, stepped.spec.action.dim), 0.5, np.float32)
    steps = [stepped.reset(seed=1), *(stepped.step(action) for _ in range(3))]
    assert [step.is_first.tolist() for step in steps] == [[True] * 2, [False] * 2, [False] * 2, [True] * 2]
    assert [step.is_last.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    for step in steps:
        stepped.spec.check_observation(step.observation, (2,))
    assert not np.array_equal(*steps[0].observation["image"])
    again = stepped.reset(seed=1)
    jax.tree.map(np.testing.assert_array_equal, again, steps[0])
    assert not np.array_equal(stepped.reset(seed=2).observation["image"], again.observation["image"])
    step.observation["image"][0] = 0  # its arrays are the caller's


def test_agents_play_in_them():
    played = play(ladder.Climber(), None, jax.random.key(0), SteppedEnvironments(ladder.make(length=4), 2), 5)
    assert played.score.tolist() == [2 + 4 + 6] * 5


def test_each_step_has_its_own_luck():
    stepped = SteppedEnvironments(ladder.make(length=50), 2)
    stepped.reset(seed=0)
    luck = [stepped.step(np.array([0, 0])).observation["vector"][:, 1] for _ in range(4)]
    assert len(np.unique(luck)) == 8


def test_ended_ones_can_begin_anew_at_once():
    stepped = SteppedEnvironments(ladder.make(stay=0.5, starts=(0.0, 10.0)), 200)
    stepped.reset(seed=0)
    before = stepped.step(np.ones(200, int))
    after = stepped.renew()
    height = lambda step: step.observation["vector"][:, 0]  # noqa: E731
    assert 0 < before.is_last.sum() < 200
    np.testing.assert_array_equal(after.is_first, before.is_last)
    np.testing.assert_array_equal(height(after)[~before.is_last], height(before)[~before.is_last])
    assert set(height(after)[before.is_last]) == {0, 10}
    assert not after.is_last.any()
    assert not stepped.step(np.ones(200, int)).is_first.any()


def test_choices_may_be_numbers_and_ended_ones_are_not_asked():
    stepped = SteppedEnvironments(ladder.make(length=2), 2)
    stepped.reset(seed=0)
    assert stepped.step(np.array([2, 1])).observation["vector"][:, 0].tolist() == [2, 1]
    assert stepped.step(np.array([9, 9])).is_first.all()
    with pytest.raises(EnvError, match="choices from 0 to 2"):
        stepped.step(np.array([0, 9]))


def test_faults_are_one_line():
    with pytest.raises(EnvError, match="count is 0, expected at least 1"):
        SteppedEnvironments(ladder.make(), 0)
    stepped = SteppedEnvironments(ladder.make(starts=(0.0, jnp.nan)), 20)
    with pytest.raises(EnvError, match="reset comes before the first step"):
        stepped.step(np.zeros(20, int))
    with pytest.raises(EnvError, match=r"copy \d+, step 0: vector is not finite"):
        stepped.reset(seed=0)
