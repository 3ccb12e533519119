"""Simulated data sets: the same arguments, the same episodes."""

import dataclasses

import numpy as np
import pytest
from episode_samples import assert_equal

from jaxwm import data, worlds
from jaxwm.data import generate
from jaxwm.data.episodes import info_fields
from jaxwm.worlds import base


@dataclasses.dataclass(frozen=True)
class Countdown:
    """A world that counts down from a random number and ends at zero; the action is written into the next picture."""

    most: int = 9

    @property
    def spec(self):
        from jaxwm.types import ActionSpec, Field, Spec

        return Spec((Field("vector", (2,), "float32"),), ActionSpec(1, low=(-1.0,), high=(1.0,)))

    def reset(self, key):
        import jax
        import jax.numpy as jnp

        return jax.random.randint(key, (), 2, self.most), jnp.zeros(1)

    def step(self, key, state, action):
        count = state[0] - 1
        return base.Transition((count, action), count.astype("float32"), count == 0)

    def observation(self, state):
        import jax.numpy as jnp

        return {"vector": jnp.concatenate([state[0][None].astype("float32"), state[1]])}

    def render(self, state, size=None):
        raise AssertionError("a world of vectors alone is never drawn")

    def info(self, state):
        return {"count": state[0]}


@pytest.fixture(scope="module")
def simulated():
    return list(generate.simulate(Countdown(), seed=0, count=70, length=6))


def test_episodes_end_where_the_world_or_the_length_ends_them(simulated):
    assert len(simulated) == 70
    for number, episode in enumerate(simulated):
        generate_length = min(int(episode.info["count"][0]) + 1, 6)
        assert len(episode) == generate_length
        assert episode.is_terminal.any() == (episode.info["count"][-1] == 0)
        data.episodes.check_episode(episode, Countdown().spec, info_fields(simulated[0]), f"episode {number}")
    lengths = {len(episode) for episode in simulated}
    assert len(lengths) > 1


def test_the_action_of_a_step_is_in_the_next_observation(simulated):
    for episode in simulated:
        np.testing.assert_array_equal(episode.observation["vector"][1:, 1:], episode.action[:-1])
        assert np.abs(episode.action[:-1]).min() > 0
        assert not episode.action[-1].any()


def test_an_episode_depends_on_its_number_and_not_on_how_many_there_are(simulated):
    again = list(generate.simulate(Countdown(), seed=0, count=66, length=6))
    for left, right in zip(simulated, again, strict=False):
        assert_equal(left, right)
    distinct = {episode.observation["vector"].tobytes() for episode in simulated}
    assert len(distinct) == 70


def test_seeds_and_splits_give_other_episodes(simulated):
    seen = {episode.observation["vector"].tobytes() for episode in simulated}
    for arguments in ({"seed": 1}, {"seed": 0, "split": "test"}):
        others = {
            e.observation["vector"].tobytes() for e in generate.simulate(Countdown(), count=64, length=6, **arguments)
        }
        assert len(others) == 64
        assert not seen & others


def test_a_data_set_says_how_it_was_made(tmp_path):
    world = worlds.make_world("rooms", size=8)
    data.generate_dataset(tmp_path / "rooms", world, train=3, test=2, length=4, seed=5, policy="scripted")
    train, test = (data.open_episodes(tmp_path / "rooms", split) for split in ("train", "test"))
    assert (train.lengths.tolist(), len(test)) == ([4, 4, 4], 2)
    assert train.spec == world.spec
    made = train.metadata["generate"]
    assert made["world"]["name"] == "rooms"
    assert made["world"]["size"] == 8
    assert {name: made[name] for name in ("train", "test", "length", "policy", "seed")} == {
        "train": 3,
        "test": 2,
        "length": 4,
        "policy": "scripted",
        "seed": 5,
    }
    for left, right in zip(train, generate.simulate(world, 5, 3, 4, "scripted"), strict=True):
        assert_equal(left, right)


def test_policies_take_turns():
    world = worlds.make_world("rooms", size=8, observe="state")
    turns = list(generate.simulate(world, 0, 4, 8, "random+walk_to_goal"))
    alone = {name: list(generate.simulate(world, 0, 4, 8, name)) for name in ("random", "walk_to_goal")}
    for index, name in enumerate(["random", "walk_to_goal"] * 2):
        assert_equal(turns[index], alone[name][index])
    assert not np.array_equal(alone["random"][0].action, alone["walk_to_goal"][0].action)


def test_unknown_policies_and_splits_are_named():
    with pytest.raises(data.DataError, match="policy 'clever' is unknown in the world rooms; known: random"):
        generate.simulate(worlds.make_world("rooms"), 0, 1, policy="clever")
    with pytest.raises(data.DataError, match="split 'dev' is unknown, expected one of train, test"):
        generate.simulate(worlds.make_world("rooms"), 0, 1, split="dev")
