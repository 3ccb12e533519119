"""A car on a road with bends, other cars and people who cross: driving, seen by several cameras, in all weathers.

Everything that drives or walks is held in coordinates of the road: metres along the middle of it, and metres to the
left of that. Only what a camera sees is laid out in the plane, around the car that carries it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, Spec
from jaxwm.worlds import base, captions, rays

View = Literal["front", "left", "right", "rear"]
Condition = Literal["caption", "boxes", "weather", "cameras", "depth", "segmentation"]
_YAW: dict[str, float] = {"front": 0.0, "left": math.pi / 4, "right": -math.pi / 4, "rear": math.pi}
_WIDE, _DOWN = 1.3, 0.16
_EYE = 1.5

WEATHERS = ("clear", "rain", "fog", "snow")
TIMES = ("day", "dusk", "night")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 50, 45),
    "blue": (45, 105, 235),
    "yellow": (245, 205, 50),
    "white": (240, 240, 245),
}
"""Of cars, by the name that a caption gives them."""
_WALKER = (255, 110, 215)
_MARK, _ROAD, _SLUSH = (232, 232, 228), (92, 94, 102), (132, 134, 142)
_GRASS, _VERGE, _SNOW, _FURROW = (84, 138, 66), (70, 120, 58), (226, 230, 236), (204, 208, 214)
_SKY: dict[str, tuple[int, int, int]] = {"day": (140, 185, 235), "dusk": (235, 150, 95), "night": (14, 16, 34)}
_LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "dusk": (0.78, 0.58, 0.48),
    "night": (0.26, 0.27, 0.36),
}
_HAZE: dict[str, float] = {"clear": 400.0, "rain": 70.0, "fog": 14.0, "snow": 60.0}
"""Metres after which the air hides two thirds of what is there."""

LANE = 3.5
"""Metres from the middle of one lane to that of the next."""
CAR, WALKER = np.array([4.4, 1.8, 1.5]), np.array([0.6, 0.6, 1.8])
"""Length, width and height in metres."""
_WAVELENGTHS = np.array([170.0, 95.0])
_BEHIND, _AHEAD, _SPACING = 24.0, 84.0, 2.0
GROUND, SKY, LINE, GRASS, AGENT = 0, 1, 2, 3, 4
"""What `DriveTruth.segmentation` says of a pixel; agent i is ``AGENT + i``, cars first."""


def _tone(*colours: tuple[int, int, int]) -> Array:
    """``[n, 3]`` float32."""
    return jnp.asarray(colours, jnp.float32)


@struct.dataclass
class DriveState:
    """Where everything is; n cars and m walkers.

    Attributes:
      along: metres of road behind the ego car since the start.
      aside: metres from the middle of the road to it, to the left.
      heading: radians by which it looks to the left of the road.
      speed: metres per second.
      pose: ``[3]`` metres forward and to the left of the start, and radians turned to the left since then.
      bends: ``[2, 2]`` for two waves of the road, its largest curvature in 1 / metre and its phase.
      cars: ``[n, 2]`` along and aside.
      car_speed: ``[n]`` metres per second.
      car_pace: ``[n]`` what the driver likes best.
      car_lane: ``[n]`` int32, the lane that it is in or changes to; 0 is the rightmost one.
      car_colour: ``[n]`` int32, index into `COLOURS`.
      cut_in: ``[n]`` bool, changes now into the lane of the ego car, in front of it.
      walkers: ``[m, 2]`` along and aside.
      walker_way: ``[m]`` metres per second to the left while it crosses; 0 if it only waits.
      walker_starts: ``[m]`` metres to the ego car at which it sets out.
      crossing: ``[m]`` bool, is under way.
      weather: int32, index into `WEATHERS`.
      time: int32, index into `TIMES`.
      crashed: bool, the ego car has hit something.
      off_road: bool, it has left the road.
    """

    along: Array
    aside: Array
    heading: Array
    speed: Array
    pose: Array
    bends: Array
    cars: Array
    car_speed: Array
    car_pace: Array
    car_lane: Array
    car_colour: Array
    cut_in: Array
    walkers: Array
    walker_way: Array
    walker_starts: Array
    crossing: Array
    weather: Array
    time: Array
    crashed: Array
    off_road: Array


class DriveTruth(NamedTuple):
    """What a camera sees, as it is.

    Attributes:
      image: ``[size, size, 3]`` uint8.
      depth: ``[size, size]`` float32, metres along the axis of the camera; inf for the sky.
      segmentation: ``[size, size]`` uint8; see `GROUND`.
    """

    image: Array
    depth: Array
    segmentation: Array


@dataclasses.dataclass(frozen=True)
class Drive:
    """A one-way road of some lanes, ``cars`` other cars and ``walkers`` people, around a car that is driven.

    The action is acceleration in m/s² and curvature of the way in 1/m, positive to the left. The reward is the share
    of ``pace`` that was made along the road, at most 1, and 1 less for a crash or for leaving the road, which end an
    episode. Other cars keep their distance (Treiber et al. 2000, arXiv:cond-mat/0002177), change lanes, at times right
    in front, and brake for who walks on the road. What falls behind comes again further ahead.

    Args:
      size: pixels of a side of each picture.
      views: the cameras, each a picture of that name: ``front``, ``left``, ``right`` (45 degrees aside), ``rear``.
      cars: how many.
      walkers: how many.
      lanes: of the road, each 3.5 m wide.
      bend: largest curvature of the road in 1/m.
      pace: m/s that the ego car is meant to drive.
      lane_changes: of a car, per second.
      crossings: share of the walkers that cross the road, in front of the ego car.
      weathers: those to be drawn from.
      times: likewise, of the day.
      changes: of both of them, per second; they come at once.
      conditions: what is told beside the pictures; see `condition`.
      samples: squared, the rays for each pixel.
      dt: seconds between two frames.

    Raises:
      ValueError: a value is out of its range, or a view or a condition comes twice.
    """

    size: pydantic.PositiveInt = 32
    views: Annotated[tuple[View, ...], pydantic.Field(min_length=1)] = ("front", "left")
    cars: Annotated[int, pydantic.Field(ge=1, le=8)] = 3
    walkers: Annotated[int, pydantic.Field(ge=1, le=4)] = 1
    lanes: Annotated[int, pydantic.Field(ge=1, le=4)] = 2
    bend: Annotated[float, pydantic.Field(ge=0, le=0.03)] = 0.02
    pace: base.Positive = 10.0
    lane_changes: base.NonNegative = 0.06
    crossings: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    weathers: Annotated[tuple[Literal["clear", "rain", "fog", "snow"], ...], pydantic.Field(min_length=1)] = (
        "clear",
        "rain",
        "fog",
        "snow",
    )
    times: Annotated[tuple[Literal["day", "dusk", "night"], ...], pydantic.Field(min_length=1)] = (
        "day",
        "dusk",
        "night",
    )
    changes: base.NonNegative = 0.0
    conditions: tuple[Condition, ...] = ()
    samples: pydantic.PositiveInt = 2
    dt: base.Positive = 0.2

    def __post_init__(self) -> None:
        base.check_parameters(self)
        for name, values in (("views", self.views), ("conditions", self.conditions)):
            if len(set(values)) < len(values):
                raise ValueError(f"drive.{name} is {values}: one of them comes twice")

    @property
    def spec(self) -> Spec:
        """A picture for each camera; acceleration and curvature; the conditions that were asked for."""
        action = ActionSpec(2, low=(-4.0, -0.12), high=(3.0, 0.12))
        pictures = tuple(Field(view, (self.size, self.size, 3), "uint8") for view in self.views)
        views, agents = len(self.views), self.cars + self.walkers
        told = {
            "caption": ((captions.LENGTH,), "int32"),
            "boxes": ((views, agents, 6), "float32"),
            "weather": ((len(WEATHERS) + len(TIMES),), "float32"),
            "cameras": ((views, 5), "float32"),
            "depth": ((self.size, self.size, views), "uint8"),
            "segmentation": ((self.size, self.size, views), "uint8"),
        }
        return Spec(pictures, action, tuple(Field(name, *told[name]) for name in self.conditions))

    def camera(self, view: View) -> rays.Camera:
        """The camera of that name: 1.3 radians wide, 1.5 m above the road, a little downwards."""
        return rays.Camera(_YAW[view], -_DOWN, _WIDE, (0.3, 0.0, _EYE))

    # What happens.

    def reset(self, key: Array) -> DriveState:
        """The ego car in the middle of a lane at about its pace, the others ahead of it."""
        drawn = iter(jnp.split(jax.random.uniform(key, (10 + 4 * self.cars + 4 * self.walkers,)), [4, 6, 8, 10]))
        bends, start, weather_time, speeds, others = drawn
        cars, walkers = others[: 4 * self.cars].reshape(4, -1), others[4 * self.cars :].reshape(4, -1)
        lane = jnp.floor(start[0] * self.lanes)
        lanes = jnp.floor(cars[0] * self.lanes).astype(jnp.int32)
        gaps = 12.0 + 14.0 * cars[1]
        pace = self.pace * (0.5 + 0.5 * cars[2])
        weather, time = self._draw_weather(weather_time)
        walker_along = 25.0 + 45.0 * walkers[0]
        state = DriveState(
            along=jnp.zeros(()),
            aside=self._middle(lane) + 0.6 * (start[1] - 0.5),
            heading=0.06 * (speeds[1] - 0.5),
            speed=self.pace * (0.6 + 0.4 * speeds[0]),
            pose=jnp.zeros(3),
            bends=jnp.stack([self.bend * (bends[:2] - 0.5), 2 * jnp.pi * bends[2:]]),
            cars=jnp.stack([jnp.cumsum(gaps), self._middle(lanes)], axis=-1),
            car_speed=pace,
            car_pace=pace,
            car_lane=lanes,
            car_colour=jnp.floor(cars[3] * len(COLOURS)).astype(jnp.int32),
            cut_in=jnp.zeros(self.cars, bool),
            walkers=jnp.zeros((self.walkers, 2)),
            walker_way=jnp.zeros(self.walkers),
            walker_starts=jnp.zeros(self.walkers),
            crossing=jnp.zeros(self.walkers, bool),
            weather=weather,
            time=time,
            crashed=jnp.array(False),
            off_road=jnp.array(False),
        )
        return self._place_walkers(state, jnp.ones(self.walkers, bool), walker_along, walkers[1:])

    def step(self, key: Array, state: DriveState, action: Array) -> base.Transition:
        """``dt`` seconds on; what the others do is up to ``key``."""
        action = base.clip_action(self.spec.action, action)
        drawn = jax.random.uniform(key, (5, max(self.cars, self.walkers)))
        before = state.along
        after = self._drive(state, action)
        after = self._traffic(after, drawn[:, : self.cars])
        after = self._walk(after, drawn[:, : self.walkers])
        after = dataclasses.replace(after, crashed=self._hits(after), off_road=jnp.abs(after.aside) > self._edge)
        if self.changes:
            chance = jax.random.uniform(jax.random.fold_in(key, 1), (3,))
            weather, time = self._draw_weather(chance[1:])
            now = chance[0] < self.changes * self.dt
            weather, time = jnp.where(now, weather, after.weather), jnp.where(now, time, after.time)
            after = dataclasses.replace(after, weather=weather, time=time)
        ended = after.crashed | after.off_road
        made = jnp.clip((after.along - before) / (self.pace * self.dt), 0.0, 1.0)
        return base.Transition(after, made - ended, ended)

    def _draw_weather(self, shares: Array) -> tuple[Array, Array]:
        """Weather and time of day, each of ``shares`` ``[2]`` uniform in 0..1."""

        def choose(share: Array, names: tuple[str, ...], known: tuple[str, ...]) -> Array:
            numbers = jnp.asarray([known.index(name) for name in names], jnp.int32)
            return numbers[jnp.floor(share * len(names)).astype(jnp.int32)]

        return choose(shares[0], self.weathers, WEATHERS), choose(shares[1], self.times, TIMES)

    def _drive(self, state: DriveState, action: Array) -> DriveState:
        """The ego car: in the plane along an arc of a circle, exactly; along the road by Runge and Kutta's method."""
        speed = jnp.maximum(state.speed + action[0] * self.dt, 0.0)
        speed = jnp.minimum(speed, 1.5 * self.pace)
        gain = (speed - state.speed) / self.dt

        def rates(time: float, at: Array) -> Array:
            along, aside, heading = at
            now = state.speed + gain * time
            bend = self.curvature(state.bends, along)
            forward = now * jnp.cos(heading) / (1 - bend * aside)
            return jnp.stack([forward, now * jnp.sin(heading), now * action[1] - bend * forward])

        at, h = jnp.stack([state.along, state.aside, state.heading]), self.dt
        k1 = rates(0.0, at)
        k2 = rates(h / 2, at + h / 2 * k1)
        k3 = rates(h / 2, at + h / 2 * k2)
        k4 = rates(h, at + h * k3)
        along, aside, heading = at + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        way = (state.speed + speed) / 2 * self.dt
        turn = way * action[1]
        # A chord of the arc: its length over the arc's is sin(x) / x of half the turn.
        chord, direction = way * jnp.sinc(turn / (2 * jnp.pi)), state.pose[2] + turn / 2
        moved = jnp.stack([chord * jnp.cos(direction), chord * jnp.sin(direction), turn])
        return dataclasses.replace(
            state, along=along, aside=aside, heading=heading, speed=speed, pose=state.pose + moved
        )

    def _traffic(self, state: DriveState, drawn: Array) -> DriveState:
        """The other cars: distance, lane changes; who is left behind comes again ahead."""
        along, aside = state.cars[:, 0], state.cars[:, 1]
        others = jnp.concatenate([state.cars, state.walkers, jnp.stack([state.along, state.aside])[None]])
        paces = jnp.concatenate([state.car_speed, jnp.zeros(self.walkers), state.speed[None]])
        ahead = others[:, 0] - along[:, None]
        in_way = (ahead > 0.1) & (jnp.abs(others[:, 1] - aside[:, None]) < 1.9)
        gap = jnp.where(in_way, ahead - CAR[0], 1e3)
        first = jnp.argmin(gap, axis=1)
        gap = jnp.maximum(jnp.take_along_axis(gap, first[:, None], axis=1)[:, 0], 0.3)
        gain = follow(state.car_speed, state.car_pace, gap, state.car_speed - paces[first])
        speed = jnp.maximum(state.car_speed + self.dt * jnp.clip(gain, -7.0, 2.0), 0.0)

        wanted = jnp.where(state.car_lane == 0, 1, state.car_lane - 1) % self.lanes
        beside = jnp.abs(state.cars[:, 1] - self._middle(wanted)[:, None]) < LANE / 2
        near = jnp.abs(along - along[:, None]) < 10.0
        taken = jnp.any(beside & near & ~jnp.eye(self.cars, dtype=bool), axis=1)
        settled = jnp.abs(aside - self._middle(state.car_lane)) < 0.1
        free = ~taken & settled & (jnp.abs(along - state.along) > 8.0)
        changes = free & (drawn[0] < self.lane_changes * self.dt) & (self.lanes > 1)
        lane = jnp.where(changes, wanted, state.car_lane)
        shift = jnp.clip(self._middle(lane) - aside, -1.2 * self.dt, 1.2 * self.dt)
        shift = jnp.where(speed > 0.5, shift, 0.0)
        along = along + (state.car_speed + speed) / 2 * self.dt

        gap_to_ego = along - state.along
        lost = (gap_to_ego < -_BEHIND) | (gap_to_ego > _AHEAD + 40.0)
        furthest = jnp.max(jnp.where(lost, state.along + 35.0, along))
        place = furthest + jnp.cumsum(jnp.where(lost, 12.0 + 12.0 * drawn[1], 0.0))
        new_lane = jnp.floor(drawn[2] * self.lanes).astype(jnp.int32)
        pace = jnp.where(lost, self.pace * (0.5 + 0.5 * drawn[3]), state.car_pace)
        lane = jnp.where(lost, new_lane, lane)
        aside = jnp.where(lost, self._middle(lane), aside + shift)
        ego_lane = jnp.abs(self._middle(lane) - state.aside) < LANE / 2
        return dataclasses.replace(
            state,
            cars=jnp.stack([jnp.where(lost, place, along), aside], axis=-1),
            car_speed=jnp.where(lost, pace, speed),
            car_pace=pace,
            car_lane=lane,
            car_colour=jnp.where(
                lost, jnp.floor(drawn[4] * len(COLOURS)).astype(jnp.int32), state.car_colour
            ),
            cut_in=ego_lane & (jnp.abs(self._middle(lane) - aside) > 0.3) & (gap_to_ego > 0) & (gap_to_ego < 30.0),
        )  # fmt: skip

    def _walk(self, state: DriveState, drawn: Array) -> DriveState:
        """The walkers: who crosses sets out when the ego car has come near enough."""
        gap = state.walkers[:, 0] - state.along
        over = jnp.abs(state.walkers[:, 1]) > self._edge + 1.6
        crossing = (state.walker_way != 0) & ((gap < state.walker_starts) | state.crossing)
        crossing &= ~(over & (state.walkers[:, 1] * state.walker_way > 0))
        moved = state.walkers.at[:, 1].add(jnp.where(crossing, state.walker_way * self.dt, 0.0))
        state = dataclasses.replace(state, walkers=moved, crossing=crossing)
        return self._place_walkers(state, gap < -8.0, state.along + 40.0 + 40.0 * drawn[0], drawn[1:4])

    def _place_walkers(self, state: DriveState, which: Array, along: Array, drawn: Array) -> DriveState:
        """Walkers ``[m]`` anew beside the road at ``along``; ``drawn`` ``[3, m]`` says where and what they do."""
        side = jnp.where(drawn[0] < 0.5, -1.0, 1.0)
        way = jnp.where(drawn[1] < self.crossings, -1.5 * side, 0.0)
        place = jnp.stack([along, side * (self._edge + 1.5)], axis=-1)
        return dataclasses.replace(
            state,
            walkers=jnp.where(which[:, None], place, state.walkers),
            walker_way=jnp.where(which, way, state.walker_way),
            walker_starts=jnp.where(which, 12.0 + 24.0 * drawn[2], state.walker_starts),
            crossing=state.crossing & ~which,
        )

    def _hits(self, state: DriveState) -> Array:
        """Whether the ego car overlaps with anything; all are taken to stand along the road."""
        gap = lambda others: jnp.abs(others - jnp.stack([state.along, state.aside]))  # noqa: E731
        cars = jnp.all(gap(state.cars) < CAR[:2], axis=-1)
        walkers = jnp.all(gap(state.walkers) < (CAR[:2] + WALKER[:2]) / 2, axis=-1)
        return jnp.any(cars) | jnp.any(walkers)

    def curvature(self, bends: Array, along: Array) -> Array:
        """Of the middle of the road ``along`` metres from the start, in 1/m, positive to the left."""
        return jnp.sum(bends[0] * jnp.sin(2 * jnp.pi * along[..., None] / _WAVELENGTHS + bends[1]), axis=-1)

    def _direction(self, bends: Array, along: Array) -> Array:
        """Of the road, in radians from one that is the same everywhere: the integral of its curvature."""
        wave = jnp.asarray(_WAVELENGTHS / (2 * np.pi), jnp.float32)
        return -jnp.sum(bends[0] * wave * jnp.cos(along[..., None] / wave + bends[1]), axis=-1)

    def _middle(self, lane: Array) -> Array:
        """Metres aside of the middle of a lane."""
        return (lane - (self.lanes - 1) / 2) * LANE

    @property
    def _edge(self) -> float:
        """Metres from the middle of the road to its edge."""
        return self.lanes * LANE / 2

    # What is seen.

    def observation(self, state: DriveState) -> dict[str, Array]:
        """A picture ``[size, size, 3]`` uint8 by the name of each view."""
        return {view: self.look(state, view).image for view in self.views}

    def render(self, state: DriveState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: what the first of the cameras sees."""
        return self.look(state, self.views[0], size).image

    def look(self, state: DriveState, view: View, size: int | None = None) -> DriveTruth:
        """What one camera sees, and how far away and what it is."""
        size, camera = self.size if size is None else size, self.camera(view)
        eye, fine = jnp.asarray(camera.position), self.samples * size
        directions = camera.rays(fine)
        depth = rays.floor_depth(_EYE, directions)
        on_ground = jnp.minimum(depth, 1e3)
        colour, kind = self._paint_ground(
            state, eye[0] + on_ground * directions[0], eye[1] + on_ground * directions[1]
        )
        kind = jnp.where(jnp.isfinite(depth), kind, SKY)
        own = jnp.concatenate([_tone(*COLOURS.values())[state.car_colour], _tone(*[_WALKER] * self.walkers)])
        nearer, face = jax.vmap(rays.box_depth, (None, None, 0, 0, 0))(eye, directions, *self.agents(state))
        first = jnp.argmin(nearer, axis=0)
        nearer, face = (jnp.take_along_axis(values, first[None], axis=0)[0] for values in (nearer, face))
        shade = jnp.where(face == 0, 0.8, jnp.where(face == 1, 0.6, 1.0))
        colour = jnp.where(nearer < depth, own[first].T * shade, colour)
        kind, depth = jnp.where(nearer < depth, AGENT + first, kind), jnp.minimum(depth, nearer)
        colour = self._in_the_air(state, colour, kind == SKY, depth, directions)
        corner = slice(None, None, self.samples)
        map_of = lambda values: values.reshape(fine, fine)[corner, corner]  # noqa: E731
        return DriveTruth(rays.pixels(colour, size, self.samples), map_of(depth), map_of(kind).astype(jnp.uint8))

    def _paint_ground(self, state: DriveState, x: Array, y: Array) -> tuple[Array, Array]:
        """Colours ``[3, P]`` and kinds ``[P]`` of the ground, ``x`` metres forward and ``y`` to the left ``[P]``."""
        points, headings, along = self._road(state)
        cos, sin = jnp.cos(headings), jnp.sin(headings)

        def beside(place: Array) -> tuple[Array, Array]:
            """Where along the road a point is, and how far aside, as seen from the road at ``place`` ``[P]``."""
            near = jnp.clip(jnp.round((place - along[0]) / _SPACING), 0, len(along) - 1).astype(jnp.int32)
            from_x, from_y = x - points[near, 0], y - points[near, 1]
            return along[near] + from_x * cos[near] + from_y * sin[near], from_y * cos[near] - from_x * sin[near]

        place = state.along + x
        for _ in range(3):
            place, aside = beside(place)
        edge = self._edge
        on_road = jnp.abs(aside) < edge
        between = jnp.abs(jnp.mod(aside + edge + LANE / 2, LANE) - LANE / 2)
        inner = (between < 0.12) & (jnp.abs(aside) < edge - 1.0) & (jnp.mod(place, 8.0) < 4.0)
        outer = jnp.abs(jnp.abs(aside) - edge + 0.25) < 0.14
        line = on_road & (inner | outer)
        striped = jnp.mod(jnp.floor(place / 5.0), 2) == 0
        snow = state.weather == WEATHERS.index("snow")
        tone = lambda dry, white: jnp.where(snow, _tone(white), _tone(dry)).T  # noqa: E731
        grass = jnp.where(striped, tone(_GRASS, _SNOW), tone(_VERGE, _FURROW))
        colour = jnp.where(line, _tone(_MARK).T, jnp.where(on_road, tone(_ROAD, _SLUSH), grass))
        return colour, jnp.where(line, LINE, jnp.where(on_road, GROUND, GRASS))

    def _in_the_air(self, state: DriveState, colour: Array, sky: Array, depth: Array, directions: Array) -> Array:
        """``[3, P]``: ``colour`` in the light of the hour, and what the weather leaves of it on the way."""
        light = jnp.asarray([_LIGHT[time] for time in TIMES])[state.time][:, None]
        above = _tone(*[_SKY[time] for time in TIMES])[state.time][:, None]
        reach = jnp.minimum(depth, 1e3)
        lamp = jnp.exp(-jnp.square(3.0 * directions[1])) / (1 + (reach / 18.0) ** 2)
        lamp = jnp.where((state.time == TIMES.index("night")) & (directions[0] > 0), 0.9 * lamp, 0.0)
        wet = jnp.where(state.weather == WEATHERS.index("rain"), 0.72, 1.0)
        seen = jnp.where(sky, above, colour * jnp.minimum(light + lamp, 1.0) * wet)
        grey = _tone((190, 196, 204)).T * jnp.maximum(light, 0.22)
        haze = jnp.asarray([_HAZE[weather] for weather in WEATHERS])[state.weather]
        overcast = jnp.where(state.weather == WEATHERS.index("clear"), 1.0, 0.15)
        through = jnp.where(sky, overcast, jnp.exp(-reach / haze))
        return through * seen + (1 - through) * grey

    def agents(self, state: DriveState) -> tuple[Array, Array, Array]:
        """Boxes around cars, then walkers, in the frame of the ego car.

        Returns:
          Centres ``[n + m, 3]`` in metres, headings ``[n + m]`` in radians, half of their sizes ``[n + m, 3]``.
        """
        points, headings, along = self._road(state)
        places = jnp.concatenate([state.cars, state.walkers])
        at = jnp.clip(places[:, 0], along[0], along[-1])
        x, y, heading = (jnp.interp(at, along, values) for values in (points[:, 0], points[:, 1], headings))
        x, y = x - places[:, 1] * jnp.sin(heading), y + places[:, 1] * jnp.cos(heading)
        # Beyond the road that is laid out, straight on.
        beyond = places[:, 0] - at
        x, y = x + beyond * jnp.cos(heading), y + beyond * jnp.sin(heading)
        sizes = jnp.asarray(np.concatenate([np.tile(CAR, (self.cars, 1)), np.tile(WALKER, (self.walkers, 1))]) / 2)
        sideways = jnp.clip(self._middle(state.car_lane) - state.cars[:, 1], -1.2 * self.dt, 1.2 * self.dt) / self.dt
        turned = jnp.arctan2(sideways, jnp.maximum(state.car_speed, 3.0))
        heading = heading + jnp.concatenate([turned, jnp.zeros(self.walkers)])
        return jnp.stack([x, y, sizes[:, 2]], axis=-1).astype(jnp.float32), heading, sizes.astype(jnp.float32)

    def _road(self, state: DriveState) -> tuple[Array, Array, Array]:
        """The middle of the road around the ego car, in its frame: points ``[K, 2]``, directions and along ``[K]``."""
        ahead = np.arange(-_BEHIND, _AHEAD + _SPACING / 2, _SPACING)
        along = state.along + jnp.asarray(ahead, jnp.float32)
        own = self._direction(state.bends, state.along) + state.heading
        between = self._direction(state.bends, along[:-1] + _SPACING / 2) - own
        steps = _SPACING * jnp.stack([jnp.cos(between), jnp.sin(between)], axis=-1)
        points = jnp.concatenate([jnp.zeros((1, 2)), jnp.cumsum(steps, axis=0)])
        # The ego car stands `aside` to the left of the point that it is beside.
        beside = points[int(_BEHIND / _SPACING)]
        left = jnp.stack([jnp.sin(state.heading), jnp.cos(state.heading)])
        return points - beside - state.aside * left, self._direction(state.bends, along) - own, along

    def info(self, state: DriveState) -> dict[str, Array]:
        """The fields of `DriveState`, in its units, and for each camera and agent what is seen of it.

        ``boxes`` ``[views, n + m, 4]`` are left, top, right and bottom in shares of the picture, zeros for what is not
        in it, ``visible`` ``[views, n + m]`` bool whether a pixel of it is seen.
        """
        truth = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        seen = [self.boxes(state, view) for view in self.views]
        return truth | {
            "boxes": jnp.stack([box for box, _ in seen]),
            "visible": jnp.stack([there for _, there in seen]),
        }

    def boxes(self, state: DriveState, view: View) -> tuple[Array, Array]:
        """Boxes ``[n + m, 4]`` in a camera's picture, and which agents are ``[n + m]`` seen; see `info`."""
        camera = self.camera(view)
        centres, headings, halves = self.agents(state)
        signs = jnp.asarray(np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T, jnp.float32)
        cos, sin = jnp.cos(headings)[:, None], jnp.sin(headings)[:, None]
        ends = signs * halves[:, None]
        x, y = cos * ends[..., 0] - sin * ends[..., 1], sin * ends[..., 0] + cos * ends[..., 1]
        corners = centres[:, None] + jnp.stack([x, y, ends[..., 2]], axis=-1)
        at, depth = camera.project(corners)
        before = (depth > 0.2)[..., None]
        low = jnp.clip(jnp.min(jnp.where(before, at, jnp.inf), axis=1), 0.0, 1.0)
        high = jnp.clip(jnp.max(jnp.where(before, at, -jnp.inf), axis=1), 0.0, 1.0)
        inside = jnp.all(high > low, axis=-1)
        kinds = AGENT + jnp.arange(self.cars + self.walkers)
        pixels = self.look(state, view).segmentation.reshape(-1)
        visible = inside & jnp.any(pixels == kinds[:, None], axis=1)
        return jnp.where(visible[:, None], jnp.concatenate([low, high], axis=-1), 0.0), visible

    def condition(self, state: DriveState) -> dict[str, Array]:
        """What the frame of ``state`` is told to show, those of these that ``conditions`` names.

        * ``caption`` ``[12]`` int32: words about what the first camera sees, such as "night rain two cars near red
          left walker crossing"; see `jaxwm.worlds.captions`.
        * ``boxes`` ``[views, n + m, 6]``: left, top, right and bottom as in `info`, then whether it is a car and
          whether it is a walker; all 0 for what is not seen.
        * ``weather`` ``[7]``: one-hot weather, then one-hot time of day.
        * ``cameras`` ``[views, 5]``: cosine and sine of the yaw, pitch and field of view in radians, height in metres.
        * ``depth`` ``[size, size, views]`` uint8: 255 * min(3 / depth, 1).
        * ``segmentation`` likewise: `GROUND`, `SKY`, `LINE`, `GRASS`, ``AGENT`` for a car, ``AGENT + 1`` for a walker.
        """
        makers = {
            "caption": self._caption,
            "boxes": self._told_boxes,
            "weather": lambda state: jnp.concatenate(
                [jax.nn.one_hot(state.weather, len(WEATHERS)), jax.nn.one_hot(state.time, len(TIMES))]
            ),
            "cameras": lambda _: jnp.asarray([_told_camera(self.camera(view)) for view in self.views], jnp.float32),
            "depth": lambda state: self._maps(state, lambda seen: 255.0 * jnp.minimum(3.0 / seen.depth, 1.0)),
            "segmentation": lambda state: self._maps(state, self._kinds),
        }
        return {name: makers[name](state) for name in self.conditions}

    def _caption(self, state: DriveState) -> Array:
        box, seen = self.boxes(state, self.views[0])
        cars, walkers = seen[: self.cars], seen[self.cars :]
        nearest = jnp.argmin(jnp.where(cars, state.cars[:, 0] - state.along, jnp.inf))
        middle = (box[nearest, 0] + box[nearest, 2]) / 2
        place = (middle > 1 / 3).astype(jnp.int32) + (middle > 2 / 3)
        number = jnp.sum(cars)
        crosses = jnp.any(walkers & state.crossing)
        said = lambda there, token: jnp.where(there, token, 0)  # noqa: E731
        return captions.sentence(
            captions.one_of(TIMES, state.time),
            captions.one_of(WEATHERS, state.weather),
            captions.count(number),
            captions.one_of(("cars", "car"), (number == 1).astype(jnp.int32)),
            said(number > 0, captions.word("near")),
            said(number > 0, captions.one_of(tuple(COLOURS), state.car_colour[nearest])),
            said(number > 0, captions.one_of(("left", "ahead", "right"), place)),
            jnp.where(jnp.any(walkers), 0, captions.word("no")),
            captions.word("walker"),
            said(jnp.any(walkers), captions.one_of(("waiting", "crossing"), crosses.astype(jnp.int32))),
        )

    def _told_boxes(self, state: DriveState) -> Array:
        kinds = np.eye(2)[[0] * self.cars + [1] * self.walkers]

        def of(view: View) -> Array:
            box, seen = self.boxes(state, view)
            return jnp.concatenate([box, jnp.where(seen[:, None], jnp.asarray(kinds, jnp.float32), 0.0)], axis=1)

        return jnp.stack([of(view) for view in self.views])

    def _maps(self, state: DriveState, make: Callable[[DriveTruth], Array]) -> Array:
        maps = [jnp.round(make(self.look(state, view))) for view in self.views]
        return jnp.stack(maps, axis=-1).astype(jnp.uint8)

    def _kinds(self, seen: DriveTruth) -> Array:
        walks = seen.segmentation >= AGENT + self.cars
        return jnp.where(walks, AGENT + 1, jnp.minimum(seen.segmentation, AGENT))

    def random_action(self, key: Array, state: DriveState) -> Array:
        """``[2]``: keeps more or less to its lane and its pace, with jerks of the wheel and of the pedals."""
        drawn = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return jnp.clip(
            0.6 * keep_lane(self, key, state) + jnp.array([3.0, 0.05]) * drawn,
            jnp.asarray(self.spec.action.low),
            jnp.asarray(self.spec.action.high),
        )


def _told_camera(camera: rays.Camera) -> tuple[float, ...]:
    return math.cos(camera.yaw), math.sin(camera.yaw), camera.pitch, camera.field_of_view, camera.position[2]


def follow(speed: Array, pace: Array, gap: Array, closing: Array) -> Array:
    """Acceleration in m/s² of a driver who keeps distance (the intelligent driver model, Treiber et al. 2000).

    Args:
      speed: m/s.
      pace: m/s that the driver would like to go.
      gap: metres to the bumper of who is ahead.
      closing: m/s by which the gap shrinks.
    """
    wanted = 2.0 + jnp.maximum(speed * 1.2 + speed * closing / (2 * math.sqrt(1.5 * 2.5)), 0.0)
    return 1.5 * (1 - (speed / pace) ** 4 - (wanted / gap) ** 2)


def keep_lane(world: Drive, key: Array, state: DriveState) -> Array:
    """A scripted driver: along the middle of the lane, behind who is in front, and stops for who walks; ``[2]``."""
    del key
    others = jnp.concatenate([state.cars, state.walkers])
    speeds = jnp.concatenate([state.car_speed, jnp.zeros(world.walkers)])
    middle = world._middle(jnp.clip(jnp.round(state.aside / LANE + (world.lanes - 1) / 2), 0, world.lanes - 1))
    heads_for = jnp.concatenate([world._middle(state.car_lane), state.walkers[:, 1] + 2.0 * state.walker_way])
    near = (jnp.abs(others[:, 1] - middle) < 2.3) | ((jnp.abs(heads_for - middle) < 2.3) & _moves(world, state))
    ahead = others[:, 0] - state.along
    gap = jnp.where(near & (ahead > 0), ahead - CAR[0], 1e3)
    first = jnp.argmin(gap)
    gain = follow(state.speed, jnp.float32(world.pace), jnp.maximum(gap[first], 0.3), state.speed - speeds[first])
    bend = world.curvature(state.bends, state.along + 0.5 * world.dt * state.speed)
    wheel = bend - 0.02 * (state.aside - middle) - 0.28 * state.heading
    return jnp.clip(jnp.stack([gain, wheel]), jnp.asarray(world.spec.action.low), jnp.asarray(world.spec.action.high))


def _moves(world: Drive, state: DriveState) -> Array:
    """``[n + m]``: who is on the way to another lane or over the road."""
    return jnp.concatenate([jnp.abs(world._middle(state.car_lane) - state.cars[:, 1]) > 0.3, state.crossing])
