"""What a world is, and how an episode is recorded in it.

A world is a frozen, hashable dataclass that is its own parameters, so that it can be a static argument of
``jax.jit``. Its methods are pure and *unbatched*: ``jax.vmap`` makes thousands of worlds out of one. Every
flat world is a unit box seen from above or from the side: positions are in sides of the box, x to the right
and y down, as in its pictures. Worlds in three dimensions are in metres; see `jaxwm.worlds.rays`. Time is in
seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from jaxwm.types import ActionSpec, Array, PyTree, Spec, Trajectory


class Transition(NamedTuple):
    """What a step leads to: the next ``state``, and the scalars ``reward`` (float32) and ``is_terminal`` (bool)."""

    state: PyTree
    reward: Array
    is_terminal: Array


@runtime_checkable
class World(Protocol):
    """An exact simulator with a renderer. Unbatched and pure; a state is a pytree of physical quantities.

    A world may also have ``random_action(key, state) -> action``, which `random_policy` then uses. One whose spec has
    conditions has ``condition(state) -> dict`` with the arrays that ``spec.condition`` names; they speak of the frame
    of ``state``.
    """

    @property
    def spec(self) -> Spec:
        """What this world shows and takes."""
        ...

    def reset(self, key: Array) -> PyTree:
        """A random first state."""
        ...

    def step(self, key: Array, state: PyTree, action: Array) -> Transition:
        """One frame on; ``action`` ``[A]`` float32 in raw units, clipped to its bounds (one-hot if discrete)."""
        ...

    def observation(self, state: PyTree) -> dict[str, Array]:
        """The arrays that ``spec.observation`` names."""
        ...

    def render(self, state: PyTree, size: int | None = None) -> Array:
        """``[size, size, 3]`` uint8: a picture of ``state``, at the world's own size if none is given."""
        ...

    def info(self, state: PyTree) -> dict[str, Array]:
        """Physical truth for evaluation, by name; the world's docstring states the units."""
        ...


@runtime_checkable
class GoalWorld(World, Protocol):
    """A world in which every episode has a goal: what planners are told, and when they have succeeded.

    It may also have ``with_goal(state, reached) -> state``: ``state`` with the goal to bring about what is so in
    ``reached``, a state of the same episode. Goals by offset (`jaxwm.evaluation.control.Goals`) need it.
    """

    def goal_state(self, state: PyTree) -> PyTree:
        """A state of the same episode in which it is solved; its ``observation`` is the goal to be shown."""
        ...

    def is_solved(self, state: PyTree) -> Array:
        """Scalar bool: the goal is reached."""
        ...


Policy = Callable[[Any, Array, PyTree], Array]
"""``policy(world, key, state) -> action``; it may look at the whole state of the world."""


def random_policy(world: World, key: Array, state: PyTree) -> Array:
    """``[A]``: the world's own ``random_action``, or uniform within the bounds, or a uniform one-hot choice."""
    own = getattr(world, "random_action", None)
    return uniform_action(world.spec.action, key) if own is None else own(key, state)


def uniform_action(spec: ActionSpec, key: Array) -> Array:
    """``[A]`` float32: uniform within the bounds of ``spec``, or a uniform one-hot choice if it is discrete."""
    if spec.discrete:
        return jax.nn.one_hot(jax.random.randint(key, (), 0, spec.dim), spec.dim)
    if spec.low is None or spec.high is None:
        raise ValueError("an unbounded action has no uniform distribution: give the world a random_action")
    return jax.random.uniform(key, (spec.dim,), minval=jnp.asarray(spec.low), maxval=jnp.asarray(spec.high))


def clip_action(spec: ActionSpec, action: Array) -> Array:
    """``[A]`` float32: ``action`` within the bounds of ``spec``; unchanged where there are none.

    Raises:
      ValueError: ``action`` does not have the shape ``[spec.dim]``.
    """
    if np.shape(action) != (spec.dim,):
        raise ValueError(f"action has shape {np.shape(action)}, expected ({spec.dim},): worlds are unbatched")
    action = jnp.asarray(action, jnp.float32)
    if spec.low is None or spec.high is None:
        return action
    return jnp.clip(action, jnp.asarray(spec.low), jnp.asarray(spec.high))


def rollout(world: World, key: Array, length: int, policy: Policy = random_policy) -> Trajectory:
    """Records one episode of at most ``length`` frames, in one `lax.scan`.

    The trajectory is unbatched: its arrays are ``[T, ...]`` with T = ``length`` (``previous_action`` is
    ``[A]``), and ``jax.vmap`` over keys gives the ``[B, T, ...]`` of the contract. The last valid step's
    action and reward are zero (void). An episode that ends before ``length`` is padded: ``valid`` is False,
    the last frame and its truth are repeated, everything else is zero.

    Raises:
      ValueError: ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"length is {length}, expected at least 1")
    # All keys at once: each call of the generator adds to the time of compilation.
    keys = jax.random.split(key, 2 * length + 1)

    def advance(carry: tuple[PyTree, Array, Array], inputs: tuple[Array, Array]) -> tuple[Any, Any]:
        state, is_terminal, valid = carry
        (key_policy, key_step), at_limit = inputs
        is_last = valid & (is_terminal | at_limit)
        goes_on = valid & ~is_last
        action = clip_action(world.spec.action, policy(world, key_policy, state))
        after = world.step(key_step, state, action)
        void = lambda value: jnp.where(goes_on, value, 0.0)  # noqa: E731
        record = (state, void(action), void(after.reward), is_terminal, is_last, valid)
        next_state = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), after.state, state)
        return (next_state, after.is_terminal & goes_on, goes_on), record

    at_limit = jnp.arange(length) == length - 1
    start = (world.reset(keys[0]), jnp.array(False), jnp.array(True))
    _, record = jax.lax.scan(advance, start, (keys[1:].reshape(length, 2), at_limit))
    states, action, reward, is_terminal, is_last, valid = record
    return Trajectory(
        observation=jax.vmap(world.observation)(states),
        action=action,
        previous_action=jnp.zeros((world.spec.action.dim,), jnp.float32),
        reward=reward,
        is_first=jnp.arange(length) == 0,
        is_last=is_last,
        is_terminal=is_terminal,
        valid=valid,
        action_valid=valid,
        condition=jax.vmap(world.condition)(states) if world.spec.condition else {},  # type: ignore[attr-defined]
        info=jax.vmap(world.info)(states),
    )


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the lower end {value[0]} is above the upper end {value[1]}")
    return value


def _ordered_channels(value: tuple[Any, Any]) -> tuple[Any, Any]:
    if any(low > high for low, high in zip(*value, strict=True)):
        raise ValueError(f"a channel of the lower end {value[0]} is above that of the upper end {value[1]}")
    return value


Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
PositiveRange = Annotated[tuple[Positive, Positive], pydantic.AfterValidator(_ordered)]
"""Lower and upper end of a uniform distribution; equal ends fix the value."""
NonNegativeRange = Annotated[tuple[NonNegative, NonNegative], pydantic.AfterValidator(_ordered)]
_Channel = Annotated[int, pydantic.Field(ge=0, le=255)]
Colour = tuple[_Channel, _Channel, _Channel]
"""Red, green and blue, 0..255."""
ColourRange = Annotated[tuple[Colour, Colour], pydantic.AfterValidator(_ordered_channels)]
"""Lower and upper end of the uniform distributions of red, green and blue; equal ends fix the colour."""


def within(ends: tuple[Any, Any], share: Array) -> Array:
    """What lies at ``share``, 0..1, of the way between two ``ends``: numbers, or tuples as long as ``share``."""
    low, high = np.asarray(ends, np.float64)
    return jnp.asarray(low, jnp.float32) + jnp.asarray(high - low, jnp.float32) * share


@functools.cache
def _adapters(world_class: type) -> dict[str, pydantic.TypeAdapter[Any]]:
    hints = typing.get_type_hints(world_class, include_extras=True)
    return {field.name: pydantic.TypeAdapter(hints[field.name]) for field in dataclasses.fields(world_class)}


def check_parameters(world: object) -> None:
    """Checks every field of a world against its annotation, and turns lists into tuples; for ``__post_init__``.

    Raises:
      ValueError: one line that names the field, what came and what was expected.
    """
    world_class: Any = type(world)
    for name, adapter in _adapters(world_class).items():
        value = _as_tuples(getattr(world, name))
        try:
            object.__setattr__(world, name, adapter.validate_python(value, strict=True))
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            reason = reason[0].lower() + reason[1:]
            raise ValueError(f"{world_class.__name__.lower()}.{name} is {value!r}: {reason}") from None


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list | tuple) else value
