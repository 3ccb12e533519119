"""Videos and pictures for people."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jaxwm.evaluation import clips


@pytest.fixture
def episode():
    random = np.random.default_rng(0)
    truth = random.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
    return truth, np.clip(truth / 255 + random.normal(0, 0.2, truth.shape), 0, 1).astype(np.float32)


def test_pixels_are_rounded_clipped_and_coloured():
    images = np.array([-1.0, 0.0, 0.5, 1.0, 3.0, np.nan]).reshape(1, 2, 3, 1)
    pixels = clips.to_pixels(images)
    assert pixels.shape == (1, 2, 3, 3) and pixels.dtype == np.uint8
    assert pixels[..., 1].ravel().tolist() == [0, 0, 128, 255, 255, 0]
    with pytest.raises(clips.ClipError, match=r"frame has shape \(4, 4, 2\)"):
        clips.to_pixels(np.zeros((4, 4, 2)), "frame")


def test_what_can_be_drawn_are_bytes_with_one_or_three_channels():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    parts = {"float": frames / 255, "flow": frames[..., :2], "grey": frames[..., :1], "image": frames}
    assert clips.drawable(parts) == "grey"
    assert clips.drawable({"float": frames / 255}) is None


def test_upscaling_repeats_pixels(episode):
    truth, _ = episode
    big = clips.upscale(truth, 3)
    assert big.shape == (6, 36, 30, 3)
    np.testing.assert_array_equal(big[:, 1::3, 2::3], truth)
    with pytest.raises(clips.ClipError, match="scale is 0"):
        clips.upscale(truth, 0)


def test_the_error_map_is_black_where_right_and_white_where_wrong():
    truth = np.zeros((2, 1, 3), np.uint8)
    prediction = np.array([[[0, 0, 0]], [[255, 255, 255]]], np.uint8)
    assert clips.error_map(truth, prediction).tolist() == [[[0, 0, 0]], [[255, 255, 255]]]
    # Red fills up to 1/6 of the range, green from there to 2/6: at 0.2 red is full and green at a fifth.
    assert clips.error_map(np.zeros((1, 1, 1)), np.full((1, 1, 1), 0.2)).tolist() == [[[255, 51, 0]]]


def test_side_by_side_shows_truth_imagined_and_error(episode):
    truth, prediction = episode
    video = clips.side_by_side(truth, prediction, 2, scale=2, labels=False)
    panels = [video[:, 4:28, 4 + i * 24 : 24 + i * 24] for i in range(3)]
    for panel, expected in zip(panels, (truth, prediction, clips.error_map(truth, prediction)), strict=True):
        np.testing.assert_array_equal(panel[:, ::2, ::2], clips.to_pixels(expected))
    bar = video[:, 30, 4:-4]
    assert [tuple(frame[0]) for frame in bar] == [clips.CONTEXT_COLOUR] * 6
    blue = [(frame == clips.IMAGINED_COLOUR).all(-1).mean() for frame in bar]
    np.testing.assert_allclose(blue, [0, 0, 1 / 6, 2 / 6, 3 / 6, 4 / 6], atol=0.05)


def test_nothing_of_what_has_happened_was_imagined(episode):
    happened, dreamt = (clips.film(episode[0], context, scale=2) for context in (None, 0))
    assert not (happened == clips.IMAGINED_COLOUR).all(-1).any() and (dreamt == clips.IMAGINED_COLOUR).all(-1).any()
    assert (happened[:, -14:] != dreamt[:, -14:]).any()


def test_labels_are_drawn_above_and_below(episode):
    plain = clips.side_by_side(*episode, 2, labels=False)
    labelled = clips.side_by_side(*episode, 2, labels=True)
    assert labelled.shape[1] > plain.shape[1]
    assert (labelled[:, :14] == clips.TEXT).all(-1).any(axis=(1, 2)).all()
    assert (labelled[:, -14:] == clips.TEXT).all(-1).any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("truth", "prediction", "context", "message"),
    [
        (np.zeros((3, 4, 4, 3)), np.zeros((2, 4, 4, 3)), 1, "expected one"),
        (np.zeros((3, 4, 4, 3)), np.zeros((3, 4, 4, 3)), 4, r"context is 4, expected 0\.\.3"),
        (np.zeros((4, 4, 3)), np.zeros((4, 4, 3)), 1, "expected one"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(truth, prediction, context, message):
    with pytest.raises(clips.ClipError, match=message):
        clips.side_by_side(truth, prediction, context)


def test_the_contact_sheet_spreads_its_columns(episode):
    truth, prediction = episode
    sheet = clips.contact_sheet(truth, prediction, 2, columns=3, labels=False)
    assert sheet.shape == (4 + 3 * 16 + 4, 3 * 14 + 4, 3)
    for column, time in enumerate((0, 2, 5)):
        left = 4 + 14 * column
        np.testing.assert_array_equal(sheet[8:20, left : left + 10], truth[time])
        np.testing.assert_array_equal(sheet[24:36, left : left + 10], clips.to_pixels(prediction[time]))
    assert [tuple(sheet[1, 4 + 14 * i]) for i in range(3)] == [clips.CONTEXT_COLOUR, *[clips.IMAGINED_COLOUR] * 2]
    assert clips.contact_sheet(None, prediction, 2).shape[0] < sheet.shape[0]


def test_a_grid_fills_its_last_row(episode):
    truth, _ = episode
    grid = clips.tile([truth[row : row + 1] for row in range(5)], 3)[0]
    assert grid.shape == (2 * 12, 3 * 10, 3)
    np.testing.assert_array_equal(grid[12:, 10:20], truth[4])
    assert (grid[12:, 20:] == clips.BACKGROUND).all()
    with pytest.raises(clips.ClipError, match="expected one shape"):
        clips.tile([truth, truth[:2]], 2)


@pytest.mark.parametrize("suffix", clips.VIDEO_SUFFIXES)
def test_videos_are_read_back_and_the_same_every_time(tmp_path, suffix):
    import imageio.v3 as iio

    frames = np.zeros((7, 33, 50, 3), np.uint8)
    for time in range(7):
        frames[time, 8:24, 6 * time : 6 * time + 12] = (240, 80, 40)
    paths = [clips.write_video(tmp_path / f"{name}{suffix}", frames, fps=8) for name in ("one", "two")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    back = np.stack([np.asarray(frame)[:33, :50, :3] for frame in iio.imiter(paths[0])])
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 3


def test_a_gif_keeps_few_colours_exactly_and_its_speed(tmp_path):
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[1, 2:4], frames[2, 4:6] = (10, 200, 30), (250, 240, 0)
    with Image.open(clips.write_video(tmp_path / "a.gif", frames, fps=20)) as image:
        assert image.info["duration"] == 50 and image.n_frames == 3
        for time in range(3):
            image.seek(time)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frames[time])


def test_pictures_are_written_exactly(tmp_path, episode):
    truth, _ = episode
    path = clips.write_image(tmp_path / "deep" / "er" / "a.png", truth[0])
    np.testing.assert_array_equal(np.asarray(Image.open(path)), truth[0])


def test_files_that_cannot_be_written_are_refused(tmp_path):
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(clips.ClipError, match=r"cannot write a video as .giff; did you mean '.gif'"):
        clips.write_video(tmp_path / "a.giff", frames)
    with pytest.raises(clips.ClipError, match=r"as a file without suffix; known: .gif, .mp4"):
        clips.write_video(tmp_path / "a", frames)
    with pytest.raises(clips.ClipError, match=r"cannot write a picture as \.bmp"):
        clips.write_image(tmp_path / "a.bmp", frames[0])
    with pytest.raises(clips.ClipError, match="at least one frame"):
        clips.write_video(tmp_path / "a.gif", frames[:0])
    with pytest.raises(clips.ClipError, match="fps is 60"):
        clips.write_video(tmp_path / "a.gif", frames, fps=60)
    (tmp_path / "file").write_text("")
    with pytest.raises(clips.ClipError, match="cannot make its folder"):
        clips.write_video(tmp_path / "file" / "a.gif", frames)
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(clips.ClipError, match="is a folder"):
        clips.write_video(tmp_path / "folder.gif", frames)
