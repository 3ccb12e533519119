"""The TFDS builder behind `jaxwm.data.episodes`, with a config for each world and each recorded environment.

TFDS brings the files, the features and their metadata; this builder cuts episodes into records and puts the index
and the spec beside them, also for episodes that were imported. Once this module is imported,
``tfds.builder("jaxwm_episodes/bounce")`` simulates the world of that name with the default counts of
`jaxwm.data.generate`; ``tfds.builder("jaxwm_episodes/cartpole")`` records one of `jaxwm.data.recording.RECORDINGS`.
Any other environment is a config of its own:

    recording = Recording("Acrobot-v1", train=100, test=10, observe="vectors")
    builder = JaxwmEpisodes(config=EpisodesConfig(name="acrobot", source=recording.source), data_dir="data")
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from jaxwm import worlds
from jaxwm.data.episodes import (
    CHUNK,
    FORMAT,
    DataError,
    Episode,
    Source,
    check_episode,
    flatten,
    info_fields,
    layout,
    unflatten,
)
from jaxwm.data.generate import simulated
from jaxwm.data.recording import RECORDINGS
from jaxwm.types import Field

_SHARD_BYTES = 1 << 28
"""A file is closed when it has grown beyond this."""


@dataclasses.dataclass
class EpisodesConfig(tfds.core.BuilderConfig):
    """A data set of one world or environment; ``source`` gives its episodes when it is built."""

    source: Callable[[], Source] | None = None


def _simulated(world: str) -> Source:
    return simulated(worlds.WORLDS[world]())


def _recorded(name: str) -> Source:
    return RECORDINGS[name].source()


class JaxwmEpisodes(tfds.core.GeneratorBasedBuilder):
    """Episodes as records of up to `CHUNK` steps, in order."""

    name = "jaxwm_episodes"
    VERSION = tfds.core.Version(f"{FORMAT}.0.0")
    code_path = None  # there are no checksums of downloads beside this file to look for
    BUILDER_CONFIGS: ClassVar[list[EpisodesConfig]] = [
        *(
            EpisodesConfig(
                name=name, description=f"Simulated episodes of {name}", source=functools.partial(_simulated, name)
            )
            for name in sorted(worlds.WORLDS)
        ),
        *(
            EpisodesConfig(
                name=name,
                description=f"Recorded episodes of {recording.env_id}",
                source=functools.partial(_recorded, name),
            )
            for name, recording in sorted(RECORDINGS.items())
        ),
    ]

    def __init__(self, *, file_format: str | None = None, **options: Any) -> None:
        """See `tfds.core.DatasetBuilder`; the only format of the files is ``array_record``.

        Raises:
          DataError: another format.
        """
        if file_format not in (None, "array_record", tfds.core.FileFormat.ARRAY_RECORD):
            raise DataError(f"file_format is {file_format!r}, expected 'array_record'")
        super().__init__(file_format="array_record", **options)

    @functools.cached_property
    def _source(self) -> tuple[Source, tuple[Field, ...]]:
        """The source, and the fields of ``info`` as its first episode has them."""
        source = self.builder_config.source()
        splits = {name: iter(episodes) for name, episodes in source.splits.items()}
        if not splits:
            raise DataError(f"{source.name}: there are no splits, expected at least one")
        first_split = next(iter(splits))
        first = next(splits[first_split], None)
        if first is None:
            raise DataError(f"{first_split}: there are no episodes, expected at least one")
        splits[first_split] = itertools.chain([first], splits[first_split])
        info = info_fields(first)
        for name in layout(source.spec, info):
            if not re.fullmatch(r"(\w+/)?[\w.-]+", name):
                raise DataError(f"the name of {name!r} must be made of letters, digits, '_', '-' and '.'")
        return dataclasses.replace(source, splits=splits), info

    def _info(self) -> tfds.core.DatasetInfo:
        source, info = self._source
        features = {
            name: tfds.features.Tensor(shape=(None, *shape), dtype=np.dtype(dtype).type, encoding="zlib")
            for name, (shape, dtype) in layout(source.spec, info).items()
        }
        nested = {name: group for name, group in unflatten(features).items() if group}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(nested), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        source, info = self._source
        header = {
            "version": FORMAT,
            "name": source.name,
            "chunk": CHUNK,
            "spec": source.spec.to_dict(),
            "info": [list(field) for field in info],
            "metadata": dict(source.metadata),
        }
        try:
            text = json.dumps(header, indent=1)
        except TypeError as error:
            raise DataError(f"metadata of {source.name}: {error}; expected plain values") from None
        (pathlib.Path(self.data_dir) / "spec.json").write_text(text + "\n")
        return {split: self._generate_examples(split, episodes) for split, episodes in source.splits.items()}

    def _generate_examples(self, split: str, episodes: Iterable[Episode]) -> Iterator[tuple[int, dict[str, Any]]]:
        source, info = self._source
        index: list[tuple[int, int]] = []
        record = 0
        for number, episode in enumerate(episodes):
            check_episode(episode, source.spec, info, where=f"{split} episode {number}")
            index.append((record, len(episode)))
            arrays = flatten(episode)
            for start in range(0, len(episode), CHUNK):
                chunk = unflatten({name: array[start : start + CHUNK] for name, array in arrays.items()})
                yield record, {name: group for name, group in chunk.items() if isinstance(group, np.ndarray) or group}
                record += 1
        if not index:
            raise DataError(f"{split}: there are no episodes, expected at least one")
        np.save(pathlib.Path(self.data_dir) / f"index-{split}.npy", np.asarray(index, np.int64))

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        """Writes the records as they come: TFDS would sort them first, in memory, or beyond 1 GB with TensorFlow."""
        return [self._write(split, examples) for split, examples in self._split_generators(dl_manager).items()]

    def _write(self, split: str, examples: Iterable[tuple[int, dict[str, Any]]]) -> tfds.core.SplitInfo:
        folder = pathlib.Path(self.data_dir)
        serialized = (self.info.features.serialize_example(example) for _, example in examples)
        lengths: list[int] = []
        sizes: list[int] = []
        record = next(serialized, None)
        while record is not None:
            lengths, sizes = [*lengths, 0], [*sizes, 0]
            writer = array_record_module.ArrayRecordWriter(str(folder / f"{split}-{len(lengths)}"), "group_size:1")
            try:
                while record is not None and sizes[-1] < _SHARD_BYTES:
                    writer.write(record)
                    lengths[-1], sizes[-1] = lengths[-1] + 1, sizes[-1] + len(record)
                    record = next(serialized, None)
            finally:
                writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=self.name, split=split, filetype_suffix="array_record"
        )
        for shard in range(len(lengths)):
            name = template.sharded_filepath(shard_index=shard, num_shards=len(lengths))
            (folder / f"{split}-{shard + 1}").rename(name)
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=sum(sizes), filename_template=template)

    def _log_download_bytes(self) -> None:
        """Silent: `jaxwm` has its own progress."""

    def _log_download_done(self) -> None:
        """Silent."""


def prepare(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """Writes the data set of ``source`` somewhere below ``folder`` and returns where."""
    config = EpisodesConfig(
        name=re.sub(r"\W+", "_", source.name).strip("_").lower() or "episodes", source=lambda: source
    )

    class Writer(JaxwmEpisodes, skip_registration=True):  # type: ignore[call-arg]
        """Only this config, whose name may be that of a world with other parameters."""

        name = JaxwmEpisodes.name
        BUILDER_CONFIGS: ClassVar[list[EpisodesConfig]] = [config]

    builder = Writer(data_dir=folder, config=config)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


class Records:
    """The records of one split; each array is unzipped when it is asked for."""

    def __init__(self, path: pathlib.Path, split: str, fields: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        builder = tfds.builder_from_directory(path)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split, deserialize_method=raw)
        self._fields = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in fields.items()}
        info = builder.info.splits[split]
        self._files = [pathlib.Path(file) for file in info.filepaths]
        self._ends = np.cumsum(info.shard_lengths)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, record: int, names: Iterable[str], steps: int) -> dict[str, np.ndarray]:
        """The first ``steps`` steps of the arrays called ``names`` of one record; later ones are not unzipped.

        Raises:
          ValueError: an array that is shorter.
        """
        # What TFDS's own decoding would give, at a fraction of its cost for many small features.
        features = tf_example_pb2.Example.FromString(self._source[record]).features.feature
        arrays = {}
        for name in names:
            shape, dtype = self._fields[name]
            size = steps * math.prod(shape) * dtype.itemsize
            data = zlib.decompressobj().decompress(features[name].bytes_list.value[0], size)
            if len(data) != size:
                raise ValueError(f"{name} has {len(data)} bytes, expected {size}")
            arrays[name] = np.frombuffer(data, dtype).reshape(steps, *shape)
        return arrays

    def file_of(self, record: int) -> pathlib.Path:
        """The file that holds ``record``."""
        return self._files[int(np.searchsorted(self._ends, record, side="right"))]


def open_records(path: pathlib.Path, split: str, fields: Mapping[str, tuple[tuple[int, ...], str]]) -> Records:
    """Opens a split of the data set at ``path`` whose arrays have the shapes and dtypes ``fields``.

    Raises:
      DataError: TFDS cannot make sense of the folder.
    """
    try:
        return Records(path, split, fields)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: split {split} cannot be opened, damaged ({type(error).__name__}: {reason})"
        ) from None
