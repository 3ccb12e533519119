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
from jaxwm.worlds import Bounce


@pytest.fixture(scope="module")
def blocks(folder):
    return data.open_data(DataConfig(path=str(folder), frame_skip=3), "train")


def test_a_step_is_every_third_frame_with_the_actions_between(blocks):
    written = make_episodes("train")
    assert blocks.lengths.tolist() == [-(-length // 3) for length in LENGTHS["train"]]
    assert blocks.spec.action.dim == 3 * SPEC.action.dim and blocks.spec.observation == SPEC.observation
    for number, episode in enumerate(written):
        length = LENGTHS["train"][number]
        for start in range(length):
            batch = blocks.windows([number], [start], 4)
            blocks.spec.check_trajectory(batch)
            for step in range(4):
                frame = start + 3 * step
                assert batch.valid[0, step] == (frame < length)
                if frame >= length:
                    continue
                stop = min(frame + 3, length)
                np.testing.assert_array_equal(
                    batch.observation["vector"][0, step], episode.observation["vector"][frame]
                )
                np.testing.assert_array_equal(batch.observation["image"][0, step], episode.observation["image"][frame])
                parts = batch.action[0, step].reshape(3, -1)
                np.testing.assert_array_equal(parts[: stop - frame], episode.action[frame:stop])
                assert not parts[stop - frame :].any()
                assert batch.action_valid[0, step] == (stop - frame == 3 and episode.action_valid[frame:stop].all())
                np.testing.assert_allclose(batch.reward[0, step], episode.reward[frame:stop].sum(), rtol=1e-6)
                assert batch.is_first[0, step] == episode.is_first[frame]
                assert batch.is_terminal[0, step] == episode.is_terminal[frame]
            before = episode.action[start - 3 : start].reshape(-1) if start >= 3 else np.zeros(3 * SPEC.action.dim)
            np.testing.assert_array_equal(batch.previous_action[0], before)


def test_windows_of_blocks_begin_at_any_frame(blocks):
    assert blocks.places(2).tolist() == [max(length - 6, 0) + 1 for length in LENGTHS["train"]]
    iterator = windows(blocks, batch=16, length=2, seed=0)
    firsts = {int(x) for batch in (next(iterator) for _ in range(8)) for x in batch.observation["vector"][:, 0, 0]}
    iterator.close()
    assert {0, 1, 2} <= firsts


def test_bounds_are_those_of_each_action_and_choices_have_no_blocks():
    bounded = dataclasses.replace(SPEC, action=ActionSpec(2, low=(-1.0, 0.0), high=(1.0, 2.0)))
    assert bounded.blocked(2).action == ActionSpec(4, low=(-1.0, 0.0) * 2, high=(1.0, 2.0) * 2)
    assert bounded.blocked(1) is bounded
    with pytest.raises(ValueError, match="frame_skip is 2, but a block of discrete"):
        dataclasses.replace(SPEC, action=ActionSpec(2, discrete=True)).blocked(2)


def test_a_world_takes_blocks_as_it_takes_their_actions_one_by_one():
    world = Bounce(size=8, force=1.0)
    single, blocked = WorldEnvironments(world, 40), WorldEnvironments(world, 40, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    state, _ = single.reset(keys)
    start, _ = blocked.reset(keys)
    actions = jax.random.uniform(jax.random.key(1), (2, 4, 2), minval=-1, maxval=1)
    after, step = blocked.step(keys, start, actions.reshape(2, 8))
    total = 0
    for t in range(4):
        state, shown = single.step(keys, state, actions[:, t])
        total += shown.reward
    np.testing.assert_allclose(after.physical.position, state.physical.position, rtol=1e-5)
    np.testing.assert_array_equal(after.time, state.time)
    np.testing.assert_allclose(step.reward, total, rtol=1e-5)


def test_an_episode_that_ends_within_a_block_waits_for_the_next_step():
    world = WorldEnvironments(Bounce(size=8, force=1.0), 7, 4)
    keys = jax.random.split(jax.random.key(0), 2)
    state, step = world.reset(keys)
    seen = []
    for _ in range(4):
        state, step = world.step(keys, state, jnp.zeros((2, 8)))
        seen.append((int(state.time[0]), bool(step.is_first[0]), bool(step.is_last[0])))
    # Frames 0..6: two blocks of 4 reach frame 6, cut short by the end; then a new episode shows its first frame.
    assert seen == [(4, False, False), (6, False, True), (0, True, False), (4, False, False)]
