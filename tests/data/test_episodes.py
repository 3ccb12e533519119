"""The files: whole or absent, equal to what was written, and loud where they are damaged."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import chex
import numpy as np
import pytest
from episode_samples import LENGTHS, SPEC, assert_equal, make_episode, make_episodes
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm import data
from jaxwm.data.episodes import CHUNK


@pytest.mark.parametrize("split", ["train", "test"])
def test_episodes_come_back_as_they_were_written(folder, split):
    episodes = data.open_episodes(folder, split)
    assert episodes.spec == SPEC
    assert episodes.metadata == {"made": "by a test"}
    assert episodes.lengths.tolist() == LENGTHS[split]
    assert len(episodes) == len(LENGTHS[split])
    for written, read in zip(make_episodes(split), episodes, strict=True):
        assert_equal(written, read)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(number=st.integers(0, len(LENGTHS["train"]) - 1), place=st.floats(0, 1), length=st.integers(1, 60))
def test_a_window_is_a_padded_slice_with_the_action_before_it(folder, number, place, length):
    episodes = data.open_episodes(folder, "train")
    whole = make_episodes("train")[number]
    start = int(place * (len(whole) - 1))
    window = episodes.window(number, start, length)
    known = min(length, len(whole) - start)
    assert window.valid.tolist() == [True] * known + [False] * (length - known)
    before = whole.action[start - 1] if start else np.zeros(2, np.float32)
    np.testing.assert_array_equal(window.previous_action, before)
    for field in dataclasses.fields(data.Episode):
        if field.name in ("valid", "previous_action"):
            continue
        written, read = getattr(whole, field.name), getattr(window, field.name)
        written, read = (written, read) if isinstance(written, dict) else ({"": written}, {"": read})
        for name, array in written.items():
            expected = np.zeros((length, *array.shape[1:]), array.dtype)
            expected[:known] = array[start : start + known]
            np.testing.assert_array_equal(read[name], expected, err_msg=f"{field.name} {name}")


def test_what_learns_reads_no_truth_and_the_same_of_everything_else(folder):
    whole = data.open_episodes(folder, "train").windows([0, 1], [3, 0], 20)
    blind = data.open_episodes(folder, "train", info=False)
    read = []
    original = blind._records.read
    blind._records.read = lambda record, names, steps: read.extend(names) or original(record, names, steps)
    seen = blind.windows([0, 1], [3, 0], 20)
    assert whole.info
    assert not [name for name in read if name.startswith("info/")]
    chex.assert_trees_all_equal(seen, dataclasses.replace(whole, info={}))


@pytest.mark.parametrize(("start", "length", "touched"), [(0, 16, 1), (1, 16, 2), (16, 16, 2), (15, 18, 3), (3, 2, 1)])
def test_a_window_unzips_only_the_records_that_it_touches(folder, start, length, touched):
    episodes = data.open_episodes(folder, "train")
    read = []
    original = episodes._records.read
    episodes._records.read = lambda record, names, steps: read.append(record) or original(record, names, steps)
    episodes.window(0, start, length)
    assert len(read) == touched <= -(-length // CHUNK) + 1


def test_an_index_that_promises_more_steps_than_there_are_is_found(tmp_path, folder):
    path = copy(folder, tmp_path)
    np.save(path / "index-test.npy", np.array([[0, 24], [2, 16]]))  # the first has 20 steps
    with pytest.raises(data.DataError, match="test episode 0 cannot be read, damaged"):
        data.open_episodes(path, "test")[0]


def test_windows_outside_an_episode_are_refused(folder):
    episodes = data.open_episodes(folder, "train")
    for start in (-1, 5, 99):
        with pytest.raises(data.DataError, match=f"train episode 1 has no step {start}, only 5"):
            episodes.window(1, start, 4)
    with pytest.raises(IndexError):
        episodes[5]


def test_tfds_opens_the_folder_and_decodes_the_same(folder):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    assert builder.info.full_name == "jaxwm_episodes/steps/1.0.0"
    records = list(builder.as_data_source("test"))
    assert [len(record["reward"]) for record in records] == [16, 4, 16]
    first = make_episodes("test")[0]
    np.testing.assert_array_equal(records[1]["observation"]["image"], first.observation["image"][16:])
    np.testing.assert_array_equal(records[1]["info"]["position"], first.info["position"][16:])
    assert records[0]["is_first"].dtype == bool
    assert "tensorflow" not in sys.modules


def broken(**fields):
    return dataclasses.replace(make_episode(6), **fields)


def with_value(array, index, value):
    array = array.copy()
    array[index] = value
    return array


GOOD = make_episode(6)
BROKEN = {
    "short action": (broken(action=GOOD.action[:5]), "action has 5 steps, reward has 6"),
    "short image": (
        broken(observation={**GOOD.observation, "image": GOOD.observation["image"][:4]}),
        "observation/image has 4 steps, reward has 6",
    ),
    "NaN reward": (broken(reward=with_value(GOOD.reward, 3, np.nan)), "reward is not finite at step 3"),
    "infinite action": (broken(action=with_value(GOOD.action, (2, 0), np.inf)), "action is not finite at step 2"),
    "NaN vector": (
        broken(observation={**GOOD.observation, "vector": np.full((6, 2), np.nan, np.float32)}),
        "observation/vector is not finite at step 0",
    ),
    "double rewards": (broken(reward=GOOD.reward.astype(np.float64)), "reward is float64[6], expected float32[6]"),
    "float images": (
        broken(observation={**GOOD.observation, "image": GOOD.observation["image"].astype(np.float32)}),
        "observation['image'] has dtype float32, expected uint8",
    ),
    "one frame size": (
        broken(observation={**GOOD.observation, "image": np.zeros((6, 5, 4, 3), np.uint8)}),
        "observation['image'] has shape (6, 5, 4, 3), expected (6, 4, 4, 3)",
    ),
    "missing vector": (broken(observation={"image": GOOD.observation["image"]}), "observation['vector'] is missing"),
    "unknown info": (broken(info={"speed": GOOD.reward}), "info['speed'] is not part of the spec"),
    "list": (broken(reward=[0.0] * 6), "reward is a list, expected a numpy array"),
    "no first": (broken(is_first=np.zeros(6, bool)), "is_first marks the steps [], expected only the first one"),
    "no last": (broken(is_last=np.zeros(6, bool)), "is_last marks the steps [], expected only the last one"),
    "two lasts": (broken(is_last=np.arange(6) > 3), "is_last marks the steps [4, 5], expected only the last one"),
    "early end": (broken(is_terminal=np.arange(6) == 2), "is_terminal at step 2, before the last step 5"),
    "int flags": (broken(is_last=np.zeros(6, np.int32)), "is_last is int32[6], expected bool[6]"),
    "out of bounds": (broken(action=with_value(GOOD.action, (1, 1), 1.5)), "action at step 1 is"),
    "empty": (make_episode(0), "the episode is empty"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_episode_is_named_and_nothing_is_left(tmp_path, case):
    episode, message = BROKEN[case]
    with pytest.raises(data.DataError) as error:
        data.write_episodes(tmp_path / "set", SPEC, {"train": [make_episode(4), episode]}, "steps")
    assert str(error.value).startswith("train episode 1: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_discrete_actions_are_one_hot(tmp_path):
    spec = dataclasses.replace(SPEC, action=dataclasses.replace(SPEC.action, discrete=True, low=None, high=None))
    choices = np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1, 0]]
    good = broken(action=with_value(choices, 5, 0))  # the last action is void
    data.write_episodes(tmp_path / "good", spec, {"train": [good]}, "choices")
    with pytest.raises(data.DataError, match=r"train episode 0: action at step 1 is .*expected a one-hot vector"):
        data.write_episodes(tmp_path / "bad", spec, {"train": [broken(action=with_value(choices, 1, 0.5))]}, "choices")
    unlabelled = broken(action=with_value(choices, 1, 0), action_valid=with_value(GOOD.action_valid, 1, False))
    data.write_episodes(tmp_path / "unlabelled", spec, {"train": [unlabelled]}, "choices")


def test_a_split_without_episodes_and_a_taken_path_are_refused(tmp_path, folder):
    with pytest.raises(data.DataError, match="test: there are no episodes"):
        data.write_episodes(tmp_path / "set", SPEC, {"train": [GOOD], "test": []}, "steps")
    with pytest.raises(data.DataError, match="there is something already"):
        data.write_episodes(folder, SPEC, {"train": [GOOD]}, "steps")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "set", "/proc/nowhere/set"):
        with pytest.raises(data.DataError, match="set: cannot write here"):
            data.write_episodes(path, SPEC, {"train": [GOOD]}, "steps")


def test_the_metadata_must_be_plain(tmp_path):
    with pytest.raises(data.DataError, match="metadata of steps"):
        data.write_episodes(tmp_path / "set", SPEC, {"train": [GOOD]}, "steps", {"made": object()})


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_wrong_folders_are_named(tmp_path, folder):
    with pytest.raises(data.DataError, match="nowhere: there are no episodes here"):
        data.open_episodes(tmp_path / "nowhere", "train")
    with pytest.raises(data.DataError, match=r"there is no split 'tets'; did you mean 'test'\?"):
        data.open_episodes(folder, "tets")
    path = copy(folder, tmp_path)
    header = json.loads((path / "spec.json").read_text())
    (path / "spec.json").write_text(json.dumps({**header, "version": 7}))
    with pytest.raises(data.DataError, match=r"spec.json: format version 7 is unknown, this jaxwm reads version 1"):
        data.open_episodes(path, "train")
    (path / "spec.json").write_text(json.dumps({**header, "spec": {}}))
    with pytest.raises(data.DataError, match=r"spec.json: damaged"):
        data.open_episodes(path, "train")
    (path / "spec.json").write_text("{")
    with pytest.raises(data.DataError, match=r"spec.json: cannot read"):
        data.open_episodes(path, "train")


def test_a_missing_or_damaged_index_is_named(tmp_path, folder):
    path = copy(folder, tmp_path)
    (path / "index-test.npy").write_bytes(b"what")
    with pytest.raises(data.DataError, match=r"index-test.npy: damaged"):
        data.open_episodes(path, "test")
    np.save(path / "index-test.npy", np.array([[0, 20], [2, 200]]))
    with pytest.raises(data.DataError, match="split test has 3 records, its index says 15"):
        data.open_episodes(path, "test")


@pytest.mark.parametrize("damage", ["emptied", "truncated", "missing"])
def test_files_that_cannot_be_opened_name_file_and_episode(tmp_path, folder, damage):
    path = copy(folder, tmp_path)
    (file,) = path.glob("*train.array_record*")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(data.DataError, match="train episode 3 cannot be read, damaged") as error:
        data.open_episodes(path, "train").window(3, 0, 4)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_flipped_bytes_are_found_in_the_episode_that_they_hit(tmp_path, folder):
    path = copy(folder, tmp_path)
    (file,) = path.glob("*train.array_record*")
    content = bytearray(file.read_bytes())
    for place in range(300, 308):  # behind the file's header of 64 bytes and that of its first chunk
        content[place] ^= 0xFF
    file.write_bytes(content)
    episodes, damaged = data.open_episodes(path, "train"), []
    for number, written in enumerate(make_episodes("train")):
        try:
            assert_equal(episodes[number], written)
        except data.DataError as error:
            assert str(error).startswith(f"{file}: train episode {number} cannot be read, damaged")
            damaged.append(number)
    assert len(damaged) == 1


WRITER = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from episode_samples import SPEC, make_episode
    from jaxwm import data
    def slowly(count):
        for number in range(count):
            if number == 30 and {slow}:
                print("halfway", flush=True)
                time.sleep(60)
            yield make_episode(20 + number, number)
    data.write_episodes({path!r}, SPEC, {{"train": slowly(40), "test": slowly(3)}}, "steps")
"""


def write_in_a_process(path, slow):
    code = textwrap.dedent(WRITER.format(tests=os.path.dirname(__file__), path=str(path), slow=slow))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_killed_writer_leaves_nothing_that_is_read_and_the_next_one_cleans_up(tmp_path):
    path = tmp_path / "set"
    process = write_in_a_process(path, slow=True)
    assert process.stdout.readline() == "halfway\n"
    with process:
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    leftover = tmp_path / ".set.incomplete"
    assert any(leftover.rglob("*"))
    with pytest.raises(data.DataError, match="there are no episodes here"):
        data.open_episodes(path, "train")

    def episodes(count):
        return (make_episode(20 + number, number) for number in range(count))

    for place in (path, tmp_path / "uninterrupted"):
        data.write_episodes(place, SPEC, {"train": episodes(40), "test": episodes(3)}, "steps")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "uninterrupted"]
    for split in ("train", "test"):
        again, whole = data.open_episodes(path, split), data.open_episodes(tmp_path / "uninterrupted", split)
        for left, right in zip(again, whole, strict=True):
            assert_equal(left, right)


def test_a_whole_data_set_that_a_dead_writer_did_not_publish_is_not_taken_for_the_new_one(tmp_path):
    left = tmp_path / ".set.incomplete" / "jaxwm_episodes" / "steps" / "1.0.0"
    data.write_episodes(left, SPEC, {"train": [make_episode(9)]}, "steps")
    data.write_episodes(tmp_path / "set", SPEC, {"train": [make_episode(3)]}, "steps")
    assert data.open_episodes(tmp_path / "set", "train").lengths.tolist() == [3]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_second_writer_waits_for_the_first_and_then_finds_its_data(tmp_path):
    import threading

    started, go_on, errors = threading.Event(), threading.Event(), []

    def slowly():
        started.set()
        go_on.wait(30)
        yield make_episode(3)

    def write(episodes):
        try:
            data.write_episodes(tmp_path / "set", SPEC, {"train": episodes}, "steps")
        except data.DataError as error:
            errors.append(str(error))

    first = threading.Thread(target=write, args=(slowly(),))
    first.start()
    assert started.wait(30)
    second = threading.Thread(target=write, args=([make_episode(9)],))
    second.start()
    time.sleep(0.3)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert len(errors) == 1
    assert "there is something already" in errors[0]
    assert data.open_episodes(tmp_path / "set", "train").lengths.tolist() == [3]
