"""Dreams behind Gymnasium's interface: its own checks pass, and so do wrappers that know nothing of dreams."""

import dataclasses
import warnings

import gymnasium as gym
import jax.numpy as jnp
import ladder
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from jaxwm.envs import DreamEnvironments
from jaxwm.envs.dream_gym import DreamEnv, DreamVectorEnv, action_space, observation_space
from jaxwm.types import ActionSpec, Spec

VECTORS = Spec(ladder.SPEC.vectors, ladder.SPEC.action)
SLIDE = Spec(ladder.SPEC.vectors, ActionSpec(1, low=(-2.0,), high=(2.0,)))


@dataclasses.dataclass(frozen=True)
class Slide(ladder.Ladder):
    """A ladder with one bounded continuous action."""

    spec: Spec = SLIDE

    def predict(self, variables, keys, state, action, condition=None):
        return state + action


@pytest.mark.parametrize("show", ["observation", "features"])
def test_gymnasium_finds_nothing_wrong(show):
    env = DreamEnv(ladder.make(stay=0.9, length=20, show=show), render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_env(env)
    harmless = ("-infinity", "is infinity", "not having a spec")  # vectors have no bounds; it was not made by its id
    assert [str(w.message) for w in said if not any(text in str(w.message) for text in harmless)] == []
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((2, 3, 3), np.uint8)


def test_gymnasium_finds_nothing_wrong_with_continuous_actions():
    env = DreamEnv(DreamEnvironments(Slide(), 9, {"params": {"stay": 1.0}}, jnp.zeros((1, 2))))
    assert env.action_space == gym.spaces.Box(-2, 2, (1,), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env)
    env.reset(seed=0)
    assert env.step(np.array([1.5], np.float32))[0].tolist() == [1.5, 1.5]


def test_an_episode():
    env = DreamEnv(ladder.make(length=3, temperature=0.0))
    observation, info = env.reset(seed=0)
    assert (float(observation["vector"][0]), info) == (0, {})
    observation, reward, terminated, truncated, _ = env.step(2)
    assert (float(observation["vector"][0]), reward, terminated, truncated) == (2, 2.0, False, False)
    _, reward, terminated, truncated, _ = env.step(np.int64(1))
    assert (reward, terminated, truncated) == (3.0, False, True)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    assert env.step(0)[1] == 0
    ending = DreamEnv(ladder.make(stay=0.0, length=2))
    ending.reset(seed=0)
    assert ending.step(0)[2:4] == (True, False)  # by the rules, although its time was up as well


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("stay", [1.0, 0.4])  # at temperature 0: an end by the clock, or by the rules at once
def test_the_vector_environment_steps_as_gymnasiums_own_do(mode, stay):
    single = lambda: DreamEnv(ladder.make(stay=stay, length=3, temperature=0.0))  # noqa: E731
    theirs = gym.vector.SyncVectorEnv([single, single], autoreset_mode=mode)
    ours = DreamVectorEnv(ladder.make(stay=stay, length=3, temperature=0.0), 2, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.single_observation_space == theirs.single_observation_space
    reset = [env.reset(seed=0)[0] for env in (ours, theirs)]
    np.testing.assert_array_equal(reset[0]["vector"], reset[1]["vector"])
    for action in ([1, 2], [0, 1], [2, 2], [1, 1], [0, 2]):
        mine, other = (env.step(np.array(action)) for env in (ours, theirs))
        assert mine[0] in ours.observation_space
        for name in ("image", "vector"):
            np.testing.assert_array_equal(mine[0][name], other[0][name])
        for one, two in zip(mine[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype
        assert data_equivalence(mine[4], other[4])


def test_the_same_seed_is_the_same_dream():
    envs = DreamVectorEnv(ladder.make(stay=0.8, length=30), 8)

    def luck(**seed):
        first, _ = envs.reset(**seed)
        return np.stack([first["vector"], *(envs.step(np.ones(8, int))[0]["vector"] for _ in range(5))])

    np.testing.assert_array_equal(luck(seed=1), luck(seed=1))
    assert not np.array_equal(luck(seed=1), luck(seed=2))
    assert not np.array_equal(luck(seed=1), luck())
    env = DreamEnv(ladder.make())
    lucks = [(env.reset(seed=seed), env.step(0)[0]["vector"][1])[1] for seed in (0, None, None, 0)]
    assert lucks[0] == lucks[3]
    assert len(set(lucks)) == 3


def test_wrappers_know_no_difference():
    envs = gym.wrappers.vector.RecordEpisodeStatistics(DreamVectorEnv(ladder.make(length=4), 3))
    envs.reset(seed=0)
    for _ in range(3):
        *_, info = envs.step(np.array([2, 1, 0]))
    assert info["episode"]["r"].tolist() == [2 + 4 + 6, 1 + 2 + 3, 0]
    assert info["episode"]["l"].tolist() == [3, 3, 3]


def test_it_is_made_by_its_id(toy_run_dir):
    with pytest.raises(ValueError, match="this model predicts no reward"):
        gym.make("jaxwm.envs.dream_gym:jaxwm/Dream-v0", run=str(toy_run_dir), starts=2, context=1).reset(seed=0)
    envs = gym.make_vec("jaxwm.envs.dream_gym:jaxwm/Dream-v0", num_envs=3, run=str(toy_run_dir), starts=2, context=1)
    assert envs.num_envs == 3


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="render_mode is 'human', expected 'rgb_array' or None"):
        DreamEnv(ladder.make(), render_mode="human")
    with pytest.raises(ValueError, match="render_mode is 'rgb_array', expected None"):
        DreamVectorEnv(ladder.make(spec=VECTORS), 2, render_mode="rgb_array")
    with pytest.raises(ValueError, match=r"autoreset_mode is .*, expected NEXT_STEP or SAME_STEP"):
        DreamVectorEnv(ladder.make(), 2, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="temperature: such settings are for a run folder"):
        DreamEnv(ladder.make(), temperature=2.0)


def test_spaces_follow_the_spec():
    assert observation_space(VECTORS) == gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert list(observation_space(ladder.SPEC)) == ["image", "vector"]
    assert action_space(ActionSpec(2)) == gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
