"""What a plan is for: objectives say what an imagined future costs.

An objective is a frozen callable on a `Dream`, like a policy on features: its parameters and the goal are arguments,
so that neither a trained value nor a new goal recompiles a planner. Costs are ``[B]`` and less is better. Entry 0 of a
dream is where it starts, which no action changes, so objectives look at the entries 1 to T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from pydantic import Field, PositiveFloat, PositiveInt

from jaxwm.imagination import Dream
from jaxwm.types import Array, Arrays, PyTree, Variables, WorldModel, nearest

Discount = Annotated[float, Field(ge=0, le=1)]


class Goal(struct.PyTreeNode):
    """Where to go, for each of B episodes.

    Attributes:
      features: ``[B, F]`` of the model's state there, or None where only parts of the observation are known.
      observation: what is seen there, or some parts of it, ``[B, ...]`` in raw units by name.
    """

    features: Array | None
    observation: Arrays


class Objective(Protocol):
    """A frozen, hashable callable."""

    @property
    def decode(self) -> bool:
        """Whether it reads the dream's prediction, which then has to be decoded."""
        ...

    def __call__(self, params: PyTree, dream: Dream, goal: Goal | None) -> Array:
        """What each row of ``dream`` costs, ``[B]``; ``goal`` has the same rows."""
        ...


class Value(Protocol):
    """A frozen, hashable callable: the return to be expected after the last entry of a dream."""

    def __call__(self, params: PyTree, features: Array) -> Array:
        """``[B]`` for ``features`` ``[B, F]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Reward:
    """Minus the predicted return: discounted rewards while the episode goes on, and a value after the last step.

    Its ``params`` are those of ``value``. Short plans with a value see as far as long ones without (TD-MPC, Hansen et
    al. 2022, arXiv:2203.04955, equation 3).

    Args:
      discount: factor for each step; with a critic, the one that it has learned with (``model.discount``).
      value: what follows the last entry, in a configuration ``critic`` for that of a model which has one
        (`jaxwm.agents.Dreamer.critic`); by default nothing.
    """

    discount: Discount = 1.0
    value: Value | None = dataclasses.field(default=None, metadata={"configured": Literal["critic"] | None})

    decode = True

    def __call__(self, params: PyTree, dream: Dream, goal: Goal | None = None) -> Array:
        """``[B]``, in units of reward.

        Raises:
          ValueError: the model predicts no reward.
        """
        prediction = dream.prediction
        if prediction is None or prediction.reward is None:
            raise ValueError("the model predicts no reward, so a plan cannot be made for it; take the objective goal")
        rewards = prediction.reward[:, 1:]
        steps = rewards.shape[1]
        # decode(state_t).reward is what followed action t-1, and it is had only if the episode had not ended before.
        goes_on = jnp.ones_like(rewards)
        if prediction.continuation is not None:
            goes_on = jnp.cumprod(prediction.continuation[:, 1:], axis=1)
        reached = jnp.concatenate([jnp.ones_like(goes_on[:, :1]), goes_on[:, :-1]], axis=1)
        total = jnp.sum(self.discount ** jnp.arange(steps) * reached * rewards, axis=1)
        if self.value is not None:
            total += self.discount**steps * goes_on[:, -1] * self.value(params, dream.features[:, -1])
        return -total


@dataclasses.dataclass(frozen=True)
class GoalDistance:
    """How far the imagined future is from the goal.

    Args:
      space: what is compared: ``features``, or the name of a part of the observation. Images are compared on the scale
        0..1 and vectors in raw units.
      distance: ``l1`` (sum of absolute differences), ``l2`` (Euclidean) or ``cosine`` (1 minus the cosine).
      over: distance at the ``last`` entry, the ``sum`` of the distances at all of them, or a ``discounted`` sum.
      discount: factor for each step if ``over`` is ``discounted``.
      width: makes a distance d saturate as 1 - exp(-(d / width)^2 / 2) (Deisenroth and Rasmussen 2011): beyond a few
        widths all places are equally bad, so that waiting near the goal, on the wrong side of a wall, is not cheaper
        than the way around. By default distances count as they are.
      first: of features only so many entries are compared, from the first: the representation of a frame, where a
        model puts it before its memory of other frames, of which a goal knows nothing. By default all.
    """

    space: str = "features"
    distance: Literal["l1", "l2", "cosine"] = "l2"
    over: Literal["last", "sum", "discounted"] = "sum"
    discount: Discount = 0.95
    width: PositiveFloat | None = None
    first: PositiveInt | None = None

    @property
    def decode(self) -> bool:
        """Only parts of the observation are decoded."""
        return self.space != "features"

    def __call__(self, params: PyTree, dream: Dream, goal: Goal | None) -> Array:
        """``[B]``.

        Raises:
          ValueError: there is no goal, or none in this space.
        """
        imagined, wanted = self._pair(dream, goal)
        steps = imagined.shape[1] - 1
        first = steps if self.over == "last" else 1
        apart = _distance(self.distance, imagined[:, first:], wanted[:, None])
        if self.width is not None:
            apart = 1.0 - jnp.exp(-0.5 * jnp.square(apart / self.width))
        if self.over == "discounted":
            apart *= self.discount ** jnp.arange(steps)
        return jnp.sum(apart, axis=1)

    def _pair(self, dream: Dream, goal: Goal | None) -> tuple[Array, Array]:
        """Imagined ``[B, T+1, ...]`` and wanted ``[B, ...]``, on the same scale."""
        if goal is None:
            raise ValueError("the objective measures the distance to a goal, but there is none")
        if self.space == "features":
            if goal.features is None:
                raise ValueError(f"the goal is known as {sorted(goal.observation)} only, not as features")
            return dream.features[..., : self.first], goal.features[..., : self.first]
        assert dream.prediction is not None
        known = [name for name in dream.prediction.observation if name in goal.observation]
        if self.space not in known:
            raise ValueError(f"space is {self.space!r}; {nearest(self.space, ['features', *known])}")
        wanted = jnp.asarray(goal.observation[self.space])
        if wanted.dtype == jnp.uint8:
            wanted = wanted.astype(jnp.float32) / 255.0
        return dream.prediction.observation[self.space], wanted


def _distance(kind: str, a: Array, b: Array) -> Array:
    """``[B, T]`` for ``a`` ``[B, T, ...]`` and ``b`` ``[B, 1, ...]``; its gradient is 0, not NaN, where they meet."""
    a, b = (x.reshape(*x.shape[:2], -1) for x in (a, b))
    if kind == "l1":
        return jnp.sum(jnp.abs(a - b), axis=-1)
    if kind == "l2":
        return _norm(a - b)
    return 1.0 - jnp.sum(a * b, axis=-1) / jnp.maximum(_norm(a) * _norm(b), 1e-8)


def _norm(x: Array) -> Array:
    square = jnp.sum(jnp.square(x), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """How little the model knows along the way: the discounted sum of `Prediction.uncertainty`.

    A positive weight keeps plans where the model can be trusted, a negative one makes them explore.

    Args:
      discount: factor for each step.
    """

    discount: Discount = 1.0

    decode = True

    def __call__(self, params: PyTree, dream: Dream, goal: Goal | None = None) -> Array:
        """``[B]``, in the model's own unit.

        Raises:
          ValueError: the model has no uncertainty.
        """
        if dream.prediction is None or dream.prediction.uncertainty is None:
            raise ValueError("the model says nothing of its uncertainty; an ensemble of it would")
        uncertainty = dream.prediction.uncertainty[:, 1:]
        return jnp.sum(self.discount ** jnp.arange(uncertainty.shape[1]) * uncertainty, axis=1)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A weighted sum of objectives; its ``params`` are a tuple with an entry for each term, or None.

    Args:
      terms: pairs of a weight and an objective.

    Raises:
      ValueError: there are no terms.
    """

    terms: tuple[tuple[float, Objective], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("an objective has at least one term")

    @property
    def decode(self) -> bool:
        """Whether one of the terms does."""
        return any(objective.decode for _, objective in self.terms)

    def __call__(self, params: PyTree, dream: Dream, goal: Goal | None) -> Array:
        """``[B]``."""
        given = (None,) * len(self.terms) if params is None else params
        costs = [
            weight * objective(param, dream, goal)
            for (weight, objective), param in zip(self.terms, given, strict=True)
        ]
        return sum(costs[1:], costs[0])


OBJECTIVES: dict[str, Any] = {"reward": Reward, "goal": GoalDistance, "uncertainty": Uncertainty}
"""Every objective by the name that ``planning.objective.TERM.kind`` gives it."""


def encode_goal(model: WorldModel, variables: Variables, keys: Array, observation: Arrays) -> Goal:
    """The goal to see ``observation`` ``[B, ...]``, as the model's features after that one frame.

    With parts of the observation only, there are no features.

    Args:
      model: any world model.
      variables: its variables.
      keys: ``[B]``.
      observation: in raw units, by name.

    Raises:
      ValueError: arrays that are not of the model's spec.
    """
    names = {field.name for field in model.spec.observation}
    if not isinstance(observation, Mapping) or not observation or not set(observation) <= names:
        wrong = next(iter(set(observation) - names), "") if isinstance(observation, Mapping) else ""
        raise ValueError(f"goal[{wrong!r}] is not part of the observation; {nearest(wrong, sorted(names))}")
    if set(observation) < names:
        return Goal(None, dict(observation))
    batch = keys.shape[0]
    state = model.observe(
        variables, keys, model.init_state(batch), jnp.zeros((batch, model.spec.action.dim)), observation,
        jnp.ones(batch, bool), {"temperature": jnp.zeros(batch)},
    )  # fmt: skip
    return Goal(model.features(variables, state), dict(observation))


def repeat_goal(goal: Goal | None, count: int) -> Goal | None:
    """``goal`` with each row ``count`` times: ``[B * count, ...]``."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), goal)
