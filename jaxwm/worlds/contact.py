"""Discs in the unit box, moved from contact to contact.

Nothing is integrated: between contacts the motion is an exact parabola (or a straight line), the time of
the next contact is a closed form, and an impulse is applied at that time. So no ball passes through another
or through a wall at any speed. Two balls under the same gravity move uniformly relative to each other,
hence their contact time is the root of a quadratic with gravity as well.

Two rules keep the number of contacts in a frame finite, both far below what a picture shows:

* Restitution slows no contact below `slow_speed`, and one that is slower already loses nothing. Otherwise
  a pile of balls with restitution < 1 would touch infinitely often in a finite time (inelastic collapse;
  Luding and McNamara, Granular Matter 1, 1998, remedy it likewise). A ball at rest on the floor is one that
  bounces to 1/64 of the way that it falls in the first frame of a free fall.
* A ball leaves the floor with at least 1/128 of the speed that gravity gives it in a frame, also if it
  arrives with less (a ball laid on the floor). This is the only place where energy is gained, at most
  m (gravity dt / 128)^2 / 2.

If ``max_events`` contacts do not suffice for a frame, all balls stay where they are for the rest of it:
no law is broken, time is lost, and `Advance.unspent` says how much.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array

_Carry = tuple[Array, Array, Array, Array, Array, Array]


class Advance(NamedTuple):
    """Where ``n`` balls are after some time, and what they touched on the way.

    Attributes:
      position: ``[n, 2]`` in sides of the box.
      velocity: ``[n, 2]`` in sides per second.
      wall_contacts: ``[n]`` int32, how often each ball touched a wall.
      ball_contacts: ``[n]`` int32, how often each ball touched another one.
      unspent: scalar, seconds that were not simulated because ``max_events`` was reached; else 0.
    """

    position: Array
    velocity: Array
    wall_contacts: Array
    ball_contacts: Array
    unspent: Array


def slow_speed(gravity: Array | float, dt: Array | float) -> Array | float:
    """The speed, in sides per second, below which a contact loses no energy."""
    return gravity * dt / 8 + 1e-5 / dt


def advance(
    position: Array,
    velocity: Array,
    radius: Array,
    mass: Array,
    *,
    dt: Array | float,
    gravity: Array | float = 0.0,
    restitution: Array | float = 1.0,
    max_events: int = 4096,
) -> Advance:
    """Moves ``n`` discs in the box [0, 1]^2 for ``dt`` seconds.

    Args:
      position: ``[n, 2]`` in sides of the box, y down; inside the box, not overlapping.
      velocity: ``[n, 2]`` in sides per second.
      radius: ``[n]`` in sides of the box.
      mass: ``[n]`` in any unit.
      dt: seconds, above 0.
      gravity: acceleration downwards (+y), at least 0, in sides per second squared.
      restitution: normal speed after a contact over that before it, in [0, 1]; for balls and walls.
      max_events: most contacts in this call.

    Momentum is conserved in each contact of two balls, and energy in every contact with restitution 1.
    Contacts at the same time are resolved one after the other. Not differentiable in reverse mode.
    """
    n = position.shape[0]
    # float32 rounding of two velocities of size 1 moves their difference by 1e-7: a slower separation than
    # this share of the speeds may round to an approach, and the same contact would come again for ever.
    resolution = 4 * float(np.finfo(np.float32).eps)
    slow = slow_speed(gravity, dt)
    least_bounce = gravity * dt / 128
    first, second = np.triu_indices(n, 1)
    is_first, is_second = first[:, None] == np.arange(n), second[:, None] == np.arange(n)
    # How much of a change of relative velocity each ball takes. Rounded so that the two add up to exactly 1:
    # an error here would be the same at every contact of the pair, and energy would drift.
    share_second = 1 - mass[second] / (mass[first] + mass[second])
    share_first = 1 - share_second
    share = is_second * share_second[:, None] - is_first * share_first[:, None]
    walls = 4 * n

    def rebound(speed: Array) -> Array:
        return jnp.maximum(restitution * speed, jnp.minimum(speed, slow))

    def contact(carry: _Carry) -> _Carry:
        position, velocity, wall_contacts, ball_contacts, remaining, events = carry
        times = jnp.concatenate(
            [
                _wall_times(position, velocity, radius, gravity),
                _pair_times(position, velocity, radius, first, second),
            ]
        )
        nearest = jnp.argmin(times)
        happens = times[nearest] < remaining
        elapsed = jnp.minimum(times[nearest], remaining)

        fall = jnp.stack([jnp.zeros_like(elapsed), gravity * elapsed])
        position = position + (velocity + fall / 2) * elapsed
        position = jnp.clip(position, radius[:, None], 1 - radius[:, None])
        velocity = velocity + fall

        event = (jnp.arange(walls + len(first)) == nearest) & happens
        left, right, ceiling, floor = event[:walls].reshape(4, n)
        bounced = rebound(jnp.abs(velocity))
        x = jnp.where(left, bounced[:, 0], jnp.where(right, -bounced[:, 0], velocity[:, 0]))
        from_floor = -jnp.maximum(bounced[:, 1], least_bounce)
        y = jnp.where(ceiling, bounced[:, 1], jnp.where(floor, from_floor, velocity[:, 1]))
        velocity = jnp.stack([x, y], axis=-1)

        # Speeds over the distance, and never a unit normal: its rounded length would bias the energy.
        between = position[second] - position[first]
        distance_squared = jnp.sum(between**2, axis=-1)
        distance = jnp.sqrt(distance_squared)
        approach = -jnp.sum((velocity[second] - velocity[first]) * between, axis=-1) / distance_squared
        speeds = jnp.linalg.norm(velocity[first], axis=-1) + jnp.linalg.norm(velocity[second], axis=-1)
        least = resolution * speeds / distance
        separation = jnp.maximum(jnp.maximum(restitution * approach, jnp.minimum(approach, slow / distance)), least)
        change = jnp.where(event[walls:], approach + separation, 0.0)[:, None] * between
        # A sum, not a matrix product, which accelerators would round to 8 bits.
        velocity = velocity + jnp.sum(share[:, :, None] * change[:, None, :], axis=0)

        wall_contacts = wall_contacts + (left | right | ceiling | floor)
        ball_contacts = ball_contacts + jnp.sum((is_first | is_second) & event[walls:, None], axis=0)
        remaining = jnp.where(happens, remaining - elapsed, 0.0)
        return position, velocity, wall_contacts, ball_contacts, remaining, events + 1

    none = jnp.zeros((n,), jnp.int32)
    start = (position, velocity, none, none, jnp.asarray(dt, jnp.float32), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(lambda carry: (carry[4] > 0) & (carry[5] < max_events), contact, start)
    return Advance(*end[:5])


def _wall_times(position: Array, velocity: Array, radius: Array, gravity: Array | float) -> Array:
    """``[4 n]`` seconds until each ball touches the left, right, upper and lower wall; inf if never."""
    before = jnp.maximum(position - radius[:, None], 0.0)
    behind = jnp.maximum(1 - radius[:, None] - position, 0.0)
    speed_x, speed_y = velocity[:, 0], velocity[:, 1]
    left = _divide(before[:, 0], -speed_x)
    right = _divide(behind[:, 0], speed_x)
    # The roots of y + v t + g t^2 / 2 = wall, each in the form that has no difference of nearly equal numbers.
    rise = speed_y**2 - 2 * gravity * before[:, 1]
    ceiling = jnp.where(
        (speed_y < 0) & (rise > 0), _divide(2 * before[:, 1], -speed_y + jnp.sqrt(jnp.maximum(rise, 0.0))), jnp.inf
    )
    impact = jnp.sqrt(speed_y**2 + 2 * gravity * behind[:, 1])
    falls = jnp.asarray(gravity) > 0
    upwards = jnp.where(falls, (impact - speed_y) / jnp.where(falls, gravity, 1.0), jnp.inf)
    floor = jnp.where(speed_y > 0, _divide(2 * behind[:, 1], impact + speed_y), upwards)
    return jnp.concatenate([left, right, ceiling, floor])


def _pair_times(position: Array, velocity: Array, radius: Array, first: np.ndarray, second: np.ndarray) -> Array:
    """``[pairs]`` seconds until each two balls touch; inf if they never do on their way."""
    between = position[second] - position[first]
    relative = velocity[second] - velocity[first]
    reach = radius[first] + radius[second]
    distance = jnp.linalg.norm(between, axis=-1)
    speed = jnp.linalg.norm(relative, axis=-1)
    direction = relative / jnp.where(speed > 0, speed, 1.0)[:, None]
    ahead = -jnp.sum(between * direction, axis=-1)
    aside = between[:, 0] * direction[:, 1] - between[:, 1] * direction[:, 0]
    half_chord_squared = reach**2 - aside**2
    gap = jnp.maximum((distance - reach) * (distance + reach), 0.0)
    way = _divide(gap, ahead + jnp.sqrt(jnp.maximum(half_chord_squared, 0.0)))
    return jnp.where((ahead > 0) & (half_chord_squared > 0), _divide(way, speed), jnp.inf)


def _divide(numerator: Array, denominator: Array) -> Array:
    """The quotient where the denominator is positive, else inf."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), jnp.inf)
