"""Simulated worlds as environments that live inside compiled code: pure functions over N of them at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxwm.envs.base import Step, first_step, next_step
from jaxwm.imagination import where_rows
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
      length: steps after which an episode is cut, the first frame counted.
      frame_skip: actions in a block, which is what one step takes; see `jaxwm.data.Blocks`. The reward of a step is
        the sum over its frames, and where an episode ends in a block the rest of it is not done.

    Raises:
      ValueError: ``length`` is below 2, or blocks of discrete actions.
    """

    world: World
    length: int
    frame_skip: int = 1

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length is {self.length}, expected at least 2")
        self.world.spec.blocked(self.frame_skip)

    @property
    def spec(self) -> Spec:
        """What the world shows, and takes in a step."""
        return self.world.spec.blocked(self.frame_skip)

    def reset(self, keys: Array) -> tuple[WorldState, Step]:
        """Begins N episodes from ``keys`` ``[N]``."""
        physical = jax.vmap(self.world.reset)(keys)
        step = first_step(jax.vmap(self.world.observation)(physical), keys.shape[0])
        return WorldState(physical, jnp.zeros(keys.shape[0], jnp.int32), step.is_last), step

    def step(self, keys: Array, state: WorldState, action: Array) -> tuple[WorldState, Step]:
        """One step on with ``action`` ``[N, A]`` and ``keys`` ``[N]``."""
        if self.frame_skip == 1:
            return self._frame(keys, state, action)
        keys = jax.vmap(lambda key: jax.random.split(key, self.frame_skip))(keys)
        actions = action.reshape(len(keys), self.frame_skip, -1)
        begun, step = self._frame(keys[:, 0], state, actions[:, 0])

        def frame(carry: tuple[WorldState, Step], inputs: tuple[Array, Array]) -> tuple[tuple[WorldState, Step], None]:
            state, step = carry
            after, shown = self._frame(inputs[0], state, inputs[1])
            shown = shown.replace(reward=step.reward + shown.reward)
            # Neither what follows an end is part of this step, nor what follows a new beginning.
            return where_rows(~(step.is_first | step.is_last), (after, shown), (state, step)), None

        rest = (jnp.swapaxes(keys[:, 1:], 0, 1), jnp.swapaxes(actions[:, 1:], 0, 1))
        return jax.lax.scan(frame, (begun, step), rest)[0]

    def _frame(self, keys: Array, state: WorldState, action: Array) -> tuple[WorldState, Step]:
        keys = jax.vmap(jax.random.split)(keys)
        after = jax.vmap(self.world.step)(keys[:, 0], state.physical, action)
        fresh = jax.vmap(self.world.reset)(keys[:, 1])
        physical = where_rows(state.is_last, fresh, after.state)
        observation = jax.vmap(self.world.observation)(physical)
        frames = (self.length - 1) * self.frame_skip + 1
        time, step = next_step(state.is_last, state.time, frames, observation, after.reward, after.is_terminal)
        return WorldState(physical, time, step.is_last), step

    def info(self, state: WorldState) -> dict[str, Array]:
        """The world's truth, ``[N, ...]`` by name."""
        return jax.vmap(self.world.info)(state.physical)
