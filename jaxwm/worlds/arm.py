"""A planar arm of two links, seen from above: where it reaches, and how it moves under torques.

``joints`` ``[2]`` are in radians: the angle of the upper arm against "up" in the picture, clockwise, and that of the
forearm against the upper arm. The elbow bends to one side only, so that each place in reach has one pose. ``links``
``[2]`` are the lengths of both in sides of the box. Each link is a uniform rod; one that is a side long has mass 1,
and torques are in mass sides^2 / second^2. The arm lies flat: gravity does no work.

The equations of motion are those of the planar elbow manipulator (Spong, Hutchinson and Vidyasagar, Robot Modeling and
Control, 2006, chapter 7): M(q) q'' + c(q, q') + damping q' = torque.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxwm.types import Array

BASE = (0.5, 0.94)
"""Where the shoulder is, in sides of the box."""
LOWEST, HIGHEST = (-1.25 * math.pi, 0.1), (0.75 * math.pi, 2.9)
"""The stops of both joints, in radians."""


class Pose(NamedTuple):
    """Where the arm is: ``elbow`` and ``tip`` ``[2]`` in sides of the box, and how the tip goes with the joints.

    The tip's velocity is ``by_shoulder * joint_velocity[0] + by_elbow * joint_velocity[1]``, both ``[2]``.
    """

    elbow: Array
    tip: Array
    by_shoulder: Array
    by_elbow: Array

    def tip_velocity(self, joint_velocity: Array) -> Array:
        """``[2]`` in sides per second."""
        return self.by_shoulder * joint_velocity[0] + self.by_elbow * joint_velocity[1]

    def leverage(self, direction: Array) -> Array:
        """``[2]``: the torques on the joints of a unit force along ``direction`` ``[2]`` at the tip."""
        return jnp.stack([jnp.sum(self.by_shoulder * direction), jnp.sum(self.by_elbow * direction)])


class Inertia(NamedTuple):
    """A symmetric 2 x 2 matrix over the joints: scalars ``shoulder``, ``coupling`` and ``elbow``."""

    shoulder: Array
    coupling: Array
    elbow: Array

    def times(self, vector: Array) -> Array:
        """``[2]``: the matrix times ``vector``."""
        return jnp.stack(
            [self.shoulder * vector[0] + self.coupling * vector[1], self.coupling * vector[0] + self.elbow * vector[1]]
        )

    def solve(self, vector: Array) -> Array:
        """``[2]``: the inverse matrix times ``vector``."""
        determinant = self.shoulder * self.elbow - self.coupling**2
        first = self.elbow * vector[0] - self.coupling * vector[1]
        second = self.shoulder * vector[1] - self.coupling * vector[0]
        return jnp.stack([first, second]) / determinant


def pose(joints: Array, links: Array) -> Pose:
    """Where the arm is when its joints are at ``joints``."""
    base = jnp.asarray(BASE)
    elbow = base + links[0] * _direction(joints[0])
    tip = elbow + links[1] * _direction(joints[0] + joints[1])
    return Pose(elbow, tip, _turned(tip - base), _turned(tip - elbow))


def ring(upper: Array | float, fore: Array | float) -> tuple[Array | float, Array | float]:
    """The least and the largest distance of the tip from the shoulder, with the elbow at its stops."""
    least, largest = (
        (upper**2 + fore**2 + 2 * upper * fore * math.cos(bend)) ** 0.5 for bend in (HIGHEST[1], LOWEST[1])
    )
    return least, largest


def joints_at(place: Array, links: Array) -> Array:
    """``[2]``: the joints with the tip at ``place`` ``[2]``, or in its direction as near to it as the arm comes."""
    offset = place - jnp.asarray(BASE)
    upper, fore = links[0], links[1]
    bend = jnp.arccos(jnp.clip((jnp.sum(offset**2) - upper**2 - fore**2) / (2 * upper * fore), -1.0, 1.0))
    bend = jnp.clip(bend, LOWEST[1], HIGHEST[1])
    aside = jnp.arctan2(fore * jnp.sin(bend), upper + fore * jnp.cos(bend))
    shoulder = jnp.arctan2(offset[0], -offset[1]) - aside
    return jnp.stack([jnp.clip(shoulder, LOWEST[0], HIGHEST[0]), bend])


def joint_velocity(at: Pose, tip_velocity: Array) -> Array:
    """``[2]`` radians per second that move the tip with ``tip_velocity`` ``[2]``.

    Damped least squares (Wampler 1986): near poses in which the tip cannot go everywhere it comes as near as slow
    joints can.
    """
    square = Inertia(
        jnp.sum(at.by_shoulder**2) + 1e-3, jnp.sum(at.by_shoulder * at.by_elbow), jnp.sum(at.by_elbow**2) + 1e-3
    )
    return square.solve(at.leverage(tip_velocity))


def inertia(joints: Array, links: Array) -> Inertia:
    """The mass matrix M(q)."""
    upper, fore = links[0], links[1]
    turn = upper * fore * jnp.cos(joints[1])
    elbow = fore**3 / 3
    return Inertia(upper**3 / 3 + elbow + fore * (upper**2 + turn), elbow + fore * turn / 2, elbow)


def torque_for(joints: Array, velocity: Array, acceleration: Array, links: Array, damping: Array) -> Array:
    """``[2]``: the torques under which the joints have ``acceleration`` ``[2]``, in radians per second squared."""
    swing = links[0] * links[1] ** 2 * jnp.sin(joints[1]) / 2
    coriolis = jnp.stack([-swing * (2 * velocity[0] + velocity[1]) * velocity[1], swing * velocity[0] ** 2])
    return inertia(joints, links).times(acceleration) + coriolis + damping * velocity


def advance(
    joints: Array, velocity: Array, torque: Array, *, links: Array, damping: Array, seconds: float
) -> tuple[Array, Array]:
    """Joints and their velocities, ``[2]`` each, after ``seconds`` of constant ``torque`` ``[2]``.

    One step of the classical Runge-Kutta method; the stops are not seen.
    """

    def change(joints: Array, velocity: Array) -> Array:
        needed = torque_for(joints, velocity, jnp.zeros(2), links, damping)
        return inertia(joints, links).solve(torque - needed)

    half = seconds / 2
    first = change(joints, velocity)
    second_velocity = velocity + half * first
    second = change(joints + half * velocity, second_velocity)
    third_velocity = velocity + half * second
    third = change(joints + half * second_velocity, third_velocity)
    fourth_velocity = velocity + seconds * third
    fourth = change(joints + seconds * third_velocity, fourth_velocity)
    way = seconds / 6 * (velocity + 2 * second_velocity + 2 * third_velocity + fourth_velocity)
    return joints + way, velocity + seconds / 6 * (first + 2 * second + 2 * third + fourth)


def energy(joints: Array, velocity: Array, links: Array) -> Array:
    """The arm's kinetic energy, in mass sides^2 / second^2."""
    return jnp.sum(velocity * inertia(joints, links).times(velocity)) / 2


def _direction(angle: Array) -> Array:
    return jnp.stack([jnp.sin(angle), -jnp.cos(angle)])


def _turned(offset: Array) -> Array:
    """How the end of ``offset`` goes when it turns by one radian."""
    return jnp.stack([-offset[1], offset[0]])
