"""Balls that bounce off each other and off the walls of a box: conservation laws to be learned from pictures."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, Spec
from jaxwm.worlds import base, contact, drawing

BACKGROUND: drawing.Colour = (18, 20, 30)
COLOURS: tuple[drawing.Colour, ...] = (
    (240, 84, 79),
    (64, 158, 255),
    (255, 209, 72),
    (60, 207, 142),
    (181, 121, 255),
    (255, 150, 64),
    (92, 225, 230),
    (245, 245, 245),
)
"""Ball i has colour i. The first three are linearly independent, so that a mixture of them can be parted."""

_CANDIDATES = 32


@struct.dataclass
class BounceState:
    """The physical state of ``n`` balls.

    Attributes:
      position: ``[n, 2]`` centres in sides of the box, x to the right and y down.
      velocity: ``[n, 2]`` in sides per second.
      radius: ``[n]`` in sides of the box.
      mass: ``[n]``.
      wall_contacts: ``[n]`` int32, how often each ball touched a wall since the last frame.
      ball_contacts: ``[n]`` int32, how often each ball touched another ball since the last frame.
      unspent: scalar, seconds of the last frame that ``max_events`` left without simulation; else 0.
    """

    position: Array
    velocity: Array
    radius: Array
    mass: Array
    wall_contacts: Array
    ball_contacts: Array
    unspent: Array


@dataclasses.dataclass(frozen=True)
class Bounce:
    """``balls`` discs in the box [0, 1]^2, seen from the side, moved exactly (see `jaxwm.worlds.contact`).

    The action is the share, -1..1 along x and y, of the largest ``force`` on ball 0. It acts as one impulse
    ``force * action * dt`` at the start of the frame. The reward is 0 and an episode never terminates.

    Args:
      balls: how many; at most 8, one for each colour.
      size: pixels of a side of the picture.
      radius: range in sides of the box, drawn uniformly for each ball.
      mass: range, drawn uniformly for each ball; None is one density for all, with mass 1 at the mean radius.
      speed: range of the first speed in sides per second; its direction is uniform.
      gravity: acceleration downwards in sides per second squared.
      restitution: normal speed after a contact over that before it; 1 conserves energy.
      force: largest force on ball 0 along each axis, in mass times sides per second squared; 0: no control.
      dt: seconds between two frames.
      max_events: most contacts in a frame; what is left of it then is not simulated (``info["unspent"]``).

    Raises:
      ValueError: a value is out of its range, or so many balls of the largest radius have no sure place.
    """

    balls: Annotated[int, pydantic.Field(ge=1, le=len(COLOURS))] = 1
    size: pydantic.PositiveInt = 64
    radius: base.PositiveRange = (0.08, 0.12)
    mass: base.PositiveRange | None = None
    speed: base.NonNegativeRange = (0.3, 0.9)
    gravity: base.NonNegative = 0.0
    restitution: Annotated[float, pydantic.Field(ge=0, le=1)] = 1.0
    force: base.NonNegative = 0.0
    dt: base.Positive = 0.1
    max_events: pydantic.PositiveInt = 4096

    def __post_init__(self) -> None:
        base.check_parameters(self)
        if 2 * self.radius[1] * self._cells > 1:
            raise ValueError(
                f"bounce.radius is {self.radius}, expected at most {1 / (2 * self._cells):.4g}, "
                f"so that there is a place for each ball ({self.balls}) beside the others"
            )

    @property
    def spec(self) -> Spec:
        """One picture ``image``; two continuous actions in -1..1, also where ``force`` is 0."""
        action = ActionSpec(dim=2, low=(-1.0, -1.0), high=(1.0, 1.0))
        return Spec((Field("image", (self.size, self.size, 3), "uint8"),), action)

    @property
    def colours(self) -> tuple[drawing.Colour, ...]:
        """The colour of each ball."""
        return COLOURS[: self.balls]

    @property
    def background(self) -> drawing.Colour:
        """The colour of the empty box."""
        return BACKGROUND

    def reset(self, key: Array) -> BounceState:
        """Balls that do not overlap, each at a uniformly random place that earlier ones leave free."""
        # One draw for everything: each call of the generator is compiled anew, which takes longest here.
        columns = 2 * _CANDIDATES + 6
        drawn = jax.random.uniform(key, (self.balls * columns + self._cells**2,))
        order = jnp.argsort(drawn[self.balls * columns :])
        share_radius, share_mass, share_speed, share_angle, places = jnp.split(
            drawn[: self.balls * columns].reshape(self.balls, columns), (1, 2, 3, 4), axis=1
        )
        radius = base.within(self.radius, share_radius[:, 0])
        if self.mass is None:
            mass = (2 * radius / (self.radius[0] + self.radius[1])) ** 2
        else:
            mass = base.within(self.mass, share_mass[:, 0])
        angle = 2 * jnp.pi * share_angle
        velocity = base.within(self.speed, share_speed) * jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
        position = self._place(places.reshape(self.balls, -1, 2), order, radius)
        return self.state(position, velocity, radius, mass)

    def state(self, position: Array, velocity: Array, radius: Array, mass: Array) -> BounceState:
        """A state of one's own making: ``position``, ``velocity`` ``[n, 2]``, ``radius``, ``mass`` ``[n]``.

        The balls must lie in the box and not overlap, which is not checked.

        Raises:
          ValueError: a shape does not fit ``balls``.
        """
        given = {"position": position, "velocity": velocity, "radius": radius, "mass": mass}
        for name, value in given.items():
            expected = (self.balls, 2) if name in ("position", "velocity") else (self.balls,)
            if np.shape(value) != expected:
                raise ValueError(f"{name} has shape {np.shape(value)}, expected {expected}")
        none = jnp.zeros((self.balls,), jnp.int32)
        floats = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
        return BounceState(**floats, wall_contacts=none, ball_contacts=none, unspent=jnp.zeros(()))

    def step(self, key: Array, state: BounceState, action: Array) -> base.Transition:
        """``dt`` seconds on; the world has no chance in it, so ``key`` is not used."""
        del key
        action = base.clip_action(self.spec.action, action)
        velocity = state.velocity.at[0].add(self.force * self.dt * action / state.mass[0])
        after = contact.advance(
            state.position,
            velocity,
            state.radius,
            state.mass,
            dt=self.dt,
            gravity=self.gravity,
            restitution=self.restitution,
            max_events=self.max_events,
        )
        return base.Transition(dataclasses.replace(state, **after._asdict()), jnp.zeros(()), jnp.array(False))

    def random_action(self, key: Array, state: BounceState) -> Array:
        """``[2]``: uniform within the bounds, or zero where ``force`` is 0 and the action means nothing."""
        if self.force == 0:
            return jnp.zeros((2,), jnp.float32)
        return base.uniform_action(self.spec.action, key)

    def observation(self, state: BounceState) -> dict[str, Array]:
        """``{"image": [size, size, 3] uint8}``."""
        return {"image": self.render(state)}

    def render(self, state: BounceState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: the box fills the picture, its walls are the edges of the picture."""
        layers = [(drawing.disc(state.position[i], state.radius[i]), colour) for i, colour in enumerate(self.colours)]
        return drawing.picture(self.size if size is None else size, BACKGROUND, layers)

    def info(self, state: BounceState) -> dict[str, Array]:
        """The fields of `BounceState`, by name and in its units."""
        return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}

    def energy(self, state: BounceState) -> Array:
        """Kinetic energy plus that of the height above the floor, in mass times (sides per second)^2."""
        kinetic = jnp.sum(state.velocity**2, axis=-1) / 2
        height = 1 - state.position[:, 1] - state.radius
        return jnp.sum(state.mass * (kinetic + self.gravity * height))

    def momentum(self, state: BounceState) -> Array:
        """``[2]``, in mass times sides per second."""
        return jnp.sum(state.mass[:, None] * state.velocity, axis=0)

    @property
    def _cells(self) -> int:
        """Cells along a side of the coarsest square grid that has one for each ball."""
        return math.isqrt(self.balls - 1) + 1

    def _place(self, places: Array, order: Array, radius: Array) -> Array:
        """``[n, 2]``: each ball at the first of its ``places`` that is free, else all in cells of a grid.

        Args:
          places: ``[n, candidates + 1, 2]`` in [0, 1], as a share of the room that each ball has.
          order: the cells in random order.
          radius: ``[n]``.
        """
        low, room = radius[:, None, None], 1 - 2 * radius[:, None, None]
        candidates = low + room * places[:, 1:]
        position = candidates[:, 0]
        free = jnp.array(True)
        for i in range(1, self.balls):
            distance = jnp.linalg.norm(candidates[i, :, None] - position[None, :i], axis=-1)
            fits = jnp.all(distance > radius[i] + radius[:i], axis=-1)
            position = position.at[i].set(candidates[i, jnp.argmax(fits)])
            free &= jnp.any(fits)
        cell = order[: self.balls]
        side = 1 / self._cells
        corner = jnp.stack([cell % self._cells, cell // self._cells], axis=-1) * side
        in_cells = corner + radius[:, None] + (side - 2 * radius[:, None]) * places[:, 0]
        return jnp.where(free, position, in_cells)


def hold_centre(world: Bounce, key: Array, state: BounceState) -> Array:
    """A scripted policy: drives ball 0 towards the middle of the box and brakes it; ``[2]``.

    Critically damped with a time of half a second, as far as the force reaches; zero where ``force`` is 0.
    """
    del key
    if world.force == 0:
        return jnp.zeros((2,), jnp.float32)
    time, gravity = 0.5, jnp.array([0.0, world.gravity])
    # The push comes at the start of a frame, gravity throughout: half of what it gave is the way back.
    velocity = state.velocity[0] - gravity * world.dt / 2
    wanted = (0.5 - state.position[0]) / time**2 - 2 * velocity / time - gravity
    return jnp.clip(state.mass[0] * wanted / world.force, -1.0, 1.0)
