"""The replay, against a plain list of what was written."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm
from jaxwm.data import replay as replays
from jaxwm.data.replay import Record

SPEC = jaxwm.Spec((jaxwm.Field("vector", (1,), "float32"),), jaxwm.ActionSpec(1))
STREAMS, EPISODE = 3, 7


def record(p):
    """Record ``p`` of each stream: every number in it says where it stands."""
    mark = 100.0 * np.arange(STREAMS) + p
    return Record(
        observation={"vector": mark[:, None].astype(np.float32)},
        action=(mark[:, None] + 0.25).astype(np.float32),
        reward=(mark + 0.5).astype(np.float32),
        is_first=np.full(STREAMS, p % EPISODE == 0),
        is_last=np.full(STREAMS, p % EPISODE == EPISODE - 1),
        is_terminal=np.full(STREAMS, p % (2 * EPISODE) == EPISODE - 1),
        state={"memory": (mark[:, None] + 0.75).astype(np.float32)},
    )


@functools.cache
def filled(count, capacity=20):
    replay = replays.make_replay(SPEC, {"memory": jnp.zeros((STREAMS, 1))}, capacity)
    for p in range(count):
        replay = ADD(replay, record(p))
    return replay


ADD = jax.jit(replays.add)
SAMPLE = jax.jit(replays.sample, static_argnums=(2, 3))


@pytest.mark.parametrize("written", [5, 20, 21, 47])
def test_windows_are_runs_of_one_stream_with_what_came_before(written):
    replay, starts = filled(written), set()
    for seed in range(150):
        _, batch, windows = SAMPLE(replay, jax.random.key(seed), 4, 5)
        for row in range(4):
            stream, start = int(windows.stream[row]), int(windows.start[row])
            starts.add(start)
            mark = 100 * stream + start + np.arange(5)
            np.testing.assert_array_equal(batch.observation["vector"][row, :, 0], mark)
            np.testing.assert_array_equal(batch.action[row, :, 0], mark + 0.25)
            np.testing.assert_array_equal(batch.reward[row], mark + 0.5)
            steps = start + np.arange(5)
            np.testing.assert_array_equal(batch.is_first[row], steps % EPISODE == 0)
            np.testing.assert_array_equal(batch.is_last[row], steps % EPISODE == EPISODE - 1)
            np.testing.assert_array_equal(batch.is_terminal[row], steps % (2 * EPISODE) == EPISODE - 1)
            begins = start % EPISODE == 0
            assert batch.previous_action[row, 0] == (0.0 if begins else mark[0] - 1 + 0.25)
            if start:
                assert batch.initial_state["memory"][row, 0] == mark[0] - 1 + 0.75
    # What was overwritten is never drawn, nor a window that reaches beyond the last record, nor one whose memory is
    # gone; all others are.
    oldest = 0 if written <= 20 else written - 20 + 1
    assert starts == set(range(oldest, written - 5 + 1))
    SPEC.check_trajectory(batch)


def test_every_stretch_of_a_stream_is_handed_out_once_by_the_online_queue():
    replay = filled(0)
    seen = []
    for p in range(30):
        replay = ADD(replay, record(p))
        if replays.can_sample(p + 1, 5) and p % 2:
            served = np.array(replay.served)
            replay, _, windows = SAMPLE(replay, jax.random.key(p), 2, 5)
            for row in np.flatnonzero(np.array(replay.served) != served):
                seen.append((row, int(served[row])))
                assert (row, served[row]) in set(zip(windows.stream.tolist(), windows.start.tolist(), strict=True))
    for stream in range(STREAMS):
        starts = sorted(start for row, start in seen if row == stream)
        assert starts == list(range(0, 5 * len(starts), 5))
        assert len(starts) >= 4


def test_refreshed_states_come_back_and_nothing_else_changes():
    replay = filled(23)
    _, _, windows = SAMPLE(replay, jax.random.key(3), 4, 5)
    states = {"memory": -1.0 - jnp.arange(20.0).reshape(4, 5, 1)}
    refreshed = replays.refresh(replay, windows, states)
    expected = np.array(replay.records.state["memory"])
    for row in range(4):
        for step in range(5):
            expected[(int(windows.start[row]) + step) % 20, int(windows.stream[row])] = -1.0 - (5 * row + step)
    corners = zip(windows.stream.tolist(), windows.start.tolist(), strict=True)
    touched = {(stream, start + step) for stream, start in corners for step in range(5)}
    assert len(touched) == 20, "choose a key whose windows do not overlap"
    np.testing.assert_array_equal(refreshed.records.state["memory"], expected)
    without = lambda replay: replay.replace(records=replay.records.replace(state=None))  # noqa: E731
    chex.assert_trees_all_equal(without(refreshed), without(replay))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="a window of 20 does not fit into a replay of 20 records"):
        replays.sample(filled(21), jax.random.key(0), 2, 20)
    with pytest.raises(ValueError, match="capacity is 1, expected at least 2"):
        replays.make_replay(SPEC, {"memory": jnp.zeros((1, 1))}, 1)
