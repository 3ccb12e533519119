"""Pictures of a world in three dimensions: one ray through each pixel of a pinhole camera, and what it meets.

Rays are ``[3, P]``, so that all arithmetic runs along the longest axis.

Lengths are in metres. A body looks along x, y is to its left and z up; `Camera` says where a camera sits on it. Rays
are scaled such that they go one metre along the axis of the camera: the parameter at which one meets something is the
*depth* of that point, as depth cameras measure it, and `jnp.inf` where nothing is met.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array


class Camera(NamedTuple):
    """A pinhole camera with square pixels and a square picture, fixed to a body.

    Attributes:
      yaw: radians to the left of where the body looks.
      pitch: radians upwards.
      field_of_view: radians from the left edge to the right one, which is as much as from top to bottom.
      position: metres from the middle of the body, forward, to the left and up.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    field_of_view: float = math.pi / 2
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def axes(self) -> np.ndarray:
        """``[3, 3]``: forward, left and up of the camera as rows, in the frame of the body."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        rise, level = math.sin(self.pitch), math.cos(self.pitch)
        forward = [level * cos, level * sin, rise]
        left = [-sin, cos, 0.0]
        return np.array([forward, left, [-rise * cos, -rise * sin, level]])

    def rays(self, size: int) -> Array:
        """``[3, size * size]``: the directions of the pixels, row by row, in the frame of the body."""
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1 pixel")
        reach = math.tan(self.field_of_view / 2)
        at = reach * (1 - (2 * np.arange(size) + 1) / size)
        forward, left, up = self.axes
        rays = forward + at[None, :, None] * left + at[:, None, None] * up
        return jnp.asarray(rays.reshape(-1, 3).T, jnp.float32)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Where ``points`` ``[..., 3]`` of the body's frame are seen: shares of the picture ``[..., 2]``, and depths.

        The shares are to the right and down, within 0..1 for what is in the picture; they mean nothing at depths that
        are not above 0.
        """
        depth, left, up = jnp.moveaxis((points - jnp.asarray(self.position)) @ jnp.asarray(self.axes.T), -1, 0)
        reach = math.tan(self.field_of_view / 2) * jnp.where(depth > 0, depth, 1.0)
        return jnp.stack([0.5 - left / (2 * reach), 0.5 - up / (2 * reach)], axis=-1), depth


def floor_depth(height: Array | float, rays: Array) -> Array:
    """``[P]``: depth of the floor for ``rays`` ``[3, P]`` that start ``height`` above it."""
    falls = rays[2] < 0
    return jnp.where(falls, height / jnp.where(falls, -rays[2], 1.0), jnp.inf)


def box_depth(start: Array, rays: Array, centre: Array, heading: Array, half: Array) -> tuple[Array, Array]:
    """Depths ``[P]`` of an upright box, and which way the faces that are met look.

    Args:
      start: ``[3]`` where the rays begin, outside of the box.
      rays: ``[3, P]``.
      centre: ``[3]`` of the box.
      heading: radians by which the box is turned to the left.
      half: ``[3]`` half its length, width and height.

    Returns:
      The depths, and 0, 1 or 2 ``[P]`` for a face that looks along the length, the width or the height of the box.
    """
    cos, sin = jnp.cos(heading), jnp.sin(heading)
    turned = lambda x, y, z: (cos * x + sin * y, cos * y - sin * x, z)  # noqa: E731
    entering, leaving = [], []
    for at, ray, reach in zip(turned(*(start - centre)), turned(*rays), half, strict=True):
        speed = 1 / jnp.where(jnp.abs(ray) > 1e-6, ray, 1e-6)
        ends = (-reach - at) * speed, (reach - at) * speed
        entering.append(jnp.minimum(*ends))
        leaving.append(jnp.maximum(*ends))
    first = jnp.maximum(jnp.maximum(entering[0], entering[1]), entering[2])
    last = jnp.minimum(jnp.minimum(leaving[0], leaving[1]), leaving[2])
    face = jnp.where(first == entering[0], 0, jnp.where(first == entering[1], 1, 2))
    return jnp.where((first > 0) & (first <= last), first, jnp.inf), face


def sphere_depth(start: Array, rays: Array, centre: Array, radius: Array | float) -> Array:
    """Depths ``[P]`` of a sphere for ``rays`` ``[3, P]`` from ``start`` ``[3]`` or ``[3, P]``, outside of it."""
    between = [to - at for to, at in zip(centre, start, strict=True)]
    square = sum(ray * ray for ray in rays)
    along = sum(ray * way for ray, way in zip(rays, between, strict=True))
    rest = along**2 - square * (sum(way * way for way in between) - radius**2)
    first = (along - jnp.sqrt(jnp.maximum(rest, 0.0))) / square
    return jnp.where((rest > 0) & (first > 0), first, jnp.inf)


def pixels(colours: Array, size: int, samples: int) -> Array:
    """``[size, size, 3]`` uint8: the means of ``samples`` by ``samples`` rays, ``colours`` ``[3, P]`` in 0..255."""
    means = colours.reshape(3, size, samples, size, samples).mean((2, 4))
    return jnp.moveaxis(jnp.round(jnp.clip(means, 0.0, 255.0)), 0, -1).astype(jnp.uint8)
