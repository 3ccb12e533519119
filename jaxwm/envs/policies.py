"""What acts while episodes are recorded: chance, or somebody's function."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxwm.types import ActionSpec

Policy = Callable[[Mapping[str, np.ndarray], np.ndarray, np.random.Generator], Any]
"""``policy(observation, is_first, rng) -> action`` for N environments at once.

``observation`` holds the named arrays of the spec, ``[N, ...]``; ``is_first`` ``[N]`` bool says where an episode
begins, so that an object with memory can reset it. The action is ``[N, A]`` float32 in raw units, and for discrete
actions one-hot ``[N, A]`` or choices ``[N]`` of an integer dtype.
"""


class EnvError(ValueError):
    """An environment or a policy that cannot be used; one line that names it and says why."""


def random_policy(spec: ActionSpec) -> Policy:
    """Uniform over the choices or within the bounds of ``spec``; standard normal where there are none."""

    def act(observation: Mapping[str, np.ndarray], is_first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = len(is_first)
        if spec.discrete:
            return rng.integers(spec.dim, size=count)
        if spec.low is None or spec.high is None:
            return rng.standard_normal((count, spec.dim))
        return rng.uniform(spec.low, spec.high, (count, spec.dim))

    return act


def load_policy(policy: str | Policy, spec: ActionSpec) -> Policy:
    """The policy that ``policy`` names: ``random``, an import path ``module:function``, or itself.

    A module is looked for in the current folder first.

    Raises:
      EnvError: there is no such module or function.
    """
    if callable(policy):
        return policy
    if policy == "random":
        return random_policy(spec)
    module, _, name = policy.partition(":")
    if not module or not name:
        raise EnvError(f"policy {policy!r} is unknown, expected 'random' or an import path 'module:function'")
    with _current_folder_first():
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise EnvError(f"policy {policy!r} cannot be imported: {error}") from None
    if not callable(found):
        raise EnvError(f"policy {policy!r} is a {type(found).__name__}, expected a function")
    return found


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def check_action(spec: ActionSpec, action: Any, count: int, void: np.ndarray | None = None) -> np.ndarray:
    """``[count, A]`` float32 as it is stored: choices made one-hot, the rest clipped to the bounds.

    Args:
      spec: what is taken.
      action: as a policy gave it.
      count: for how many environments.
      void: ``[count]`` bool; rows in which anything may stand, because nobody will read it.

    Raises:
      EnvError: another shape, a choice that does not exist, or numbers that are not finite.
    """
    action = np.asarray(action)
    if void is not None and void.any() and action.shape in ((count,), (count, spec.dim)):
        action = action.copy()
        action[void] = 0 if action.ndim == 1 else np.eye(spec.dim)[0]
    if spec.discrete and action.shape == (count,) and action.dtype.kind in "iu":
        if ((action < 0) | (action >= spec.dim)).any():
            raise EnvError(f"the policy chose {action.tolist()}, expected choices from 0 to {spec.dim - 1}")
        return np.eye(spec.dim, dtype=np.float32)[action]
    if action.shape != (count, spec.dim):
        raise EnvError(f"the policy returned an action of shape {list(action.shape)}, expected {[count, spec.dim]}")
    action = action.astype(np.float32)
    if not np.isfinite(action).all():
        raise EnvError("the policy returned an action that is not finite")
    if spec.discrete:
        if not (((action == 0) | (action == 1)).all() and (action.sum(-1) == 1).all()):
            raise EnvError("the policy returned an action that is neither one-hot nor an integer choice")
        return action
    if spec.low is None or spec.high is None:
        return action
    return np.clip(action, np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32))
