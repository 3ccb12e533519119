"""Resizing by hand-computed means."""

import numpy as np
import pytest

from jaxwm.envs.images import resize


def test_shrinking_takes_the_mean_of_what_a_pixel_covers():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:2, :4, 0] = [[0, 40, 80, 120], [40, 80, 120, 160]]
    small = resize(image, 2)
    assert small.shape == (2, 2, 3)
    assert small[0, 0, 0] == 80  # the mean of the eight numbers
    assert small.sum() == 80


def test_enlarging_is_bilinear_and_a_fitting_picture_is_left_alone():
    column = np.array([[0, 200]], np.uint8)
    large = resize(column, 4)
    assert large.shape == (4, 4, 1)
    assert large[0, :, 0].tolist() == [0, 50, 150, 200]
    exact = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8)
    np.testing.assert_array_equal(resize(exact, 4), exact[..., :3])


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match="a picture is"):
        resize(image, 2)
