"""A learned world as a Gymnasium environment: a library of reinforcement learning trains in it and needs no change.

    >>> env = gymnasium.make("jaxwm.envs.dream_gym:jaxwm/Dream-v0", run="runs/rssm_cartpole", length=200)
    >>> envs = DreamVectorEnv("runs/rssm_cartpole", 64, length=200)

Spaces are those of the world that the model was learned from: a Box for each observation, in a Dict if there are
several, and Discrete or Box actions. Importing this module registers ``jaxwm/Dream-v0``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import jax
import numpy as np
from gymnasium.vector import AutoresetMode

from jaxwm.envs.dream import DreamEnvironments, DreamState, load_dream
from jaxwm.envs.stepped import SteppedEnvironments
from jaxwm.types import ActionSpec, Spec

Source = DreamEnvironments | str | os.PathLike[str]


class DreamEnv(gym.Env):
    """One dream at a time.

    Args:
      run: a run folder, or dreams that are made already.
      render_mode: ``rgb_array`` for the model's picture of the present, if its world shows one; or None.
      settings: for a run folder, the other arguments of `jaxwm.envs.dream.load_dream`: ``length``, ``temperature``,
        ``show="features"`` ...

    Raises:
      RunError, DataError, ValueError: as `load_dream`; ``render_mode`` in a world without pictures.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012  (gymnasium's own form)

    def __init__(self, run: Source, *, render_mode: str | None = None, **settings: Any) -> None:
        self._dream = _open(run, settings)
        self._stepped = SteppedEnvironments(self._dream, 1)
        self.metadata = _metadata(self._dream, type(self).metadata, render_mode)
        self.render_mode = render_mode
        self.observation_space = observation_space(self._stepped.spec)
        self.action_space = action_space(self._stepped.spec.action)
        self._is_over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins a dream; without a seed, another one than before."""
        super().reset(seed=seed)
        step = self._stepped.reset(int(self.np_random.integers(2**31)))
        self._is_over = False
        return _row(_shown(self._stepped.spec, step.observation), 0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One entry on.

        Raises:
          gymnasium.error.ResetNeeded: the dream is over, or has not begun.
          EnvError: what is not an action, or a dream that has become something that is not a number.
        """
        if self._is_over:
            raise gym.error.ResetNeeded("this dream is over: reset comes before the next step")
        step = self._stepped.step(np.asarray(action)[None])
        terminated, last = bool(step.is_terminal[0]), bool(step.is_last[0])
        self._is_over = last
        observation = _row(_shown(self._stepped.spec, step.observation), 0)
        return observation, float(step.reward[0]), terminated, last and not terminated, {}

    def render(self) -> Any:
        """``[H, W, 3]`` uint8, what the model thinks to see now; None without a render mode."""
        return None if self.render_mode is None else _pictures(self._dream, self._stepped.state)[0]


class DreamVectorEnv(gym.vector.VectorEnv):
    """N dreams in one compiled step.

    Args:
      run: a run folder, or dreams that are made already.
      num_envs: N.
      autoreset_mode: when ended dreams begin anew: in place of the next step, or within the step that ended them
        (``AutoresetMode.SAME_STEP``; what they showed last is in ``info["final_obs"]`` then).
      render_mode: ``rgb_array``, or None.
      settings: as for `DreamEnv`.

    Raises:
      RunError, DataError, ValueError: as `DreamEnv`; another ``autoreset_mode``.
    """

    metadata = {  # noqa: RUF012  (gymnasium's own form)
        "render_modes": ["rgb_array"],
        "render_fps": 15,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        run: Source,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if autoreset_mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
            raise ValueError(f"autoreset_mode is {autoreset_mode}, expected NEXT_STEP or SAME_STEP")
        self._dream = _open(run, settings)
        self._stepped = SteppedEnvironments(self._dream, num_envs)
        self._is_same_step = autoreset_mode == AutoresetMode.SAME_STEP
        modes = {**type(self).metadata, "autoreset_mode": autoreset_mode}
        self.metadata = _metadata(self._dream, modes, render_mode)
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.single_observation_space = observation_space(self._stepped.spec)
        self.single_action_space = action_space(self._stepped.spec.action)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins a dream in each; without a seed, others than before."""
        super().reset(seed=seed)
        step = self._stepped.reset(int(self.np_random.integers(2**31)))
        return _shown(self._stepped.spec, step.observation), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One entry on, in all of them.

        Raises:
          EnvError: what is not an action, or a dream that has become something that is not a number.
        """
        step = self._stepped.step(actions)
        terminated, last = np.asarray(step.is_terminal), np.asarray(step.is_last)
        observation = _shown(self._stepped.spec, step.observation)
        info: dict[str, Any] = {}
        if self._is_same_step and last.any():
            for row in np.flatnonzero(last).tolist():
                info = self._add_info(info, {"final_obs": _row(observation, row), "final_info": {}}, row)
            observation = _shown(self._stepped.spec, self._stepped.renew().observation)
        return observation, np.asarray(step.reward, np.float64), terminated, last & ~terminated, info

    def render(self) -> tuple[Any, ...] | None:
        """``[H, W, 3]`` uint8 of each dream; None without a render mode."""
        return None if self.render_mode is None else tuple(_pictures(self._dream, self._stepped.state))


def observation_space(spec: Spec) -> gym.Space[Any]:
    """A Box for the only observation of ``spec``, or a Dict of them."""
    spaces: dict[str, gym.Space[Any]] = {
        field.name: gym.spaces.Box(0, 255, field.shape, np.uint8)
        if field.is_image
        else gym.spaces.Box(-np.inf, np.inf, field.shape, np.float32)
        for field in spec.observation
    }
    return next(iter(spaces.values())) if len(spaces) == 1 else gym.spaces.Dict(spaces)


def action_space(spec: ActionSpec) -> gym.Space[Any]:
    """Discrete, or a Box with the bounds of ``spec``."""
    if spec.discrete:
        return gym.spaces.Discrete(spec.dim)
    if spec.low is None or spec.high is None:
        return gym.spaces.Box(-np.inf, np.inf, (spec.dim,), np.float32)
    return gym.spaces.Box(np.asarray(spec.low, np.float32), np.asarray(spec.high, np.float32), dtype=np.float32)


def _open(run: Source, settings: Mapping[str, Any]) -> DreamEnvironments:
    if not isinstance(run, DreamEnvironments):
        return load_dream(run, **settings)
    if settings:
        raise ValueError(f"{', '.join(settings)}: such settings are for a run folder, these dreams are made already")
    return run


def _metadata(dream: DreamEnvironments, metadata: Mapping[str, Any], render_mode: str | None) -> dict[str, Any]:
    modes = metadata["render_modes"] if dream.model.spec.images else []
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode is {render_mode!r}, expected {' or '.join(map(repr, [*modes, None]))}")
    return {**metadata, "render_modes": modes}


_picture = jax.jit(DreamEnvironments.picture)


def _pictures(dream: DreamEnvironments, state: DreamState | None) -> np.ndarray:
    if state is None:
        raise gym.error.ResetNeeded("reset comes before the first picture")
    pictures = np.array(_picture(dream, state))
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def _shown(spec: Spec, observation: Mapping[str, Any]) -> Any:
    return observation[spec.observation[0].name] if len(spec.observation) == 1 else dict(observation)


def _row(observation: Any, row: int) -> Any:
    return {k: v[row] for k, v in observation.items()} if isinstance(observation, dict) else observation[row]


gym.register(
    "jaxwm/Dream-v0",
    entry_point="jaxwm.envs.dream_gym:DreamEnv",
    vector_entry_point="jaxwm.envs.dream_gym:DreamVectorEnv",
)
