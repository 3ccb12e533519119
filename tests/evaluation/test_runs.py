"""Held-out episodes and the scores of a run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxwm import data
from jaxwm.config import build_world
from jaxwm.data import DataError
from jaxwm.evaluation import runs
from jaxwm.types import ActionSpec, Spec


@pytest.fixture(scope="module")
def on_disk(toy_run, tmp_path_factory):
    """The configuration of `toy_run` with its episodes on disk."""
    path = tmp_path_factory.mktemp("data") / "bounce"
    section = toy_run.config.data.model_copy(update={"path": str(path)})
    data.ensure_dataset(section)
    return toy_run.config.model_copy(update={"data": section})


@pytest.mark.parametrize("split", ["train", "test"])
def test_simulated_episodes_are_those_that_would_be_on_disk(toy_run, on_disk, split):
    simulated = runs.open_split(toy_run.config, split, 3)
    stored = runs.open_split(on_disk, split, 3)
    assert isinstance(simulated, runs.SimulatedEpisodes) and not isinstance(stored, runs.SimulatedEpisodes)
    assert simulated.lengths.tolist() == stored.lengths[:3].tolist() == [12] * 3
    for start, length in ((0, 5), (4, 12)):
        mine, theirs = (source.windows([2, 0], [start, start], length) for source in (simulated, stored))
        for field in dataclasses.fields(mine):
            a, b = getattr(mine, field.name), getattr(theirs, field.name)
            if a is None or b is None:
                assert a is b
                continue
            for name in a if isinstance(a, dict) else [None]:
                left, right = (a, b) if name is None else (a[name], b[name])
                # Padding repeats nothing and invents nothing: only what is valid has to agree.
                mask = slice(None) if field.name == "previous_action" else theirs.valid
                np.testing.assert_array_equal(np.asarray(left)[mask], np.asarray(right)[mask], err_msg=field.name)
        np.testing.assert_array_equal(mine.valid, theirs.valid)


def test_there_must_be_episodes_or_a_way_to_make_them(toy_run):
    section = toy_run.config.data.model_copy(update={"generate": None})
    with pytest.raises(DataError, match="there are no episodes"):
        runs.open_split(toy_run.config.model_copy(update={"data": section}), "test", 2)


def test_batches_cover_the_episodes_once(on_disk):
    source = runs.open_split(on_disk, "test", 5)
    sizes = [batch.reward.shape for batch in runs.batches(source, 5, 8, batch=2)]
    assert sizes == [(2, 8), (2, 8), (1, 8)]
    assert [b.reward.shape[0] for b in runs.batches(source, 100, 8, batch=4)] == [4, 2]


def test_long_episodes_come_first():
    class Source:
        lengths = np.array([3, 9, 5, 9])

    assert runs.longest_first(Source(), 3, 6) == [1, 3, 0]


def test_a_run_is_scored_as_its_configuration_says(toy_run):
    scores = runs.evaluate_run(toy_run)
    assert (scores.context, scores.horizon, scores.episodes, scores.mean) == (3, 5, 4, "training")
    assert scores.count == (4,) * 5
    world = build_world(toy_run.config.data.generate.world)
    trajectory = runs.open_split(toy_run.config, "test", 4).windows(range(4), [0] * 4, 8)
    last, truth = (trajectory.observation["image"][:, i] / 255 for i in (2, 4))
    np.testing.assert_allclose(
        scores.at("image/mse", 2), np.mean((truth - 0.81 * last - push(trajectory)) ** 2), rtol=1e-4
    )
    np.testing.assert_allclose(scores.at("image/mse", 2, "copy"), np.mean((truth - last) ** 2), rtol=1e-4)
    assert world.balls == 1 and scores.at("ball/within_radius", 1) in np.arange(5) / 4


def push(trajectory):
    """What the toy's actions have added to the brightness after two steps."""
    return (0.09 * trajectory.action[:, 2, 0] + 0.1 * trajectory.action[:, 3, 0])[:, None, None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 10}, r"horizon is 10, but the longest of these episodes has 12 steps: at most 9 can follow"),
        ({"split": "valid"}, "split 'valid' is unknown"),
        ({"samples": 3}, "a mode is one"),
    ],
)
def test_impossible_evaluations_are_refused(toy_run, options, message):
    with pytest.raises(ValueError, match=message):
        runs.evaluate_run(toy_run, 2, **options)


def test_episodes_of_another_world_are_refused(toy_run):
    other = Spec(toy_run.spec.observation, ActionSpec(5))
    message = r"have image uint8\[16, 16, 3\] and 2 actions within .*, the model was made for .* and 5 actions"
    with pytest.raises(DataError, match=message):
        runs.checked_split(toy_run.config, other, "test", 2, 3, 2)


def test_the_mean_is_that_of_the_training_episodes(toy_run):
    episodes = runs.open_split(toy_run.config, "train", 8).windows(range(8), [0] * 8, 12)
    np.testing.assert_allclose(
        runs.training_mean(toy_run.config)["image"], (episodes.observation["image"] / 255).mean((0, 1)), atol=1e-5
    )
