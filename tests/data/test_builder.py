"""The files of a split: several where it is large, in order, known to TFDS."""

import tensorflow_datasets as tfds
from episode_samples import SPEC, assert_equal, make_episode

from jaxwm import data
from jaxwm.data import builder


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
