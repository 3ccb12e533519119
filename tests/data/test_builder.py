"""The order of records on disk."""

from tensorflow_datasets.core.shuffle import BUCKETS_NUMBER, get_bucket_number

from jaxwm.data.builder import _key


def test_keys_rise_with_the_record_and_fill_one_bucket_after_the_other():
    records = [*range(0, 20 * 4096, 512), 4095, 4096, 10**6, 10**9]
    keys = [_key(record) for record in sorted(records)]
    assert keys == sorted(set(keys))
    assert max(keys) < 2**128
    buckets = {record: get_bucket_number(_key(record), BUCKETS_NUMBER) for record in records}
    assert buckets == {record: min(record // 4096, BUCKETS_NUMBER - 1) for record in records}
