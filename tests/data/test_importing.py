"""Files as episodes: values, alignment, splits, and errors that name the file."""

import dataclasses

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest

from jaxwm import data
from jaxwm.data.importing import Importer, import_dataset
from jaxwm.types import ActionSpec, Field


def write_video(file, frames=6, size=(16, 32), first=0):
    """Grey pictures that get brighter by 30 a frame."""
    pictures = np.stack([np.full((*size, 3), first + 30 * t, np.uint8) for t in range(frames)])
    if file.suffix == ".gif":
        imageio.imwrite(file, pictures, plugin="pillow", duration=100, loop=0)
    else:
        imageio.imwrite(file, pictures, plugin="pyav", codec="libx264", fps=10)


def arrays(length=5, start=0):
    steps = np.arange(start, start + length)
    return {
        "camera": np.broadcast_to(steps.astype(np.uint8)[:, None, None, None], (length, 4, 4, 3)),
        "speed": steps.astype(np.float64),
        "action": np.stack([steps, -steps], -1) / 100,
        "reward": steps * 1.0,
        "is_terminal": np.arange(length) == length - 1,
        "info/position": np.stack([steps, steps], -1) * 1.0,
        "condition/text": np.full((length, 3), 7),
    }


@pytest.mark.parametrize("kind", [".mp4", ".gif"])
def test_a_video_is_an_unlabelled_episode(tmp_path, kind):
    (tmp_path / "clips" / "inner").mkdir(parents=True)
    for name in ("a", "inner/b", "c"):
        write_video(tmp_path / "clips" / f"{name}{kind}", frames=7)
    (tmp_path / "clips" / "notes.txt").write_text("not a clip")
    import_dataset(tmp_path / "set", Importer(tmp_path / "clips", size=8, every=2))
    train, test = (data.open_episodes(tmp_path / "set", split) for split in ("train", "test"))
    assert train.spec.observation == (Field("image", (8, 8, 3), "uint8"),)
    assert (train.lengths.tolist(), test.lengths.tolist()) == ([4, 4], [4])
    for episode in [*train, *test]:
        brightness = episode.observation["image"].astype(float).mean((1, 2, 3))
        np.testing.assert_allclose(brightness, [0, 60, 120, 180], atol=4)
        assert not episode.action_valid.any()
        assert not episode.is_terminal.any()
        assert not episode.reward.any()


def test_long_files_are_cut(tmp_path):
    write_video(tmp_path / "a.gif", frames=7)
    np.savez(tmp_path / "b.npz", image=np.zeros((5, 16, 16, 3), np.uint8))
    episodes = list((importer := Importer(tmp_path, size=8, max_length=3)).read(importer.origins))
    assert [len(episode) for episode in episodes] == [3, 3, 1, 3, 2]
    assert all(episode.is_first[0] and episode.is_last[-1] for episode in episodes)


def test_arrays_named_like_the_fields_need_no_keys(tmp_path):
    np.savez(tmp_path / "one.npz", **arrays())
    importer = Importer(tmp_path / "one.npz", size=4)
    (episode,) = importer.read(importer.origins)
    assert importer.spec.action == ActionSpec(2)
    assert importer.spec.observation == (Field("camera", (4, 4, 3), "uint8"), Field("speed", (1,), "float32"))
    assert importer.spec.condition == (Field("text", (3,), "int32"),)
    np.testing.assert_array_equal(episode.observation["camera"][:, 0, 0, 0], range(5))
    np.testing.assert_array_equal(episode.observation["speed"][:, 0], range(5))
    np.testing.assert_allclose(episode.action[:, 1], -np.arange(5) / 100, rtol=1e-6)
    assert episode.reward.tolist() == [0, 1, 2, 3, 4]
    assert episode.is_terminal.tolist() == [False] * 4 + [True]
    assert episode.action_valid.all()
    assert episode.info["position"].dtype == np.float32


def test_groups_of_an_hdf5_file_are_episodes_in_their_order(tmp_path):
    with h5py.File(tmp_path / "demonstrations.hdf5", "w") as file:
        for number in (10, 2, 1):
            group = file.create_group(f"data/demo_{number}")
            for name, array in arrays(3, start=number).items():
                group[f"obs/{name}" if name == "camera" else name] = array
        file["mask/train"] = np.arange(3)
    importer = Importer(
        tmp_path, keys={"image": "obs/camera", "action": "action"}, size=4, episodes="data", bounds=(-1.0, 1.0)
    )
    assert importer.spec.observation == (Field("image", (4, 4, 3), "uint8"),)
    assert importer.spec.action == ActionSpec(2, low=(-1.0, -1.0), high=(1.0, 1.0))
    first = [episode.observation["image"][0, 0, 0, 0] for episode in importer.read(importer.origins)]
    assert first == [1, 2, 10]


def test_actions_follow_their_observation(tmp_path):
    vector = np.arange(5.0)[:, None]
    led_here = np.array([[0.0], [10], [20], [30], [40]])  # the action that led to the observation beside it
    np.savez(tmp_path / "precedes.npz", vector=vector, action=led_here, reward=led_here[:, 0])
    np.savez(tmp_path / "short.npz", vector=vector, action=led_here[1:], reward=led_here[1:, 0])
    for name, alignment in (("precedes", "precedes"), ("short", "follows"), ("short", "precedes")):
        importer = Importer(tmp_path / f"{name}.npz", alignment=alignment)
        (episode,) = importer.read(importer.origins)
        assert episode.action[:, 0].tolist() == [10, 20, 30, 40, 0]
        assert episode.reward.tolist() == [10, 20, 30, 40, 0]


def test_choices_become_one_hot_and_files_without_actions_stay_unlabelled(tmp_path):
    np.savez(tmp_path / "a.npz", vector=np.zeros((3, 1)))
    np.savez(tmp_path / "b.npz", vector=np.zeros((3, 1)), action=np.array([2, 0, 1]))
    importer = Importer(tmp_path, choices=3)
    unlabelled, labelled = importer.read(importer.origins)
    assert labelled.action.tolist() == np.eye(3)[[2, 0, 1]].tolist()
    assert not unlabelled.action_valid.any()
    assert unlabelled.action.shape == (3, 3)


def test_the_draw_of_the_test_files_is_by_seed_and_leaves_some_for_training(tmp_path):
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", vector=np.full((2, 1), number))
    held_out = []
    for number, seed in enumerate((0, 0, 1, 2, 3)):
        import_dataset(tmp_path / f"set{number}", Importer(tmp_path), test=2, seed=seed)
        test = data.open_episodes(tmp_path / f"set{number}", "test")
        train = data.open_episodes(tmp_path / f"set{number}", "train")
        values = [sorted(int(e.observation["vector"][0, 0]) for e in split) for split in (train, test)]
        assert sorted(values[0] + values[1]) == list(range(6))
        held_out.append(values[1])
    assert held_out[0] == held_out[1]
    assert len(set(map(tuple, held_out))) > 1
    with pytest.raises(data.DataError, match="test is 6, expected fewer than the 6 files"):
        import_dataset(tmp_path / "all", Importer(tmp_path), test=6)


def saved(**changes):
    return lambda file: np.savez(file, **{k: v for k, v in (arrays() | changes).items() if v is not None})


PROBLEMS = {
    "unknown key": (saved(), {"keys": {"image": "camra"}}, r"there is no array 'camra'; did you mean 'camera'\?"),
    "no observation": (saved(camera=None, speed=None), {}, "there is no observation among action, reward"),
    "unequal lengths": (saved(action=np.zeros((3, 2))), {}, "action has 3 steps, the observation has 5"),
    "unequal observations": (saved(speed=np.zeros(4)), {}, r"observation/speed has 4 steps, reward has 5"),
    "NaN reward": (saved(reward=np.array([0, 1, np.nan, 3, 4])), {}, "reward is not finite at step 2"),
    "two rewards": (saved(reward=np.zeros((5, 2))), {}, r"reward is \[5, 2\], expected \[5\]"),
    "early end": (saved(is_terminal=np.arange(5) == 1), {}, "is_terminal at step 1 of 5; a file holds one episode"),
    "integers": (saved(action=np.arange(5)), {}, "action holds integers; say how many choices there are"),
    "many choices": (saved(action=np.arange(5)), {"choices": 3}, "action reaches from 0 to 4, expected 0 to 2"),
    "floats for choices": (saved(), {"choices": 3}, r"action is float64\[5, 2\], expected integers or 3 columns"),
    "out of bounds": (saved(), {"bounds": (0.0, 1.0)}, "action at step 1 is"),
    "float pictures": (
        saved(camera=np.zeros((5, 4, 4, 3))),
        {},
        r"camera is float64\[5, 4, 4, 3\], expected pictures",
    ),
    "text": (saved(speed=np.array(["a"] * 5)), {}, r"speed is <U1\[5\], expected numbers over time"),
    "two channels": (saved(camera=np.zeros((5, 4, 4, 2), np.uint8)), {}, "a picture is uint8"),
    "not a file": (lambda file: file.write_bytes(b"PK nonsense"), {}, "cannot read this file"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_file_that_cannot_be_imported_is_named(tmp_path, case):
    write, settings, message = PROBLEMS[case]
    file = tmp_path / "broken.npz"
    write(file)
    with pytest.raises(data.DataError, match=message) as error:
        import_dataset(tmp_path / "set", Importer(tmp_path, **{"size": 4, **settings}))
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_a_file_that_does_not_fit_the_first_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **(arrays() | {"speed": np.zeros((5, 2))}))
    importer = Importer(tmp_path, size=4)
    with pytest.raises(data.DataError, match=r"b.npz: observation\['speed'\] has shape \(5, 2\), expected \(5, 1\)"):
        list(importer.read(importer.origins))


def test_damaged_videos_and_hdf5_files_are_named(tmp_path):
    for name in ("a.mp4", "a.gif", "a.h5"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(data.DataError, match=f"{name}: cannot read this") as error:
            Importer(tmp_path / name).spec  # noqa: B018
        assert "\n" not in str(error.value)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data/demo_0/vector"] = np.zeros(3)
    with pytest.raises(data.DataError, match=r"b.h5: there is no group 'dat'; did you mean 'data'\?"):
        Importer(tmp_path / "b.h5", episodes="dat")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "/nowhere"}, "/nowhere: there is no such file or folder"),
        ({}, "there is nothing to import, expected files that end with .mp4"),
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"alignment": "beside"}, "alignment is 'beside', expected 'follows' or 'precedes'"),
        ({"choices": 2, "bounds": (0.0, 1.0)}, "choices and bounds exclude each other"),
    ],
)
def test_impossible_settings_are_named(tmp_path, settings, message):
    with pytest.raises(data.DataError, match=message):
        Importer(**{"source": tmp_path, **settings})


def test_the_settings_are_kept_beside_the_data(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    importer = Importer(tmp_path / "a.npz", keys={"camera": "camera"}, size=4)
    import_dataset(tmp_path / "set", importer)
    kept = data.open_episodes(tmp_path / "set", "train").metadata["import"]
    assert kept["keys"] == {"camera": "camera"}
    assert kept["source"] == str(tmp_path / "a.npz")
    assert kept.keys() == {f.name for f in dataclasses.fields(Importer) if f.init} | {"test", "seed"}
