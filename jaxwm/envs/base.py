"""What every environment says at one time, whatever runs it: a simulator in JAX, Gymnasium, or a learned model.

Environments come N at a time and in step. One whose last `Step` ended an episode begins a new one in place of the next
step, whatever the action is: so every frame is seen once, the last one too, and no step leads across two episodes.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import struct

from jaxwm.types import Array, Arrays, PyTree, Spec


class Step(struct.PyTreeNode):
    """What N environments show now.

    Attributes:
      observation: images ``[N, H, W, C]`` uint8 and vectors ``[N, D]`` float32, by name.
      reward: ``[N]`` float32; followed the action that led here, 0 where ``is_first``.
      is_first: ``[N]`` bool; an episode begins here.
      is_last: ``[N]`` bool; it ends here, so that the next action is void.
      is_terminal: ``[N]`` bool; it ended by the rules of the environment, not by a time limit.
    """

    observation: Arrays
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array


def first_step(observation: Arrays, count: int) -> Step:
    """What ``count`` environments show where all of them begin."""
    no = jnp.zeros(count, bool)
    return Step(observation, jnp.zeros(count), ~no, no, no)


def next_step(
    ended: Array, time: Array, length: int, observation: Arrays, reward: Array, is_terminal: Array
) -> tuple[Array, Step]:
    """What environments show one frame on; those that had ended show the first one of a new episode.

    Args:
      ended: ``[N]`` bool; ``is_last`` of the step before.
      time: ``[N]`` int32; frames since the episodes began, at the step before.
      length: frames after which an episode is cut.
      observation: ``[N, ...]`` by name.
      reward: ``[N]``; without meaning where an episode begins.
      is_terminal: ``[N]`` bool; likewise.

    Returns:
      ``time`` now, and the step.
    """
    time = jnp.where(ended, 0, time + 1)
    is_terminal = is_terminal & ~ended
    is_last = is_terminal | (time >= length - 1)
    return time, Step(observation, jnp.where(ended, 0.0, reward), ended, is_last, is_terminal)


@runtime_checkable
class Environments(Protocol):
    """N environments that this process steps from Python; arrays are numpy's."""

    @property
    def spec(self) -> Spec:
        """What they show and take."""
        ...

    @property
    def count(self) -> int:
        """N."""
        ...

    def reset(self, seed: int) -> Step:
        """Begins an episode in each; the same seed gives the same episodes."""
        ...

    def step(self, action: Any) -> Step:
        """One frame on with ``action`` ``[N, A]`` float32 in raw units; ended ones begin anew and ignore theirs."""
        ...

    def close(self) -> None:
        """Frees what they hold."""
        ...


@runtime_checkable
class CompiledEnvironments(Protocol):
    """Environments that live inside compiled code: a pytree of pure functions over any number of them at once."""

    @property
    def spec(self) -> Spec:
        """What they show and take."""
        ...

    @property
    def length(self) -> int:
        """Frames after which an episode is cut."""
        ...

    def reset(self, keys: Array) -> tuple[PyTree, Step]:
        """Begins N episodes from ``keys`` ``[N]``: where they stand, and what they show."""
        ...

    def step(self, keys: Array, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        """One frame on with ``action`` ``[N, A]`` in raw units; ended ones begin anew and ignore theirs."""
        ...

    def info(self, state: PyTree) -> Arrays:
        """Physical truth ``[N, ...]`` by name, where there is one."""
        ...
