"""The commands, end to end on tiny data."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxwm import data
from jaxwm.data.cli import app


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def fail(*arguments):
    """The message that the person sees."""
    result = run(*arguments)
    assert isinstance(result.exception, ValueError), result.output + repr(result.exception)
    message = str(result.exception)
    assert "\n" not in message
    return message


def test_generate_and_inspect(tmp_path):
    path = tmp_path / "rooms"
    counts = ("--train", 3, "--test", 2, "--length", 4, "--policy", "scripted")
    result = succeed("generate", "rooms", "--out", path, *counts, "world.size=8")
    assert str(path) in result.stderr
    assert data.open_episodes(path, "train").spec.images[0].shape == (8, 8, 3)
    result = succeed("inspect", path, "--sheet", tmp_path / "sheet.png")
    assert "train: 3 episodes, 12 steps" in result.stdout
    assert "uint8[8, 8, 3]" in result.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 100
    report = json.loads(succeed("inspect", path, "--json").stdout)
    assert report["name"] == "rooms"
    assert report["metadata"]["generate"]["world"]["size"] == 8
    assert [split["episodes"] for split in report["splits"]] == [3, 2]
    assert "there is something already" in fail("generate", "rooms", "--out", path, *counts, "world.size=8")


def test_record(tmp_path):
    path = tmp_path / "cart"
    counts = ("--train", 3, "--test", 2, "--max-length", 5, "--parallel", 2, "--size", 8)
    succeed("record", "CartPole-v1", "--out", path, *counts, "--observe", "both", "env.sutton_barto_reward=true")
    train, test = (data.open_episodes(path, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    assert [(f.name, f.shape) for f in train.spec.observation] == [("image", (8, 8, 3)), ("vector", (4,))]
    kept = train.metadata["record"]
    assert kept["environment"] == "CartPole-v1"
    assert kept["options"] == {"sutton_barto_reward": True}
    assert kept["policy"] == "random"
    starts = {episode.observation["vector"][0].tobytes() for episode in [*train, *test]}
    assert len(starts) == 5
    succeed("record", "CartPole-v1", "--out", tmp_path / "again", *counts, "--observe", "both")
    for left, right in zip(train, data.open_episodes(tmp_path / "again", "train"), strict=True):
        np.testing.assert_array_equal(left.observation["image"], right.observation["image"])


def test_import(tmp_path):
    np.savez(tmp_path / "one.npz", frames=np.zeros((4, 8, 8, 3), np.uint8), steps=np.array([0, 1, 2, 0]))
    np.savez(tmp_path / "two.npz", frames=np.ones((4, 8, 8, 3), np.uint8), steps=np.array([0, 1, 2, 0]))
    keys = ("--key", "image=frames", "--key", "action=steps")
    succeed("import", tmp_path, "--out", tmp_path / "set", *keys, "--choices", 3, "--size", 8, "--test", 1)
    train, test = (data.open_episodes(tmp_path / "set", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1, 1)
    assert train[0].action.argmax(-1).tolist() == [0, 1, 2, 0]
    assert train.spec.action.discrete


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "bouncy", "--out", "X"], "there is no world 'bouncy'; did you mean 'bounce'?"),
        (["generate", "bounce", "--out", "X", "world.bals=2"], "did you mean 'balls'?"),
        (["generate", "bounce", "--out", "X", "balls=2"], "argument 'balls=2': expected world.NAME=VALUE"),
        (["generate", "bounce", "--out", "X", "world.balls"], "expected the form NAME=VALUE"),
        (["generate", "bounce", "--out", "X", "world.balls=[1"], "'[1' is not a valid value"),
        (["generate", "bounce", "--out", "X", "world.balls=-1"], "balls"),
        (["generate", "bounce", "--out", "X", "--policy", "clever"], "policy 'clever' is unknown"),
        (["record", "CartPole-v9", "--out", "X"], "environment 'CartPole-v9' cannot be made"),
        (["record", "CartPole-v1", "--out", "X", "--policy", "mine"], "policy 'mine' is unknown"),
        (["import", "/nowhere", "--out", "X"], "/nowhere: there is no such file or folder"),
        (["import", "tfds:bair_robot_pushing_small", "--out", "X"], "TensorFlow is not installed"),
        (["inspect", "/nowhere"], "/nowhere: there are no episodes here"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fail(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "record", "import", "inspect"])
def test_every_command_shows_examples(command):
    text = succeed(command, "--help").stdout
    assert "Examples" in text
    assert f"jaxwm data {command} " in text
    assert len([line for line in text.splitlines() if line.strip().startswith("jaxwm data")]) >= 2
