"""A robot's arm over a table, with a puck that it has to push to a place: hands, things and a purpose."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, Spec
from jaxwm.worlds import arm, base, drawing, pushing

BACKGROUND: drawing.Colour = (38, 44, 62)
ARM: drawing.Colour = (150, 160, 190)
PUCK: drawing.Colour = (240, 84, 79)
GOAL: drawing.Colour = (60, 207, 142)

_RIM_SHADE, _UPPER_SHADE, _TIP_LIGHT = 0.55, 0.7, 0.75
_LINK_WIDTH = 0.045
_SERVO = 0.04
"""Seconds in which a motor that is told a velocity makes up for what is missing, if it is strong enough."""
_ROOM = 0.02
"""Between the tip and the puck at the start of an episode, and between both and the end of the arm's reach."""
_CANDIDATES = 16


@struct.dataclass
class ReachState:
    """Where everything is, in sides of the box, x to the right and y down, and what was drawn for the episode.

    Attributes:
      joints: ``[2]`` angles of shoulder and elbow in radians; see `jaxwm.worlds.arm`.
      joint_velocity: ``[2]`` in radians per second.
      puck: ``[2]`` centre of the puck.
      puck_velocity: ``[2]`` in sides per second.
      goal: ``[2]`` the place to bring the puck, or the tip, to.
      puck_start: ``[2]`` where the puck was when the episode began.
      links: ``[2]`` lengths of upper arm and forearm.
      puck_radius: scalar.
      friction: scalar, deceleration of the sliding puck in sides per second squared.
      background: ``[3]`` colour of the table, red, green and blue in 0..255.
      arm_colour: ``[3]`` of the arm.
      puck_colour: ``[3]`` of the puck.
      touches: scalar int32, in how many of the steps within the last frame the tip touched the puck.
    """

    joints: Array
    joint_velocity: Array
    puck: Array
    puck_velocity: Array
    goal: Array
    puck_start: Array
    links: Array
    puck_radius: Array
    friction: Array
    background: Array
    arm_colour: Array
    puck_colour: Array
    touches: Array


@dataclasses.dataclass(frozen=True)
class Reach:
    """An arm of two links, seen from above, whose tip pushes a puck over a table to a goal.

    The table is the box [0, 1]^2 without a rim around it. The tip is a disc that pushes the puck, without friction
    between them; the links are above both and touch nothing. The rim stops the puck, which never leaves the table; the
    tip goes over the rim, so that it comes behind a puck that lies there, and stops at the edge of the box, so that it
    is always seen. The arm is a rigid body under torques (`jaxwm.worlds.arm`), puck and tip cannot pass through each
    other (`jaxwm.worlds.pushing`), and the puck slides with dry friction.

    Ranges are drawn uniformly for each episode; equal ends fix a value. Goals lie where the drawn arm reaches, with
    room for the tip on every side of a puck that is there; a place that would be too far or too near is moved straight
    towards or away from the shoulder. The puck starts in reach in the same way, at least two goal radii from the goal
    where its ranges leave room for that, and the tip anywhere where it does not touch the puck.

    Args:
      size: pixels of a side of the picture.
      task: "push" the puck to the goal, or "reach" the goal with the tip; then the table is empty.
      control: what the actions, the shares -1..1 of a largest value for shoulder and elbow, mean: a "torque", or a
        "velocity", which the motors reach and hold as well as their torque allows.
      speed: largest velocity of a joint, in radians per second; a motor turns no faster under any torque.
      torque: largest torque of the motors of shoulder and elbow, where a link of one side has mass 1.
      damping: of shoulder and elbow, in torque per radian per second.
      upper_arm: range of the length of the first link.
      forearm: range of the length of the second link.
      tip_radius: of the disc at the end of the forearm.
      puck_radius: range.
      puck_mass: where a link of one side has mass 1.
      friction: range of the deceleration of the sliding puck, in sides per second squared.
      rim: width of the rim.
      goal_x: range of the goal's x.
      goal_y: range of its y.
      puck_x: range of the x of the puck's first place.
      puck_y: range of its y.
      background: range of the colour of the table; the rim is a darker shade of it.
      arm_colour: range of the colour of the arm; its upper arm is darker, its tip lighter.
      puck_colour: range of the colour of the puck.
      goal_radius: the goal is reached when the centre of puck or tip is at most this far from it.
      reward: "sparse" is 1 in a frame that leads to the goal or stays there, else 0; "distance" is minus the distance
        to the goal, in sides of the box.
      terminal: the episode ends where the goal is reached.
      show_goal: the goal is part of what is seen.
      dt: seconds between two frames.
      observe: what is seen: ``pixels`` are the picture ``image``; ``state`` the vectors ``joints`` ``[4]`` (cosines,
        then sines), ``joint_velocity``, ``tip``, ``puck``, ``puck_velocity`` and ``goal``, ``[2]`` each, in the units
        of `ReachState`; ``proprioception`` the picture and what a robot feels of itself, the first three of these;
        ``both`` everything.

    Raises:
      ValueError: a value is out of its range, or arms, places, rim and radii do not fit each other.
    """

    size: pydantic.PositiveInt = 64
    task: Literal["push", "reach"] = "push"
    control: Literal["velocity", "torque"] = "velocity"
    speed: base.Positive = 1.5
    torque: tuple[base.Positive, base.Positive] = (4.0, 1.2)
    damping: tuple[base.NonNegative, base.NonNegative] = (2.0, 0.6)
    upper_arm: base.PositiveRange = (0.5, 0.5)
    forearm: base.PositiveRange = (0.5, 0.5)
    tip_radius: base.Positive = 0.03
    puck_radius: base.PositiveRange = (0.06, 0.06)
    puck_mass: base.Positive = 0.05
    friction: base.PositiveRange = (2.0, 2.0)
    rim: base.Positive = 0.08
    goal_x: base.PositiveRange = (0.2, 0.8)
    goal_y: base.PositiveRange = (0.2, 0.7)
    puck_x: base.PositiveRange = (0.2, 0.8)
    puck_y: base.PositiveRange = (0.2, 0.7)
    background: base.ColourRange = (BACKGROUND, BACKGROUND)
    arm_colour: base.ColourRange = (ARM, ARM)
    puck_colour: base.ColourRange = (PUCK, PUCK)
    goal_radius: base.Positive = 0.07
    reward: Literal["sparse", "distance"] = "sparse"
    terminal: bool = True
    show_goal: bool = True
    dt: base.Positive = 0.1
    observe: Literal["pixels", "proprioception", "state", "both"] = "pixels"

    def __post_init__(self) -> None:
        base.check_parameters(self)
        if self.rim < 2 * self.tip_radius:
            raise ValueError(
                f"reach.rim is {self.rim}, expected at least two radii of the tip ({2 * self.tip_radius:.4g}), "
                "so that it comes behind a puck at the rim"
            )
        low = self.rim + self.puck_radius[1]
        for name in ("goal_x", "goal_y", "puck_x", "puck_y"):
            value = getattr(self, name)
            if value[0] < low or value[1] > 1 - low:
                raise ValueError(f"reach.{name} is {value}, expected within {low:.4g}..{1 - low:.4g}, on the table")
        for links in itertools.product(self.upper_arm, self.forearm):
            self._check_reach(links, low)

    @property
    def spec(self) -> Spec:
        """A picture, vectors, or both; two continuous actions in -1..1."""
        fields = [Field("image", (self.size, self.size, 3), "uint8")] if self.observe != "state" else []
        if self.observe != "pixels":
            fields += [Field("joints", (4,), "float32")]
            fields += [Field(name, (2,), "float32") for name in ("joint_velocity", "tip")]
        if self.observe in ("state", "both"):
            names = (("puck", "puck_velocity") if self._has_puck else ()) + (("goal",) if self.show_goal else ())
            fields += [Field(name, (2,), "float32") for name in names]
        return Spec(tuple(fields), ActionSpec(dim=2, low=(-1.0, -1.0), high=(1.0, 1.0)))

    def reset(self, key: Array) -> ReachState:
        """Everything at rest, at places and with properties that are drawn anew."""
        drawn = jax.random.uniform(key, (15 + 4 * _CANDIDATES,))
        numbers, colours = drawn[:6], drawn[6:15].reshape(3, 3)
        places = drawn[15:].reshape(2, _CANDIDATES, 2)
        links = jnp.stack([base.within(self.upper_arm, numbers[0]), base.within(self.forearm, numbers[1])])
        puck_radius = base.within(self.puck_radius, numbers[2])
        goal = self._place(self.goal_x, self.goal_y, numbers[4:6], links)
        pucks = jax.vmap(lambda share: self._place(self.puck_x, self.puck_y, share, links))(places[0])
        puck = _far_enough(pucks, goal, 2 * self.goal_radius) if self._has_puck else jnp.zeros(2)
        on_table = (self.rim, 1 - self.rim)
        tips = jax.vmap(lambda share: self._place(on_table, on_table, share, links, _ROOM))(places[1])
        joints = jax.vmap(lambda place: arm.joints_at(place, links))(tips)
        avoided, distance = (
            (puck, self.tip_radius + puck_radius + _ROOM) if self._has_puck else (goal, 2 * self.goal_radius)
        )
        return ReachState(
            joints=_far_enough(joints, avoided, distance, jax.vmap(lambda q: arm.pose(q, links).tip)(joints)),
            joint_velocity=jnp.zeros(2),
            puck=puck,
            puck_velocity=jnp.zeros(2),
            goal=goal,
            puck_start=puck,
            links=links,
            puck_radius=puck_radius,
            friction=base.within(self.friction, numbers[3]),
            background=base.within(self.background, colours[0]),
            arm_colour=base.within(self.arm_colour, colours[1]),
            puck_colour=base.within(self.puck_colour, colours[2]),
            touches=jnp.zeros((), jnp.int32),
        )

    def step(self, key: Array, state: ReachState, action: Array) -> base.Transition:
        """``dt`` seconds on; the world has no chance in it, so ``key`` is not used."""
        del key
        action = base.clip_action(self.spec.action, action)
        bodies, touches = pushing.advance(
            pushing.Bodies(state.joints, state.joint_velocity, state.puck, state.puck_velocity),
            lambda joints, velocity: self._torque(joints, velocity, state.links, action),
            self._setting(state),
            seconds=self.dt,
            substeps=self.substeps,
            has_puck=self._has_puck,
        )
        state = dataclasses.replace(state, **bodies._asdict(), touches=touches)
        reached, distance = self.is_solved(state), self._distance(state)
        reward = -distance if self.reward == "distance" else reached.astype(jnp.float32)
        return base.Transition(state, reward, reached & self.terminal)

    def random_action(self, key: Array, state: ReachState) -> Array:
        """``[2]``: goes on roughly as before; when far from the puck (or the middle of the table), turns towards it.

        So a random arm meets the puck often, from all sides, and does not stay with it until it lies in a corner.
        """
        at = arm.pose(state.joints, state.links)
        way = (state.puck if self._has_puck else jnp.full(2, 0.5)) - at.tip
        distance = jnp.sqrt(jnp.sum(way**2))
        pull = arm.joint_velocity(at, way / jnp.maximum(distance, 1e-3))
        pull = pull / jnp.maximum(jnp.max(jnp.abs(pull)), 1e-3)
        share = jnp.clip((distance - 0.15) / 0.2, 0.0, 0.5)
        noise = 0.45 * jax.random.normal(key, (2,))
        wanted = (1 - share) * 0.9 * state.joint_velocity / self.speed + share * pull + noise
        return self.action_for(state, self.speed * wanted)

    def action_for(self, state: ReachState, joint_velocity: Array) -> Array:
        """``[2]``: the action after which the joints have ``joint_velocity`` ``[2]``, as far as the motors can."""
        wanted = jnp.clip(joint_velocity, -self.speed, self.speed)
        if self.control == "velocity":
            return wanted / self.speed
        change = (wanted - state.joint_velocity) / self.dt
        damping = jnp.asarray(self.damping)
        needed = arm.torque_for(state.joints, state.joint_velocity, change, state.links, damping)
        return jnp.clip(needed / jnp.asarray(self.torque), -1.0, 1.0)

    def observation(self, state: ReachState) -> dict[str, Array]:
        """The parts that ``spec.observation`` names."""
        parts = {name: getattr(state, name) for name in ("joint_velocity", "puck", "puck_velocity", "goal")}
        parts["joints"] = jnp.concatenate([jnp.cos(state.joints), jnp.sin(state.joints)])
        parts["tip"] = self.tip(state)
        return {
            field.name: self.render(state) if field.name == "image" else parts[field.name]
            for field in self.spec.observation
        }

    def goal_state(self, state: ReachState) -> ReachState:
        """The same table, solved and at rest: it is the same throughout an episode.

        The puck lies at the goal and the tip behind it, as after a straight push from where the puck was first; or the
        tip is at the goal.
        """
        way = state.goal - state.puck_start
        way = way / jnp.maximum(jnp.sqrt(jnp.sum(way**2)), 1e-3)
        behind = state.goal - (self.tip_radius + state.puck_radius + _ROOM / 4) * way
        place = behind if self._has_puck else state.goal
        rest = jnp.zeros(2)
        return dataclasses.replace(
            state,
            joints=arm.joints_at(place, state.links),
            joint_velocity=rest,
            puck=state.goal if self._has_puck else state.puck,
            puck_velocity=rest,
            touches=jnp.zeros((), jnp.int32),
        )

    def with_goal(self, state: ReachState, reached: ReachState) -> ReachState:
        """The goal is where the puck is in ``reached``, or the tip."""
        return dataclasses.replace(state, goal=reached.puck if self._has_puck else self.tip(reached))

    def is_solved(self, state: ReachState) -> Array:
        """Whether puck or tip has reached the goal."""
        return self._distance(state) <= self.goal_radius

    def tip(self, state: ReachState) -> Array:
        """``[2]``: where the tip is, in sides of the box."""
        return arm.pose(state.joints, state.links).tip

    def energy(self, state: ReachState) -> Array:
        """Kinetic energy of arm and puck, in mass sides^2 / second^2."""
        of_puck = self.puck_mass * jnp.sum(state.puck_velocity**2) / 2
        return arm.energy(state.joints, state.joint_velocity, state.links) + of_puck

    def render(self, state: ReachState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: the box fills the picture."""
        at = arm.pose(state.joints, state.links)
        shoulder = jnp.asarray(arm.BASE)
        table = drawing.rectangle(jnp.full(2, self.rim), jnp.full(2, 1 - self.rim))
        layers: list[tuple[drawing.Shape, drawing.AnyColour]] = [(table, state.background)]
        if self.show_goal:
            layers.append((drawing.ring(state.goal, self.goal_radius, self.goal_radius / 3), GOAL))
        if self._has_puck:
            layers.append((drawing.disc(state.puck, state.puck_radius), state.puck_colour))
        upper_colour = _UPPER_SHADE * state.arm_colour
        layers += [
            (drawing.disc(shoulder, 1.2 * _LINK_WIDTH), upper_colour),
            (drawing.segment(shoulder, at.elbow, _LINK_WIDTH), upper_colour),
            (drawing.segment(at.elbow, at.tip, 0.75 * _LINK_WIDTH), state.arm_colour),
            (drawing.disc(at.tip, self.tip_radius), state.arm_colour + _TIP_LIGHT * (255 - state.arm_colour)),
        ]
        return drawing.picture(self.size if size is None else size, _RIM_SHADE * state.background, layers)

    def info(self, state: ReachState) -> dict[str, Array]:
        """The fields of `ReachState`, by name and in its units, ``tip``, ``elbow`` and ``distance`` to the goal.

        Without a puck there is nothing about it.
        """
        names = [field.name for field in dataclasses.fields(state)]
        if not self._has_puck:
            names = [name for name in names if "puck" not in name and name not in ("friction", "touches")]
        at = arm.pose(state.joints, state.links)
        truth = {name: getattr(state, name) for name in names}
        return truth | {"tip": at.tip, "elbow": at.elbow, "distance": self._distance(state)}

    @property
    def substeps(self) -> int:
        """Steps of the simulation in a frame, so many that tip and puck cannot pass through each other."""
        longest = (self.upper_arm[1], self.forearm[1])
        return pushing.substeps_for(self.dt, self.speed, longest, self.tip_radius + self.puck_radius[0])

    @property
    def _has_puck(self) -> bool:
        return self.task == "push"

    @property
    def _margin(self) -> float:
        """How far goal and puck are from the end of the arm's reach, so that the tip comes to every side of a puck."""
        return self.tip_radius + self.puck_radius[1] + _ROOM

    def _setting(self, state: ReachState) -> pushing.Setting:
        return pushing.Setting(
            links=state.links,
            damping=jnp.asarray(self.damping),
            speed=self.speed,
            tip_radius=self.tip_radius,
            puck_radius=state.puck_radius,
            puck_mass=self.puck_mass,
            friction=state.friction,
            edge=self.rim,
        )

    def _torque(self, joints: Array, velocity: Array, links: Array, action: Array) -> Array:
        """``[2]``: what the motors do when they are told ``action``."""
        largest = jnp.asarray(self.torque)
        if self.control == "torque":
            return largest * action
        change = (self.speed * action - velocity) / _SERVO
        needed = arm.torque_for(joints, velocity, change, links, jnp.asarray(self.damping))
        return jnp.clip(needed, -largest, largest)

    def _distance(self, state: ReachState) -> Array:
        return jnp.sqrt(jnp.sum(((state.puck if self._has_puck else self.tip(state)) - state.goal) ** 2))

    def _place(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        share: Array,
        links: Array,
        margin: float | None = None,
    ) -> Array:
        """``[2]``: the place at ``share`` ``[2]`` of the ranges, moved to where an arm with ``links`` reaches it."""
        place = jnp.stack([base.within(x, share[0]), base.within(y, share[1])])
        margin = self._margin if margin is None else margin
        least, largest = arm.ring(links[0], links[1])
        offset = place - jnp.asarray(arm.BASE)
        distance = jnp.maximum(jnp.sqrt(jnp.sum(offset**2)), 1e-3)
        return jnp.asarray(arm.BASE) + offset * jnp.clip(distance, least + margin, largest - margin) / distance

    def _check_reach(self, links: tuple[float, float], low: float) -> None:
        """That every goal and every puck is both in reach of ``links`` and on the table."""
        least, largest = (float(end) for end in arm.ring(*links))
        least, largest = least + self._margin, largest - self._margin
        if largest - least < 2 * self._margin:
            raise ValueError(
                f"reach.upper_arm and reach.forearm allow the lengths {links}, with which the tip hardly comes to "
                f"every side of a puck of radius {self.puck_radius[1]}"
            )
        for thing in ("goal", "puck"):
            for corner in itertools.product(getattr(self, f"{thing}_x"), getattr(self, f"{thing}_y")):
                distance = math.dist(corner, arm.BASE)
                share = min(max(distance, least), largest) / distance
                moved = [at + (to - at) * share for at, to in zip(arm.BASE, corner, strict=True)]
                if min(moved) < low - 1e-6 or max(moved) > 1 - low + 1e-6:
                    raise ValueError(
                        f"reach.{thing}_x and reach.{thing}_y allow the place {corner}, which an arm with the lengths "
                        f"{links} reaches nowhere on the table"
                    )


def _far_enough(candidates: Array, place: Array, distance: Array | float, at: Array | None = None) -> Array:
    """The first of ``candidates`` ``[n, 2]``, which are ``at`` ``[n, 2]``, that is so far from ``place``.

    If none is, the one that is farthest.
    """
    gaps = jnp.sqrt(jnp.sum(((candidates if at is None else at) - place) ** 2, axis=-1))
    fits = gaps >= distance
    return candidates[jnp.where(jnp.any(fits), jnp.argmax(fits), jnp.argmax(gaps))]


_BEHIND = 0.5
"""How far, in radians around the puck, the tip may be off the line from the goal and still push."""


def push_to_goal(world: Reach, key: Array, state: ReachState) -> Array:
    """A scripted policy: goes around the puck to behind it and pushes it to the goal; ``[2]``.

    It slows down so that the puck slides as far as it should; in the task "reach" it goes straight to the goal.
    """
    del key
    at = arm.pose(state.joints, state.links)
    if world.task == "reach":
        return _go(world, state, (state.goal - at.tip) / (2 * world.dt))
    touch = world.tip_radius + state.puck_radius
    way = state.goal - state.puck
    distance = jnp.maximum(jnp.sqrt(jnp.sum(way**2)), 1e-3)
    ahead = way / distance
    aside = jnp.stack([-ahead[1], ahead[0]])
    offset = at.tip - state.puck
    off_line = jnp.sum(offset * aside)
    angle = jnp.arctan2(off_line, -jnp.sum(offset * ahead))
    is_near = jnp.sqrt(jnp.sum(offset**2)) < 1.6 * touch
    # Dry friction stops a puck of speed v after v^2 / (2 friction).
    pace = jnp.minimum(jnp.sqrt(2 * state.friction * distance) / 2, 0.5)
    push = pace * ahead - 4.0 * off_line * aside
    around = 1.25 * touch
    turned = angle - jnp.clip(angle, -0.7, 0.7)
    waypoint = state.puck + around * (-jnp.cos(turned) * ahead + jnp.sin(turned) * aside)
    approach = (waypoint - at.tip) / (2 * world.dt)
    return _go(world, state, jnp.where(is_near & (jnp.abs(angle) < _BEHIND), push, approach))


def _go(world: Reach, state: ReachState, tip_velocity: Array) -> Array:
    """``[2]``: the action that moves the tip with ``tip_velocity``, or as fast in that direction as joints can."""
    wanted = arm.joint_velocity(arm.pose(state.joints, state.links), tip_velocity)
    slower = jnp.minimum(1.0, world.speed / jnp.maximum(jnp.max(jnp.abs(wanted)), 1e-6))
    return world.action_for(state, wanted * slower)
