"""Two rooms, a wall with a door, and a dot that has to pass it: the shortest way is not the straight one."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, Spec
from jaxwm.worlds import base, drawing

BACKGROUND: drawing.Colour = (18, 20, 30)
WALL: drawing.Colour = (124, 132, 158)
GOAL: drawing.Colour = (60, 207, 142)
DOT: drawing.Colour = (240, 84, 79)

_MIDDLE = 0.5
_CONTACTS = 4
_GRAZE = 2e-7
"""A way that leads less deep than this, in sides of the box, into the edge of the door passes it."""


@struct.dataclass
class RoomsState:
    """Where everything is, in sides of the box, x to the right and y down.

    Attributes:
      position: ``[2]`` centre of the dot.
      velocity: ``[2]`` way of the last frame over its time, in sides per second; what a wall stopped is 0.
      goal: ``[2]`` centre of the goal.
      door: scalar, y of the middle of the door.
    """

    position: Array
    velocity: Array
    goal: Array
    door: Array


@dataclasses.dataclass(frozen=True)
class Rooms:
    """A dot in one of two rooms of the box [0, 1]^2, a goal in the other one, a door at a random height.

    The action is the velocity that the dot wants, as the share -1..1 of ``speed`` along x and y. The dot
    touches walls exactly and slides along them: what points into a wall is lost, the rest of the way goes
    on. No action takes it through a wall, however fast.

    Args:
      size: pixels of a side of the picture.
      radius: of the dot, in sides of the box.
      wall: thickness of the wall between the rooms, in sides of the box.
      door: width of the door, in sides of the box.
      door_centre: range of the y of its middle, drawn uniformly for each episode.
      goal_radius: the goal is reached when the dot's centre is at most this far from it.
      speed: largest velocity along each axis, in sides per second.
      reward: "sparse" is 1 in a frame that leads to the goal or stays there, else 0; "distance" is minus the
        straight distance to the goal, in sides of the box.
      terminal: the episode ends where the goal is reached.
      show_goal: the goal is part of what is seen.
      background: colour of the floor.
      dt: seconds between two frames.
      observe: what is seen: ``pixels`` are the picture ``image``, ``state`` the vectors ``position`` ``[2]``, ``door``
        ``[1]`` and ``goal`` ``[2]`` in sides of the box.

    Raises:
      ValueError: a value is out of its range, the dot does not fit through the door or into a room, or the
        door reaches beyond the box.
    """

    size: pydantic.PositiveInt = 64
    radius: base.Positive = 0.04
    wall: base.Positive = 0.06
    door: base.Positive = 0.2
    door_centre: base.PositiveRange = (0.15, 0.85)
    goal_radius: base.Positive = 0.06
    speed: base.Positive = 0.6
    reward: Literal["sparse", "distance"] = "sparse"
    terminal: bool = True
    show_goal: bool = True
    background: base.Colour = BACKGROUND
    dt: base.Positive = 0.1
    observe: Literal["pixels", "state", "both"] = "pixels"

    def __post_init__(self) -> None:
        base.check_parameters(self)
        if self.door <= 2 * self.radius:
            raise ValueError(f"rooms.door is {self.door}, expected more than the dot's diameter {2 * self.radius}")
        room = _MIDDLE - self.wall / 2
        if room <= 2 * self.radius:
            raise ValueError(f"rooms.radius is {self.radius}: the dot does not fit into a room of width {room}")
        if self.door_centre[0] < self.door / 2 or self.door_centre[1] > 1 - self.door / 2:
            raise ValueError(
                f"rooms.door_centre is {self.door_centre}, expected within {self.door / 2}..{1 - self.door / 2}, "
                "so that the door lies in the box"
            )

    @property
    def spec(self) -> Spec:
        """A picture, the vectors of the state, or both; two continuous actions in -1..1."""
        fields = [Field("image", (self.size, self.size, 3), "uint8")] if self.observe != "state" else []
        if self.observe != "pixels":
            fields += [Field("position", (2,), "float32"), Field("door", (1,), "float32")]
            fields += [Field("goal", (2,), "float32")] if self.show_goal else []
        return Spec(tuple(fields), ActionSpec(dim=2, low=(-1.0, -1.0), high=(1.0, 1.0)))

    def reset(self, key: Array) -> RoomsState:
        """The dot at rest somewhere in one room, the goal somewhere in the other, the door somewhere between."""
        drawn = jax.random.uniform(key, (6,))
        width, height = self._face_left - self.radius, 1 - 2 * self.radius
        in_left = self.radius + drawn[:4].reshape(2, 2) * jnp.array([width, height])
        in_right = in_left.at[:, 0].set(1 - in_left[:, 0])
        on_left = drawn[4] < 0.5
        position = jnp.where(on_left, in_left[0], in_right[0])
        goal = jnp.where(on_left, in_right[1], in_left[1])
        door = self.door_centre[0] + (self.door_centre[1] - self.door_centre[0]) * drawn[5]
        return RoomsState(position=position, velocity=jnp.zeros(2), goal=goal, door=door)

    def step(self, key: Array, state: RoomsState, action: Array) -> base.Transition:
        """``dt`` seconds on; the world has no chance in it, so ``key`` is not used."""
        del key
        action = base.clip_action(self.spec.action, action)
        position = self._slide(state.position, self.speed * self.dt * action, state.door)
        state = dataclasses.replace(state, position=position, velocity=(position - state.position) / self.dt)
        reached = self.is_solved(state)
        distance = jnp.linalg.norm(position - state.goal)
        reward = -distance if self.reward == "distance" else reached.astype(jnp.float32)
        return base.Transition(state, reward, reached & self.terminal)

    def random_action(self, key: Array, state: RoomsState) -> Array:
        """``[2]``: goes on roughly as before, so that a random dot gets about and finds the door at times."""
        noise = jax.random.uniform(key, (2,), minval=-0.9, maxval=0.9)
        return jnp.clip(0.85 * state.velocity / self.speed + noise, -1.0, 1.0)

    def observation(self, state: RoomsState) -> dict[str, Array]:
        """The parts that ``spec.observation`` names."""
        parts = {"position": state.position, "door": state.door[None], "goal": state.goal}
        return {
            field.name: self.render(state) if field.name == "image" else parts[field.name]
            for field in self.spec.observation
        }

    def goal_state(self, state: RoomsState) -> RoomsState:
        """The same rooms with the dot at rest in the middle of the goal."""
        return dataclasses.replace(state, position=state.goal, velocity=jnp.zeros(2))

    def with_goal(self, state: RoomsState, reached: RoomsState) -> RoomsState:
        """The goal is where the dot is in ``reached``."""
        return dataclasses.replace(state, goal=reached.position)

    def is_solved(self, state: RoomsState) -> Array:
        """Whether the dot has reached the goal."""
        return jnp.linalg.norm(state.position - state.goal) <= self.goal_radius

    def render(self, state: RoomsState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: the box fills the picture."""
        left, right = _MIDDLE - self.wall / 2, _MIDDLE + self.wall / 2
        above = drawing.rectangle(jnp.array([left, -1.0]), jnp.stack([right, state.door - self.door / 2]))
        below = drawing.rectangle(jnp.stack([left, state.door + self.door / 2]), jnp.array([right, 2.0]))
        layers = [(above, WALL), (below, WALL)]
        if self.show_goal:
            layers.append((drawing.ring(state.goal, self.goal_radius, self.goal_radius / 3), GOAL))
        layers.append((drawing.disc(state.position, self.radius), DOT))
        return drawing.picture(self.size if size is None else size, self.background, layers)

    def info(self, state: RoomsState) -> dict[str, Array]:
        """The fields of `RoomsState`, by name and in its units, and ``distance`` to the goal in sides."""
        truth = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        return truth | {"distance": jnp.linalg.norm(state.position - state.goal)}

    @property
    def _face_left(self) -> float:
        """Where the x of the dot's centre is when it touches the wall from the left."""
        return _MIDDLE - self.wall / 2 - self.radius

    def _slide(self, position: Array, way: Array, door: Array) -> Array:
        """``[2]``: where the dot comes to on ``way``; each contact takes what points into the wall from the way.

        What is left after a few contacts is dropped: the dot is then caught in a corner.
        """

        def go_on(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            position, way = carry
            shares, normals = self._contacts(position, way, door)
            nearest = jnp.argmin(shares)
            share = jnp.minimum(shares[nearest], 1.0)
            position = jnp.clip(position + share * way, self.radius, 1 - self.radius)
            normal = jnp.where(shares[nearest] < 1.0, normals[nearest], 0.0)
            way = (1 - share) * way
            return position, way - jnp.minimum(jnp.sum(way * normal), 0.0) * normal

        position, _ = jax.lax.fori_loop(0, _CONTACTS, go_on, (position, way))
        return position

    def _contacts(self, position: Array, way: Array, door: Array) -> tuple[Array, Array]:
        """The share of ``way`` ``[12]`` until each part of the walls is touched, and its normal ``[12, 2]``.

        The dot's centre moves among walls that are thicker by its radius: the four walls of the box, the two
        faces of the wall, the two jambs of the door, and a circle around each of the four edges of the door.
        """
        edge = jnp.stack([door - self.door / 2, door + self.door / 2])
        middle = jnp.stack([jnp.float32(_MIDDLE), door])
        outward = jnp.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])

        box_low, box_high = position - self.radius, 1 - self.radius - position
        box_gap = jnp.stack([box_low[0], box_high[0], box_low[1], box_high[1]])
        box = _share(box_gap, outward @ way)

        offset = position - middle
        face = _share(jnp.abs(offset[0]) - (self.wall / 2 + self.radius), -jnp.sign(offset[0]) * way[0])
        face_y = position[1] + jnp.where(jnp.isfinite(face), face, 0.0) * way[1]
        face = jnp.where((face_y <= edge[0]) | (face_y >= edge[1]), face, jnp.inf)
        face_normal = jnp.stack([jnp.sign(offset[0]), jnp.zeros(())])

        jamb_side = jnp.array([-1.0, 1.0])
        jamb = _share(self.door / 2 - self.radius - jamb_side * offset[1], jamb_side * way[1])
        jamb_x = offset[0] + jnp.where(jnp.isfinite(jamb), jamb, 0.0) * way[0]
        jamb = jnp.where(jnp.abs(jamb_x) <= self.wall / 2, jamb, jnp.inf)

        corner = middle + jnp.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * jnp.array([self.wall, self.door]) / 2
        circle, circle_normal = _circle_share(position, way, corner, self.radius)

        shares = jnp.concatenate([box, face[None], jamb, circle])
        jamb_normal = jnp.stack([jnp.zeros(2), -jamb_side], axis=-1)
        return shares, jnp.concatenate([-outward, face_normal[None], jamb_normal, circle_normal])


def _share(gap: Array, approach: Array) -> Array:
    """The share of a way that closes ``gap`` (below 0 counts as 0) with ``approach`` on all of it; inf if never."""
    nears = approach > 0
    return jnp.where(nears, jnp.maximum(gap, 0.0) / jnp.where(nears, approach, 1.0), jnp.inf)


def _circle_share(position: Array, way: Array, centre: Array, radius: float) -> tuple[Array, Array]:
    """The share of ``way`` until circles around ``centre`` ``[k, 2]`` are touched, and the normals there."""
    length = jnp.linalg.norm(way)
    direction = way / jnp.where(length > 0, length, 1.0)
    between = centre - position
    distance = jnp.linalg.norm(between, axis=-1)
    ahead = jnp.sum(between * direction, axis=-1)
    aside = between[:, 0] * direction[1] - between[:, 1] * direction[0]
    half_chord_squared = radius**2 - aside**2
    gap = (distance - radius) * (distance + radius) / (ahead + jnp.sqrt(jnp.maximum(half_chord_squared, 0.0)))
    # A way along a tangent may lead into the circle by rounding, and must not be turned aside by that.
    meets = (ahead > 0) & (half_chord_squared > 2 * radius * _GRAZE)
    share = jnp.where(meets, _share(gap, length), jnp.inf)
    touch = position + jnp.where(jnp.isfinite(share), share, 0.0)[:, None] * way - centre
    return share, touch / jnp.linalg.norm(touch, axis=-1, keepdims=True)


def walk_to_goal(world: Rooms, key: Array, state: RoomsState) -> Array:
    """A scripted policy: to the near side of the door, through it, to the goal; ``[2]``, always straight ahead."""
    del key
    beyond = world.wall / 2 + 1.5 * world.radius
    side = jnp.where(state.goal[0] > _MIDDLE, 1.0, -1.0)
    ahead = side * (state.position[0] - _MIDDLE)
    passed = ahead >= world.wall / 2 + world.radius
    fits = jnp.abs(state.position[1] - state.door) <= 0.9 * (world.door / 2 - world.radius)
    near = jnp.stack([_MIDDLE - side * beyond, state.door])
    far = jnp.stack([_MIDDLE + side * beyond, state.door])
    target = jnp.where(passed, state.goal, jnp.where(fits, far, near))
    step = (target - state.position) / (world.speed * world.dt)
    return step / jnp.maximum(jnp.max(jnp.abs(step)), 1.0)


def rush(world: Rooms, key: Array, state: RoomsState) -> Array:
    """A scripted policy: roughly towards the goal as the crow flies, ``[2]``; it ends up pushing against the wall."""
    way = state.goal - state.position
    straight = 0.6 * way / jnp.maximum(jnp.max(jnp.abs(way)), world.speed * world.dt)
    return jnp.clip(straight + jax.random.uniform(key, (2,), minval=-0.9, maxval=0.9), -1.0, 1.0)
