"""Several worlds behind one picture and one action space: what one model for all is to learn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import struct

from jaxwm.types import ActionSpec, Array, Field, PyTree, Spec
from jaxwm.worlds import base
from jaxwm.worlds.bounce import Bounce
from jaxwm.worlds.drive import Drive
from jaxwm.worlds.rooms import Rooms
from jaxwm.worlds.scene import Scene

Name = Literal["bounce", "drive", "rooms", "scene"]
NAMES: tuple[Name, ...] = ("bounce", "drive", "rooms", "scene")
"""In the order of the domain and of the actions."""


@struct.dataclass
class SeveralState:
    """A state of each world, of which one means something.

    Attributes:
      domain: int32, index into `NAMES`: which.
      members: the states, in that order.
    """

    domain: Array
    members: tuple[PyTree, ...]


@dataclasses.dataclass(frozen=True)
class Several:
    """One of `NAMES`, drawn when an episode begins.

    The action is that of all worlds side by side, each on the scale -1..1; those of the other worlds have no effect.
    The condition ``domain`` ``[4]`` says one-hot which one it is; so does ``info["domain"]``, as a number.

    Args:
      size: pixels of a side of the picture.
      names: of the worlds to be drawn from.

    Raises:
      ValueError: a value is out of its range.
    """

    size: pydantic.PositiveInt = 32
    names: Annotated[tuple[Name, ...], pydantic.Field(min_length=1)] = NAMES

    def __post_init__(self) -> None:
        base.check_parameters(self)

    @property
    def members(self) -> tuple[base.World, ...]:
        """The worlds in the order of `NAMES`."""
        return (
            Bounce(size=self.size, force=2.0),
            Drive(size=self.size, views=("front",)),
            Rooms(size=self.size),
            Scene(size=self.size, start="edge", dt=0.2),
        )

    @property
    def spec(self) -> Spec:
        """One picture ``image``; all actions; the domain."""
        dim = sum(world.spec.action.dim for world in self.members)
        action = ActionSpec(dim, low=(-1.0,) * dim, high=(1.0,) * dim)
        picture = Field("image", (self.size, self.size, 3), "uint8")
        return Spec((picture,), action, (Field("domain", (len(NAMES),), "float32"),))

    def reset(self, key: Array) -> SeveralState:
        """A first state of a world that is drawn from ``names``, each as likely."""
        which_key, *keys = jax.random.split(key, 1 + len(NAMES))
        names = jnp.asarray([NAMES.index(name) for name in self.names], jnp.int32)
        states = tuple(world.reset(key) for world, key in zip(self.members, keys, strict=True))
        return SeveralState(jax.random.choice(which_key, names), states)

    def step(self, key: Array, state: SeveralState, action: Array) -> base.Transition:
        """The world that it is goes on, the others stay."""
        action = base.clip_action(self.spec.action, action)

        def go_on(index: int) -> base.Transition:
            world, start = self.members[index], self._start(index)
            spec = world.spec.action
            after = world.step(key, state.members[index], spec.denormalise(action[start : start + spec.dim]))
            members = (*state.members[:index], after.state, *state.members[index + 1 :])
            reward, ended = jnp.float32(after.reward), jnp.asarray(after.is_terminal, bool)
            return base.Transition(SeveralState(state.domain, members), reward, ended)

        found: base.Transition = self._switch(state, go_on)
        return found

    def random_action(self, key: Array, state: SeveralState) -> Array:
        """``[8]``: that of the world's own random policy, and zeros."""

        def act(index: int) -> Array:
            world, start = self.members[index], self._start(index)
            own = base.random_policy(world, key, state.members[index])
            return jnp.zeros(self.spec.action.dim).at[start : start + len(own)].set(world.spec.action.normalise(own))

        found: Array = self._switch(state, act)
        return found

    def observation(self, state: SeveralState) -> dict[str, Array]:
        """``{"image": [size, size, 3] uint8}``."""
        return {"image": self.render(state)}

    def render(self, state: SeveralState, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: the picture of the world that it is."""
        image: Array = self._switch(state, lambda index: self.members[index].render(state.members[index], size))
        return image

    def condition(self, state: SeveralState) -> dict[str, Array]:
        """``{"domain": [4]}``, one-hot."""
        return {"domain": jax.nn.one_hot(state.domain, len(NAMES))}

    def info(self, state: SeveralState) -> dict[str, Array]:
        """``{"domain": int32}``, index into `NAMES`."""
        return {"domain": state.domain}

    def _start(self, index: int) -> int:
        """Where the action of a member begins."""
        return sum(world.spec.action.dim for world in self.members[:index])

    def _switch(self, state: SeveralState, make: Callable[[int], Any]) -> Any:
        """What ``make(index)`` is for the world that it is."""
        return jax.lax.switch(state.domain, [functools.partial(make, index) for index in range(len(NAMES))])
