"""Environments that live inside compiled code, stepped from Python: worlds and dreams as `jaxwm.envs.Environments`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxwm.envs.base import CompiledEnvironments, Step
from jaxwm.envs.policies import EnvError, check_action
from jaxwm.imagination import where_rows
from jaxwm.types import Array, PyTree, Spec


class SteppedEnvironments:
    """N compiled environments behind the protocol `jaxwm.envs.Environments`, with numpy's arrays.

    Args:
      environments: `WorldEnvironments` or `DreamEnvironments`.
      count: N.

    Raises:
      EnvError: ``count`` is below 1.
    """

    def __init__(self, environments: CompiledEnvironments, count: int) -> None:
        if count < 1:
            raise EnvError(f"count is {count}, expected at least 1")
        self.environments = environments
        self._spec, self._count = environments.spec, count
        self._key: Array | None = None
        self._state: PyTree = None
        self._step: Step | None = None
        self._ended = np.zeros(count, bool)
        self._time = 0

    @property
    def spec(self) -> Spec:
        """What they show and take."""
        return self._spec

    @property
    def count(self) -> int:
        """N."""
        return self._count

    @property
    def state(self) -> PyTree:
        """Where they stand; None before the first `reset`."""
        return self._state

    def reset(self, seed: int | Sequence[int]) -> Step:
        """Begins an episode in each; the same seed (a number, or several) gives the same episodes."""
        self._key, self._time = jax.random.key(int(np.random.SeedSequence(seed).generate_state(1)[0])), 0
        self._state, step = _reset(self.environments, self._count, self._key)
        return self._checked(step)

    def step(self, action: Any) -> Step:
        """One step on with ``action`` ``[N, A]`` in raw units or choices ``[N]``; ended ones ignore theirs.

        Raises:
          EnvError: what is not an action, or a dream that has become something that is not a number.
        """
        if self._key is None:
            raise EnvError("reset comes before the first step")
        self._time += 1
        action = check_action(self._spec.action, action, self._count, void=self._ended)
        self._state, step = _step(self.environments, self._key, np.int32(self._time), self._state, action)
        return self._checked(step)

    def renew(self) -> Step:
        """Begins those anew whose last step ended an episode, at once; what all of them show then."""
        assert self._key is not None and self._step is not None
        self._state, step = _renew(self.environments, self._key, np.int32(self._time), self._state, self._step)
        return self._checked(step)

    def close(self) -> None:
        """Nothing is held."""

    def _checked(self, step: Step) -> Step:
        self._step = step
        step = jax.tree.map(np.array, jax.device_get(step))  # copies, because jax's own cannot be written to
        self._ended = np.array(step.is_last)
        numbers = {"reward": step.reward, **{field.name: step.observation[field.name] for field in self._spec.vectors}}
        for name, value in numbers.items():
            broken = ~np.isfinite(value).reshape(self._count, -1).all(1)
            if broken.any():
                raise EnvError(f"copy {int(broken.argmax())}, step {self._time}: {name} is not finite")
        return step


@functools.partial(jax.jit, static_argnums=1)
def _reset(environments: CompiledEnvironments, count: int, key: Array) -> tuple[PyTree, Step]:
    return environments.reset(_row_keys(key, 0, count))


@jax.jit
def _step(
    environments: CompiledEnvironments, key: Array, time: Array, state: PyTree, action: Array
) -> tuple[PyTree, Step]:
    return environments.step(_row_keys(key, time, action.shape[0]), state, action)


@jax.jit
def _renew(
    environments: CompiledEnvironments, key: Array, time: Array, state: PyTree, step: Step
) -> tuple[PyTree, Step]:
    ended = step.is_last
    key = jax.random.fold_in(key, 0)  # a stream of its own: steps are folded in from 1 on
    fresh = environments.reset(_row_keys(key, time, ended.shape[0]))
    return where_rows(ended, fresh, (state, step))


def _row_keys(key: Array, time: Array | int, count: int) -> Array:
    return jax.random.split(jax.random.fold_in(key, time), count)
