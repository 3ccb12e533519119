"""Simulated worlds as environments that live inside compiled code: pure functions over N of them at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxwm.envs.base import Step
from jaxwm.types import Array, PyTree, Spec
from jaxwm.worlds import World


class WorldState(struct.PyTreeNode):
    """Where N worlds stand.

    Attributes:
      physical: their states, ``[N, ...]``.
      time: ``[N]`` int32; frames since the episode began.
      is_last: ``[N]`` bool; the next step begins a new episode.
    """

    physical: PyTree
    time: Array
    is_last: Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class WorldEnvironments:
    """N copies of a world, whose ended episodes begin anew; see `jaxwm.envs.base` for when.

    Args:
      world: any world.
      length: frames after which an episode is cut.

    Raises:
      ValueError: ``length`` is below 2.
    """

    world: World
    length: int

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length is {self.length}, expected at least 2")

    @property
    def spec(self) -> Spec:
        """What the world shows and takes."""
        return self.world.spec

    def reset(self, keys: Array) -> tuple[WorldState, Step]:
        """Begins N episodes from ``keys`` ``[N]``."""
        count = keys.shape[0]
        no = jnp.zeros(count, bool)
        state = WorldState(jax.vmap(self.world.reset)(keys), jnp.zeros(count, jnp.int32), no)
        return state, self._show(state, jnp.zeros(count), ~no, no)

    def step(self, keys: Array, state: WorldState, action: Array) -> tuple[WorldState, Step]:
        """One frame on with ``action`` ``[N, A]`` and ``keys`` ``[N]``."""
        keys = jax.vmap(jax.random.split)(keys)
        after = jax.vmap(self.world.step)(keys[:, 0], state.physical, action)
        fresh = jax.vmap(self.world.reset)(keys[:, 1])
        ended = state.is_last
        choose = lambda new, old: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
        time = jnp.where(ended, 0, state.time + 1)
        is_terminal = after.is_terminal & ~ended
        is_last = is_terminal | (time >= self.length - 1)
        physical = jax.tree.map(choose, fresh, after.state)
        state = WorldState(physical, time, is_last)
        return state, self._show(state, jnp.where(ended, 0.0, after.reward), ended, is_terminal)

    def info(self, state: WorldState) -> dict[str, Array]:
        """The world's truth, ``[N, ...]`` by name."""
        return jax.vmap(self.world.info)(state.physical)

    def _show(self, state: WorldState, reward: Array, is_first: Array, is_terminal: Array) -> Step:
        observation = jax.vmap(self.world.observation)(state.physical)
        return Step(observation, reward, is_first, state.is_last, is_terminal)
