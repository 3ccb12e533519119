"""Pictures and videos for people: truth beside imagination beside error, contact sheets, GIF and MP4 files.

Pictures are ``[..., H, W, C]`` arrays, uint8 in 0..255 or floats in [0, 1], with one or three channels.
The same input gives the same file, byte for byte.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxwm.types import nearest

Pixels = np.ndarray
"""uint8 ``[..., H, W, 3]``."""

BACKGROUND = (17, 20, 27)
TEXT = (222, 226, 233)
CONTEXT_COLOUR = (245, 166, 35)
"""Marks frames that the model was shown."""
IMAGINED_COLOUR = (88, 166, 255)
"""Marks frames that the model imagined."""

VIDEO_SUFFIXES = (".gif", ".mp4")
IMAGE_SUFFIXES = (".png", ".jpg", ".webp")

_HEADER = 16
_MARGIN = 4
_BAR = 4


class ClipError(ValueError):
    """Pictures that cannot be shown or a file that cannot be written; the message is one line."""


def drawable(arrays: Mapping[str, Any]) -> str | None:
    """The name of the first of ``arrays`` that holds pictures: bytes ``[..., H, W, C]`` with one or three channels."""
    return next((name for name, x in arrays.items() if x.dtype == np.uint8 and x.shape[-1] in (1, 3)), None)


def to_pixels(images: Any, name: str = "images") -> Pixels:
    """``[..., H, W, 1 or 3]`` floats in [0, 1] or bytes as uint8 ``[..., H, W, 3]``.

    Raises:
      ClipError: another number of channels or of axes.
    """
    images = np.asarray(images)
    if images.ndim < 3 or images.shape[-1] not in (1, 3):
        raise ClipError(f"{name} has shape {images.shape}, expected [..., H, W, C] with 1 or 3 channels")
    if images.dtype != np.uint8:
        images = np.round(np.clip(np.nan_to_num(images.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(images, (*images.shape[:-1], 3)) if images.shape[-1] == 1 else images


def upscale(pixels: Pixels, factor: int) -> Pixels:
    """Repeats each pixel ``factor`` times in both directions (nearest neighbour)."""
    if factor < 1:
        raise ClipError(f"scale is {factor}, expected an integer of at least 1")
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def error_map(truth: Any, prediction: Any) -> Pixels:
    """The absolute difference, averaged over channels: black is none, through red and yellow to white at 0.5.

    Args:
      truth: ``[..., H, W, C]``.
      prediction: the same shape.

    Returns:
      uint8 ``[..., H, W, 3]``.
    """
    truth, prediction = to_pixels(truth, "truth"), to_pixels(prediction, "prediction")
    if truth.shape != prediction.shape:
        raise ClipError(f"prediction has shape {prediction.shape}, expected that of truth, {truth.shape}")
    heat = np.abs(truth.astype(np.float32) - prediction.astype(np.float32)).mean(-1, keepdims=True) / 255 * 2
    return np.round(np.clip(3 * heat - np.arange(3), 0, 1) * 255).astype(np.uint8)


def side_by_side(
    truth: Any,
    prediction: Any,
    context: int,
    *,
    scale: int = 4,
    labels: bool = True,
) -> Pixels:
    """A video of truth | imagined | error; a bar below is amber in the context and blue in the dream.

    Args:
      truth: ``[T, H, W, C]``.
      prediction: ``[T, H, W, C]``; in the first ``context`` frames what the model made of the frame it saw.
      context: how many frames the model was shown.
      scale: integer enlargement.
      labels: writes the panels' names above them and the horizon below.

    Returns:
      uint8 ``[T, H', W', 3]``.
    """
    _check_pair(truth, prediction, context)
    panels = [to_pixels(truth), to_pixels(prediction), error_map(truth, prediction)]
    return _film([upscale(panel, scale) for panel in panels], context, ("truth", "imagined", "error"), labels)


def film(
    prediction: Any, context: int | None = 0, *, scale: int = 4, labels: bool = True, name: str = "imagined"
) -> Pixels:
    """A video of one column, where there is no truth to compare with; otherwise as `side_by_side`.

    ``context`` None is for what has happened: nothing of it was imagined.
    """
    panel = upscale(to_pixels(prediction), scale)
    if panel.ndim != 4:
        raise ClipError(f"prediction has shape {np.shape(prediction)}, expected [T, H, W, C]")
    return _film([panel], context, (name,), labels)


def tile(videos: Sequence[Pixels], columns: int) -> Pixels:
    """Several videos ``[T, H, W, 3]`` of one shape in a grid of ``columns``, the last row filled with background."""
    if not videos or columns < 1:
        raise ClipError(f"{len(videos)} videos in {columns} columns: expected at least one of each")
    shape = videos[0].shape
    if any(video.shape != shape for video in videos):
        raise ClipError(f"videos have shapes {sorted({video.shape for video in videos})}, expected one shape")
    blank = np.empty(shape, np.uint8)
    blank[:] = BACKGROUND
    missing = -len(videos) % columns if len(videos) > columns else 0
    videos = [*videos, *[blank] * missing]
    rows = [np.concatenate(videos[start : start + columns], axis=2) for start in range(0, len(videos), columns)]
    return np.concatenate(rows, axis=1)


def contact_sheet(
    truth: Any, prediction: Any, context: int, *, columns: int = 12, scale: int = 1, labels: bool = True
) -> Pixels:
    """Frames of one episode side by side: the rows are truth, imagined and error, the columns points in time.

    Args:
      truth: ``[T, H, W, C]``, or None where there is none: then only the imagined row is drawn.
      prediction: ``[T, H, W, C]``.
      context: how many frames the model was shown; they carry amber marks, imagined ones blue.
      columns: how many points in time, spread evenly from the first frame to the last.
      scale: integer enlargement.
      labels: writes the horizon above each column ("+3": three steps after the last frame seen).

    Returns:
      uint8 ``[H', W', 3]``.
    """
    if truth is None:
        rows = [to_pixels(prediction, "prediction")]
    else:
        _check_pair(truth, prediction, context)
        rows = [to_pixels(truth), to_pixels(prediction), error_map(truth, prediction)]
    length = len(rows[0])
    if columns < 1:
        raise ClipError(f"columns is {columns}, expected at least 1")
    times = np.unique(np.round(np.linspace(0, length - 1, min(columns, length))).astype(int))
    rows = [upscale(row[times], scale) for row in rows]
    height, width = rows[0].shape[1:3]
    top = (_HEADER if labels else 0) + _BAR
    sheet = _canvas(top + len(rows) * (height + _MARGIN) + _MARGIN, len(times) * (width + _MARGIN) + _MARGIN)
    for column, time in enumerate(times):
        left = _MARGIN + column * (width + _MARGIN)
        sheet[top - _BAR + 1 : top - 1, left : left + width] = CONTEXT_COLOUR if time < context else IMAGINED_COLOUR
        for row, images in enumerate(rows):
            upper = top + _MARGIN + row * (height + _MARGIN)
            sheet[upper : upper + height, left : left + width] = images[column]
        if labels:
            _write(sheet, _time_label(time, context, width), left, 2)
    return sheet


def write_video(path: str | os.PathLike[str], frames: Pixels, fps: int = 10) -> pathlib.Path:
    """Writes uint8 ``[T, H, W, 3]`` as GIF or MP4, whichever ``path`` ends in, and returns the path.

    Raises:
      ClipError: another suffix, no frames, or a frame rate that the format cannot hold.
    """
    path = _checked_path(path, VIDEO_SUFFIXES, "a video")
    frames = to_pixels(frames, "frames")
    if frames.ndim != 4 or not len(frames):
        raise ClipError(f"frames has shape {frames.shape}, expected [T, H, W, C] with at least one frame")
    if not 1 <= fps <= 50:
        raise ClipError(f"fps is {fps}, expected 1..50")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if path.suffix == ".gif":
            _write_gif(partial, frames, fps)
        else:
            _write_mp4(partial, frames, fps)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_image(path: str | os.PathLike[str], pixels: Pixels) -> pathlib.Path:
    """Writes uint8 ``[H, W, 3]`` as PNG, JPEG or WebP, whichever ``path`` ends in, and returns the path."""
    from PIL import Image

    path = _checked_path(path, IMAGE_SUFFIXES, "a picture")
    Image.fromarray(np.ascontiguousarray(to_pixels(pixels))).save(path)
    return path


def _film(panels: list[Pixels], context: int | None, names: Sequence[str], labels: bool) -> Pixels:
    length, height, width = panels[0].shape[:3]
    shown = length if context is None else context
    top = _HEADER if labels else _MARGIN
    bottom = _BAR + (_HEADER if labels else _MARGIN)
    left = lambda column: _MARGIN + column * (width + _MARGIN)  # noqa: E731
    video = np.stack([_canvas(top + height + bottom, left(len(panels)))] * length)
    for column, (panel, name) in enumerate(zip(panels, names, strict=True)):
        video[:, top : top + height, left(column) : left(column) + width] = panel
        if labels:
            for frame in video:
                _write(frame, name, left(column), 2)
    bar = slice(top + height + 1, top + height + _BAR)
    for time, frame in enumerate(video):
        end = _MARGIN + round((left(len(panels)) - 2 * _MARGIN) * (time + 1) / length)
        seen = _MARGIN + round((left(len(panels)) - 2 * _MARGIN) * min(time + 1, shown) / length)
        frame[bar, _MARGIN:seen] = CONTEXT_COLOUR
        frame[bar, seen:end] = IMAGINED_COLOUR
        if labels:
            _write(frame, _time_label(time, context, left(len(panels))), _MARGIN, top + height + _BAR + 2)
    return video


def _time_label(time: int, context: int | None, width: int) -> str:
    """What a frame is: "context 2/5", "imagined +3" or "frame 8", shortened where ``width`` pixels are too few."""
    if context is None:
        return f"frame {time}" if width >= 80 else f"{time}"
    if time < context:
        return f"context {time + 1}/{context}" if width >= 80 else f"c{time + 1}"
    return f"imagined +{time - context + 1}" if width >= 80 else f"+{time - context + 1}"


def _canvas(height: int, width: int) -> Pixels:
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = BACKGROUND
    return canvas


def _write(picture: Pixels, text: str, left: int, upper: int) -> None:
    """Draws ``text`` into ``picture`` in place, in the bitmap font that is part of Pillow (no system fonts)."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((left, upper), text, fill=TEXT, font=ImageFont.load_default_imagefont())
    picture[:] = np.asarray(image)


def _write_gif(path: pathlib.Path, frames: Pixels, fps: int) -> None:
    """One palette for all frames, so that still parts do not flicker."""
    from PIL import Image

    step = max(1, len(frames) // 32)
    montage = Image.fromarray(np.concatenate(list(frames[::step]), axis=0))
    palette = montage.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # GIF counts time in hundredths of a second.
    duration = 10 * round(100 / fps)
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False, disposal=1
    )


def _write_mp4(path: pathlib.Path, frames: Pixels, fps: int) -> None:
    import imageio.v3 as iio

    # Chroma is stored at half resolution, so both sides must be even.
    odd = [(0, size % 2) for size in frames.shape[1:3]]
    frames = np.pad(frames, ((0, 0), *odd, (0, 0)), mode="edge")
    iio.imwrite(path, frames, plugin="pyav", codec="libx264", fps=fps)


def _checked_path(path: str | os.PathLike[str], suffixes: Sequence[str], what: str) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix not in suffixes:
        hint = nearest(path.suffix, suffixes) if path.suffix else f"known: {', '.join(suffixes)}"
        raise ClipError(f"{path}: cannot write {what} as {path.suffix or 'a file without suffix'}; {hint}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClipError(f"{path}: cannot make its folder ({error.strerror})") from None
    if path.is_dir():
        raise ClipError(f"{path}: is a folder, expected the name of a file")
    return path


def _check_pair(truth: Any, prediction: Any, context: int) -> None:
    if np.ndim(truth) != 4 or np.shape(truth) != np.shape(prediction):
        raise ClipError(f"truth {np.shape(truth)} and prediction {np.shape(prediction)}: expected one [T, H, W, C]")
    if not 0 <= context <= len(truth):
        raise ClipError(f"context is {context}, expected 0..{len(truth)}")
