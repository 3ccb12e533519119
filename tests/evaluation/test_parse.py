"""The parser against pictures whose truth is known: sharp, touching, blurred, faint, hazy and empty ones."""

import functools

import jax
import numpy as np
import pytest

from jaxwm.evaluation.parse import ball_positions, coverages
from jaxwm.worlds import Bounce

FEW, MANY = Bounce(balls=3), Bounce(balls=8, radius=(0.06, 0.12))


@functools.partial(jax.jit, static_argnums=0)
def draw(world, keys):
    states = jax.vmap(world.reset)(keys)
    return states.position, states.radius, jax.vmap(world.render)(states)


@functools.partial(jax.jit, static_argnums=(0,))
def parse(world, images):
    balls = ball_positions(images, world.colours, world.background)
    return balls.position, balls.area, balls.radius, balls.found


@pytest.fixture(scope="module")
def frames():
    """200 boxes with three balls at 64 pixels: positions, radii, pictures as numpy arrays."""
    return jax.device_get(draw(FEW, jax.random.split(jax.random.key(0), 200)))


def pixels(found, truth):
    """The largest distance to the truth, in pixels of 64."""
    return np.linalg.norm(np.asarray(found) - truth, axis=-1).max() * 64


def blurred(images):
    """Floats in [0, 1], spread over about 7 pixels as a model that is unsure paints them."""
    values = np.pad(images.astype(np.float32) / 255, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    for axis in (1, 2):
        values = np.mean([np.roll(values, shift, axis) for shift in range(-3, 4)], axis=0)
    return values[:, 3:-3, 3:-3]


def inside(position, radius):
    """Balls far enough from the walls for a blur to stay in the picture."""
    return (np.abs(position - 0.5) + radius[..., None] < 0.5 - 4 / 64).all(-1)


def test_the_floor_is_far_below_a_pixel(frames):
    truth, radius, images = frames
    position, area, found_radius, found = parse(FEW, images)
    assert found.all()
    assert pixels(position, truth) < 0.05
    np.testing.assert_allclose(area, np.pi * radius**2, rtol=0.02)
    np.testing.assert_allclose(found_radius, radius, rtol=0.01)


def test_bytes_and_floats_give_the_same_with_any_leading_axes(frames):
    images = frames[2][:4]
    position = parse(FEW, images)[0]
    as_floats = parse(FEW, (images.astype(np.float32) / 255).reshape(2, 2, 64, 64, 3))[0]
    np.testing.assert_allclose(as_floats.reshape(position.shape), position, atol=1e-5)


def test_touching_balls_are_told_apart():
    state = FEW.state([[0.3, 0.5], [0.51, 0.5], [0.51, 0.3]], np.zeros((3, 2)), [0.11, 0.1, 0.1], [1, 1, 1])
    image = np.asarray(jax.jit(FEW.render)(state))[None]
    assert pixels(parse(FEW, image)[0], state.position) < 0.1


def test_blurred_faint_and_hazy_balls_are_still_found(frames):
    truth, radius, images = frames
    images = images[:50]
    background = np.array(FEW.background) / 255
    soft = blurred(images)
    haze = 0.95 * images / 255 + 0.05 * np.array(FEW.colours[1]) / 255
    faint = background + 0.4 * (images / 255 - background)
    clear = inside(truth[:50], radius[:50])
    assert clear.sum() > 50
    for painted, limit in ((soft, 0.5), (haze, 0.1), (faint, 0.1)):
        position, _, _, found = parse(FEW, painted.astype(np.float32))
        assert found.all()
        assert pixels(position[clear], truth[:50][clear]) < limit
    np.testing.assert_allclose(parse(FEW, faint.astype(np.float32))[1], 0.4 * np.pi * radius[:50] ** 2, rtol=0.06)


def test_a_ball_that_is_not_there_has_no_position(frames):
    _, _, images = frames
    without = np.where(coverages(images[:1], FEW.colours, FEW.background)[..., 1:2] > 0.01, FEW.background, images[:1])
    position, area, _, found = parse(FEW, without.astype(np.uint8))
    np.testing.assert_array_equal(found, [[True, False, True]])
    assert np.isnan(position[0, 1]).all()
    assert area[0, 1] < 1e-3
    nothing = parse(FEW, np.full((1, 64, 64, 3), np.nan, np.float32))
    assert not nothing[3].any()
    assert np.isnan(nothing[0]).all()


def test_eight_colours_are_told_apart():
    truth, radius, images = jax.device_get(draw(MANY, jax.random.split(jax.random.key(1), 100)))
    position, area, _, found = parse(MANY, images)
    assert found.all()
    assert np.percentile(np.linalg.norm(position - truth, axis=-1), 99) * 64 < 0.15
    assert pixels(position, truth) < 1
    np.testing.assert_allclose(area, np.pi * radius**2, rtol=0.08)


def test_coverages_undo_a_mixture():
    mixture = 0.25 * np.array(FEW.colours[0]) + 0.5 * np.array(FEW.colours[2]) + 0.25 * np.array(FEW.background)
    image = np.broadcast_to(mixture / 255, (2, 2, 3)).astype(np.float32)
    found = coverages(image, FEW.colours, FEW.background)
    np.testing.assert_allclose(found, np.broadcast_to([0.25, 0.0, 0.5], (2, 2, 3)), atol=1e-5)


def test_what_cannot_be_parsed_is_named():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"images have shape \(4, 4\), expected \[..., height, width, 3\]"):
        ball_positions(image[..., 0], FEW.colours, FEW.background)
    for colours in ([(200, 0, 0), (100, 0, 0)], [(200, 0, 0), (0, 200, 0), (100, 100, 0)], [(5, 0, 0)], []):
        with pytest.raises(ValueError, match="cannot be told apart"):
            coverages(image, colours, (0, 0, 0))
