"""Episodes from any Gymnasium environment, recorded through several copies of it at once.

    >>> recorder = Recorder("ALE/Breakout-v5", size=64)
    >>> recorder.spec.action
    ActionSpec(dim=4, discrete=True, low=None, high=None)
    >>> episodes = list(recorder.episodes(2, seed=0))

Each copy records the same number of episodes; taking those that end first would favour the short ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxwm.envs.base import Step
from jaxwm.envs.gymnasium import GymnasiumEnvironments, Observe
from jaxwm.envs.policies import EnvError, Policy, check_action, load_policy
from jaxwm.types import Spec, Trajectory


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Records episodes of one environment; see `GymnasiumEnvironments` for what is seen and done in it.

    Args:
      env_id: a registered id, or ``module:id`` where importing the module registers it.
      size: of pictures.
      observe: which observations to keep.
      policy: ``random``, an import path ``module:function``, or a `jaxwm.envs.Policy`. It is asked for every copy;
        what it says where an episode has just ended is void.
      repeat: how often the environment is given each action.
      max_length: observations after which an episode is cut (``is_last`` without ``is_terminal``).
      parallel: copies of the environment.
      options: arguments for ``gymnasium.make``.

    Raises:
      EnvError: gymnasium is missing, there is no such environment, or it shows or takes what no `Spec` describes.
    """

    env_id: str
    size: int = 64
    observe: Observe = "pixels"
    policy: str | Policy = "random"
    repeat: int = 1
    max_length: int | None = None
    parallel: int = 4
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spec: Spec = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise EnvError(f"parallel is {self.parallel}, expected at least 1")
        object.__setattr__(self, "spec", self._environments(1).spec)
        load_policy(self.policy, self.spec.action)

    def episodes(self, count: int, seed: int = 0, stream: int = 0) -> Iterator[Trajectory]:
        """Records ``count`` episodes, in the order in which they end; the same seeds give the same episodes.

        Args:
          count: how many.
          seed: of the environments and the random policy.
          stream: different streams of one seed never share a generator; one for each split.

        Yields:
          Unbatched trajectories of numpy arrays ``[T, ...]``, T frames with T - 1 actions (the last is void).

        Raises:
          EnvError: an environment failed, or the policy returned something that is not an action.
        """
        if count < 1:
            return
        copies = min(self.parallel, count)
        quota = [count // copies + (k < count % copies) for k in range(copies)]
        rng = np.random.default_rng([seed, stream, 1])
        with contextlib.closing(self._environments(copies)) as environments:
            yield from self._record(environments, quota, environments.reset([seed, stream, 0]), rng)

    def _record(
        self, environments: GymnasiumEnvironments, quota: list[int], step: Step, rng: np.random.Generator
    ) -> Iterator[Trajectory]:
        policy = load_policy(self.policy, self.spec.action)
        tapes = [_Tape() for _ in quota]
        while True:
            for k, tape in enumerate(tapes):
                tape.see({name: array[k] for name, array in step.observation.items()}, float(step.reward[k]))
                if step.is_last[k]:
                    tapes[k] = _Tape()
                    if quota[k]:
                        quota[k] -= 1
                        yield tape.trajectory(bool(step.is_terminal[k]))
            if not any(quota):
                return
            action = check_action(
                self.spec.action, policy(step.observation, np.asarray(step.is_first), rng), environments.count
            )
            for k, tape in enumerate(tapes):
                if not step.is_last[k]:
                    tape.actions.append(action[k])
            step = environments.step(action)

    def _environments(self, count: int) -> GymnasiumEnvironments:
        return GymnasiumEnvironments(
            self.env_id, count, observe=self.observe, size=self.size, repeat=self.repeat, max_length=self.max_length,
            options=self.options,
        )  # fmt: skip


@dataclasses.dataclass
class _Tape:
    """An episode that is being recorded: its frames, what was done in each, and the rewards that came with them."""

    observations: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)

    def see(self, observation: dict[str, np.ndarray], reward: float) -> None:
        """Adds a frame and the reward that came with it."""
        self.observations.append(observation)
        self.rewards.append(reward)

    def trajectory(self, terminal: bool) -> Trajectory:
        """The whole episode; its rewards move to the action that they follow."""
        length = len(self.observations)
        steps = np.arange(length)
        void = np.zeros_like(self.actions[0])
        arrays: dict[str, Any] = {
            "observation": {name: np.stack([o[name] for o in self.observations]) for name in self.observations[0]},
            "action": np.stack([*self.actions, void]),
            "previous_action": void,
            "reward": np.asarray([*self.rewards[1:], 0.0], np.float32),
            "is_first": steps == 0,
            "is_last": steps == length - 1,
            "is_terminal": (steps == length - 1) & terminal,
            "valid": np.ones(length, bool),
            "action_valid": np.ones(length, bool),
        }
        return Trajectory(**arrays)
