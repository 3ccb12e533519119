"""Ensembles: several models of one family, whose disagreement says what none of them knows.

The members are one model with parameters ``[E, ...]``: every method is the member's under `jax.vmap`. They see the
same batches and differ by where they started (Lakshminarayanan et al. 2017, arXiv:1612.01474). Where there was data
they agree, elsewhere each goes its own way; unlike the spread of one model's samples, this tells what is not known
from what is random (Chua et al. 2018, arXiv:1805.12114; Sekar et al. 2020, arXiv:2005.05960). As a penalty it keeps
plans where the model holds, as a bonus it makes them explore.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from jaxwm.models import register
from jaxwm.nn.layers import symlog
from jaxwm.types import Array, Arrays, Aux, Prediction, PyTree, Spec, Stage, Trajectory, Variables, WorldModel


@register("ensemble")
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """``members`` models like ``member``; states are ``[B, E, ...]`` and parameters ``[E, ...]``.

    Features are those of all members side by side. What is predicted is the mean of their predictions, and its
    uncertainty is the variance between them, a mean over the entries of each part of the observation, summed over the
    parts and the reward; images on the scale 0..1, vectors and reward through symlog. Sampled futures differ by chance
    too: at temperature 0 the variance is disagreement alone. What a family keeps beside its parameters (slow copies,
    counters, ranges) each member keeps for itself. Members that are agents learn to act, each in its own dream, but an
    ensemble has no ``agent``: who acts is a planner.

    Args:
      spec: what the world shows and takes.
      member: what each of them is; any family.
      members: E.

    Raises:
      ValueError: ``member`` is made for another spec.
    """

    spec: Spec
    member: WorldModel
    members: Annotated[int, Field(ge=2)] = 5

    def __post_init__(self) -> None:
        if self.member.spec != self.spec:
            raise ValueError("member is made for another spec than the ensemble")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of the member."""
        return self.member.stages

    @property
    def reads_conditions(self) -> bool:
        """As the member does."""
        return getattr(self.member, "reads_conditions", False)

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables, each member's from a key of its own; see `jaxwm.types.WorldModel.init`."""
        return jax.vmap(self.member.init, (0, None))(jax.random.split(key, self.members), batch)

    def init_state(self, batch_size: int) -> PyTree:
        """The member's, ``[B, E, ...]``."""
        one = self.member.init_state(batch_size)
        return jax.tree.map(lambda x: jnp.repeat(x[:, None], self.members, axis=1), one)

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
        """Each member takes in the frame; see `jaxwm.types.WorldModel.observe`."""

        def observe(variables: Variables, keys: Array, state: PyTree) -> PyTree:
            return self.member.observe(variables, keys, state, previous_action, observation, is_first, condition)

        return jax.vmap(observe, (0, 1, 1), 1)(variables, self._keys(keys), state)

    def predict(
        self, variables: Variables, keys: Array, state: PyTree, action: Array, condition: Arrays | None = None
    ) -> PyTree:
        """Each member goes its own way; see `jaxwm.types.WorldModel.predict`."""

        def predict(variables: Variables, keys: Array, state: PyTree) -> PyTree:
            return self.member.predict(variables, keys, state, action, condition)

        return jax.vmap(predict, (0, 1, 1), 1)(variables, self._keys(keys), state)

    def features(self, variables: Variables, state: PyTree) -> Array:
        """``[B, E * F]``."""
        features = jax.vmap(self.member.features, (0, 1), 1)(variables, state)
        return features.reshape(features.shape[0], -1)

    def decode(self, variables: Variables, state: PyTree) -> Prediction:
        """The mean of the members' predictions, and how much these differ."""
        predictions = jax.vmap(self.member.decode, (0, 1), 1)(variables, state)
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=1), predictions)
        return mean.replace(uncertainty=self.disagreement(predictions))

    def disagreement(self, predictions: Prediction) -> Array:
        """``[B]`` for ``predictions`` ``[B, E, ...]``: the variance between members; see the class."""
        images = {field.name for field in self.spec.images}
        parts = [x if name in images else symlog(x) for name, x in predictions.observation.items()]
        if predictions.reward is not None:
            parts.append(symlog(predictions.reward)[:, :, None])
        return sum((jnp.var(x, axis=1).reshape(x.shape[0], -1).mean(-1) for x in parts), jnp.zeros(()))

    def surprise(
        self,
        variables: Variables,
        keys: Array,
        state: PyTree,
        previous_action: Array,
        observation: Arrays,
        condition: Arrays | None = None,
    ) -> Array:
        """The mean of the members' surprise."""

        def surprise(variables: Variables, keys: Array, state: PyTree) -> Array:
            return self.member.surprise(variables, keys, state, previous_action, observation, condition)

        return jnp.mean(jax.vmap(surprise, (0, 1, 1), 1)(variables, self._keys(keys), state), axis=1)

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The mean of the members' losses on the same batch; in ``Aux.states`` is the `Aux` of each, ``[E, ...]``."""

        def loss(variables: Variables, keys: Array, initial_state: PyTree) -> tuple[Array, Aux]:
            return self.member.loss(variables, keys, batch.replace(initial_state=initial_state), stage)

        losses, aux = jax.vmap(loss, (0, 1, 1))(variables, self._keys(keys), batch.initial_state)
        return jnp.mean(losses), Aux(jax.tree.map(lambda x: jnp.mean(x, axis=0), aux.metrics), aux)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """What follows an update of each member, by what that member reported."""
        return jax.vmap(lambda variables, own: self.member.after_update(variables, own, stage))(variables, aux.states)

    def _keys(self, keys: Array) -> Array:
        """``[B, E]``: a key for each member of each row."""
        numbers: Any = jnp.arange(self.members)
        return jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, numbers))(keys)
