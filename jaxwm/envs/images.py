"""Pictures brought to the size that a model sees."""

from __future__ import annotations

import numpy as np


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """``[size, size, C]`` uint8 from ``[H, W, C]`` or ``[H, W]`` uint8: area means where it shrinks, else bilinear.

    A picture that is not square is squeezed, not cut: what a game shows at its edges stays visible. An alpha channel
    is dropped.

    Raises:
      ValueError: not a picture of bytes with 1, 3 or 4 channels.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"a picture is {image.dtype}{list(image.shape)}, expected uint8[H, W, 1 or 3]")
    image = image[..., :3] if image.ndim == 3 else image[..., None]
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    flat = image[..., 0] if image.shape[2] == 1 else image
    method = Image.Resampling.BOX if min(image.shape[:2]) >= size else Image.Resampling.BILINEAR
    resized = Image.fromarray(np.ascontiguousarray(flat)).resize((size, size), method)
    return np.asarray(resized).reshape(size, size, image.shape[2])
