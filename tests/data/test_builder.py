"""The files of a split: several where it is large, in order, known to TFDS; and the configs that it knows by name."""

import dataclasses
import pathlib
import re
import shlex

import pytest
import tensorflow_datasets as tfds
from episode_samples import SPEC, assert_equal, make_episode

from jaxwm import data, worlds
from jaxwm.data import builder
from jaxwm.data.recording import RECORDINGS, Recording
from jaxwm.envs import Recorder

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_a_large_split_is_cut_into_files_and_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_SHARD_BYTES", 2000)
    episodes = [make_episode(40, number) for number in range(8)]
    path = tmp_path / "set"
    data.write_episodes(path, SPEC, {"train": iter(episodes)}, "steps")
    files = sorted(file.name for file in path.glob("*array_record*"))
    assert len(files) > 3
    assert files == [f"jaxwm_episodes-train.array_record-{i:05}-of-{len(files):05}" for i in range(len(files))]
    for left, right in zip(episodes, data.open_episodes(path, "train"), strict=True):
        assert_equal(left, right)
    info = tfds.builder_from_directory(path).info.splits["train"]
    assert sum(info.shard_lengths) == info.num_examples == 8 * 3
    assert info.num_bytes > 2000 * len(files)
    reader = data.open_episodes(path, "train")
    (path / files[-1]).unlink()
    assert_equal(reader[0], episodes[0])
    try:
        reader[7]
    except data.DataError as error:
        assert str(error).startswith(f"{path / files[-1]}: train episode 7 cannot be read")
    else:
        raise AssertionError("a missing file was not noticed")


def test_episodes_are_taken_one_by_one(tmp_path, monkeypatch):
    """When the writer asks for an episode, the one before is in a file already."""
    monkeypatch.setattr(builder, "_SHARD_BYTES", 1)
    seen = []

    def episodes():
        for number in range(5):
            seen.append(len(list(tmp_path.rglob("train-*"))))
            yield make_episode(16, number)

    data.write_episodes(tmp_path / "set", SPEC, {"train": episodes()}, "steps")
    assert seen == [0, 1, 2, 3, 4]


def test_there_is_a_config_for_each_world_and_each_recorded_environment():
    assert sorted(builder.JaxwmEpisodes.builder_configs) == sorted([*worlds.WORLDS, *RECORDINGS])


def test_tfds_records_an_environment_by_name(tmp_path, monkeypatch):
    few = dataclasses.replace(RECORDINGS["cartpole"], train=4, test=2)
    monkeypatch.setitem(RECORDINGS, "cartpole", few)
    by_name = tfds.builder("jaxwm_episodes/cartpole", data_dir=tmp_path)
    by_name.download_and_prepare()
    data.record_dataset(tmp_path / "direct", Recorder("CartPole-v1", observe="vectors", parallel=8), train=4, test=2)
    for split, count in (("train", 4), ("test", 2)):
        recorded = data.open_episodes(by_name.data_dir, split)
        direct = data.open_episodes(tmp_path / "direct", split)
        assert len(recorded) == len(direct) == count
        for left, right in zip(recorded, direct, strict=True):
            assert_equal(left, right)
    assert recorded.metadata == direct.metadata


def test_any_environment_is_a_config_of_its_own(tmp_path):
    recording = Recording("Acrobot-v1", train=2, observe="vectors", max_length=5)
    config = builder.EpisodesConfig(name="acrobot", source=recording.source)
    made = builder.JaxwmEpisodes(config=config, data_dir=tmp_path)
    made.download_and_prepare()
    assert [len(episode) for episode in data.open_episodes(made.data_dir, "train")] == [5, 5]


def test_other_file_formats_are_refused(tmp_path):
    with pytest.raises(data.DataError, match="file_format is 'tfrecord', expected 'array_record'"):
        tfds.builder("jaxwm_episodes/bounce", data_dir=tmp_path, file_format="tfrecord")


@pytest.mark.parametrize("name", sorted(RECORDINGS))
def test_a_recording_is_the_command_of_its_shipped_config(name):
    commands = [
        shlex.split(match)
        for path in sorted(CONFIGS.glob("*.yaml"))
        for match in re.findall(rf"jaxwm data record (\S+ --out data/{name} .*)", path.read_text())
    ]
    (command,) = commands
    given = dict(zip(command[1::2], command[2::2], strict=True))
    recording = RECORDINGS[name]
    kept = {"--out": f"data/{name}", "--train": str(recording.train), "--test": str(recording.test)}
    fresh = Recording(recording.env_id, recording.train, recording.test)
    for field in ("observe", "max_length", "parallel"):
        if getattr(recording, field) != getattr(fresh, field):
            kept[f"--{field.replace('_', '-')}"] = str(getattr(recording, field))
    assert (command[0], given) == (recording.env_id, kept)
