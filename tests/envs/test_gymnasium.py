"""Gymnasium's environments in step: what follows what, repeated actions, and faults that stop everything."""

import counting  # noqa: F401  # registers what is stepped
import numpy as np
import pytest

from jaxwm.envs import EnvError, Environments, GymnasiumEnvironments
from jaxwm.types import ActionSpec


def make(name="Counting", count=2, **settings):
    return GymnasiumEnvironments(f"Jaxwm{name}-v0", count, **{"observe": "vectors", **settings})


def walk(environments, steps, action=1.5):
    yield environments.reset(seed=3)
    for _ in range(steps):
        yield environments.step(np.full((environments.count, 1), action, np.float32))


def test_an_ended_episode_begins_anew_in_place_of_the_next_step():
    environments = make()
    assert isinstance(environments, Environments)
    steps = list(walk(environments, 8))
    episode, count, last, _ = np.stack([step.observation["vector"][0] for step in steps]).T
    assert episode.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]  # the first lasts 3 steps, the second 4
    assert count.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert last.tolist() == [0, 1.5, 1.5, 1.5, 0, 1.5, 1.5, 1.5, 1.5]
    assert [step.reward[0] for step in steps] == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert [step.is_first[0] for step in steps] == [True, *[False] * 3, True, *[False] * 4]
    ends = [False] * 3 + [True] + [False] * 4 + [True]
    assert [step.is_last[0] for step in steps] == [step.is_terminal[0] for step in steps] == ends
    for step in steps:
        environments.spec.check_observation(step.observation, (2,))
        assert [array.dtype for array in (step.reward, step.is_first, step.is_last)] == [np.float32, bool, bool]


def test_each_copy_has_its_seed_and_the_same_seed_gives_the_same_episodes():
    environments = make(count=3)
    seeds = environments.reset(seed=0).observation["vector"][:, 3]
    assert len(set(seeds)) == 3
    np.testing.assert_array_equal(environments.reset(seed=0).observation["vector"][:, 3], seeds)
    assert not set(environments.reset(seed=[0, 1]).observation["vector"][:, 3]) & set(seeds)


def test_a_repeated_action_sums_rewards_and_stops_at_the_end():
    environments = make(count=1, repeat=2)
    assert environments.frames_per_decision == 2
    steps = list(walk(environments, 4))
    assert [step.observation["vector"][0, 1] for step in steps] == [0, 2, 3, 0, 2]
    assert [step.reward[0] for step in steps] == [0, 1 + 2, 3, 0, 1 + 2]
    assert [step.is_last[0] for step in steps] == [False, False, True, False, False]


def test_a_time_limit_counts_observations():
    steps = list(walk(make(max_length=3, repeat=2), 3))
    assert [step.is_last[0] for step in steps] == [False, False, True, False]
    assert steps[2].is_terminal[0]  # its three frames were over as well
    steps = list(walk(make(max_length=3), 3))
    assert [step.is_last[0] for step in steps] == [False, False, True, False]
    assert not steps[2].is_terminal[0]


def test_ended_environments_ignore_their_action():
    environments = make(count=1, max_length=2)
    *_, last = walk(environments, 1)
    assert last.is_last[0]
    assert environments.step(np.full((1, 1), np.nan)).is_first[0]
    chooser = make("Everything", count=1, max_length=2)
    chooser.reset(seed=0)
    assert chooser.step(np.array([2])).observation["body.angle"][0, 0] == 4  # choices begin at 2
    assert chooser.step(np.zeros((1, 3))).is_first[0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", "it failed: RuntimeError: the arm is stuck"),
        ("tuple", "it failed: ValueError: not enough values to unpack .*"),
        ("nan", r"observation 'vector' is not finite: \[nan nan nan nan\]"),
        ("inf", "its reward is inf"),
        ("none", "it failed: TypeError: .*NoneType.*"),
        ("shape", r"observation 'vector' is float64\[3\], expected float64\[4\]"),
        ("dtype", r"observation 'vector' is <U32\[4\], expected float64\[4\]"),
        ("type", r"observation 'vector' is a str, expected float64\[4\]"),
    ],
)
def test_a_fault_stops_everything_and_says_where(fault, message):
    environments = make("Faulty", count=2, options={"fault": fault})
    steps = walk(environments, 10)
    with pytest.raises(EnvError, match=f"^JaxwmFaulty-v0: copy 0, episode 1, step 2: {message}$"):
        for _ in range(10):
            next(steps)
    assert environments.reset(seed=0).is_first.all()


def test_a_wrong_picture_is_a_fault():
    steps = walk(make("Faulty", observe="pixels", options={"fault": "picture"}), 10)
    with pytest.raises(EnvError, match=r"step 2: it renders uint8\[6, 6, 2\], expected uint8\[H, W, 3\]"):
        list(steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count is 0, expected at least 1"),
        ({"repeat": 0}, "repeat is 0, expected at least 1"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(EnvError, match=message):
        make(**settings)


def test_actions_are_checked():
    environments = make()
    with pytest.raises(EnvError, match="reset comes before the first step"):
        environments.step(np.zeros((2, 1)))
    environments.reset(0)
    with pytest.raises(EnvError, match=r"shape \[3, 1\], expected \[2, 1\]"):
        environments.step(np.zeros((3, 1)))


def test_atari_counts_its_own_repetition():
    assert GymnasiumEnvironments("ALE/Pong-v5", 1).frames_per_decision == 4
    assert GymnasiumEnvironments("ALE/Pong-v5", 1, repeat=2, options={"frameskip": 3}).frames_per_decision == 6
    assert GymnasiumEnvironments("ALE/Pong-v5", 1, options={"frameskip": (2, 5)}).frames_per_decision == 3


def test_dm_control_is_named_like_any_other():
    environments = GymnasiumEnvironments("dm_control/cartpole-balance-v0", 2, observe="vectors", repeat=4)
    assert [(f.name, f.shape) for f in environments.spec.observation] == [("position", (3,)), ("velocity", (2,))]
    assert environments.spec.action == ActionSpec(1, low=(-1.0,), high=(1.0,))
    steps = list(walk(environments, 250, action=0.0))
    assert [i for i, step in enumerate(steps) if step.is_last.any()] == [250]  # 1,000 frames
    assert not steps[-1].is_terminal.any()
    rewards = np.stack([step.reward for step in steps[1:]])
    assert (rewards[0] > 3.9).all()  # almost 1 for each of four frames
    assert (rewards <= 4).all()
    again = environments.reset(seed=3)
    np.testing.assert_array_equal(again.observation["position"], steps[0].observation["position"])
