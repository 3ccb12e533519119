"""Fireballs aimed at a player who can only step aside: VizDoom's take-cover, in miniature.

The setting is the second experiment of World Models (Ha & Schmidhuber 2018, arXiv:1803.10122): the score is the number
of frames survived. One picture shows where everything is and not how it moves, so that memory helps.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, Spec
from jaxwm.worlds import base, drawing

BACKGROUND: drawing.Colour = (18, 20, 30)
WALL: drawing.Colour = (124, 132, 158)
PLAYER: drawing.Colour = (64, 158, 255)
FIREBALL: drawing.Colour = (255, 170, 60)

HEIGHT = 0.85
"""y of the player's centre, in sides of the box."""
LEFT, STAY, RIGHT = range(3)
"""The choices."""
_DIRECTION = (-1.0, 0.0, 1.0)
_KEEPS_ON = 0.8
"""How likely the random player does once more what it did last."""


@struct.dataclass
class DodgeState:
    """Where everything is, in sides of the box, x to the right and y down.

    Attributes:
      player: scalar, x of the player's centre.
      step: scalar, what the player last wanted: -1 left, 0 stay, 1 right.
      position: ``[n, 2]`` centres of the fireballs; y is below 0 before one comes into sight.
      velocity: ``[n, 2]`` in sides per second.
    """

    player: Array
    step: Array
    position: Array
    velocity: Array


@dataclasses.dataclass(frozen=True)
class Dodge:
    """Fireballs fall into the box [0, 1]^2, each aimed at where the player stands when it starts.

    A fireball starts above the box and flies straight; when it has left the box below, it starts anew. The action is
    one of `LEFT`, `STAY`, `RIGHT`; the side walls stop the player. The reward is 1 for a frame survived, and the
    episode terminates, without it, when a fireball touches the player, also in between two frames.

    Args:
      balls: how many fireballs.
      size: pixels of a side of the picture.
      camera: "player" shows the box from where the player stands, who is always in the middle, as in a first-person
        game; "fixed" shows all of the box.
      radius: of a fireball, in sides of the box.
      player_radius: of the player, in sides of the box.
      speed: of the player, in sides per second.
      fall: range of the fireballs' speed in sides per second, drawn uniformly for each start.
      spread: a fireball is aimed at most this far beside the player, uniformly, in sides of the box.
      pause: a fireball starts at most this far above the box, uniformly, in sides of it.
      dt: seconds between two frames.

    Raises:
      ValueError: a value is out of its range, or the player does not fit into the box.
    """

    balls: Annotated[int, pydantic.Field(ge=1, le=16)] = 2
    size: pydantic.PositiveInt = 32
    camera: Literal["player", "fixed"] = "player"
    radius: base.Positive = 0.07
    player_radius: base.Positive = 0.05
    speed: base.Positive = 0.8
    fall: base.PositiveRange = (0.5, 1.0)
    spread: base.NonNegative = 0.1
    pause: base.NonNegative = 0.4
    dt: base.Positive = 0.1

    def __post_init__(self) -> None:
        base.check_parameters(self)
        for name in ("radius", "player_radius"):
            if (value := getattr(self, name)) >= 0.5:
                raise ValueError(f"dodge.{name} is {value}, expected less than half a side of the box")

    @property
    def spec(self) -> Spec:
        """One picture ``image``; three choices."""
        return Spec((Field("image", (self.size, self.size, 3), "uint8"),), ActionSpec(3, discrete=True))

    def reset(self, key: Array) -> DodgeState:
        """The player anywhere, the fireballs on their way to the box, at different heights above it."""
        key_player, key_balls = jax.random.split(key)
        low = self.player_radius
        player = jax.random.uniform(key_player, minval=low, maxval=1.0 - low)
        position, velocity = self._start(key_balls, player)
        return DodgeState(player, jnp.zeros(()), position, velocity)

    def step(self, key: Array, state: DodgeState, action: Array) -> base.Transition:
        """``dt`` seconds on; ``action`` is one-hot ``[3]``, the largest entry counts."""
        action = base.clip_action(self.spec.action, action)
        step = jnp.asarray(_DIRECTION)[jnp.argmax(action)]
        low = self.player_radius
        player = jnp.clip(state.player + self.speed * self.dt * step, low, 1.0 - low)
        position = state.position + self.dt * state.velocity
        is_hit = jnp.any(self._gaps(state.player, player, state.position, position) <= 0.0)
        gone = position[:, 1] > 1.0 + self.radius
        new_position, new_velocity = self._start(key, player)
        after = DodgeState(
            player,
            step,
            jnp.where(gone[:, None], new_position, position),
            jnp.where(gone[:, None], new_velocity, state.velocity),
        )
        return base.Transition(after, 1.0 - is_hit.astype(jnp.float32), is_hit)

    def random_action(self, key: Array, state: DodgeState) -> Array:
        """``[3]``: mostly what was done last, so that a random player gets about."""
        key_change, key_choice = jax.random.split(key)
        keeps_on = jax.random.uniform(key_change) < _KEEPS_ON
        last = (state.step + 1.0).astype(jnp.int32)
        return jax.nn.one_hot(jnp.where(keeps_on, last, jax.random.randint(key_choice, (), 0, 3)), 3)

    def observation(self, state: DodgeState) -> dict[str, Array]:
        """``{"image": [size, size, 3] uint8}``."""
        return {"image": self.render(state)}

    def render(self, state: DodgeState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: a picture as wide as the box, in whose middle the camera is."""
        left = state.player - 0.5 if self.camera == "player" else jnp.zeros(())
        at = lambda x, y: jnp.stack([x - left, jnp.asarray(y, jnp.float32)])  # noqa: E731
        layers = [
            (drawing.rectangle(at(-1.0, -1.0), at(0.0, 2.0)), WALL),
            (drawing.rectangle(at(1.0, -1.0), at(2.0, 2.0)), WALL),
            (drawing.disc(at(state.player, HEIGHT), self.player_radius), PLAYER),
        ]
        for ball in range(self.balls):
            x, y = state.position[ball, 0], state.position[ball, 1]
            layers.append((drawing.disc(at(x, y), self.radius), FIREBALL))
        return drawing.picture(self.size if size is None else size, BACKGROUND, layers)

    def info(self, state: DodgeState) -> dict[str, Array]:
        """The fields of `DodgeState`, by name and in its units, and ``gap`` to the nearest fireball in sides."""
        truth = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        gaps = self._gaps(state.player, state.player, state.position, state.position)
        return truth | {"gap": jnp.min(gaps)}

    def _start(self, key: Array, player: Array) -> tuple[Array, Array]:
        """Positions and velocities ``[n, 2]`` of fireballs that start now, aimed at about ``player``."""
        share = jax.random.uniform(key, (self.balls, 4))
        position = jnp.stack([share[:, 0], -self.radius - self.pause * share[:, 1]], axis=-1)
        low = self.player_radius
        aim = jnp.clip(player + self.spread * (2.0 * share[:, 2] - 1.0), low, 1.0 - low)
        way = jnp.stack([aim, jnp.full(self.balls, HEIGHT)], axis=-1) - position
        speed = self.fall[0] + (self.fall[1] - self.fall[0]) * share[:, 3]
        return position, speed[:, None] * way / jnp.linalg.norm(way, axis=-1, keepdims=True)

    def _gaps(self, player: Array, player_after: Array, position: Array, position_after: Array) -> Array:
        """``[n]``: the smallest gap between each fireball and the player while both move evenly, in sides."""
        before = position - jnp.stack([player, jnp.float32(HEIGHT)])
        way = position_after - jnp.stack([player_after, jnp.float32(HEIGHT)]) - before
        length_squared = jnp.sum(way * way, axis=-1)
        nearest = -jnp.sum(before * way, axis=-1) / jnp.where(length_squared > 0, length_squared, 1.0)
        closest = before + jnp.clip(nearest, 0.0, 1.0)[:, None] * way
        return jnp.linalg.norm(closest, axis=-1) - self.radius - self.player_radius


_PLANS = tuple((direction, steps) for direction in (-1.0, 1.0) for steps in range(1, 9))
"""What `step_aside` chooses from: so many steps to one side, then standing still; beside standing still."""
_LOOKAHEAD = 12
_MARGIN = 0.04
"""A gap above this, in sides of the box, is as good as any."""


def step_aside(world: Dodge, key: Array, state: DodgeState) -> Array:
    """A scripted policy: the plan that keeps away from all fireballs, of several the one that ends in the middle."""
    del key
    directions = jnp.array([0.0, *(direction for direction, _ in _PLANS)])
    counts = jnp.array([0, *(steps for _, steps in _PLANS)])
    frames = jnp.arange(_LOOKAHEAD + 1)
    walked = world.speed * world.dt * jnp.minimum(frames, counts[:, None]) * directions[:, None]
    low = world.player_radius
    players = jnp.clip(state.player + walked, low, 1.0 - low)
    balls = state.position + world.dt * frames[:, None, None] * state.velocity
    gaps = jax.vmap(jax.vmap(world._gaps), in_axes=(0, 0, None, None))
    gap = jnp.min(gaps(players[:, :-1], players[:, 1:], balls[:-1], balls[1:]), axis=(1, 2))
    value = jnp.minimum(gap, _MARGIN) - 0.01 * jnp.abs(players[:, -1] - 0.5)
    return jax.nn.one_hot((directions[jnp.argmax(value)] + 1.0).astype(jnp.int32), 3)
