"""Recording: every transition as it happened, none across two episodes."""

import counting  # noqa: F401  # registers what is recorded
import jax
import numpy as np
import pytest

from jaxwm.envs import EnvError, Recorder, random_policy
from jaxwm.types import ActionSpec, Field


def record(count=7, seed=0, stream=0, **settings):
    recorder = Recorder("JaxwmCounting-v0", **{"observe": "both", "size": 6, "parallel": 3, **settings})
    return recorder, list(recorder.episodes(count, seed, stream))


def test_no_step_is_lost_doubled_or_taken_across_episodes():
    recorder, episodes = record()
    assert recorder.spec.observation == (Field("image", (6, 6, 3), "uint8"), Field("vector", (4,), "float32"))
    assert recorder.spec.action == ActionSpec(1, low=(-2.0,), high=(3.0,))
    for episode in episodes:
        recorder.spec.check_trajectory(jax.tree.map(lambda array: array[None], episode))
        number, count, last, _ = episode.observation["vector"].T
        length = 4 + int(number[0]) % 3
        assert (number == number[0]).all()
        assert count.tolist() == list(range(length))
        np.testing.assert_array_equal(last[1:], episode.action[:-1, 0])
        assert last[0] == 0
        assert not episode.action[-1].any()
        assert episode.reward.tolist() == [*range(1, length), 0]
        np.testing.assert_array_equal(episode.observation["image"][:, 0, 0, 0], 10 * count + number)
        assert episode.is_first.tolist() == [True] + [False] * (length - 1)
        assert episode.is_last.tolist() == episode.is_terminal.tolist() == [False] * (length - 1) + [True]


def test_every_copy_gives_its_share_whatever_the_lengths():
    _, episodes = record(7)
    by_copy = {}
    for episode in episodes:
        number, *_, seed = episode.observation["vector"][0]
        by_copy.setdefault(seed, []).append(number)
    assert sorted(by_copy.values()) == [[0, 1], [0, 1], [0, 1, 2]]


def test_actions_are_random_within_the_bounds():
    _, episodes = record(60)
    actions = np.concatenate([episode.action[:-1] for episode in episodes])
    assert -2 <= actions.min() < -1.8
    assert 2.8 < actions.max() <= 3
    assert abs(actions.mean() - 0.5) < 0.35  # almost four standard errors of 240 draws


def test_the_same_seeds_give_the_same_episodes():
    def flat(**seeds):
        return np.concatenate([episode.observation["vector"] for episode in record(4, **seeds)[1]])

    np.testing.assert_array_equal(flat(seed=1), flat(seed=1))
    assert not np.array_equal(flat(seed=1), flat(seed=2))
    assert not np.array_equal(flat(seed=1), flat(seed=1, stream=1))


def test_limits_end_an_episode_without_a_terminal():
    for settings, length in (({"max_length": 3}, 3), ({"options": {"limited": True}}, 4)):
        _, episodes = record(3, **settings)
        for episode in episodes:
            assert len(episode.reward) == length
            assert episode.is_last[-1]
            assert not episode.is_terminal.any()
    _, episodes = record(3, max_length=4)  # what ends by itself at the limit has ended by itself
    assert all(episode.is_terminal[-1] for episode in episodes)


def test_spaces_become_the_fields_of_the_spec():
    recorder = Recorder("JaxwmEverything-v0", size=4, observe="both")
    assert recorder.spec.action == ActionSpec(3, discrete=True)
    assert [(f.name, f.shape) for f in recorder.spec.observation] == [
        ("camera", (4, 4, 3)),
        ("depth", (4, 4, 1)),
        ("body.angle", (4,)),
        ("body.room", (3,)),
        ("pair.0", (2,)),
        ("pair.1", (5,)),
    ]
    (episode,) = recorder.episodes(1)
    chosen = episode.action[:-1].argmax(-1) + 2
    np.testing.assert_array_equal(episode.observation["body.angle"][1:, 0], chosen)
    np.testing.assert_array_equal(episode.observation["body.room"], np.eye(3)[[0, 1, 2, 0]])
    np.testing.assert_array_equal(episode.observation["camera"][:, 0, 0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(episode.observation["depth"][:, 0, 0, 0], [100, 101, 102, 103])
    np.testing.assert_array_equal(episode.observation["pair.1"][0], [0, 1, 0, 0, 1])
    assert [f.name for f in Recorder("JaxwmEverything-v0").spec.observation] == ["camera", "depth"]
    names = [f.name for f in Recorder("JaxwmEverything-v0", observe="vectors").spec.observation]
    assert names == ["body.angle", "body.room", "pair.0", "pair.1"]


def upwards(observation, is_first, rng):
    """A scripted policy: the step that is seen, as a choice."""
    return observation["body.room"].argmax(-1)


def test_scripted_policies_see_what_is_recorded(tmp_path, monkeypatch):
    (episode,) = Recorder("JaxwmEverything-v0", observe="vectors", policy=upwards).episodes(1)
    np.testing.assert_array_equal(episode.action[:-1], episode.observation["body.room"][:-1])
    (tmp_path / "my_policy_of_a_test.py").write_text(
        "def act(observation, is_first, rng):\n    return 0 * observation['body.room'] + [0, 0, 1]\n"
    )
    monkeypatch.chdir(tmp_path)
    (episode,) = Recorder("JaxwmEverything-v0", observe="vectors", policy="my_policy_of_a_test:act").episodes(1)
    np.testing.assert_array_equal(episode.action[:-1], np.eye(3)[[2, 2, 2]])


def test_policies_are_told_where_episodes_begin():
    told = []

    def note(observation, is_first, rng):
        told.append((observation["vector"][:, 1] == 0) == is_first)
        return np.full((len(is_first), 1), 99.0)

    _, episodes = record(5, policy=note)
    assert np.concatenate(told).all()
    assert all((episode.action[:-1] == 3).all() for episode in episodes)  # clipped, as the environment saw it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "JaxwmCountin-v0"}, "environment 'JaxwmCountin-v0' cannot be made: .*JaxwmCounting"),
        ({"env_id": "JaxwmUnfit-v0"}, r"observation 'stack' is uint8\[5, 8, 8\], expected \[H, W, 1 or 3\]"),
        ({"env_id": "JaxwmUnfit-v0", "observe": "vectors"}, "observation 'text' is a Text, expected numbers"),
        ({"observe": "sound"}, "observe is 'sound', expected 'pixels', 'vectors' or 'both'"),
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"policy": "clever"}, "policy 'clever' is unknown, expected 'random' or an import path"),
        ({"policy": "nowhere:act"}, "policy 'nowhere:act' cannot be imported: No module named 'nowhere'"),
        ({"policy": "math:act"}, "policy 'math:act' cannot be imported: .*no attribute 'act'"),
        ({"policy": "math:pi"}, "policy 'math:pi' is a float, expected a function"),
        ({"options": {"speed": 3}}, "cannot be made: .*'speed'"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(EnvError, match=message) as error:
        Recorder(**{"env_id": "JaxwmCounting-v0", **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((1, 2)), r"an action of shape \[1, 2\], expected \[1, 3\]"),
        (np.array([3]), r"the policy chose \[3\], expected choices from 0 to 2"),
        (np.array([[0.5, 0.5, 0]]), "neither one-hot nor an integer choice"),
        (np.array([[np.nan, 0, 0]]), "not finite"),
    ],
)
def test_what_is_not_an_action_is_refused(action, message):
    with pytest.raises(EnvError, match=message):
        list(Recorder("JaxwmEverything-v0", policy=lambda observation, is_first, rng: action).episodes(1))


def test_unbounded_actions_have_no_bounds_and_are_normal():
    draws = random_policy(ActionSpec(2))({}, np.zeros(2000, bool), np.random.default_rng(0))
    assert draws.shape == (2000, 2)
    assert abs(draws.std() - 1) < 0.1


@pytest.mark.parametrize(
    ("env_id", "observe", "fields", "action"),
    [
        ("ALE/Pong-v5", "pixels", {"image": (64, 64, 3)}, ActionSpec(6, discrete=True)),
        ("CartPole-v1", "both", {"image": (64, 64, 3), "vector": (4,)}, ActionSpec(2, discrete=True)),
        ("Pendulum-v1", "vectors", {"vector": (3,)}, ActionSpec(1, low=(-2.0,), high=(2.0,))),
        ("LunarLander-v3", "both", {"image": (64, 64, 3), "vector": (8,)}, ActionSpec(4, discrete=True)),
    ],
)
def test_real_environments(env_id, observe, fields, action):
    recorder = Recorder(env_id, observe=observe, max_length=12, parallel=2)
    assert {f.name: f.shape for f in recorder.spec.observation} == fields
    assert recorder.spec.action == action
    episodes = list(recorder.episodes(2))
    assert [len(episode.reward) for episode in episodes] == [12, 12]
    for episode in episodes:
        recorder.spec.check_trajectory(jax.tree.map(lambda array: array[None], episode))
        for array in episode.observation.values():
            assert (array[0] != array[-1]).any()
            assert array.std() > 0


def test_a_fault_ends_the_recording_with_what_went_wrong_first():
    episodes = Recorder("JaxwmFaulty-v0", observe="vectors", parallel=1).episodes(3)
    next(episodes)
    with pytest.raises(EnvError, match="JaxwmFaulty-v0: copy 0, episode 1, step 2: it failed: RuntimeError"):
        next(episodes)


def test_actions_are_repeated_and_their_rewards_summed():
    _, (episode, *_) = record(3, repeat=2, parallel=1)
    assert episode.reward.tolist() == [1 + 2, 3, 0]
    assert episode.observation["vector"][:, 1].tolist() == [0, 2, 3]
