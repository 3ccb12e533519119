"""The tip of an arm pushes a puck over a table: two bodies in touch, moved in small steps.

Each step first lets both move freely: the arm under its torques, the puck with the constant deceleration of dry
friction, which is exact for any step. Then what overlaps is moved apart, the lighter body by more, and impulses take
what speed towards each other is left between bodies that touch (sequential impulses: Catto, Iterative Dynamics with
Temporal Coherence, 2005). So contacts are without friction and without bounce, and never give energy; momentum is
handed over between puck and arm, and a puck that is held by the table's edge stops the arm.

What cannot be moved apart goes back to where it was before the step and rests there. So, whatever the torques: the
tip never is in the puck, the puck is on the table, the tip in the box and the joints between their stops. A step must
be so short that the bodies approach each other by less than the sum of their radii; `substeps_for` says how short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwm.types import Array
from jaxwm.worlds import arm

TOLERANCE = 1e-5
"""Bodies overlap by at most this, in sides of the box."""
_SWEEPS = 4
_TOUCH = 1e-4
"""Bodies nearer than this touch."""
_LEAST = 1e-6
"""Keeps a quotient finite where the arm cannot give way."""


class Bodies(NamedTuple):
    """What moves: ``joints``, ``joint_velocity``, ``puck`` and ``puck_velocity``, each ``[2]``."""

    joints: Array
    joint_velocity: Array
    puck: Array
    puck_velocity: Array


class Setting(NamedTuple):
    """What does not.

    Attributes:
      links: ``[2]`` lengths in sides of the box.
      damping: ``[2]``, torque per radian per second.
      speed: largest velocity of a joint, in radians per second.
      tip_radius: in sides of the box.
      puck_radius: in sides of the box.
      puck_mass: of the puck, where a link of one side has mass 1.
      friction: deceleration of a sliding puck, in sides per second squared.
      edge: how far the table's edge is from that of the box, in sides.
    """

    links: Array
    damping: Array
    speed: float
    tip_radius: float
    puck_radius: Array
    puck_mass: float
    friction: Array
    edge: float


def substeps_for(dt: float, speed: float, links: tuple[float, float], reach: float) -> int:
    """Steps in a frame of ``dt`` seconds in which the tip and a puck come nearer by at most a quarter of ``reach``.

    Args:
      dt: seconds.
      speed: largest velocity of a joint; a puck is pushed about as fast as the tip can go.
      links: longest links.
      reach: least sum of the radii of tip and puck.
    """
    fastest = speed * (links[0] + 2 * links[1])
    return math.ceil(max(dt * 2 * fastest / (reach / 4), dt / 0.02))


def slide(position: Array, velocity: Array, friction: Array, seconds: float) -> tuple[Array, Array]:
    """Position and velocity, ``[2]`` each, of a free puck after ``seconds`` under dry friction; exact."""
    speed = jnp.sqrt(jnp.sum(velocity**2))
    stops = speed <= friction * seconds
    lasts = jnp.where(stops, speed / friction, seconds)
    slower = jnp.where(stops, 0.0, 1 - friction * seconds / jnp.where(stops, 1.0, speed))
    return position + velocity * lasts * (1 + slower) / 2, velocity * slower


def advance(
    bodies: Bodies,
    torque: Callable[[Array, Array], Array],
    setting: Setting,
    *,
    seconds: float,
    substeps: int,
    has_puck: bool,
) -> tuple[Bodies, Array]:
    """Moves arm and puck for ``seconds``.

    Args:
      bodies: where they are; nothing overlaps.
      torque: ``torque(joints, joint_velocity)`` of the motors, held during a step.
      setting: what they are.
      seconds: above 0.
      substeps: in how many steps; see `substeps_for`.
      has_puck: False: there is only the arm, and what ``bodies`` say of the puck stays.

    Returns:
      The bodies, and in how many steps the tip touched the puck (scalar int32).
    """
    step = seconds / substeps

    def substep(_: int, carry: tuple[Bodies, Array]) -> tuple[Bodies, Array]:
        before, touches = carry
        joints, joint_velocity = arm.advance(
            before.joints,
            before.joint_velocity,
            torque(before.joints, before.joint_velocity),
            links=setting.links,
            damping=setting.damping,
            seconds=step,
        )
        puck, puck_velocity = before.puck, before.puck_velocity
        if has_puck:
            puck, puck_velocity = slide(puck, puck_velocity, setting.friction, step)
        joints, puck, fits = _apart(joints, puck, setting, has_puck)
        after = Bodies(joints, joint_velocity, puck, puck_velocity)
        after, touching = _stop_approach(after, setting, has_puck)
        rest = jnp.zeros(2)
        stuck = Bodies(before.joints, rest, before.puck, rest if has_puck else before.puck_velocity)
        after = Bodies(*(jnp.where(fits, new, old) for new, old in zip(after, stuck, strict=True)))
        return after, touches + touching

    return jax.lax.fori_loop(0, substeps, substep, (bodies, jnp.zeros((), jnp.int32)))


def _apart(joints: Array, puck: Array, setting: Setting, has_puck: bool) -> tuple[Array, Array, Array]:
    """Joints and puck without overlaps, and whether that succeeded."""
    inertia = arm.inertia(joints, setting.links)

    def sweep(_: int, places: tuple[Array, Array]) -> tuple[Array, Array]:
        joints, puck = places
        for joint in range(2):
            inside = jnp.clip(joints[joint], arm.LOWEST[joint], arm.HIGHEST[joint])
            joints = joints + _give_way(jnp.eye(2)[joint], inside - joints[joint], inertia)
        for axis in range(2):
            at = arm.pose(joints, setting.links)
            inside = jnp.clip(at.tip[axis], setting.tip_radius, 1 - setting.tip_radius)
            joints = joints + _give_way(at.leverage(jnp.eye(2)[axis]), inside - at.tip[axis], inertia)
        if has_puck:
            at = arm.pose(joints, setting.links)
            gap, normal = _gap(at.tip, puck, setting)
            arm_way, puck_way = _share(at.leverage(normal), normal, puck, jnp.maximum(-gap, 0.0), inertia, setting)
            joints, puck = joints - arm_way, _on_table(puck + puck_way, setting)
        return joints, puck

    puck = _on_table(puck, setting) if has_puck else puck
    joints, puck = jax.lax.fori_loop(0, _SWEEPS, sweep, (joints, puck))
    joints = jnp.clip(joints, jnp.asarray(arm.LOWEST), jnp.asarray(arm.HIGHEST))
    tip = arm.pose(joints, setting.links).tip
    fits = jnp.all(jnp.abs(tip - 0.5) <= 0.5 - setting.tip_radius + TOLERANCE)
    if has_puck:
        # The last, tiny part is the puck's alone, which has room to give way unless the table's edge holds it.
        gap, normal = _gap(tip, puck, setting)
        puck = _on_table(puck + jnp.maximum(-gap, 0.0) * normal, setting)
        fits &= _gap(tip, puck, setting)[0] >= -TOLERANCE
    return joints, puck, fits


def _stop_approach(bodies: Bodies, setting: Setting, has_puck: bool) -> tuple[Bodies, Array]:
    """``bodies`` without speed towards what they touch, and whether the tip touches the puck (int32)."""
    joints, puck = bodies.joints, bodies.puck
    inertia = arm.inertia(joints, setting.links)
    at = arm.pose(joints, setting.links)
    gap, normal = _gap(at.tip, puck, setting)
    touching = gap < _TOUCH if has_puck else jnp.array(False)
    # Between its stops a joint may be as fast as the motors are; at a stop it may only leave it.
    slowest = jnp.where(joints <= jnp.asarray(arm.LOWEST) + _TOUCH, 0.0, -setting.speed)
    fastest = jnp.where(joints >= jnp.asarray(arm.HIGHEST) - _TOUCH, 0.0, setting.speed)
    low, high = at.tip <= setting.tip_radius + _TOUCH, at.tip >= 1 - setting.tip_radius - _TOUCH

    def sweep(_: int, velocities: tuple[Array, Array]) -> tuple[Array, Array]:
        velocity, puck_velocity = velocities
        for joint in range(2):
            allowed = jnp.clip(velocity[joint], slowest[joint], fastest[joint])
            velocity = velocity + _give_way(jnp.eye(2)[joint], allowed - velocity[joint], inertia)
        for axis in range(2):
            going = at.tip_velocity(velocity)[axis]
            allowed = jnp.clip(going, jnp.where(low[axis], 0.0, -jnp.inf), jnp.where(high[axis], 0.0, jnp.inf))
            velocity = velocity + _give_way(at.leverage(jnp.eye(2)[axis]), allowed - going, inertia)
        if has_puck:
            puck_velocity = _off_edge(puck, puck_velocity, setting)
            approach = jnp.sum((at.tip_velocity(velocity) - puck_velocity) * normal)
            approach = jnp.where(touching, jnp.maximum(approach, 0.0), 0.0)
            arm_change, puck_change = _share(at.leverage(normal), normal, puck, approach, inertia, setting)
            velocity, puck_velocity = velocity - arm_change, puck_velocity + puck_change
        return velocity, puck_velocity

    velocity, puck_velocity = jax.lax.fori_loop(0, _SWEEPS, sweep, (bodies.joint_velocity, bodies.puck_velocity))
    # What the sweeps leave above the largest velocity slows the whole arm, which leaves all of the above as it is.
    velocity = velocity / jnp.maximum(jnp.max(jnp.abs(velocity)) / setting.speed, 1.0)
    if has_puck:
        puck_velocity = _off_edge(puck, puck_velocity, setting)
    return bodies._replace(joint_velocity=velocity, puck_velocity=puck_velocity), touching.astype(jnp.int32)


def _give_way(leverage: Array, way: Array, inertia: arm.Inertia) -> Array:
    """``[2]``: the smallest move of the joints, in kinetic energy, by ``way`` along ``leverage``."""
    direction = inertia.solve(leverage)
    return direction * way / jnp.maximum(jnp.sum(leverage * direction), _LEAST)


def _share(
    leverage: Array, normal: Array, puck: Array, way: Array, inertia: arm.Inertia, setting: Setting
) -> tuple[Array, Array]:
    """How far the joints go back and the puck goes ahead to be ``way`` further apart, each ``[2]``."""
    low, high = _table(setting)
    # Where the table's edge holds the puck it is as heavy as the table.
    held = ((puck <= low) & (normal < 0)) | ((puck >= high) & (normal > 0))
    give = jnp.where(held, 0.0, normal) / setting.puck_mass
    direction = inertia.solve(leverage)
    impulse = way / jnp.maximum(jnp.sum(leverage * direction) + jnp.sum(give * normal), _LEAST)
    return direction * impulse, give * impulse


def _gap(tip: Array, puck: Array, setting: Setting) -> tuple[Array, Array]:
    """How far tip and puck are apart, below 0 if they overlap, and the unit vector ``[2]`` from one to the other."""
    between = puck - tip
    distance = jnp.sqrt(jnp.sum(between**2))
    return distance - setting.tip_radius - setting.puck_radius, between / jnp.maximum(distance, _LEAST)


def _table(setting: Setting) -> tuple[Array, Array]:
    """The least and the largest coordinate of the puck's centre."""
    low = setting.edge + setting.puck_radius
    return low, 1 - low


def _on_table(puck: Array, setting: Setting) -> Array:
    return jnp.clip(puck, *_table(setting))


def _off_edge(puck: Array, velocity: Array, setting: Setting) -> Array:
    """``velocity`` ``[2]`` of the puck without what points over the edge of the table that it touches."""
    low, high = _table(setting)
    velocity = jnp.where(puck <= low, jnp.maximum(velocity, 0.0), velocity)
    return jnp.where(puck >= high, jnp.minimum(velocity, 0.0), velocity)
