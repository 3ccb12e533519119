"""Mock examples with the schemas of public sets, as TFDS gives them in numpy."""

import numpy as np
import pytest

from jaxwm import data
from jaxwm.data import rlds
from jaxwm.data.episodes import check_episode, info_fields
from jaxwm.data.rlds import FieldMap, find_field_map, import_public, spec_of, to_episode
from jaxwm.types import ActionSpec, Field


def steps_of(length, observation, action, terminal=False, **others):
    """RLDS steps one by one; the last action and reward are rubbish, as the standard allows."""
    for t in range(length):
        last = t == length - 1
        yield {
            "observation": observation(t),
            "action": np.full_like(action(t), 7) if last else action(t),
            "reward": np.float64(np.nan if last else t + 0.5),
            "discount": np.float32(1),
            "is_first": t == 0,
            "is_last": last,
            "is_terminal": terminal and last,
            **{name: make(t) for name, make in others.items()},
        }


def bair(number=0):
    steps = np.arange(30)
    return {
        "action": np.stack([steps + number] * 4, -1).astype(np.float32),
        "endeffector_pos": np.stack([steps] * 3, -1).astype(np.float32),
        "image_aux1": np.zeros((30, 64, 64, 3), np.uint8),
        "image_main": np.broadcast_to(steps.astype(np.uint8)[:, None, None, None], (30, 64, 64, 3)),
    }


def control_suite(terminal=False):
    return {
        "episode_id": np.int64(3),
        "timestamp": np.int64(9),
        "steps": steps_of(
            6,
            lambda t: {"position": np.full(3, t, np.float32), "velocity": np.full(2, -t, np.float32)},
            lambda t: np.full(1, t / 10, np.float32),
            terminal,
        ),
    }


def half_cheetah(terminal=False):
    def observation(t):
        return np.zeros(17) if terminal and t == 5 else np.full(17, t + 1.0)

    infos = {"infos": lambda t: {"qpos": np.full(9, t, np.float64), "qvel": np.full(9, t, np.float64)}}
    return {"steps": steps_of(6, observation, lambda t: np.full(6, t / 10), terminal, **infos)}


def checked(example, name, **changes):
    import dataclasses

    field_map = dataclasses.replace(find_field_map(name), **changes)
    episode = to_episode(example, field_map, name)
    spec = spec_of(episode, field_map)
    check_episode(episode, spec, info_fields(episode), name)
    return episode, spec


def test_bair_robot_pushing():
    episode, spec = checked(bair(), "bair_robot_pushing_small")
    assert spec.observation == (Field("image", (64, 64, 3), "uint8"), Field("effector", (3,), "float32"))
    assert spec.action == ActionSpec(4)
    np.testing.assert_array_equal(episode.observation["image"][:, 5, 5, 1], np.arange(30))
    np.testing.assert_array_equal(episode.action[:, 0], [*range(29), 0])
    assert not episode.reward.any()
    assert not episode.is_terminal.any()
    assert episode.action_valid.all()


def test_control_suite_keeps_the_alignment_of_rlds():
    episode, spec = checked(control_suite(), "rlu_control_suite/cartpole_swingup")
    assert spec.observation == (Field("position", (3,), "float32"), Field("velocity", (2,), "float32"))
    np.testing.assert_array_equal(episode.observation["position"][:, 0], range(6))
    assert episode.reward.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 0]
    np.testing.assert_allclose(episode.action[:, 0], [0, 0.1, 0.2, 0.3, 0.4, 0], rtol=1e-6)
    assert not episode.is_terminal.any()
    episode, _ = checked(control_suite(terminal=True), "rlu_control_suite/fish_swim")
    assert episode.is_terminal.tolist() == [False] * 5 + [True]


def test_half_cheetah_and_the_ending_that_nobody_saw():
    episode, spec = checked(half_cheetah(), "d4rl_mujoco_halfcheetah/v2-medium", info={"position": "infos/qpos"})
    assert spec.observation == (Field("vector", (17,), "float32"),)
    assert spec.action == ActionSpec(6)
    assert len(episode) == 6
    assert episode.info["position"].dtype == np.float32
    np.testing.assert_array_equal(episode.info["position"][:, 0], range(6))
    ended, _ = checked(half_cheetah(terminal=True), "d4rl_mujoco_hopper", info={"position": "infos/qpos"})
    assert len(ended) == 5
    assert ended.observation["vector"].min() == 1
    assert not ended.is_terminal.any()
    assert ended.reward.tolist() == [0.5, 1.5, 2.5, 3.5, 0]


def test_any_other_set_is_taken_for_plain_rlds():
    example = {
        "steps": steps_of(
            4,
            lambda t: {
                "image": np.full((8, 12, 3), t, np.uint8),
                "arm": {"joints": np.full(7, t, np.float32)},
                "instruction": b"push",
                "tokens": np.zeros(5, np.int64),
            },
            lambda t: np.full(3, t, np.float32),
        )
    }
    episode, spec = checked(example, "some_robot_set")
    assert spec.observation == (Field("image", (64, 64, 3), "uint8"), Field("arm.joints", (7,), "float32"))
    assert episode.observation["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_parts_of_an_action_stand_beside_each_other_by_name():
    steps = {
        "observation": np.zeros((3, 2), np.float32),
        "action": {"b": np.full((3, 2), 2.0), "a": np.ones((3, 1)), "stop": np.zeros(3, np.int32)},
        "reward": np.zeros(3),
    }
    episode = to_episode({"steps": steps}, FieldMap())
    assert episode.action.tolist() == [[1, 2, 2], [1, 2, 2], [0, 0, 0]]


def test_atari_choices_become_one_hot():
    steps = {
        "observation": np.zeros((3, 84, 84, 1), np.uint8),
        "action": np.array([17, 0, 0]),
        "reward": np.zeros(3, np.float32),
    }
    episode, spec = checked({"steps": steps}, "rlu_atari/Pong_run_1")
    assert spec.action == ActionSpec(18, discrete=True)
    assert episode.action.argmax(-1).tolist() == [17, 0, 0]
    assert spec.observation == (Field("image", (64, 64, 1), "uint8"),)


GOOD = {"observation": np.zeros((3, 2), np.float32), "action": np.zeros((3, 1)), "reward": np.zeros(3)}


@pytest.mark.parametrize(
    ("example", "field_map", "message"),
    [
        ({"step": GOOD}, FieldMap(), "there is no 'steps'; did you mean 'step'"),
        ({"steps": GOOD}, FieldMap(reward="rewards"), "there is no 'rewards'; did you mean 'reward'"),
        ({"steps": GOOD}, FieldMap(observation={"image": "camera"}), "there is no 'camera'"),
        ({"steps": []}, FieldMap(), "the episode is empty"),
        ({"steps": {**GOOD, "observation": np.array([b"a"] * 3)}}, FieldMap(), "no picture or float vector among"),
        ({"steps": {**GOOD, "action": np.zeros(3, int)}}, FieldMap(), "action should hold floats, but it is int64"),
        ({"steps": {**GOOD, "action": np.full(3, 4)}}, FieldMap(choices=3), "should hold integers from 0 to 2"),
        ({"steps": {**GOOD, "is_terminal": np.arange(3) == 1}}, FieldMap(), "is_terminal at step 1 of 3"),
    ],
)
def test_examples_that_do_not_fit_are_named(example, field_map, message):
    with pytest.raises(data.DataError, match=message) as error:
        to_episode(example, field_map, "some_set train episode 4")
    assert str(error.value).startswith("some_set train episode 4: ")


def test_without_tensorflow_one_line_says_so(tmp_path):
    with pytest.raises(data.DataError, match=r"TensorFlow is not installed.*pip install 'jaxwm\[rlds\]'"):
        import_public(tmp_path / "set", "bair_robot_pushing_small", train=1)


def test_a_public_set_becomes_a_data_set(tmp_path, monkeypatch):
    asked = []

    def examples(name, split, folder):
        asked.append((name, split))
        first, last = (int(n) for n in split[len("train[") : -1].split(":"))
        return (bair(number) for number in range(first, min(last, 5)))

    monkeypatch.setattr(rlds, "_examples", examples)
    import_public(tmp_path / "set", "bair_robot_pushing_small", train=2, test=1, size=8)
    assert asked == [("bair_robot_pushing_small", "train[1:3]"), ("bair_robot_pushing_small", "train[0:1]")]
    train, test = (data.open_episodes(tmp_path / "set", split) for split in ("train", "test"))
    assert [episode.action[0, 0] for episode in train] == [1, 2]
    assert [episode.action[0, 0] for episode in test] == [0]
    assert train.spec.images[0].shape == (8, 8, 3)
    with pytest.raises(data.DataError, match="the split train has no more than 5 episodes"):
        import_public(tmp_path / "other", "bair_robot_pushing_small", train=2, test=5)
