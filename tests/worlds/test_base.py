"""Recording an episode, in a world so small that all of it is known beforehand."""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.types import ActionSpec, Field, Spec
from jaxwm.worlds import base


@dataclasses.dataclass(frozen=True)
class Counter:
    """Adds the action to a number; ends when the number of steps is ``last``."""

    last: int = 100
    discrete: bool = False
    traces: ClassVar[list[str]] = []

    @property
    def spec(self):
        bounds = {} if self.discrete else {"low": (-1.0, 0.0), "high": (1.0, 2.0)}
        return Spec((Field("vector", (2,), "float32"),), ActionSpec(2, self.discrete, **bounds))

    def reset(self, key):
        return {"steps": jnp.zeros((), jnp.int32), "sum": jax.random.normal(key, (2,))}

    def step(self, key, state, action):
        state = {"steps": state["steps"] + 1, "sum": state["sum"] + action}
        return base.Transition(state, state["steps"] * 10.0, state["steps"] >= self.last)

    def observation(self, state):
        return {"vector": state["sum"]}

    def render(self, state, size=None):
        return jnp.zeros((size or 4, size or 4, 3), jnp.uint8)

    def info(self, state):
        return {"steps": state["steps"]}


def record(world, length, policy=base.random_policy, rows=3):
    run = jax.jit(jax.vmap(lambda key: base.rollout(world, key, length, policy)))
    return run(jax.random.split(jax.random.key(0), rows))


def test_an_episode_that_reaches_its_time_limit():
    world = Counter()
    trajectory = record(world, 5)
    world.spec.check_trajectory(trajectory)
    np.testing.assert_array_equal(trajectory.is_first, [[True, False, False, False, False]] * 3)
    np.testing.assert_array_equal(trajectory.is_last, [[False, False, False, False, True]] * 3)
    assert trajectory.valid.all()
    assert not trajectory.is_terminal.any()
    np.testing.assert_array_equal(trajectory.reward, [[10, 20, 30, 40, 0]] * 3)
    np.testing.assert_array_equal(trajectory.info["steps"], [[0, 1, 2, 3, 4]] * 3)
    assert not trajectory.action[:, -1].any()
    moved = np.diff(trajectory.observation["vector"], axis=1)
    np.testing.assert_allclose(moved, trajectory.action[:, :-1], atol=1e-6)
    assert len(np.unique(trajectory.action[:, :-1])) == 3 * 4 * 2


def test_an_episode_that_ends_early_is_padded():
    trajectory = record(Counter(last=2), 5)
    np.testing.assert_array_equal(trajectory.valid, [[True, True, True, False, False]] * 3)
    np.testing.assert_array_equal(trajectory.action_valid, trajectory.valid)
    np.testing.assert_array_equal(trajectory.is_last, [[False, False, True, False, False]] * 3)
    np.testing.assert_array_equal(trajectory.is_terminal, trajectory.is_last)
    np.testing.assert_array_equal(trajectory.reward, [[10, 20, 0, 0, 0]] * 3)
    np.testing.assert_array_equal(trajectory.info["steps"], [[0, 1, 2, 2, 2]] * 3)
    assert not trajectory.action[:, 2:].any()


def test_a_terminal_state_in_the_last_frame_is_both():
    trajectory = record(Counter(last=4), 5)
    assert trajectory.valid.all()
    np.testing.assert_array_equal(trajectory.is_terminal[0], [False, False, False, False, True])
    np.testing.assert_array_equal(trajectory.is_last, trajectory.is_terminal)


def test_one_frame_is_an_episode_without_a_step():
    trajectory = record(Counter(), 1)
    assert trajectory.is_first.all()
    assert trajectory.is_last.all()
    assert not trajectory.action.any()
    with pytest.raises(ValueError, match="length is 0, expected at least 1"):
        base.rollout(Counter(), jax.random.key(0), 0)


def test_actions_are_clipped_before_they_are_recorded():
    policy = lambda world, key, state: jnp.array([-9.0, 9.0])  # noqa: E731
    trajectory = record(Counter(), 3, policy)
    np.testing.assert_array_equal(trajectory.action[0], [[-1, 2], [-1, 2], [0, 0]])


def test_random_actions_are_uniform_within_the_bounds():
    keys = jax.random.split(jax.random.key(1), 4000)
    actions = np.asarray(jax.vmap(lambda key: base.uniform_action(Counter().spec.action, key))(keys))
    np.testing.assert_allclose(actions.mean(0), [0, 1], atol=0.05)
    np.testing.assert_allclose(actions.std(0), 2 / np.sqrt(12), atol=0.03)
    assert (actions >= [-1, 0]).all()
    assert (actions <= [1, 2]).all()
    choices = np.asarray(jax.vmap(lambda key: base.uniform_action(Counter(discrete=True).spec.action, key))(keys))
    np.testing.assert_array_equal(choices.sum(1), 1)
    np.testing.assert_allclose(choices.mean(0), 0.5, atol=0.05)
    with pytest.raises(ValueError, match="unbounded action"):
        base.uniform_action(ActionSpec(2), keys[0])


def test_a_worlds_own_random_action_is_used():
    class Own(Counter):
        def random_action(self, key, state):
            return jnp.full((2,), 0.25)

    assert (record(Own(), 3).action[:, :-1] == 0.25).all()


def test_the_episode_depends_on_the_key_alone_and_is_traced_once():
    run = jax.jit(chex.assert_max_traces(lambda key: base.rollout(Counter(), key, 3), n=1))
    one, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, again)
    assert (one.observation["vector"] != other.observation["vector"]).any()


def test_an_action_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"action has shape \(3,\), expected \(2,\): worlds are unbatched"):
        base.clip_action(Counter().spec.action, jnp.zeros(3))
