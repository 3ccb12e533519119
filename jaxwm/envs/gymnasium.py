"""Gymnasium's environments, N copies of one in step: classic control, Box2D, MuJoCo, Atari and dm_control.

    >>> environments = GymnasiumEnvironments("dm_control/cartpole-balance-v0", 4, observe="vectors", repeat=2)
    >>> environments.spec.vectors
    (Field(name='position', shape=(3,), dtype='float32'), Field(name='velocity', shape=(2,), dtype='float32'))
    >>> step = environments.reset(seed=0)
    >>> step = environments.step(np.zeros((4, 1), np.float32))

What an environment does wrong stops everything: an exception in it, a number that is not finite, a shape or dtype
that its space does not announce. To go on with a made-up transition would teach a model something that never happened.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxwm.envs.base import Step
from jaxwm.envs.images import resize
from jaxwm.envs.policies import EnvError, check_action
from jaxwm.types import ActionSpec, Field, Spec

Observe = Literal["pixels", "vectors", "both"]


class GymnasiumEnvironments:
    """N copies of a registered environment, as `jaxwm.envs.Environments`; they are made by the first `reset`.

    Pixels are the pictures among the environment's observations, or where it has none what it renders (as
    ``image``). An observation that is not a dict is called ``image`` or ``vector``, nested ones ``outer.inner``. Atari
    runs as its id says: ``ALE/Pong-v5`` repeats an action for 4 frames and the one before it with probability 0.25,
    without pooling frames. dm_control's tasks have ids like ``dm_control/cartpole-balance-v0``; a reward of up to 1
    comes for each frame, and 1,000 frames end an episode that never is terminal.

    Args:
      env_id: a registered id, or ``module:id`` where importing the module registers it.
      count: N, the copies.
      observe: which observations to keep.
      size: pictures are brought to ``[size, size]``; area means where they shrink, else bilinear.
      repeat: how often the environment is given each action; rewards are summed, the end of an episode ends it.
      max_length: observations after which an episode is cut (``is_last`` without ``is_terminal``).
      options: arguments for ``gymnasium.make``.

    Attributes:
      frames_per_decision: frames of the environment that an action takes: ``repeat``, times Atari's own ``frameskip``
        (its mean, where it is drawn).

    Raises:
      EnvError: gymnasium is missing, there is no such environment, or it shows or takes what no `Spec` describes.
    """

    def __init__(
        self,
        env_id: str,
        count: int,
        *,
        observe: Observe = "pixels",
        size: int = 64,
        repeat: int = 1,
        max_length: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if observe not in ("pixels", "vectors", "both"):
            raise EnvError(f"observe is {observe!r}, expected 'pixels', 'vectors' or 'both'")
        for name, value, least in (("count", count, 1), ("size", size, 1), ("repeat", repeat, 1)):
            if value < least:
                raise EnvError(f"{name} is {value}, expected at least {least}")
        if max_length is not None and max_length < 2:
            raise EnvError(f"max_length is {max_length}, expected at least 2")
        self._id, self._count, self._repeat, self._max_length = env_id, count, repeat, max_length
        self._options = dict(options or {})
        with contextlib.closing(_make(env_id, size, self._options, renders=False)) as env:
            kept = list(_kept(env_id, env.observation_space, observe, size))
            self._view = _View(dict(kept), _leaves(env.observation_space), size)
            self._spec = Spec(tuple(field for field, _ in kept), _action_spec(env_id, env.action_space))
            self._action_space = env.action_space
            self.frames_per_decision = repeat * _frameskip(env)
        self._copies: list[_Copy] = []
        self._ended = np.zeros(count, bool)

    @property
    def spec(self) -> Spec:
        """What they show and take."""
        return self._spec

    @property
    def count(self) -> int:
        """N."""
        return self._count

    def reset(self, seed: int | Sequence[int]) -> Step:
        """Begins an episode in each; the same seed (a number, or several) gives the same episodes.

        Raises:
          EnvError: an environment failed; the line names it, the copy, the episode and the step.
        """
        if not self._copies:
            renders = self._view.renders
            envs = [_make(self._id, self._view.size, self._options, renders) for _ in range(self._count)]
            self._copies = [
                _Copy(env, self._view, f"{self._id}: copy {number}", self._repeat, self._max_length)
                for number, env in enumerate(envs)
            ]
        seeds = np.random.SeedSequence(seed).generate_state(self._count) & 0x7FFFFFFF
        return self._together([copy.reset(int(s)) for copy, s in zip(self._copies, seeds, strict=True)])

    def step(self, action: Any) -> Step:
        """One decision on with ``action`` ``[N, A]`` in raw units; ended ones begin anew and ignore theirs.

        Raises:
          EnvError: what is not an action, or an environment failed, as in `reset`.
        """
        if not self._copies:
            raise EnvError(f"{self._id}: reset comes before the first step")
        checked = check_action(self._spec.action, action, self._count, void=self._ended)
        chosen = _to_env(self._action_space, checked)
        return self._together(
            [
                copy.reset() if ended else copy.step(a)
                for copy, ended, a in zip(self._copies, self._ended, chosen, strict=True)
            ]
        )

    def close(self) -> None:
        """Closes the copies; another `reset` makes new ones."""
        copies, self._copies = self._copies, []
        for copy in copies:
            # What has crashed often cannot be closed either, and its first error is the one that matters.
            with contextlib.suppress(Exception):
                copy.env.close()

    def _together(self, rows: Sequence[_Row]) -> Step:
        column = lambda name: np.array([getattr(row, name) for row in rows])  # noqa: E731
        self._ended = column("is_last")
        arrays: dict[str, Any] = {
            "observation": {f.name: np.stack([r.observation[f.name] for r in rows]) for f in self._spec.observation},
            "reward": column("reward").astype(np.float32),
            **{name: column(name) for name in ("is_first", "is_last", "is_terminal")},
        }
        return Step(**arrays)


@dataclasses.dataclass(frozen=True)
class _Row:
    """What one copy shows now: a `Step` without N."""

    observation: dict[str, np.ndarray]
    reward: float = 0.0
    is_first: bool = False
    is_last: bool = False
    is_terminal: bool = False


class _FaultError(Exception):
    """What is wrong with something that an environment returned."""


@dataclasses.dataclass(frozen=True)
class _View:
    """How observations become the fields of the spec.

    Attributes:
      sources: the leaf of the observation that each field comes from; None for what is rendered.
      spaces: the space of each leaf.
      size: of pictures.
    """

    sources: Mapping[Field, str | None]
    spaces: Mapping[str, Any]
    size: int

    @property
    def renders(self) -> bool:
        """Whether a field is rendered."""
        return None in self.sources.values()

    def look(self, env: Any, raw: Any) -> dict[str, np.ndarray]:
        """What ``env`` shows, by the names of the spec."""
        values = _leaves(raw)
        return {field.name: self._read(field, path, env, values) for field, path in self.sources.items()}

    def _read(self, field: Field, path: str | None, env: Any, values: Mapping[str, Any]) -> np.ndarray:
        if path is None:
            frame = env.render()
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
                raise _FaultError(f"it renders {_describe(frame)}, expected uint8[H, W, 3]")
            return resize(frame, self.size)
        if path not in values:
            raise _FaultError(f"observation {path!r} is missing")
        space, value = self.spaces[path], values[path]
        if field.is_image:
            if not isinstance(value, np.ndarray) or (value.dtype, value.shape) != (space.dtype, space.shape):
                raise _FaultError(
                    f"observation {field.name!r} is {_describe(value)}, expected uint8{list(space.shape)}"
                )
            return resize(value, self.size)
        return _vector(field.name, space, value)


def _vector(name: str, space: Any, value: Any) -> np.ndarray:
    """``[D]`` float32: a ``value`` of ``space``, flat; choices one-hot."""
    import gymnasium as gym

    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.shape != space.shape:
        raise _FaultError(f"observation {name!r} is {_describe(value)}, expected {space.dtype}{list(space.shape)}")
    if isinstance(space, gym.spaces.Box):
        flat = array.astype(np.float32).ravel()
        if not np.isfinite(flat).all():
            raise _FaultError(f"observation {name!r} is not finite: {np.array2string(flat, threshold=8)}")
        return flat
    if not space.contains(array.astype(space.dtype)):
        raise _FaultError(f"observation {name!r} is {array.tolist()}, which is not in {space}")
    return np.asarray(gym.spaces.flatten(space, value), np.float32)


@dataclasses.dataclass
class _Copy:
    """One environment and where it stands."""

    env: Any
    view: _View
    name: str
    repeat: int
    max_length: int | None
    episode: int = -1
    time: int = 0

    def reset(self, seed: int | None = None) -> _Row:
        """Begins an episode; the first one after a seed is episode 0."""
        self.episode, self.time = 0 if seed is not None else self.episode + 1, 0
        return self._blamed(lambda: _Row(self.view.look(self.env, self.env.reset(seed=seed)[0]), is_first=True))

    def step(self, action: Any) -> _Row:
        """One decision on."""
        self.time += 1
        return self._blamed(lambda: self._step(action))

    def _step(self, action: Any) -> _Row:
        total = 0.0
        for _ in range(self.repeat):
            raw, reward, terminated, truncated, _ = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        if not np.isfinite(total):
            raise _FaultError(f"its reward is {total}")
        is_cut = self.max_length is not None and self.time + 1 >= self.max_length
        is_last = bool(terminated or truncated or is_cut)
        return _Row(self.view.look(self.env, raw), total, is_last=is_last, is_terminal=bool(terminated))

    def _blamed(self, act: Callable[[], _Row]) -> _Row:
        """Does ``act``; whatever goes wrong in it is an EnvError that says where."""
        try:
            return act()
        except Exception as error:
            reason = str(error) if isinstance(error, _FaultError) else f"it failed: {type(error).__name__}: {error}"
            line = f"{self.name}, episode {self.episode}, step {self.time}: {' '.join(reason.split())}"
            raise EnvError(line) from error


def _make(env_id: str, size: int, options: Mapping[str, Any], renders: bool) -> Any:
    gym = _required("gymnasium")
    # The checker looks for mistakes of whoever writes an environment, at the cost of warnings while recording.
    settings: dict[str, Any] = {"disable_env_checker": True, **({"render_mode": "rgb_array"} if renders else {})}
    if env_id.startswith("ALE/"):
        _register_atari(gym)
    elif env_id.startswith("dm_control/"):
        _register_dm_control(gym)
        settings["render_kwargs"] = {"height": size, "width": size, "camera_id": 0}
    try:
        return gym.make(env_id, **{**settings, **options})
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvError(f"environment {env_id!r} cannot be made: {reason}") from None


def _required(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise EnvError(f"{module.replace('_', '-')} is not installed; pip install 'jaxwm[envs]'") from None


def _register_atari(gym: Any) -> None:
    ale_py = _required("ale_py")
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)


def _register_dm_control(gym: Any) -> None:
    # dm_control chooses how to draw when it is imported, and without a screen it would still try a window first.
    if sys.platform == "linux" and not {"DISPLAY", "MUJOCO_GL"} & set(os.environ):
        backend = next((name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name)), None)
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend.lower()
    gym.register_envs(_required("shimmy"))


def _frameskip(env: Any) -> int:
    skip = env.spec.kwargs.get("frameskip", 1) if env.spec is not None else 1
    return skip if isinstance(skip, int) else round((skip[0] + skip[1] - 1) / 2)


def _kept(env_id: str, space: Any, observe: Observe, size: int) -> Iterator[tuple[Field, str | None]]:
    """The fields to keep, each with the leaf that it comes from; None for what is rendered."""
    import gymnasium as gym

    leaves = _leaves(space)
    images = {path: leaf for path, leaf in leaves.items() if _is_image(leaf)}
    vectors = {path: leaf for path, leaf in leaves.items() if path not in images}
    if observe == "vectors" and not vectors:
        raise EnvError(f"{env_id}: it shows pictures alone, so observe='vectors' leaves nothing")
    if observe != "vectors":
        if not images:
            yield Field("rendered" if "image" in leaves else "image", (size, size, 3), "uint8"), None
        for path, leaf in images.items():
            if len(leaf.shape) == 3 and leaf.shape[2] not in (1, 3, 4):
                raise EnvError(f"{env_id}: observation {path!r} is uint8{list(leaf.shape)}, expected [H, W, 1 or 3]")
            channels = 1 if len(leaf.shape) == 2 else min(leaf.shape[2], 3)
            yield Field(path or "image", (size, size, channels), "uint8"), path
    if observe != "pixels":
        numbers = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiBinary, gym.spaces.MultiDiscrete)
        for path, leaf in vectors.items():
            if not isinstance(leaf, numbers):
                raise EnvError(f"{env_id}: observation {path!r} is a {type(leaf).__name__}, expected numbers")
            yield Field(path or "vector", (gym.spaces.flatdim(leaf),), "float32"), path


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a space or of a value of it, by path: ``outer.inner``; a leaf alone has the path ""."""
    members = getattr(value, "spaces", value)
    if isinstance(members, Mapping):
        parts = list(members.items())
    elif isinstance(members, tuple):
        parts = list(enumerate(members))
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for name, part in parts:
        leaves |= _leaves(part, f"{path}.{name}" if path else str(name))
    return leaves


def _is_image(space: Any) -> bool:
    return getattr(space, "dtype", None) == np.uint8 and len(space.shape or ()) in (2, 3)


def _describe(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _action_spec(env_id: str, space: Any) -> ActionSpec:
    import gymnasium as gym

    if isinstance(space, gym.spaces.Discrete):
        return ActionSpec(int(space.n), discrete=True)
    if not isinstance(space, gym.spaces.Box):
        raise EnvError(f"{env_id}: its action is a {type(space).__name__}, expected Discrete or Box")
    low, high = (np.asarray(bound, np.float64).ravel() for bound in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return ActionSpec(int(low.size))
    return ActionSpec(int(low.size), low=tuple(low.tolist()), high=tuple(high.tolist()))


def _to_env(space: Any, action: np.ndarray) -> np.ndarray:
    """``[N, A]`` actions as the environments take them."""
    if hasattr(space, "n"):
        return action.argmax(-1) + space.start
    return action.reshape(-1, *space.shape).astype(space.dtype)
