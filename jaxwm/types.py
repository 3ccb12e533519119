"""The contract of jaxwm, stated once.

`Spec` says what a world shows and takes, `Trajectory` is recorded experience, `Prediction` is what a
world model expects to see, and `WorldModel` is the protocol that every family fulfils.

Conventions, everywhere:

* **Batch-major**: arrays are ``[B, T, ...]`` at every public function, time-major only inside a scan.
* **RLDS alignment**: ``action[t]`` is done *in* ``observation[t]`` and leads to ``observation[t+1]``;
  ``reward[t]`` follows ``action[t]``; ``is_terminal[t]`` speaks of ``observation[t]``; on ``is_last``
  action and reward are void.
* **The model normalises, nothing else does.** Data and environments speak raw units: images are uint8
  in 0..255, vectors are float32 as recorded, continuous actions lie in ``[low, high]``, discrete actions
  are one-hot. Predictions are images in [0, 1] and vectors in raw units.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array
Arrays = Mapping[str, Any]
"""Named arrays, for example the parts of an observation."""
PyTree = Any
Variables = Mapping[str, PyTree]
"""``{"params": ..., "targets": ...}``; targets are what gradients never touch (EMA copies, codebooks)."""


class Field(NamedTuple):
    """One named array of an observation or a condition: its shape without batch and time, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_image(self) -> bool:
        """Whether this is an ``[H, W, C]`` picture of bytes."""
        return self.dtype == "uint8" and len(self.shape) == 3


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """What a world takes.

    Args:
      dim: length of the action vector; for discrete actions the number of choices.
      discrete: actions are one-hot vectors of length ``dim``.
      low: smallest value of each dimension, or None where unbounded (and for discrete actions).
      high: largest value of each dimension, or None.
    """

    dim: int
    discrete: bool = False
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"action.dim is {self.dim}, expected at least 1")
        if (self.low is None) != (self.high is None):
            raise ValueError("action.low and action.high come together: one of them is missing")
        if self.low is not None and self.high is not None:
            if self.discrete:
                raise ValueError("a discrete action has no bounds: action.low and action.high must be None")
            if not len(self.low) == len(self.high) == self.dim:
                raise ValueError(
                    f"action.low and action.high have {len(self.low)} and {len(self.high)} entries, "
                    f"expected {self.dim}"
                )
            if any(not low < high for low, high in zip(self.low, self.high, strict=True)):
                raise ValueError(f"action.low {self.low} is not below action.high {self.high}")

    def normalise(self, action: Array) -> Array:
        """Maps actions ``[..., A]`` from raw units to [-1, 1], cut at the bounds; unbounded ones stay as they are."""
        if self.low is None or self.high is None:
            return action
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return jnp.clip((action - (high + low) / 2) / ((high - low) / 2), -1.0, 1.0)

    def denormalise(self, action: Array) -> Array:
        """The inverse of `normalise`, without the cut: what lies outside [-1, 1] lies outside the bounds."""
        if self.low is None or self.high is None:
            return action
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        return (high + low) / 2 + action * ((high - low) / 2)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a world shows and takes: frozen and hashable, so that a model that holds it is static under jit.

    Args:
      observation: the named arrays that the world shows; images are uint8 ``[H, W, C]``, vectors float32 ``[D]``.
      action: what it takes.
      condition: the named arrays that steer a model from outside (text tokens, cameras, weather ...).
    """

    observation: tuple[Field, ...]
    action: ActionSpec
    condition: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        for group in ("observation", "condition"):
            fields = tuple(Field(name, tuple(shape), dtype) for name, shape, dtype in getattr(self, group))
            names = [field.name for field in fields]
            if len(set(names)) != len(names):
                raise ValueError(f"{group} names {names} are not distinct")
            object.__setattr__(self, group, fields)
        if not self.observation:
            raise ValueError("observation is empty: a world shows at least one image or vector")
        for field in self.observation:
            if not field.is_image and not (field.dtype == "float32" and len(field.shape) == 1):
                raise ValueError(
                    f"observation[{field.name!r}] is {field.dtype}{list(field.shape)}, expected an image "
                    "uint8[H, W, C] or a vector float32[D]"
                )

    @property
    def images(self) -> tuple[Field, ...]:
        """The pictures among the observation, in order."""
        return tuple(field for field in self.observation if field.is_image)

    @property
    def vectors(self) -> tuple[Field, ...]:
        """The vectors among the observation, in order."""
        return tuple(field for field in self.observation if not field.is_image)

    def blocked(self, size: int) -> Spec:
        """The same for steps that take ``size`` actions side by side; bounds are those of each of them.

        Raises:
          ValueError: a size below 1, or discrete actions, of which several are no choice among few.
        """
        action = self.action
        if size < 1:
            raise ValueError(f"frame_skip is {size}, expected at least 1")
        if size == 1:
            return self
        if action.discrete:
            raise ValueError(f"frame_skip is {size}, but a block of discrete actions is no discrete action")
        low, high = (bound and bound * size for bound in (action.low, action.high))
        return dataclasses.replace(self, action=ActionSpec(action.dim * size, False, low, high))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold; `from_dict` is the inverse."""
        fields = lambda group: [[f.name, list(f.shape), f.dtype] for f in group]  # noqa: E731
        return {
            "observation": fields(self.observation),
            "action": dataclasses.asdict(self.action),
            "condition": fields(self.condition),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        """Builds the spec that `to_dict` wrote."""
        action = dict(values["action"])
        for bound in ("low", "high"):
            action[bound] = None if action.get(bound) is None else tuple(action[bound])
        fields = lambda group: tuple(Field(n, tuple(s), d) for n, s, d in group)  # noqa: E731
        return cls(fields(values["observation"]), ActionSpec(**action), fields(values.get("condition", ())))

    def check_observation(self, observation: Arrays, leading: tuple[int, ...]) -> None:
        """Raises ValueError unless ``observation`` has these fields with the leading shape ``leading``."""
        check_arrays("observation", self.observation, observation, leading)

    def check_condition(self, condition: Arrays | None, leading: tuple[int, ...]) -> None:
        """Raises ValueError unless ``condition`` has fields of the spec; sampling controls are not checked.

        What is missing is not known: a family that reads conditions does without it.
        """
        given = {k: v for k, v in (condition or {}).items() if k not in SAMPLING_CONTROLS}
        for name in given:
            if name not in {field.name for field in self.condition}:
                known = [field.name for field in self.condition]
                raise ValueError(f"condition[{name!r}] is not part of the spec; {nearest(str(name), known)}")
        check_arrays("condition", [field for field in self.condition if field.name in given], given, leading)

    def check_action(self, action: Any, leading: tuple[int, ...], name: str = "action") -> None:
        """Raises ValueError unless ``action`` is float32 with shape ``leading + (dim,)``."""
        _check_array(name, action, (*leading, self.action.dim), "float32")

    def check_step(self, previous_action: Any, observation: Arrays, rows: int) -> None:
        """Raises ValueError unless these are an action and a frame for each of ``rows`` rows."""
        self.check_observation(observation, (rows,))
        self.check_action(previous_action, (rows,), "previous_action")

    def check_trajectory(self, trajectory: Trajectory) -> None:
        """Raises ValueError unless every field of ``trajectory`` has the shape and dtype of this spec."""
        if np.ndim(trajectory.reward) != 2:
            raise ValueError(f"reward has shape {np.shape(trajectory.reward)}, expected [B, T]")
        leading = tuple(np.shape(trajectory.reward))
        self.check_observation(trajectory.observation, leading)
        self.check_action(trajectory.action, leading)
        self.check_action(trajectory.previous_action, leading[:1], "previous_action")
        _check_array("reward", trajectory.reward, leading, "float32")
        for name in ("is_first", "is_last", "is_terminal", "valid", "action_valid"):
            _check_array(name, getattr(trajectory, name), leading, "bool")
        self.check_condition(trajectory.condition, leading)


SAMPLING_CONTROLS = ("temperature", "guidance")
"""Reserved names in a condition, each ``[B]`` float32 and optional: how to sample, as traced inputs.

``temperature`` 1 samples the model's distribution and 0 takes its mode; ``guidance`` is the g of
``u + g * (c - u)``. A family ignores a control that has no meaning in it.
"""


def nearest(name: str, known: Sequence[str]) -> str:
    """Says which known spelling is closest to ``name``, or what is known: the end of an error message."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"


def check_arrays(what: str, fields: Sequence[Field], arrays: Arrays, leading: tuple[int, ...]) -> None:
    """Raises ValueError, naming the culprit, unless ``arrays`` holds exactly ``fields`` after ``leading``."""
    if not isinstance(arrays, Mapping):
        raise ValueError(f"{what} is a {type(arrays).__name__}, expected a dict of arrays")
    names = [field.name for field in fields]
    for name in arrays:
        if name not in names:
            raise ValueError(f"{what}[{name!r}] is not part of the spec; {nearest(str(name), names)}")
    for field in fields:
        if field.name not in arrays:
            raise ValueError(f"{what}[{field.name!r}] is missing; got {sorted(arrays)}")
        _check_array(f"{what}[{field.name!r}]", arrays[field.name], (*leading, *field.shape), field.dtype)


def _check_array(name: str, array: Any, shape: tuple[int, ...], dtype: str) -> None:
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{name} is a {type(array).__name__}, expected an array {dtype}{list(shape)}")
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {tuple(shape)}")
    if str(array.dtype) != dtype:
        raise ValueError(f"{name} has dtype {array.dtype}, expected {dtype}")


class Trajectory(struct.PyTreeNode):
    """Recorded experience, ``B`` windows of ``T`` steps, in RLDS alignment (see the module's docstring).

    Attributes:
      observation: images ``[B, T, H, W, C]`` uint8 and vectors ``[B, T, D]`` float32, by name.
      action: ``[B, T, A]`` float32; done in ``observation[t]``, leads to ``observation[t+1]``.
      previous_action: ``[B, A]`` float32; the action before entry 0, zeros where entry 0 is first.
      reward: ``[B, T]`` float32; follows ``action[t]``.
      is_first: ``[B, T]`` bool; first step of an episode.
      is_last: ``[B, T]`` bool; last step, whose action and reward are void.
      is_terminal: ``[B, T]`` bool; the episode ended here by the rules of the world (not by a time limit).
      valid: ``[B, T]`` bool; False on padding.
      action_valid: ``[B, T]`` bool; False where the action is unknown (unlabelled video).
      condition: named arrays ``[B, T, ...]`` that steer the world; optional.
      info: physical truth ``[B, T, ...]`` for evaluation; never an input of a model.
      initial_state: the model's state ``[B, ...]`` before entry 0, where a replay kept it; None for a fresh one.
    """

    observation: Arrays
    action: Array
    previous_action: Array
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array
    valid: Array
    action_valid: Array
    condition: Arrays = struct.field(default_factory=dict)
    info: Arrays = struct.field(default_factory=dict)
    initial_state: PyTree = None

    def cut(self, start: int, stop: int | None = None) -> Trajectory:
        """Steps ``start`` to ``stop`` with the action before them; a state that was kept is that before entry 0."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        before, state = fields.pop("previous_action"), fields.pop("initial_state")
        if start:
            before, state = self.action[:, start - 1], None
        steps = jax.tree.map(lambda x: x[:, start:stop], fields)
        return Trajectory(previous_action=before, initial_state=state, **steps)

    def previous_actions(self) -> Array:
        """``[B, T, A]``: ``action[t-1]`` at t, zeros where an episode begins. What `WorldModel.observe` takes."""
        shifted = jnp.concatenate([self.previous_action[:, None], self.action[:, :-1]], axis=1)
        return jnp.where(self.is_first[..., None], 0.0, shifted)

    def previous_rewards(self) -> tuple[Array, Array]:
        """``[B, T]`` ``reward[t-1]`` at t, which `decode` estimates, and the bool mask of where it is known."""
        zero = jnp.zeros_like(self.reward[:, :1])
        shifted = jnp.concatenate([zero, self.reward[:, :-1]], axis=1)
        return jnp.where(self.has_previous(), shifted, 0.0), self.has_previous()

    def has_previous(self) -> Array:
        """``[B, T]`` bool: entry t-1 is in this window and belongs to the same episode as entry t."""
        before = jnp.concatenate([jnp.zeros_like(self.valid[:, :1]), self.valid[:, :-1]], axis=1)
        return self.valid & before & ~self.is_first

    def transitions(self) -> Array:
        """``[B, T-1]`` bool: entry t+1 follows entry t in the same episode, by an action that is known."""
        return self.has_previous()[:, 1:] & self.action_valid[:, :-1]


class Prediction(struct.PyTreeNode):
    """What a world model expects to see.

    Attributes:
      observation: images ``[B, H, W, C]`` float32 in [0, 1], vectors ``[B, D]`` float32 in raw units, by name.
      reward: ``[B]``; estimates ``reward[t-1]``, or None where the model has no such head.
      continuation: ``[B]`` in [0, 1]; estimates ``1 - is_terminal[t]``, or None.
      uncertainty: ``[B]``, larger is less certain, in the family's own unit; or None.
    """

    observation: Arrays
    reward: Array | None = None
    continuation: Array | None = None
    uncertainty: Array | None = None


class Stage(NamedTuple):
    """A phase of training: its name, and the paths below ``params`` that it trains ("" is all of them).

    ``fits`` says whether its loss measures how well a batch is fitted, so that it can be driven down on one clip; that
    of an actor, whose own choices are the data, does not.
    """

    name: str
    trainable: tuple[str, ...] = ("",)
    fits: bool = True


class Aux(NamedTuple):
    """What a loss reports beside its scalar: ``metrics`` (scalars) and ``states`` (for `after_update`, replay)."""

    metrics: dict[str, Array]
    states: PyTree = ()


@runtime_checkable
class WorldModel(Protocol):
    """The protocol of every family. A model is a frozen, hashable dataclass that is its own configuration.

    Nothing is stored in a model: parameters come in as ``variables``. All methods are pure, and all but
    `init` may be called under jit. ``keys`` is ``[B]`` PRNG keys, one for each row, so that a row's future
    does not depend on its neighbours or on the number of devices. A wrong shape, dtype, name or action
    dimension is a ValueError that names it, raised while tracing, that is before compilation.

    A family that follows the conditions of its spec says so by a class variable or property ``reads_conditions``;
    without it they have no effect on a model, and a training says which they are (`unread_conditions`).
    """

    stages: ClassVar[tuple[Stage, ...]]

    @property
    def spec(self) -> Spec:
        """What the world of this model shows and takes."""
        ...

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables ``{"params", "targets"}``: shapes, and in some families first statistics, from ``batch``."""
        ...

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The scalar that ``stage`` minimises over ``batch``; ``keys`` is ``[B]``; void entries are masked."""
        ...

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """What follows a gradient step: EMA copies, dead codes. Identity in families without targets."""
        ...

    def init_state(self, batch_size: int) -> PyTree:
        """The state before any frame: a pytree with a leading batch axis, of fixed shape."""
        ...

    def observe(
        self,
        variables: Variables,
        keys: Array,
        state: PyTree,
        previous_action: Array,
        observation: Arrays,
        is_first: Array,
        condition: Arrays | None = None,
    ) -> PyTree:
        """Takes in one real frame (posterior): ``previous_action`` ``[B, A]``, ``is_first`` ``[B]`` resets a row."""
        ...

    def predict(
        self, variables: Variables, keys: Array, state: PyTree, action: Array, condition: Arrays | None = None
    ) -> PyTree:
        """s_{t+1} = f(s_t, a_t) without a frame (prior); ``action`` ``[B, A]``."""
        ...

    def features(self, variables: Variables, state: PyTree) -> Array:
        """``[B, F]``: what actors, probes and goals read."""
        ...

    def decode(self, variables: Variables, state: PyTree) -> Prediction:
        """What the model expects to see in ``state``."""
        ...

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: PyTree,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """``[B]``: how little the next real frame was expected from ``state``; larger is more surprising."""
        ...


def example_batch(spec: Spec, batch: int, length: int) -> Trajectory:
    """A trajectory of zeros with the shapes of ``spec``: ``batch`` episodes of ``length`` steps, for `init`."""
    if batch < 1 or length < 1:
        raise ValueError(f"batch {batch} and length {length} must be at least 1")
    zeros = lambda fields: {f.name: jnp.zeros((batch, length, *f.shape), f.dtype) for f in fields}  # noqa: E731
    no = jnp.zeros((batch, length), bool)
    return Trajectory(
        observation=zeros(spec.observation),
        action=jnp.zeros((batch, length, spec.action.dim), jnp.float32),
        previous_action=jnp.zeros((batch, spec.action.dim), jnp.float32),
        reward=jnp.zeros((batch, length), jnp.float32),
        is_first=no.at[:, 0].set(True),
        is_last=no,
        is_terminal=no,
        valid=~no,
        action_valid=~no,
        condition=zeros(spec.condition),
    )


def unread_conditions(model: WorldModel) -> tuple[str, ...]:
    """The names of the conditions of ``model.spec`` that have no effect on it."""
    reads = getattr(model, "reads_conditions", False)
    return () if reads else tuple(field.name for field in model.spec.condition)
