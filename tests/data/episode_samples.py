"""Small episodes whose every number says where it comes from."""

import dataclasses

import numpy as np

from jaxwm import data
from jaxwm.types import ActionSpec, Field, Spec

SPEC = Spec(
    observation=(Field("image", (4, 4, 3), "uint8"), Field("vector", (2,), "float32")),
    action=ActionSpec(2, low=(-1.0, -1.0), high=(1.0, 1.0)),
    condition=(Field("weather", (), "int32"),),
)
LENGTHS = {"train": [40, 5, 17, 32, 1], "test": [20, 16]}


def make_episode(length: int, number: int = 0, terminal: bool = False) -> data.Episode:
    """An episode that holds its own number and the step everywhere."""
    steps = np.arange(length)
    action = np.stack([steps / 1000, np.full(length, number / 1000)], -1).astype(np.float32)
    return data.Episode(
        observation={
            "image": np.broadcast_to((steps + 3 * number).astype(np.uint8)[:, None, None, None], (length, 4, 4, 3)),
            "vector": np.stack([steps, np.full(length, number)], -1).astype(np.float32),
        },
        action=action,
        reward=(steps * 0.5).astype(np.float32),
        condition={"weather": (steps % 3).astype(np.int32)},
        info={"position": np.stack([steps, steps + 1], -1).astype(np.float32)},
        **data.step_flags(length, terminal),
    )


def make_episodes(split: str) -> list[data.Episode]:
    """The episodes of a split of the folder that `folder` writes."""
    return [make_episode(length, number, number == 1) for number, length in enumerate(LENGTHS[split])]


def assert_equal(left: data.Episode, right: data.Episode) -> None:
    """Every array of the two episodes is the same, with its dtype."""
    for field in dataclasses.fields(data.Episode):
        a, b = getattr(left, field.name), getattr(right, field.name)
        a, b = (a, b) if isinstance(a, dict) else ({"": a}, {"": b})
        assert a.keys() == b.keys(), field.name
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{field.name} {name}")
            assert a[name].dtype == b[name].dtype, field.name
