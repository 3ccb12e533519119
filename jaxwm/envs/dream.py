"""A learned world as environments: what a model imagines, behind the face of the world that it was learned from.

    >>> dream = load_dream("runs/rssm_cartpole", length=200)
    >>> state, step = dream.reset(jax.random.split(key, 64))
    >>> state, step = dream.step(keys, state, action)

Whatever acts in `jaxwm.envs.worlds.WorldEnvironments` acts here unchanged, also under jit. For Python at large see
`jaxwm.envs.stepped`, for libraries of reinforcement learning `jaxwm.envs.dream_gym`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxwm.envs.base import Step, first_step, next_step
from jaxwm.imagination import observe_sequence, where_rows
from jaxwm.types import Array, Arrays, Field, PyTree, Spec, Trajectory, Variables, WorldModel

if TYPE_CHECKING:
    from jaxwm.training import Run

Show = Literal["observation", "features"]


class DreamState(struct.PyTreeNode):
    """Where N dreams stand.

    Attributes:
      model: the states of the model, ``[N, ...]``.
      time: ``[N]`` int32; steps since the dream began.
      is_last: ``[N]`` bool; the next step begins a new dream.
    """

    model: PyTree
    time: Array
    is_last: Array


class DreamEnvironments(struct.PyTreeNode):
    """Dreams of a world model as environments; a pytree, so that other variables do not compile anything anew.

    A reward is what the model decodes. An episode ends by a draw from the model's continuation, or after ``length``
    entries; a model that has no continuation never ends one. Ended dreams begin anew in place of the next step.

    Attributes:
      model: any world model that predicts rewards; if it reads conditions, it is told none.
      length: entries after which a dream is cut (``is_last`` without ``is_terminal``).
      show: ``observation``, decoded to what the real world would show (images uint8, vectors in raw units), or the
        model's ``features`` as a vector of that name.
      variables: of the model.
      starts: its states ``[S, ...]``; a dream begins in any one of them. See `starts_of`.
      temperature: scalar; 1 for what the model expects, above it more chance and below it less, 0 for its mode.
      penalty: scalar; what a reward loses for each unit of the model's uncertainty, so that nobody learns to go where
        the model knows nothing (Yu et al. 2020, arXiv:2005.13239); a negative one makes them explore. None for a
        reward as it is decoded.

    Raises:
      ValueError: ``length`` is below 2, or ``show`` is something else; from `reset`, a model without rewards, or
        without an uncertainty that could be penalised.
    """

    model: WorldModel = struct.field(pytree_node=False)
    length: int = struct.field(pytree_node=False)
    variables: Variables
    starts: PyTree
    temperature: Array | float = 1.0
    show: Show = struct.field(pytree_node=False, default="observation")
    penalty: Array | float | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length is {self.length}, expected at least 2")
        if self.show not in ("observation", "features"):
            raise ValueError(f"show is {self.show!r}, expected 'observation' or 'features'")

    @property
    def spec(self) -> Spec:
        """What the dreams show and take."""
        if self.show == "observation":
            return Spec(self.model.spec.observation, self.model.spec.action)
        features = jax.eval_shape(self.model.features, self.variables, self.model.init_state(1))
        return Spec((Field("features", features.shape[1:], "float32"),), self.model.spec.action)

    def reset(self, keys: Array) -> tuple[DreamState, Step]:
        """Begins N dreams from ``keys`` ``[N]``."""
        self._check()
        states = self._begin(keys)
        step = first_step(self._look(states), keys.shape[0])
        return DreamState(states, jnp.zeros(keys.shape[0], jnp.int32), step.is_last), step

    def step(self, keys: Array, state: DreamState, action: Array) -> tuple[DreamState, Step]:
        """One entry on with ``action`` ``[N, A]`` in raw units and ``keys`` ``[N]``."""
        count = keys.shape[0]
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        controls = {"temperature": jnp.full(count, self.temperature, jnp.float32)}
        following = self.model.predict(self.variables, keys[:, 0], state.model, action, controls)
        now = where_rows(state.is_last, self._begin(keys[:, 1]), following)
        prediction = self.model.decode(self.variables, now)
        is_terminal = jnp.zeros(count, bool)
        if prediction.continuation is not None:
            goes_on = _sharpened(prediction.continuation, jnp.asarray(self.temperature, jnp.float32))
            is_terminal = jax.vmap(jax.random.uniform)(keys[:, 2]) >= goes_on
        assert prediction.reward is not None  # seen to by `reset`
        reward = prediction.reward
        if self.penalty is not None:
            assert prediction.uncertainty is not None  # as well
            reward -= self.penalty * prediction.uncertainty
        observation = self._look(now, prediction.observation)
        time, step = next_step(state.is_last, state.time, self.length, observation, reward, is_terminal)
        return DreamState(now, time, step.is_last), step

    def info(self, state: DreamState) -> dict[str, Array]:
        """Nothing: a dream has no truth beside it."""
        return {}

    def picture(self, state: DreamState) -> Array:
        """``[N, H, W, C]`` uint8: the first image that the dreams show now, whatever ``show`` is.

        Raises:
          ValueError: the world of this model shows none.
        """
        if not self.model.spec.images:
            raise ValueError("the world of this model shows no images")
        decoded = self.model.decode(self.variables, state.model).observation
        return _to_bytes(decoded[self.model.spec.images[0].name])

    def _begin(self, keys: Array) -> PyTree:
        count = jax.tree.leaves(self.starts)[0].shape[0]
        rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)
        return jax.tree.map(lambda x: x[rows], self.starts)

    def _look(self, state: PyTree, decoded: Arrays | None = None) -> dict[str, Array]:
        if self.show == "features":
            return {"features": self.model.features(self.variables, state).astype(jnp.float32)}
        if decoded is None:
            decoded = self.model.decode(self.variables, state).observation
        images = {field.name for field in self.model.spec.images}
        return {
            field.name: _to_bytes(decoded[field.name]) if field.name in images else decoded[field.name]
            for field in self.model.spec.observation
        }

    def _check(self) -> None:
        prediction = jax.eval_shape(self.model.decode, self.variables, self.model.init_state(1))
        if prediction.reward is None:
            raise ValueError("this model predicts no reward, so nothing could be learned in its dreams")
        if self.penalty is not None and prediction.uncertainty is None:
            raise ValueError("this model says nothing of its uncertainty, so there is nothing to penalise")


def starts_of(model: WorldModel, variables: Variables, key: Array, trajectory: Trajectory) -> PyTree:
    """States to begin dreams in, ``[S, ...]``: after the last valid frame of each row of a ``[B, T]`` trajectory.

    Rows that hold nothing, or in which an episode ended by the rules of the world, are left out.

    Raises:
      ValueError: no row is left.
    """
    states = observe_sequence(model, variables, key, trajectory).final_state
    valid = np.asarray(trajectory.valid)
    rows = np.flatnonzero(valid.any(1) & ~(valid & np.asarray(trajectory.is_terminal)).any(1))
    if not rows.size:
        raise ValueError("no dream can begin: every episode is over, or empty, within the frames that are shown")
    return jax.tree.map(lambda x: x[rows], states)


def load_dream(
    run: Run | str | os.PathLike[str],
    *,
    length: int = 1000,
    starts: int = 256,
    context: int | None = None,
    anywhere: bool = False,
    show: Show = "observation",
    temperature: float = 1.0,
    penalty: float | None = None,
    split: str = "train",
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    step: int | str | None = None,
) -> DreamEnvironments:
    """The dreams of a trained model, beginning with frames of the episodes that it was trained on.

    Args:
      run: a run folder, or what `jaxwm.load_run` returned.
      length: entries after which a dream is cut.
      starts: how many different beginnings.
      context: frames that the model is shown first; by default as the run's configuration says.
      anywhere: whether those frames lie anywhere, all of the data alike, so that short dreams too come to everything
        that was seen; else each are the first of an episode, and there are no more starts than episodes.
      show: what the dreams show, see `DreamEnvironments`.
      temperature: of the dreams.
      penalty: on uncertainty, see `DreamEnvironments`.
      split: of the data.
      data: other episodes than those of the run's configuration. An agent that lived through its own leaves none on
        disk; its dreams begin with random play where its world is a simulated one, and need these where it is not.
      seed: of what is chosen, and of the model's states.
      step: which checkpoint, as in `jaxwm.load_run`.

    Raises:
      RunError, DataError: no such run or episodes.
      ValueError: arguments that do not fit.
    """
    from jaxwm.evaluation.runs import matching_split  # floors above this one, which only a run folder needs
    from jaxwm.training import load_run

    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, expected at least 0")
    for name, value in (("starts", starts), ("context", context)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    run = load_run(run, step) if isinstance(run, str | os.PathLike) else run
    run = run if data is None else run.with_data(data)
    context = context or run.config.evaluation.context
    source = matching_split(run.config, run.spec, split, starts)
    rng = np.random.default_rng(seed)
    windows = np.maximum(source.lengths - context, 0) + 1
    if anywhere:
        indices = rng.choice(len(windows), starts, p=windows / windows.sum())
        first = rng.integers(windows[indices])
    else:
        indices = rng.permutation(len(windows))[:starts]
        first = np.zeros_like(indices)
    trajectory = source.windows(indices.tolist(), first.tolist(), context)
    states = starts_of(run.model, run.variables, jax.random.key(seed), jax.tree.map(jnp.asarray, trajectory))
    return DreamEnvironments(run.model, length, run.variables, states, temperature, show, penalty)


def _sharpened(chance: Array, temperature: Array) -> Array:
    """The chance whose logit is that of ``chance`` divided by ``temperature``; at 0 one or none."""
    logit = jax.scipy.special.logit(jnp.clip(chance, 1e-6, 1 - 1e-6))
    return jnp.where(chance >= 1, 1.0, jax.nn.sigmoid(logit / jnp.maximum(temperature, 1e-6)))


def _to_bytes(image: Array) -> Array:
    return jnp.round(jnp.clip(image, 0.0, 1.0) * 255).astype(jnp.uint8)
