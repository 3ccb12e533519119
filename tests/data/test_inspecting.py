"""Figures that can be computed by hand, and the pixels of a sheet."""

import numpy as np
import pytest
from episode_samples import LENGTHS, SPEC, make_episode, make_episodes
from PIL import Image

from jaxwm import data
from jaxwm.data.inspecting import contact_sheet, inspect_dataset
from jaxwm.types import ActionSpec, Field, Spec


def test_figures_are_those_of_all_entries_without_the_void_ones(folder):
    train, test = inspect_dataset(folder)
    assert (train.split, test.split) == ("train", "test")
    assert (train.episodes, train.steps, train.read) == (5, sum(LENGTHS["train"]), 5)
    assert train.lengths == (1, 19.0, 40)
    written = make_episodes("train")
    expected = {
        "image": np.concatenate([e.observation["image"].ravel() for e in written]),
        "vector": np.concatenate([e.observation["vector"].ravel() for e in written]),
        "action": np.concatenate([e.action[:-1].ravel() for e in written]),
        "reward": np.concatenate([e.reward[:-1] for e in written]),
        "condition/weather": np.concatenate([e.condition["weather"] for e in written]),
        "info/position": np.concatenate([e.info["position"].ravel() for e in written]),
    }
    assert [field.name for field in train.fields] == list(expected)
    for field in train.fields:
        values = expected[field.name].astype(np.float64)
        figures = (field.min, field.mean, field.max, field.std)
        np.testing.assert_allclose(figures, (values.min(), values.mean(), values.max(), values.std()), rtol=1e-6)
    assert train.fields[0].shape == (4, 4, 3)
    assert train.fields[0].dtype == "uint8"
    assert train.terminal == 1 / 5
    assert train.labelled == 1
    returns = [e.reward[:-1].sum() for e in written]
    np.testing.assert_allclose(train.returns, (min(returns), np.mean(returns), max(returns)))
    counts, edges = np.histogram(expected["action"][0::2], bins=10)
    assert train.actions[0] == tuple(counts)
    np.testing.assert_allclose(train.action_edges[0], edges)


def test_a_limit_spreads_what_is_read(folder):
    (train, _) = inspect_dataset(folder, limit=3)
    assert train.read == 3
    assert train.episodes == 5
    vector = next(field for field in train.fields if field.name == "vector")
    assert vector.max == 39  # the longest episode is the first
    assert vector.min == 0


def test_choices_are_counted_and_unlabelled_steps_left_out(tmp_path):
    spec = Spec((Field("vector", (2,), "float32"),), ActionSpec(3, discrete=True))
    sample = make_episode(5)
    episode = data.Episode(
        observation={"vector": sample.observation["vector"]},
        action=np.eye(3, dtype=np.float32)[[0, 2, 2, 1, 1]],
        reward=sample.reward,
        action_valid=np.array([True, True, True, False, True]),
        **data.step_flags(5),
    )
    data.write_episodes(tmp_path / "set", spec, {"train": [episode]}, "choices")
    (train,) = inspect_dataset(tmp_path / "set")
    assert train.actions == (1, 0, 2)
    assert train.action_edges == ()
    assert train.labelled == 0.8
    with pytest.raises(data.DataError, match=r"there are no pictures to show, only \['vector'\]"):
        contact_sheet(tmp_path / "set", tmp_path / "sheet.png")


def test_a_sheet_has_an_episode_a_row_and_its_frames_from_first_to_last(folder, tmp_path):
    contact_sheet(folder, tmp_path / "deep" / "sheet.png", rows=3, columns=3)
    sheet = np.asarray(Image.open(tmp_path / "deep" / "sheet.png"))
    assert sheet.shape == (3 * 6 + 2, 3 * 6 + 2, 3)
    # Episodes 0, 2 and 4, of 40, 17 and 1 steps; a pixel is step + 3 * number.
    expected = [[0, 20, 39], [6, 14, 22], [12, 255, 255]]
    for row, values in enumerate(expected):
        for column, value in enumerate(values):
            assert (sheet[2 + 6 * row : 6 + 6 * row, 2 + 6 * column : 6 + 6 * column] == value).all()
    assert (sheet[:2] == 255).all()


def test_sheets_that_cannot_be_made_are_named(folder, tmp_path):
    assert SPEC.images[0].name == "image"
    with pytest.raises(data.DataError, match="there is no picture 'camera', only image"):
        contact_sheet(folder, tmp_path / "sheet.png", field="camera")
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match="cannot be written"):
        contact_sheet(folder, tmp_path / "file" / "sheet.png")
