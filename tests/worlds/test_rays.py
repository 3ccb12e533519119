"""Rays against what they should meet: projections undo them, hits lie on surfaces."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import rays

CAMERA = rays.Camera(yaw=0.7, pitch=-0.3, field_of_view=1.2, position=(0.5, -0.2, 1.5))
EYE = np.array(CAMERA.position)


def on_grid(size):
    centres = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def test_what_lies_on_the_ray_of_a_pixel_is_seen_there_at_its_depth():
    directions = np.asarray(CAMERA.rays(5))
    for depth in (0.4, 7.0):
        at, found = CAMERA.project(jnp.asarray(EYE + depth * directions.T))
        np.testing.assert_allclose(at, on_grid(5), atol=1e-5)
        np.testing.assert_allclose(found, depth, rtol=1e-5)
    assert float(CAMERA.project(jnp.asarray(EYE - directions[:, 0]))[1]) < 0


def test_a_camera_that_looks_ahead_has_left_on_its_left_and_up_above():
    camera = rays.Camera(field_of_view=math.pi / 2)
    at, depth = camera.project(jnp.array([[2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [2.0, 0.0, 2.0]]))
    np.testing.assert_allclose(at, [[0.5, 0.5], [0.0, 0.5], [0.5, 0.0]], atol=1e-6)
    np.testing.assert_allclose(depth, 2.0, atol=1e-6)
    left = rays.Camera(yaw=math.pi / 2)
    np.testing.assert_allclose(left.project(jnp.array([0.0, 3.0, 0.0]))[0], [0.5, 0.5], atol=1e-6)


def test_the_floor_is_met_below_the_horizon_only():
    directions = CAMERA.rays(9)
    depth = np.asarray(rays.floor_depth(1.5, directions))
    falls = np.asarray(directions)[2] < 0
    assert falls.any()
    assert not falls.all()
    np.testing.assert_array_equal(np.isfinite(depth), falls)
    np.testing.assert_allclose((EYE[2] + depth * np.asarray(directions)[2])[falls], 0.0, atol=1e-5)


def test_a_box_is_met_where_a_march_along_the_ray_enters_it():
    centre, heading, half = np.array([6.0, 4.0, 0.8]), 0.6, np.array([2.0, 0.9, 0.8])
    directions = CAMERA.rays(24)
    depth, face = (np.asarray(x) for x in rays.box_depth(jnp.asarray(EYE), directions, centre, heading, half))
    steps = np.linspace(0, 20, 8001)
    points = EYE + steps[:, None, None] * np.asarray(directions).T - centre
    turn = np.array([[math.cos(heading), -math.sin(heading), 0], [math.sin(heading), math.cos(heading), 0], [0, 0, 1]])
    inside = (np.abs(points @ turn) <= half).all(-1)
    hit = inside.any(0)
    assert 15 < hit.sum() < 300
    agree = np.isfinite(depth) == hit
    assert agree.mean() > 0.99, "but for grazing rays"
    both = np.isfinite(depth) & hit
    np.testing.assert_allclose(depth[both], steps[inside.argmax(0)][both], atol=6e-3)
    local = (EYE + depth[both, None] * np.asarray(directions).T[both] - centre) @ turn
    np.testing.assert_allclose(np.take_along_axis(np.abs(local) / half, face[both, None], 1), 1.0, atol=1e-4)


def test_a_sphere_is_met_on_its_near_side():
    directions, centre = CAMERA.rays(32), jnp.array([5.0, 3.5, 0.6])
    depth = np.asarray(rays.sphere_depth(jnp.asarray(EYE), directions, centre, 0.8))
    hit = np.isfinite(depth)
    points = EYE + depth[hit, None] * np.asarray(directions).T[hit]
    np.testing.assert_allclose(np.linalg.norm(points - np.asarray(centre), axis=-1), 0.8, atol=1e-5)
    assert (np.linalg.norm(points - EYE, axis=-1) < np.linalg.norm(np.asarray(centre) - EYE)).all()
    at, _ = CAMERA.project(centre)
    assert hit.reshape(32, 32)[int(at[1] * 32), int(at[0] * 32)]


def test_pixels_are_means_of_their_rays():
    colours = jax.random.uniform(jax.random.key(0), (3, 16)) * 255
    means = np.asarray(colours).reshape(3, 2, 2, 2, 2).mean((2, 4))
    np.testing.assert_array_equal(rays.pixels(colours, 2, 2), np.round(np.moveaxis(means, 0, -1)).astype(np.uint8))
    with pytest.raises(ValueError, match="size is 0"):
        CAMERA.rays(0)
