"""Blocks of actions, in episodes on disk and in simulated worlds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episode_samples import LENGTHS, SPEC, make_episodes

from jaxwm import data
from jaxwm.config import DataConfig
from jaxwm.data.loading import windows
from jaxwm.envs import WorldEnvironments
from jaxwm.types import ActionSpec
from jaxwm.worlds import Rooms


@pytest.fixture(scope="module")
def blocks(folder):
    return data.open_data(DataConfig(path=str(folder), frame_skip=3), "train")


def frames_of(start, length):
    """The frames that blocks of three show from ``start`` on: every third one, and the last of the episode."""
    return [*range(start, length - 1, 3), length - 1]


def test_a_step_is_every_third_frame_with_the_actions_between(blocks):
    written = make_episodes("train")
    assert blocks.lengths.tolist() == [len(frames_of(0, length)) for length in LENGTHS["train"]]
    assert blocks.spec.action.dim == 3 * SPEC.action.dim and blocks.spec.observation == SPEC.observation
    for number, episode in enumerate(written):
        length = LENGTHS["train"][number]
        for start in range(length):
            batch = blocks.windows([number], [start], 4)
            blocks.spec.check_trajectory(batch)
            frames = frames_of(start, length)[:4]
            assert batch.valid[0].tolist() == [step < len(frames) for step in range(4)]
            for step, frame in enumerate(frames):
                for name, shown in episode.observation.items():
                    np.testing.assert_array_equal(batch.observation[name][0, step], shown[frame])
                for name in ("is_first", "is_last", "is_terminal"):
                    assert getattr(batch, name)[0, step] == getattr(episode, name)[frame]
                done = slice(frame, min(frame + 3, length - 1))
                parts = batch.action[0, step].reshape(3, -1)
                count = done.stop - done.start
                np.testing.assert_array_equal(parts[:count], episode.action[done])
                assert not parts[count:].any()
                assert batch.action_valid[0, step] == episode.action_valid[done].all()
                np.testing.assert_allclose(batch.reward[0, step], episode.reward[done].sum(), rtol=1e-6)
            before = np.zeros((3, SPEC.action.dim))
            known = episode.action[max(start - 3, 0) : start]
            before[3 - len(known) :] = known
            np.testing.assert_array_equal(batch.previous_action[0], before.reshape(-1))


def test_windows_of_blocks_begin_at_any_frame_and_show_how_episodes_end(blocks):
    assert blocks.places(2).tolist() == [max(length - 4, 0) + 1 for length in LENGTHS["train"]]
    iterator = windows(blocks, batch=16, length=2, seed=0)
    batches = [next(iterator) for _ in range(8)]
    iterator.close()
    assert {0, 1, 2} <= {int(x) for batch in batches for x in batch.observation["vector"][:, 0, 0]}
    assert sum(batch.is_last.sum() for batch in batches) > 0


def test_bounds_are_those_of_each_action_and_choices_have_no_blocks():
    bounded = dataclasses.replace(SPEC, action=ActionSpec(2, low=(-1.0, 0.0), high=(1.0, 2.0)))
    assert bounded.blocked(2).action == ActionSpec(4, low=(-1.0, 0.0) * 2, high=(1.0, 2.0) * 2)
    assert bounded.blocked(1) is bounded
    with pytest.raises(ValueError, match="frame_skip is 2, but a block of discrete"):
        dataclasses.replace(SPEC, action=ActionSpec(2, discrete=True)).blocked(2)


def alone(world, keys, actions, length):
    """The world's own steps, one by one: states, and their sum of rewards."""
    environments = WorldEnvironments(world, length)
    state, step = environments.reset(keys)
    advance, rewards, states = jax.jit(environments.step), [], [state]
    for t in range(actions.shape[1]):
        state, step = advance(keys, state, actions[:, t])
        rewards.append(step.reward)
        states.append(state)
    return states, np.stack(rewards, axis=1)


def test_a_world_takes_blocks_as_it_takes_their_actions_one_by_one():
    world = Rooms(observe="state", reward="distance", goal_radius=0.01)
    keys = jax.random.split(jax.random.key(0), 2)
    actions = jax.random.uniform(jax.random.key(1), (2, 4, 2), minval=-1, maxval=1)
    states, rewards = alone(world, keys, actions, 40)
    blocked = WorldEnvironments(world, 10, 4)
    after, step = blocked.step(keys, blocked.reset(keys)[0], actions.reshape(2, 8))
    np.testing.assert_allclose(after.physical.position, states[4].physical.position, rtol=1e-5)
    np.testing.assert_array_equal(after.time, [4, 4])
    np.testing.assert_allclose(step.reward, rewards.sum(1), rtol=1e-5)
    with pytest.raises(ValueError, match="frame_skip is 0, expected at least 1"):
        WorldEnvironments(world, 10, 0)


def test_an_episode_that_ends_within_a_block_waits_for_the_next_step():
    world = Rooms(observe="state", reward="distance", goal_radius=0.1)
    keys = jax.random.split(jax.random.key(0), 16)
    start = jax.vmap(world.reset)(keys)
    # One frame from the goal at full speed: the first action of the block ends the episode.
    near = start.replace(position=start.goal - jnp.array([0.12, 0.0]))
    environments = WorldEnvironments(world, 10, 4)
    state, _ = environments.reset(keys)
    right = jnp.tile(jnp.array([1.0, 0.0]), (16, 4))
    step_once = jax.jit(environments.step)
    ended, step = step_once(keys, state.replace(physical=near), right)
    over = np.asarray(step.is_terminal)
    assert over.sum() >= 12, "walls are in the way of the others"
    np.testing.assert_array_equal(np.asarray(ended.time)[over], 1)
    apart = np.linalg.norm(ended.physical.position - ended.physical.goal, axis=-1)
    np.testing.assert_allclose(step.reward[over], -apart[over], rtol=1e-4)
    after, step = step_once(keys, ended, right)
    np.testing.assert_array_equal(np.asarray(step.is_first)[over], True)
    np.testing.assert_array_equal(np.asarray(after.time)[over], 0)
    assert not np.asarray(step.reward)[over].any()


def test_the_limit_is_in_steps():
    environments = WorldEnvironments(Rooms(observe="state", terminal=False), 3, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    state, step = environments.reset(keys)
    seen = []
    for _ in range(3):
        state, step = environments.step(keys, state, jnp.zeros((2, 8)))
        seen.append((int(state.time[0]), bool(step.is_first[0]), bool(step.is_last[0])))
    assert seen == [(4, False, False), (8, False, True), (0, True, False)]
