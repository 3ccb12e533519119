"""Batches: a pure function of seed and step, whoever asks, from wherever it goes on."""

import collections
import gc
import itertools
import json
import threading
import time

import jax
import numpy as np
import pytest
from episode_samples import LENGTHS, SPEC, make_episodes

from jaxwm import data
from jaxwm.config import DataConfig, GenerateConfig, WorldConfig, section
from jaxwm.data.loading import WindowSampler
from jaxwm.worlds import WORLDS


@pytest.fixture(scope="module")
def episodes(folder):
    return data.open_episodes(folder, "train")


def take(count, episodes, **settings):
    iterator = data.windows(episodes, **{"batch": 4, "length": 6, "seed": 1, **settings})
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_batches_have_the_shapes_of_the_contract(episodes):
    (batch,) = take(1, episodes)
    SPEC.check_trajectory(batch)
    assert batch.valid.shape == (4, 6)
    assert batch.info["position"].shape == (4, 6, 2)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))


def test_every_window_is_a_piece_of_an_episode(episodes):
    written = make_episodes("train")
    for batch in take(20, episodes):
        for row in range(4):
            first, number = batch.observation["vector"][row, 0].astype(int)
            known = min(6, LENGTHS["train"][number] - first)
            assert batch.valid[row].sum() == known
            for name in ("action", "reward", "is_first", "is_last", "is_terminal"):
                expected = getattr(written[number], name)[first : first + known]
                np.testing.assert_array_equal(getattr(batch, name)[row, :known], expected)
            before = written[number].action[first - 1] if first else np.zeros(2)
            np.testing.assert_array_equal(batch.previous_action[row], before)


def test_places_are_uniform():
    # Lengths 7, 3 and 5 give a window of 4 steps 4, 1 and 2 places.
    sampler = WindowSampler(np.array([4, 1, 2]), seed=3)
    count = 7000
    seen = collections.Counter(sampler(i) for i in range(count))
    assert set(seen) == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 1)}
    expected = count / 7
    assert sum((n - expected) ** 2 / expected for n in seen.values()) < 22.5  # chi-square, 6 degrees, p = 0.001


def test_draws_do_not_depend_on_the_version_of_numpy():
    # Philox4x64-10 with key 0 and counter 0 begins, after one increment, with this number.
    total = 1 << 40
    draw = int(np.random.Philox(key=0, counter=0).random_raw())
    assert WindowSampler(np.array([total]), seed=0)(0) == (0, draw * total >> 64)
    assert WindowSampler(np.array([total]), seed=0)(0) != WindowSampler(np.array([total]), seed=1)(0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_restart_goes_on_with_the_same_batches(episodes, threads):
    whole = take(6, episodes)
    again = take(2, episodes, start=4, threads=threads, prefetch=5)
    for left, right in zip(whole[4:], again, strict=True):
        assert_same(left, right)
    assert not np.array_equal(whole[0].observation["vector"], take(1, episodes, seed=2)[0].observation["vector"])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_share_one_global_batch(episodes, processes):
    whole = take(3, episodes)
    shares = [take(3, episodes, process_index=p, process_count=processes) for p in range(processes)]
    for step in range(3):
        together = jax.tree.map(lambda *rows: np.concatenate(rows), *[share[step] for share in shares])
        assert_same(whole[step], together)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 5, "process_count": 2}, "batch 5 does not divide by the 2 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2, expected one below process_count 2"),
        ({"length": 0}, "length is 0, expected at least 1"),
        ({"start": -1}, "start is -1, expected at least 0"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
    ],
)
def test_impossible_settings_are_refused_at_once(episodes, settings, message):
    with pytest.raises(data.DataError, match=message):
        data.windows(episodes, **{"batch": 4, "length": 6, "seed": 1, **settings})


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


@pytest.mark.parametrize("ending", ["closed", "dropped"])
def test_threads_end_with_their_iterator(episodes, ending):
    iterator = data.windows(episodes, batch=4, length=6, seed=1, threads=3)
    next(iterator)
    assert loading_threads()
    if ending == "closed":
        iterator.close()
        with pytest.raises(StopIteration):
            next(iterator)
    del iterator
    gc.collect()
    deadline = time.monotonic() + 20
    while loading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loading_threads()


def test_an_error_in_a_thread_reaches_the_reader(folder):
    episodes = data.open_episodes(folder, "train")

    def fail(record, names, steps):
        raise RuntimeError("a bad block")

    episodes._records.read = fail
    with pytest.raises(
        data.DataError, match=r"train episode \d cannot be read, damaged \(RuntimeError: a bad block\)"
    ):
        take(1, episodes)


def test_an_evaluation_batch_is_what_was_asked_for(episodes):
    batch = data.episode_batch(episodes, [3, 0, 1], 8, start=2)
    np.testing.assert_array_equal(batch.observation["vector"][:, 0], [[2, 3], [2, 0], [2, 1]])
    assert batch.valid.sum(1).tolist() == [8, 8, 3]
    np.testing.assert_array_equal(batch.previous_action[:, 0], np.float32([0.001] * 3))
    with pytest.raises(data.DataError, match="train has no episode 5, only 5"):
        data.episode_batch(episodes, [5], 8)


def rooms(path, generate=True, size=8, **changes):
    world = section(WorldConfig, WORLDS["rooms"], name="rooms")(size=size)
    settings = GenerateConfig(world=world, **{"train": 3, "test": 2, "length": 4, "policy": "scripted", **changes})
    return DataConfig(path=str(path), generate=settings if generate else None)


def test_missing_data_are_generated_once_and_other_data_refused(tmp_path, folder):
    path, lines = tmp_path / "rooms", []
    data.ensure_dataset(rooms(path), lines.append)
    assert any(str(path) in line for line in lines)
    lines.clear()
    data.ensure_dataset(rooms(path), lines.append)
    assert not lines
    data.ensure_dataset(rooms(path, generate=False))
    with pytest.raises(data.DataError) as error:
        data.ensure_dataset(rooms(path, size=16, train=5))
    assert "world.size is 8 in the data, 16 in the configuration" in str(error.value)
    assert "train is 3 in the data, 5 in the configuration" in str(error.value)
    assert "test is" not in str(error.value)
    with pytest.raises(data.DataError, match="these data were not generated"):
        data.ensure_dataset(rooms(folder))


def test_data_from_before_a_parameter_of_the_world_have_its_default(tmp_path):
    data.ensure_dataset(rooms(tmp_path / "rooms"))
    header = tmp_path / "rooms" / "spec.json"
    old = json.loads(header.read_text())
    del old["metadata"]["generate"]["world"]["background"]
    header.write_text(json.dumps(old))
    data.ensure_dataset(rooms(tmp_path / "rooms"))
    other = rooms(tmp_path / "rooms")
    world = other.generate.world.model_copy(update={"background": (1, 2, 3)})
    changed = other.model_copy(update={"generate": other.generate.model_copy(update={"world": world})})
    with pytest.raises(
        data.DataError, match=r"world.background is \[18, 20, 30\] in the data, \[1, 2, 3\] in the conf"
    ):
        data.ensure_dataset(changed)


def test_data_that_nothing_says_how_to_make_are_an_error(tmp_path):
    with pytest.raises(data.DataError, match=r"data.path: there are no episodes in .*nowhere"):
        data.ensure_dataset(rooms(tmp_path / "nowhere", generate=False))


def test_the_spec_comes_from_the_data_or_else_from_the_world(tmp_path, folder):
    class Config:
        data = rooms(folder)

    assert data.load_spec(Config) == SPEC
    Config.data = rooms(tmp_path / "nowhere", size=24)
    assert data.load_spec(Config).images[0].shape == (24, 24, 3)
    assert not (tmp_path / "nowhere").exists()
    Config.data = rooms(tmp_path / "nowhere", generate=False)
    with pytest.raises(data.DataError, match="there are no episodes"):
        data.load_spec(Config)
