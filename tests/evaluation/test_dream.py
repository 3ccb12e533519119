"""Dreams on demand, and where their actions come from."""

from __future__ import annotations

import numpy as np
import pytest

from jaxwm.evaluation.dream import dream_run, make_actions, read_actions
from jaxwm.types import ActionSpec

BOX = ActionSpec(2, low=(-1.0, 0.0), high=(1.0, 4.0))
CHOICE = ActionSpec(3, discrete=True)


def test_the_dream_goes_on_from_the_frames_of_the_episode(toy_run):
    dream = dream_run(toy_run, horizon=4, start=2, count=2)
    rollout = dream.rollout
    assert dream.has_truth and rollout.context == 3
    assert rollout.prediction.observation["image"].shape == (2, 7, 16, 16, 3)
    last = rollout.observation["image"][:, 2] / 255
    np.testing.assert_allclose(
        rollout.prediction.observation["image"][:, 3],
        0.9 * last + 0.1 * dream.action[:, 0, 0][:, None, None, None],
        atol=1e-5,
    )
    alone = dream_run(toy_run, horizon=4, start=3)
    np.testing.assert_array_equal(alone.rollout.observation["image"][0], rollout.observation["image"][1])


def test_other_actions_lead_elsewhere_from_the_same_frames(toy_run, tmp_path):
    np.save(tmp_path / "push.npy", np.full((6, 2), 0.5, np.float32))
    recorded, pushed = dream_run(toy_run, horizon=4), dream_run(toy_run, str(tmp_path / "push.npy"), horizon=4)
    assert not pushed.has_truth
    assert (pushed.action == 0.5).all()
    before, after = (d.rollout.prediction.observation["image"] for d in (recorded, pushed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    expected = 0.9 * before[:, 2] + 0.05
    np.testing.assert_allclose(after[:, 3], expected, atol=1e-5)


def test_the_horizon_follows_from_the_actions(toy_run, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 2), np.float32))
    assert dream_run(toy_run, str(tmp_path / "a.npy")).action.shape == (1, 4, 2)
    assert dream_run(toy_run).action.shape == (1, 9, 2)
    assert dream_run(toy_run, "zero").action.shape == (1, 40, 2)


def test_the_seed_decides_about_chance(toy_run):
    picture = lambda **o: dream_run(toy_run, horizon=4, **o).rollout.prediction.observation["image"]  # noqa: E731
    assert not np.array_equal(picture(temperature=1.0, seed=1), picture(temperature=1.0, seed=2))
    np.testing.assert_array_equal(picture(temperature=1.0, seed=1), picture(temperature=1.0, seed=1))
    np.testing.assert_array_equal(picture(seed=1), picture(seed=2))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("data", 10), {}, "horizon is 10, but only 9 recorded actions follow a context of 3"),
        (("data", 0), {}, "horizon is 0"),
        (("rnd", 2), {}, "'rnd' is neither a .npy or .csv file nor one of data, random, zero; did you mean 'random'"),
        (("data", 2), {"start": 6}, r"episodes 6\.\.6: test has the episodes 0\.\.5"),
        (("data", 2), {"start": 5, "count": 2}, r"episodes 5\.\.6"),
        (("data", 2), {"context": 13}, "context is 13, but an episode has only 12 frames"),
        (("data", 2), {"temperature": -1}, "temperature is -1"),
        (("data", 2), {"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_impossible_dreams_are_refused(toy_run, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        dream_run(toy_run, *arguments, **options)


def test_made_actions_keep_to_their_bounds():
    random = make_actions("random", BOX, (200, 5), seed=0)
    assert random.shape == (200, 5, 2) and random.dtype == np.float32
    assert random.min((0, 1))[1] >= 0 and 3.9 < random.max() <= 4
    assert make_actions("zero", ActionSpec(1, low=(2.0,), high=(3.0,)), (2,), 0).tolist() == [[2], [2]]
    one_hot = make_actions("random", CHOICE, (50,), seed=0)
    assert (one_hot.sum(-1) == 1).all() and (one_hot.sum(0) > 5).all()
    assert make_actions("zero", CHOICE, (1,), 0).tolist() == [[1, 0, 0]]
    assert abs(make_actions("random", ActionSpec(1), (4000,), 0).std() - 1) < 0.1


def test_actions_are_read_from_files(tmp_path):
    (tmp_path / "box.csv").write_text("# x, y\n0.5,1\n-1,4\n")
    assert read_actions(tmp_path / "box.csv", BOX).tolist() == [[0.5, 1], [-1, 4]]
    (tmp_path / "choice.csv").write_text("2\n0\n")
    assert read_actions(tmp_path / "choice.csv", CHOICE).tolist() == [[0, 0, 1], [1, 0, 0]]
    np.save(tmp_path / "choice.npy", np.array([1, 1]))
    assert read_actions(tmp_path / "choice.npy", CHOICE).tolist() == [[0, 1, 0], [0, 1, 0]]
    np.save(tmp_path / "one.npy", np.array([0.25, 0.5]))
    assert read_actions(tmp_path / "one.npy", ActionSpec(1)).tolist() == [[0.25], [0.5]]


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        ("1,2,3\n", BOX, r"actions have the shape \[1, 3\], expected \[T, 2\]"),
        ("0,1\n0,9\n", BOX, r"the action of step 1, \[0.0, 9.0\], is not within"),
        ("0,nan\n", BOX, "the action of step 0 is not finite"),
        ("left,right\n", BOX, "not a table of numbers"),
        ("3\n", CHOICE, r"the action of step 0 is 3, expected a whole number 0\.\.2"),
        ("0.5\n", CHOICE, "expected a whole number"),
        ("1,1,0\n", CHOICE, "one-hot"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, content, spec, message):
    path = tmp_path / "moves.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"moves\.csv.*" + message):
        read_actions(path, spec)


def test_numbers_are_kept_in_an_npz_file(toy_run, tmp_path):
    dream = dream_run(toy_run, horizon=4)
    dream.save(tmp_path / "a" / "dream.npz")
    with np.load(tmp_path / "a" / "dream.npz") as saved:
        np.testing.assert_array_equal(saved["imagined/image"], dream.rollout.prediction.observation["image"])
        assert saved["truth/image"].shape == (1, 7, 16, 16, 3) and saved["action"].shape == (1, 4, 2)
        assert saved["context"] == 3 and "imagined/reward" not in saved


def test_films_and_sheets_show_truth_only_where_there_is_one(toy_run):
    with_truth, without = dream_run(toy_run, horizon=4, count=2), dream_run(toy_run, "zero", horizon=4, count=2)
    film = with_truth.film(scale=2, labels=False)
    assert film.shape == (7, 2 * (4 + 32 + 4 + 4), 3 * 36 + 4, 3)
    assert without.film(scale=2, labels=False).shape == (7, 4 + 32 + 4 + 4, 2 * 40, 3)
    assert with_truth.sheet().shape[0] == 2 * (20 + 3 * 20 + 4)
    assert without.sheet().shape[0] == 2 * (20 + 1 * 20 + 4)
