import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import drawing

SIZE = 64
CENTRES = (np.arange(SIZE) + 0.5) / SIZE


def draw(size, *shapes):
    """Coverages [k, size, size], in one compilation."""
    return np.asarray(jax.jit(lambda: jnp.stack([drawing.coverage(shape, size) for shape in shapes]))())


def paint(size, background, layers):
    return np.asarray(jax.jit(lambda: drawing.picture(size, background, layers))())


@pytest.fixture(scope="module")
def discs():
    """Coverage [512, 64, 64] of discs of 2 to 12 pixels at random places inside the picture."""
    rng = np.random.default_rng(0)
    radius = rng.uniform(2, 12, 512) / SIZE
    centre = rng.uniform(radius[:, None] + 1 / SIZE, 1 - radius[:, None] - 1 / SIZE, (512, 2))
    cover = jax.jit(jax.vmap(lambda c, r: drawing.coverage(drawing.disc(c, r), SIZE)))
    return centre, radius, np.asarray(cover(jnp.float32(centre), jnp.float32(radius)), np.float64)


def test_the_centroid_of_a_disc_is_its_centre(discs):
    centre, _, coverage = discs
    x = (coverage.sum(1) * CENTRES).sum(1) / coverage.sum((1, 2))
    y = (coverage.sum(2) * CENTRES).sum(1) / coverage.sum((1, 2))
    assert np.abs(np.stack([x, y], 1) - centre).max() * SIZE < 0.05


def test_the_area_of_a_disc_is_pi_r_squared(discs):
    _, radius, coverage = discs
    area = coverage.sum((1, 2)) / SIZE**2
    error = np.abs(area / (np.pi * radius**2) - 1)
    assert error[radius * SIZE > 2.5].max() < 0.02
    assert error.max() < 0.03
    assert error.mean() < 0.002


def test_a_rectangle_covers_exactly_its_part_of_each_pixel():
    shape = drawing.rectangle(np.array([0.3, 0.5]), np.array([0.8, 0.7]))
    across, down = [0.0, 0.8, 1.0, 0.2], [0.0, 0.0, 0.8, 0.0]
    np.testing.assert_allclose(draw(4, shape)[0], np.outer(down, across), atol=1e-6)


def test_a_ring_and_a_segment_have_their_area():
    shapes = (
        drawing.ring(np.array([0.47, 0.52]), 0.3, 0.1),
        drawing.segment(np.array([0.2, 0.3]), np.array([0.7, 0.6]), 0.1),
    )
    ring, segment = draw(SIZE, *shapes)
    np.testing.assert_allclose(ring.mean(), np.pi * (0.3**2 - 0.2**2), rtol=0.01)
    np.testing.assert_allclose(segment.mean(), 0.1 * np.hypot(0.5, 0.3) + np.pi * 0.05**2, rtol=0.01)


def test_layers_lie_over_each_other_and_mix_where_they_cover_half_a_pixel():
    whole = drawing.rectangle(np.zeros(2), np.ones(2))
    left = drawing.rectangle(np.zeros(2), np.array([0.25, 1.0]))
    image = paint(2, (0, 0, 0), [(whole, (200, 100, 50)), (left, (0, 0, 250))])
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, 0], [[100, 50, 150]] * 2)
    np.testing.assert_array_equal(image[:, 1], [[200, 100, 50]] * 2)
    np.testing.assert_array_equal(paint(3, (7, 8, 255), []), np.full((3, 3, 3), (7, 8, 255)))


def test_a_small_picture_is_the_mean_of_a_large_one():
    layers = [
        (drawing.rectangle(np.array([0.1, 0.33]), np.array([0.62, 0.9])), (120, 130, 140)),
        (drawing.disc(np.array([0.61, 0.4]), 0.2), (240, 80, 70)),
    ]
    small, large = (paint(size, (18, 20, 30), layers).astype(float) for size in (32, 512))
    mean = large.reshape(32, 16, 32, 16, 3).mean((1, 3))
    assert np.abs(small - mean).max() < 12
    assert np.abs(small - mean).mean() < 0.2


def test_no_pixels_is_an_error():
    with pytest.raises(ValueError, match="size is 0, expected at least 1 pixel"):
        drawing.picture(0, (0, 0, 0), [])
