"""The order of records on disk, also where TFDS sorts outside the memory."""

from episode_samples import SPEC, assert_equal, make_episode
from tensorflow_datasets.core import shuffle

from jaxwm import data
from jaxwm.data import builder


def test_keys_rise_with_the_record_and_fill_one_bucket_after_the_other():
    records = [*range(0, 3000, 256), 1023, 10**5, 10**6, 10**6 + 1, 10**7, 10**9]
    keys = [builder._key(record) for record in sorted(records)]
    assert keys == sorted(set(keys))
    assert max(keys) < 2**128
    buckets = {record: shuffle.get_bucket_number(builder._key(record), shuffle.BUCKETS_NUMBER) for record in records}
    assert buckets == {record: min(record // 1024, 999) for record in records}


def test_a_split_that_does_not_fit_in_memory_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 2000)
    episodes = [make_episode(40, number) for number in range(8)]
    data.write_episodes(tmp_path / "set", SPEC, {"train": iter(episodes)}, "steps")
    for left, right in zip(episodes, data.open_episodes(tmp_path / "set", "train"), strict=True):
        assert_equal(left, right)
    assert not list((tmp_path / "set").glob("*.tmp"))
