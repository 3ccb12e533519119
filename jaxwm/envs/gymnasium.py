"""Episodes from any Gymnasium environment, recorded through several copies of it at once.

    >>> recorder = Recorder("ALE/Breakout-v5", size=64)
    >>> recorder.spec.action
    ActionSpec(dim=4, discrete=True, low=None, high=None)
    >>> episodes = list(recorder.episodes(2, seed=0))

The copies do not reset themselves: an ended one is reset by name, so no step across two episodes is ever seen. Each
copy records the same number of episodes; taking those that end first would favour the short ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxwm.envs.images import resize
from jaxwm.envs.policies import EnvError, Policy, check_action, load_policy
from jaxwm.types import ActionSpec, Field, Spec, Trajectory

Observe = Literal["pixels", "vectors", "both"]


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Records episodes of one environment.

    Pixels are the pictures among the environment's observations, or where it has none what it renders (as
    ``image``). An observation that is not a dict is called ``image`` or ``vector``, nested ones ``outer.inner``. Atari
    is recorded as its id says: ``ALE/Pong-v5`` repeats an action for 4 frames and the one before it with
    probability 0.25, without pooling frames.

    Args:
      env_id: a registered id, or ``module:id`` where importing the module registers it.
      size: pictures are brought to ``[size, size]``; area means where they shrink, else bilinear.
      observe: which observations to keep.
      policy: ``random``, an import path ``module:function``, or a `jaxwm.envs.Policy`.
      max_length: frames after which an episode is cut (``is_last`` without ``is_terminal``).
      parallel: copies of the environment.
      options: arguments for ``gymnasium.make``.

    Raises:
      EnvError: gymnasium is missing, there is no such environment, or it shows or takes what no `Spec` describes.
    """

    env_id: str
    size: int = 64
    observe: Observe = "pixels"
    policy: str | Policy = "random"
    max_length: int | None = None
    parallel: int = 4
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spec: Spec = dataclasses.field(init=False)
    _sources: dict[str, str | None] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.observe not in ("pixels", "vectors", "both"):
            raise EnvError(f"observe is {self.observe!r}, expected 'pixels', 'vectors' or 'both'")
        for name, least in (("size", 1), ("parallel", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise EnvError(f"{name} is {value}, expected at least {least}")
        with contextlib.closing(self._make(renders=False)) as env:
            kept = list(self._kept(_leaves(env.observation_space)))
            spec = Spec(tuple(field for field, _ in kept), _action_spec(self.env_id, env.action_space))
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "_sources", {field.name: path for field, path in kept})
        load_policy(self.policy, spec.action)

    def episodes(self, count: int, seed: int = 0, stream: int = 0) -> Iterator[Trajectory]:
        """Records ``count`` episodes, in the order in which they end; the same seeds give the same episodes.

        Args:
          count: how many.
          seed: of the environments and the random policy.
          stream: different streams of one seed never share a generator; one for each split.

        Yields:
          Unbatched trajectories of numpy arrays ``[T, ...]``, T frames with T - 1 actions (the last is void).

        Raises:
          EnvError: the policy returned something that is not an action.
        """
        if count < 1:
            return
        copies = min(self.parallel, count)
        env_seeds, policy_seed = np.random.SeedSequence([seed, stream]).spawn(2)
        seeds = [int(s) & 0x7FFFFFFF for s in env_seeds.generate_state(copies)]
        quota = [count // copies + (k < count % copies) for k in range(copies)]
        with contextlib.closing(self._make_vector(copies)) as vector:
            yield from self._record(vector, quota, seeds, np.random.default_rng(policy_seed))

    def _record(
        self, vector: Any, quota: list[int], seeds: list[int], rng: np.random.Generator
    ) -> Iterator[Trajectory]:
        policy = load_policy(self.policy, self.spec.action)
        copies = len(quota)
        raw, _ = vector.reset(seed=seeds)
        seen = [self._look(vector, raw, k) for k in range(copies)]
        tapes = [_Tape() for _ in quota]
        while any(quota):
            together = {f.name: np.stack([s[f.name] for s in seen]) for f in self.spec.observation}
            is_first = np.array([not tape.observations for tape in tapes])
            action = check_action(self.spec.action, policy(together, is_first, rng), copies)
            raw, reward, terminated, truncated, _ = vector.step(_to_env(vector.single_action_space, action))
            ended = terminated | truncated
            for k, tape in enumerate(tapes):
                tape.add(seen[k], action[k], reward[k])
                seen[k] = self._look(vector, raw, k)
                ended[k] |= self.max_length is not None and len(tape.observations) + 1 >= self.max_length
                if ended[k] and quota[k]:
                    yield tape.trajectory(seen[k], bool(terminated[k]))
                    quota[k] -= 1
                if ended[k]:
                    tapes[k] = _Tape()
            if ended.any() and any(quota):
                raw, _ = vector.reset(options={"reset_mask": ended})
                for k in np.flatnonzero(ended).tolist():
                    seen[k] = self._look(vector, raw, k)

    def _make(self, renders: bool) -> Any:
        gym = _import_gymnasium()
        if self.env_id.startswith("ALE/"):
            _register_atari(gym)
        # The checker looks for mistakes of whoever writes an environment, at the cost of warnings while recording.
        options = {"disable_env_checker": True, **({"render_mode": "rgb_array"} if renders else {}), **self.options}
        try:
            return gym.make(self.env_id, **options)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EnvError(f"environment {self.env_id!r} cannot be made: {reason}") from None

    def _make_vector(self, copies: int) -> Any:
        gym = _import_gymnasium()
        make = functools.partial(self._make, renders=None in self._sources.values())
        return gym.vector.SyncVectorEnv([make] * copies, autoreset_mode=gym.vector.AutoresetMode.DISABLED)

    def _kept(self, leaves: Mapping[str, Any]) -> Iterator[tuple[Field, str | None]]:
        """The fields to keep, each with the leaf that it comes from; None for what is rendered."""
        import gymnasium as gym

        images = {path: leaf for path, leaf in leaves.items() if _is_image(leaf)}
        vectors = {path: leaf for path, leaf in leaves.items() if path not in images}
        if self.observe == "vectors" and not vectors:
            raise EnvError(f"{self.env_id}: it shows pictures alone, so observe='vectors' leaves nothing")
        if self.observe != "vectors":
            if not images:
                yield Field("rendered" if "image" in leaves else "image", (self.size, self.size, 3), "uint8"), None
            for path, leaf in images.items():
                if len(leaf.shape) == 3 and leaf.shape[2] not in (1, 3, 4):
                    raise EnvError(
                        f"{self.env_id}: observation {path!r} is uint8{list(leaf.shape)}, expected [H, W, 1 or 3]"
                    )
                channels = 1 if len(leaf.shape) == 2 else min(leaf.shape[2], 3)
                yield Field(path or "image", (self.size, self.size, channels), "uint8"), path
        if self.observe != "pixels":
            numbers = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiBinary, gym.spaces.MultiDiscrete)
            for path, leaf in vectors.items():
                if not isinstance(leaf, numbers):
                    raise EnvError(f"{self.env_id}: observation {path!r} is a {type(leaf).__name__}, expected numbers")
                yield Field(path or "vector", (gym.spaces.flatdim(leaf),), "float32"), path

    def _look(self, vector: Any, raw: Any, k: int) -> dict[str, np.ndarray]:
        """What copy ``k`` shows now, by the names of the spec."""
        import gymnasium as gym

        spaces, values = _leaves(vector.single_observation_space), _leaves(raw)
        seen: dict[str, np.ndarray] = {}
        for field in self.spec.observation:
            path = self._sources[field.name]
            if path is None:
                frame = vector.envs[k].render()
                if not isinstance(frame, np.ndarray):
                    raise EnvError(f"{self.env_id}: it renders a {type(frame).__name__}, expected an array of pixels")
                seen[field.name] = resize(frame, self.size)
            elif field.is_image:
                seen[field.name] = resize(values[path][k], self.size)
            else:
                seen[field.name] = np.asarray(gym.spaces.flatten(spaces[path], values[path][k]), np.float32)
        return seen


@dataclasses.dataclass
class _Tape:
    """An episode that is being recorded."""

    observations: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)

    def add(self, observation: dict[str, np.ndarray], action: np.ndarray, reward: float) -> None:
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(reward))

    def trajectory(self, last: dict[str, np.ndarray], terminal: bool) -> Trajectory:
        """The episode that ends with the observation ``last``."""
        observations = [*self.observations, last]
        length = len(observations)
        steps = np.arange(length)
        arrays: dict[str, Any] = {
            "observation": {name: np.stack([o[name] for o in observations]) for name in last},
            "action": np.stack([*self.actions, np.zeros_like(self.actions[0])]),
            "previous_action": np.zeros_like(self.actions[0]),
            "reward": np.asarray([*self.rewards, 0.0], np.float32),
            "is_first": steps == 0,
            "is_last": steps == length - 1,
            "is_terminal": (steps == length - 1) & terminal,
            "valid": np.ones(length, bool),
            "action_valid": np.ones(length, bool),
        }
        return Trajectory(**arrays)


def _import_gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise EnvError("gymnasium is not installed; pip install 'jaxwm[envs]'") from None
    return gymnasium


def _register_atari(gym: Any) -> None:
    try:
        import ale_py
    except ImportError:
        raise EnvError("ale-py is not installed; pip install 'jaxwm[envs]'") from None
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)


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
