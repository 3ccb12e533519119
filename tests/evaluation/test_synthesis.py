"""Imagined episodes on disk: they say what was dreamt, done and told, and nothing that breaks a rule."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxwm import data
from jaxwm.cli import app
from jaxwm.data.episodes import check_episode, read_header
from jaxwm.evaluation.synthesis import as_condition, synthesize, synthesize_dataset
from jaxwm.types import ActionSpec, Field, Prediction, Spec
from jaxwm.worlds import captions

SPEC = Spec(
    (Field("image", (4, 4, 3), "uint8"),),
    ActionSpec(2, low=(-1.0, -1.0), high=(1.0, 1.0)),
    (Field("weather", (2,), "float32"), Field("caption", (captions.LENGTH,), "int32")),
)
LENGTH = 12


@dataclasses.dataclass(frozen=True)
class Obedient:
    """Its pictures are as bright as the first number of the weather; its reward is the first of the last action.

    It believes that an episode ends where the second number of the action is above 0.9, and is surprised by pictures
    that are not grey.
    """

    spec: Spec

    def init_state(self, batch_size):
        return {"bright": jnp.zeros(batch_size), "action": jnp.zeros((batch_size, 2))}

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return {"bright": observation["image"].mean((1, 2, 3)) / 255, "action": previous_action}

    def predict(self, variables, keys, state, action, condition=None):
        told = condition or {}
        bright = told["weather"][:, 0] if "weather" in told else jnp.full(len(keys), 0.5)
        return {"bright": bright, "action": action}

    def features(self, variables, state):
        return state["action"]

    def decode(self, variables, state):
        image = jnp.broadcast_to(state["bright"][:, None, None, None], (len(state["bright"]), 4, 4, 3))
        going = jnp.where(state["action"][:, 1] > 0.9, 0.1, 0.9)
        return Prediction({"image": image}, reward=state["action"][:, 0], continuation=going)

    def surprise(self, variables, keys, state, previous_action, observation, condition=None):
        return jnp.abs(observation["image"].mean((1, 2, 3)) / 255 - 0.5)


@pytest.fixture(scope="module")
def run(toy_run, tmp_path_factory):
    """Twelve recorded grey episodes whose actions count the steps."""
    path = tmp_path_factory.mktemp("recorded") / "grey"

    def episode(number):
        steps = np.arange(LENGTH)
        condition = {
            "weather": np.stack([0.4 + steps / 100, steps], axis=1).astype(np.float32),
            "caption": np.tile(captions.encode("two cars"), (LENGTH, 1)),
        }
        action = np.stack([steps / 100, np.full(LENGTH, number / 100)], axis=1).astype(np.float32)
        action[-1] = 0
        return data.Episode(
            observation={"image": np.full((LENGTH, 4, 4, 3), 128, np.uint8)},
            action=action, reward=np.zeros(LENGTH, np.float32), condition=condition, **data.step_flags(LENGTH),
        )  # fmt: skip

    splits = {"train": map(episode, range(8)), "test": map(episode, range(8, 12))}
    data.write_episodes(path, SPEC, splits, "grey")
    settings = toy_run.config.data.model_copy(update={"path": str(path), "generate": None})
    config = toy_run.config.model_copy(update={"data": settings})
    return dataclasses.replace(toy_run, config=config, spec=SPEC, model=Obedient(SPEC), variables={})


def test_actions_rewards_pictures_and_conditions_stand_in_line(run):
    """Action t is done in picture t; its reward beside it; the picture shows what its own frame was told."""
    for episode in synthesize(run, 20, 6, context=3):
        check_episode(episode, SPEC, (), "dreamt")
        assert len(episode) == 6
        begin = round(100 * float(episode.action[0, 0]))
        assert 3 <= begin <= 6
        expected = np.arange(begin, begin + 5) / 100
        np.testing.assert_allclose(episode.action[:-1, 0], expected, atol=1e-6)
        np.testing.assert_allclose(episode.reward[:-1], expected, atol=1e-6)
        assert not episode.action[-1].any() and episode.reward[-1] == 0
        np.testing.assert_allclose(episode.condition["weather"][:, 1], np.arange(begin, begin + 6))
        shown = episode.observation["image"][:, 0, 0, 0]
        np.testing.assert_allclose(shown, np.round(255 * (0.4 + np.arange(begin, begin + 6) / 100)), atol=1)


def test_an_episode_ends_where_the_model_believes_so(run):
    ends = 0
    for episode in synthesize(run, 40, 8, actions="random", seed=1):
        check_episode(episode, SPEC, (), "dreamt")
        last = len(episode) - 1
        assert episode.is_last[last]
        assert (episode.action[: last - 1, 1] <= 0.9).all()
        if episode.is_terminal[last]:
            assert episode.action[last - 1, 1] > 0.9
            ends += 1
        else:
            assert len(episode) == 8
    assert 2 < ends < 30


def test_what_is_told_is_done_and_written_and_what_is_not_is_silent(run):
    (told,) = synthesize(run, 1, 5, tell={"weather": [1.0, 0.0], "caption": "fog one car"})
    assert (told.observation["image"] == 255).all()
    np.testing.assert_array_equal(told.condition["weather"], [[1.0, 0.0]] * 5)
    assert {captions.decode(words) for words in told.condition["caption"]} == {"fog one car"}
    (silent,) = synthesize(run, 1, 5, tell={"weather": None})
    assert (silent.observation["image"] == 128).all()
    assert not silent.condition["weather"].any()
    assert {captions.decode(words) for words in silent.condition["caption"]} == {"two cars"}
    (moved,) = synthesize(run, 1, 5, actions="zero")
    assert not moved.condition["weather"].any()
    assert not moved.condition["caption"].any()


def test_clips_that_break_rules_are_left_out(run):
    rules = (lambda clips: clips.observation["image"][:, 0, 0, 0, 0] > 115,)
    some = list(synthesize(run, 20, 4, context=1, rules=rules))
    assert len(some) == 20
    assert min(episode.observation["image"][0, 0, 0, 0] for episode in some) > 115


def test_a_data_set_is_written_that_loaders_read(run, tmp_path):
    path = tmp_path / "dreamt"
    synthesize_dataset(path, run, train=5, test=2, length=4, tell={"weather": [0.5, 0.0]}, curate=1.0)
    header = read_header(path)
    assert header["spec"] == SPEC
    assert header["metadata"]["synthesize"]["tell"] == {"weather": [0.5, 0.0]}
    episodes = data.open_episodes(path, "train")
    assert len(episodes) == 5
    batch = next(data.windows(episodes, batch=2, length=3, seed=0))
    SPEC.check_trajectory(jax.tree.map(jnp.asarray, batch))
    held_out = data.open_episodes(path, "test")
    assert {round(100 * float(e.action[0, 1])) for e in itertools.islice(held_out, 2)} <= {8, 9, 10, 11}


def test_what_surprises_the_model_is_dropped_in_curation(run, tmp_path):
    with pytest.raises(data.DataError, match="only 0 of 320 clips fulfil the rules"):
        synthesize_dataset(
            tmp_path / "white", run, train=4, test=0, length=4, tell={"weather": [1.0, 0.0]}, curate=1.0
        )
    assert not (tmp_path / "white").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tell": {"whether": 1}}, "condition 'whether' is not part of the spec; did you mean 'weather'"),
        ({"tell": {"weather": [1.0]}}, r"condition 'weather' has shape \(1,\), expected \(2,\)"),
        ({"tell": {"caption": "purple car"}}, "the word 'purple' is not in the vocabulary"),
        ({"actions": "rnadom"}, "did you mean 'random'"),
        ({"length": 1}, "length is 1, expected at least 2"),
        ({"length": 40}, "the longest recorded episode has 12 steps, 43 are needed"),
    ],
)
def test_what_does_not_fit_is_said(run, options, message):
    with pytest.raises(ValueError, match=message):
        list(synthesize(run, 1, **{"length": 4, **options}))


def test_words_are_for_captions():
    assert captions.decode(as_condition(SPEC, "caption", "night fog")) == "night fog"
    assert as_condition(SPEC, "weather", None) is None


def test_the_command_writes_a_data_set(toy_run_dir, tmp_path):
    path = tmp_path / "dreamt"
    arguments = ["data", "synthesize", toy_run_dir, "--out", path, "--train", 3, "--test", 1, "--length", 4]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert len(data.open_episodes(path, "train")) == 3
    refused = CliRunner().invoke(
        app, ["data", "synthesize", str(toy_run_dir), "--out", str(tmp_path / "x"), "tell.rain=1"]
    )
    assert "condition 'rain' is not part of the spec" in str(refused.exception)
