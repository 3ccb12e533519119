"""Spheres on a checkered floor in the light of a sun, seen by a camera that moves: what is where, seen or not.

One of the spheres rolls, and what it has rolled over stays painted: a trace that a simulator has to remember.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, Spec
from jaxwm.worlds import base, captions, contact, rays

Condition = Literal["caption", "camera", "depth", "segmentation"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 70, 65),
    "green": (60, 190, 90),
    "blue": (60, 110, 240),
    "yellow": (245, 205, 60),
}
"""Of spheres, by the name that a caption gives them; no two in a scene are alike."""
SIDE, TILES = 8.0, 8
"""Metres along a side of the floor, and tiles."""
FLOOR, SKY, GROUND, SPHERE = 0, 1, 2, 3
"""What `SceneTruth.segmentation` says of a pixel: floor, sky, what lies around, or sphere i, ``SPHERE + i``."""

_LIGHT_TILE, _DARK_TILE, _AROUND = (214, 208, 196), (150, 144, 134), (108, 124, 96)
_ABOVE, _HORIZON = (112, 164, 228), (206, 222, 240)
_EYE, _AMBIENT, _BODY, _CLEARANCE = 1.1, 0.42, 0.25, 0.35
_PAINTED = 0.75
"""Share of the roller's colour in a tile that it has painted."""


@struct.dataclass
class SceneState:
    """Where everything is, in metres from the middle of the floor, x to the east and y to the north; n spheres.

    Attributes:
      place: ``[2]`` of the camera.
      heading: radians by which it looks to the left of east.
      motion: ``[2]`` the last action.
      spheres: ``[n, 2]`` where they stand; sphere 0 rolls.
      velocity: ``[2]`` of sphere 0, metres per second.
      radius: ``[n]``; 0 for a sphere that is not there.
      colour: ``[n]`` int32, index into `COLOURS`.
      painted: ``[TILES, TILES]`` bool, by column (x) and row (y), what sphere 0 has rolled over.
      sun: ``[3]`` unit vector towards it.
    """

    place: Array
    heading: Array
    motion: Array
    spheres: Array
    velocity: Array
    radius: Array
    colour: Array
    painted: Array
    sun: Array


class SceneTruth(NamedTuple):
    """What the camera sees, as it is.

    Attributes:
      image: ``[size, size, 3]`` uint8.
      depth: ``[size, size]`` float32, metres along the axis of the camera; inf for the sky.
      segmentation: ``[size, size]`` uint8; see `FLOOR`.
      shadow: ``[size, size]`` bool, floor that a sphere keeps the sun from.
    """

    image: Array
    depth: Array
    segmentation: Array
    shadow: Array


@dataclasses.dataclass(frozen=True)
class Scene:
    """A floor of 8 by 8 metres with ``spheres`` on it, the first of which rolls, and a camera among them.

    The action is the share, -1..1, of the camera's ``speed`` forward and of its ``turn`` to the left. It passes
    neither the edge of the floor nor a sphere. The reward is 0 and an episode never terminates.

    Args:
      size: pixels of a side of the picture.
      spheres: how many at most.
      fewest: how many at least; None for always as many.
      radius: range of their radii in metres.
      rolling: range of the speed of the first one in m/s; it bounces off the others, the camera and the edge.
      paints: it leaves its colour on the tiles.
      speed: of the camera in m/s.
      turn: of the camera in radians per second.
      wide: radians from the left edge of the picture to the right one.
      start: where the camera is at first: in the ``middle``, looking anywhere, or at the ``edge``, looking inwards.
      conditions: what is told beside the picture; see `condition`.
      samples: squared, the rays for each pixel.
      dt: seconds between two frames.

    Raises:
      ValueError: a value is out of its range.
    """

    size: pydantic.PositiveInt = 32
    spheres: Annotated[int, pydantic.Field(ge=1, le=len(COLOURS))] = 3
    fewest: Annotated[int, pydantic.Field(ge=1)] | None = None
    radius: base.PositiveRange = (0.35, 0.6)
    rolling: base.NonNegativeRange = (0.5, 1.2)
    paints: bool = True
    speed: base.Positive = 2.0
    turn: base.Positive = 1.5
    wide: Annotated[float, pydantic.Field(gt=0, lt=3)] = 1.25
    start: Literal["middle", "edge"] = "middle"
    conditions: tuple[Condition, ...] = ()
    samples: pydantic.PositiveInt = 2
    dt: base.Positive = 0.1

    def __post_init__(self) -> None:
        base.check_parameters(self)
        if self.fewest is not None and self.fewest > self.spheres:
            raise ValueError(f"scene.fewest is {self.fewest}, expected at most scene.spheres, {self.spheres}")
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError(f"scene.conditions is {self.conditions}: one of them comes twice")
        if self.radius[1] > SIDE / 8:
            raise ValueError(f"scene.radius is {self.radius}, expected at most {SIDE / 8}: the spheres need room")

    @property
    def spec(self) -> Spec:
        """One picture ``image``; how fast the camera goes forward and turns left; the conditions asked for."""
        action = ActionSpec(dim=2, low=(-1.0, -1.0), high=(1.0, 1.0))
        told = {
            "caption": ((captions.LENGTH,), "int32"),
            "camera": ((4,), "float32"),
            "depth": ((self.size, self.size, 1), "uint8"),
            "segmentation": ((self.size, self.size, 1), "uint8"),
        }
        conditions = tuple(Field(name, *told[name]) for name in self.conditions)
        return Spec((Field("image", (self.size, self.size, 3), "uint8"),), action, conditions)

    @property
    def camera(self) -> rays.Camera:
        """A little downwards, as high as a child."""
        return rays.Camera(pitch=-0.22, field_of_view=self.wide, position=(0.0, 0.0, _EYE))

    def reset(self, key: Array) -> SceneState:
        """Each sphere in a quarter of the floor of its own, the camera where ``start`` says."""
        order_key, key = jax.random.split(key)
        orders = jax.vmap(lambda key: jax.random.permutation(key, len(COLOURS)))(jax.random.split(order_key))
        drawn = jax.random.uniform(key, (8 + 3 * self.spheres,))
        corner = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])[orders[0][: self.spheres]]
        spheres = drawn[8:].reshape(self.spheres, 3)
        radius = base.within(self.radius, spheres[:, 2])
        near, far = self.radius[1] + 0.8, SIDE / 2 - self.radius[1]
        place = corner * (near + (far - near) * spheres[:, :2])
        fewest = self.spheres if self.fewest is None else self.fewest
        there = jnp.arange(self.spheres) < fewest + jnp.floor(drawn[5] * (self.spheres - fewest + 1))
        # What is not there is a point in the corner, where no sphere can touch it.
        radius = jnp.where(there, radius, 0.0)
        place = jnp.where(there[:, None], place, (SIDE / 2 - 1e-3) * corner)
        rolls, towards = 2 * jnp.pi * drawn[0], 2 * jnp.pi * drawn[1]
        high = 0.5 + 0.5 * drawn[2]
        heading, at = 2 * jnp.pi * drawn[6], 0.8 * drawn[3:5] - 0.4
        if self.start == "edge":
            # As far back as the floor goes, half a radian at most past its middle.
            at = (0.4 - SIDE / 2) * jnp.stack([jnp.cos(heading), jnp.sin(heading)])
            heading += drawn[3] - 0.5
        return SceneState(
            place=at,
            heading=heading,
            motion=jnp.zeros(2),
            spheres=place,
            velocity=base.within(self.rolling, drawn[7]) * jnp.stack([jnp.cos(rolls), jnp.sin(rolls)]),
            radius=radius,
            colour=orders[1][: self.spheres].astype(jnp.int32),
            painted=self._paint(jnp.zeros((TILES, TILES), bool), place[0]),
            sun=jnp.stack([jnp.cos(high) * jnp.cos(towards), jnp.cos(high) * jnp.sin(towards), jnp.sin(high)]),
        )

    def step(self, key: Array, state: SceneState, action: Array) -> base.Transition:
        """``dt`` seconds on; the world has no chance in it, so ``key`` is not used."""
        del key
        action = base.clip_action(self.spec.action, action)
        heading = state.heading + self.turn * self.dt * action[1]
        direction = (state.heading + heading) / 2
        way = self.speed * self.dt * action[0] * jnp.stack([jnp.cos(direction), jnp.sin(direction)])
        wanted = jnp.clip(state.place + way, -SIDE / 2, SIDE / 2)
        gap = lambda place: jnp.linalg.norm(state.spheres - place, axis=-1) - state.radius - _CLEARANCE  # noqa: E731
        # A sphere may have rolled up to the camera: from there it goes anywhere but nearer.
        blocked = jnp.any((gap(wanted) < 0) & (gap(wanted) < gap(state.place)))
        place = jnp.where(blocked, state.place, wanted)
        # What stands, the camera too, is as good as fixed; contacts are reckoned in a box of side 1.
        moved = contact.advance(
            jnp.concatenate([state.spheres, place[None]]) / SIDE + 0.5,
            jnp.zeros((self.spheres + 1, 2)).at[0].set(state.velocity / SIDE),
            jnp.concatenate([state.radius, jnp.full(1, _BODY)]) / SIDE,
            jnp.full(self.spheres + 1, 1e8).at[0].set(1.0),
            dt=self.dt, gravity=0.0, restitution=1.0, max_events=64,
        )  # fmt: skip
        spheres = state.spheres.at[0].set(SIDE * (moved.position[0] - 0.5))
        after = dataclasses.replace(
            state,
            place=place,
            heading=jnp.mod(heading, 2 * jnp.pi),
            motion=action,
            spheres=spheres,
            velocity=SIDE * moved.velocity[0],
            painted=self._paint(state.painted, spheres[0]),
        )
        return base.Transition(after, jnp.zeros(()), jnp.array(False))

    def _paint(self, painted: Array, place: Array) -> Array:
        if not self.paints:
            return painted
        column, row = _tile(place)
        return painted.at[column, row].set(True)

    def random_action(self, key: Array, state: SceneState) -> Array:
        """``[2]``: goes on roughly as before, so that a random camera gets about and looks around."""
        noise = jax.random.uniform(key, (2,), minval=-0.7, maxval=0.7)
        return jnp.clip(0.85 * state.motion + noise, -1.0, 1.0)

    def observation(self, state: SceneState) -> dict[str, Array]:
        """``{"image": [size, size, 3] uint8}``."""
        return {"image": self.render(state)}

    def render(self, state: SceneState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: what the camera sees."""
        return self.look(state, size).image

    def look(self, state: SceneState, size: int | None = None) -> SceneTruth:
        """What the camera sees, how far away and what it is, and where the sun does not reach."""
        size = self.size if size is None else size
        fine = size * self.samples
        own = self.camera.rays(fine)
        cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
        directions = jnp.stack([cos * own[0] - sin * own[1], sin * own[0] + cos * own[1], own[2]])
        eye = jnp.concatenate([state.place, jnp.full(1, _EYE)])
        centres = jnp.concatenate([state.spheres, state.radius[:, None]], axis=1)
        palette = jnp.asarray(list(COLOURS.values()), jnp.float32)[state.colour]

        ground = rays.floor_depth(_EYE, directions)
        at = eye[:, None] + jnp.minimum(ground, 1e3) * directions
        on_floor = jnp.max(jnp.abs(at[:2]), axis=0) < SIDE / 2
        to_sun = jnp.broadcast_to(state.sun[:, None], at.shape)
        blocked = jnp.stack(
            [rays.sphere_depth(at, to_sun, *sphere) for sphere in zip(centres, state.radius, strict=True)]
        )
        shadow = jnp.any(jnp.isfinite(blocked), axis=0) & jnp.isfinite(ground)
        colour = self._floor(state, at, on_floor, palette[0])
        colour *= jnp.where(shadow, _AMBIENT, _AMBIENT + (1 - _AMBIENT) * state.sun[2])
        height = jnp.clip(directions[2] / 0.7, 0.0, 1.0)
        tone = lambda value: jnp.asarray(value, jnp.float32)[:, None]  # noqa: E731
        sky = tone(_HORIZON) + height * (tone(_ABOVE) - tone(_HORIZON))
        colour = jnp.where(jnp.isfinite(ground), colour, sky)
        kind = jnp.where(jnp.isfinite(ground), jnp.where(on_floor, FLOOR, GROUND), SKY)

        depth = ground
        for index in range(self.spheres):
            nearer = rays.sphere_depth(eye, directions, centres[index], state.radius[index])
            normal = (eye[:, None] + jnp.minimum(nearer, 1e3) * directions - centres[index][:, None]) / state.radius[
                index
            ]
            lit = _AMBIENT + (1 - _AMBIENT) * jnp.maximum(jnp.sum(normal * state.sun[:, None], axis=0), 0.0)
            front = nearer < depth
            colour = jnp.where(front, palette[index][:, None] * lit, colour)
            kind, depth = jnp.where(front, SPHERE + index, kind), jnp.minimum(depth, nearer)
        corner = slice(None, None, self.samples)
        map_of = lambda values: values.reshape(fine, fine)[corner, corner]  # noqa: E731
        shadow &= (kind == FLOOR) | (kind == GROUND)
        return SceneTruth(
            rays.pixels(colour, size, self.samples), map_of(depth), map_of(kind).astype(jnp.uint8), map_of(shadow)
        )

    def _floor(self, state: SceneState, at: Array, on_floor: Array, paint: Array) -> Array:
        """``[3, P]``: the tiles, painted ones in the colour of the roller, and what lies around the floor."""
        column, row = _tile(at)
        tone = lambda value: jnp.asarray(value, jnp.float32)[:, None]  # noqa: E731
        tiles = jnp.where((column + row) % 2 == 0, tone(_LIGHT_TILE), tone(_DARK_TILE))
        tiles = jnp.where(state.painted[column, row], tiles + _PAINTED * (paint[:, None] - tiles), tiles)
        return jnp.where(on_floor, tiles, tone(_AROUND))

    def info(self, state: SceneState) -> dict[str, Array]:
        """The fields of `SceneState`, in its units, and ``visible`` ``[n]`` bool, which spheres are in the picture."""
        truth = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        seen = self.look(state).segmentation.reshape(-1) == SPHERE + jnp.arange(self.spheres)[:, None]
        return truth | {"visible": jnp.any(seen, axis=1)}

    def condition(self, state: SceneState) -> dict[str, Array]:
        """What the frame of ``state`` is told to show, those of these that ``conditions`` names.

        * ``caption`` ``[12]`` int32: how many balls are seen and of which colours, and which way the one that rolls
          goes as seen from the camera, such as "two balls in sight red blue red rolls left"; see
          `jaxwm.worlds.captions`.
        * ``camera`` ``[4]``: where it is in metres, cosine and sine of its heading.
        * ``depth`` ``[size, size, 1]`` uint8: 255 * min(1 / depth, 1).
        * ``segmentation`` likewise: `FLOOR`, `SKY`, `GROUND`, ``SPHERE`` and on for each of them.
        """
        makers: dict[str, Callable[[], Array]] = {
            "caption": lambda: self._caption(state),
            "camera": lambda: jnp.concatenate(
                [state.place, jnp.stack([jnp.cos(state.heading), jnp.sin(state.heading)])]
            ),
            "depth": lambda: jnp.round(255.0 * jnp.minimum(1.0 / self.look(state).depth, 1.0)).astype(jnp.uint8)[
                ..., None
            ],
            "segmentation": lambda: self.look(state).segmentation[..., None],
        }
        return {name: makers[name]() for name in self.conditions}

    def _caption(self, state: SceneState) -> Array:
        seen = self.info(state)["visible"]
        number = jnp.sum(seen)
        colours = jnp.where(seen, captions.one_of(tuple(COLOURS), state.colour), 0)
        colours = colours[jnp.argsort(~seen, stable=True)]
        cos, sin = jnp.cos(state.heading), jnp.sin(state.heading)
        away = cos * state.velocity[0] + sin * state.velocity[1]
        left = cos * state.velocity[1] - sin * state.velocity[0]
        across = jnp.abs(left) > jnp.abs(away)
        way = jnp.where(across, jnp.where(left > 0, 0, 1), jnp.where(away > 0, 2, 3))
        moves = jnp.linalg.norm(state.velocity) > 0.05
        said = lambda there, token: jnp.where(there, token, 0)  # noqa: E731
        return captions.sentence(
            captions.count(number),
            captions.one_of(("balls", "ball"), (number == 1).astype(jnp.int32)),
            captions.word("in"),
            captions.word("sight"),
            *colours,
            said(seen[0], captions.one_of(tuple(COLOURS), state.colour[0])),
            said(seen[0], captions.one_of(("stands", "rolls"), moves.astype(jnp.int32))),
            said(seen[0] & moves, captions.one_of(("left", "right", "away", "near"), way)),
        )


def _bytes(values: Array) -> Array:
    return jnp.round(values).astype(jnp.uint8)


def _tile(place: Array) -> tuple[Array, Array]:
    """Column and row of the tile at ``place`` ``[2 or 3, ...]``."""
    column, row = (jnp.floor((place[axis] / SIDE + 0.5) * TILES).astype(jnp.int32) for axis in range(2))
    return jnp.clip(column, 0, TILES - 1), jnp.clip(row, 0, TILES - 1)


def look_around(world: Scene, key: Array, state: SceneState) -> Array:
    """A scripted policy: stands still and turns to the left, all around; ``[2]``."""
    del world, key, state
    return jnp.array([0.0, 1.0])


def stand_still(world: Scene, key: Array, state: SceneState) -> Array:
    """A scripted policy: watches what happens where it is; ``[2]``."""
    del world, key, state
    return jnp.zeros(2)
