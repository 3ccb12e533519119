"""Actor and critic that learn from imagined futures, in any world model (DreamerV3, Hafner et al. 2023, section 3).

The actor follows REINFORCE for discrete and continuous actions alike, so no gradient passes through the dynamics and
the dream itself is only run forward. Between updates nothing is remembered but the range of the returns and the slow
critic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxwm.imagination import rollout
from jaxwm.nn import MLP, Linear, Normal, OneHot, TwoHot
from jaxwm.types import ActionSpec, Array, PyTree, Variables, WorldModel

Choice = Normal | OneHot
"""A distribution over actions: one-hot, or numbers of which [-1, 1] are the bounds."""


def lambda_returns(
    rewards: Array, continuations: Array, values: Array, last_value: Array, return_lambda: float | Array
) -> Array:
    """TD(λ) returns, ``[N, T]``: ``R[t] = r[t] + c[t] ((1 - λ[t]) v[t] + λ[t] R[t+1])`` with ``R[T] = last_value``.

    One scan, backwards. DreamerV3's equation 7 with its indices moved by one: ``values[t]`` is of the state that
    action t leads to.

    Args:
      rewards: ``[N, T]``; follow action t.
      continuations: ``[N, T]``; discount times the probability that the state after action t is not the end.
      values: ``[N, T]``; of the state after action t.
      last_value: ``[N]``; of the state after the last action.
      return_lambda: a scalar or ``[N, T]``; 0 where an episode is cut and the return must not reach beyond.
    """
    return_lambda = jnp.broadcast_to(return_lambda, rewards.shape)
    known = rewards + continuations * (1.0 - return_lambda) * values

    def step(following: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        known, weight = inputs
        here = known + weight * following
        return here, here

    inputs = (known.swapaxes(0, 1), (continuations * return_lambda).swapaxes(0, 1))
    _, returns = jax.lax.scan(step, last_value, inputs, reverse=True)
    return returns.swapaxes(0, 1)


def fresh_return_range() -> dict[str, Array]:
    """Moving averages ``{"low", "high"}`` of the 5th and 95th percentile of imagined returns, before any update."""
    return {"low": jnp.zeros(()), "high": jnp.zeros(())}


def move_return_range(averages: Mapping[str, Array], returns: Array, rate: float) -> dict[str, Array]:
    """A step of ``rate`` towards the percentiles of ``returns``."""
    low, high = jnp.percentile(returns, jnp.array([5.0, 95.0]))
    return {
        "low": averages["low"] + rate * (low - averages["low"]),
        "high": averages["high"] + rate * (high - averages["high"]),
    }


class _Actor(nn.Module):
    config: ActorCritic

    @nn.compact
    def __call__(self, features: Array) -> Choice:
        """``[..., F]`` to a distribution over actions ``[..., A]``."""
        c = self.config
        hidden = MLP(c.units, c.actor_layers, dtype=c.dtype, name="hidden")(features)
        outputs = c.action.dim if c.action.discrete else 2 * c.action.dim
        raw = Linear(outputs, output_scale=0.01, dtype=c.dtype, name="output")(hidden).astype(jnp.float32)
        if c.action.discrete:
            return OneHot(raw, unimix=c.unimix, event_axes=1)
        location, spread = jnp.split(raw, 2, axis=-1)
        return Normal(jnp.tanh(location), 0.9 * jax.nn.sigmoid(spread + 2.0) + 0.1)


class _Critic(nn.Module):
    config: ActorCritic

    @nn.compact
    def __call__(self, features: Array) -> TwoHot:
        """``[..., F]`` to a distribution over returns ``[...]``; its mean is 0 at first."""
        c = self.config
        hidden = MLP(c.units, c.critic_layers, dtype=c.dtype, name="hidden")(features)
        return TwoHot(Linear(TwoHot.bins().size, output_scale=0.0, dtype=c.dtype, name="output")(hidden))


@dataclasses.dataclass(frozen=True)
class ActorPolicy:
    """The actor as a policy of `jaxwm.imagination`; its parameters are those of the actor.

    Its actions are in raw units. Continuous ones may lie beyond the bounds, so that their density is known; models and
    environments cut them there.

    Args:
      actor_critic: the actor's configuration.
      sample: False for the mode of the distribution.
    """

    actor_critic: ActorCritic
    sample: bool = True

    def __call__(self, params: PyTree, keys: Array, features: Array, policy_state: PyTree) -> tuple[Array, PyTree]:
        """``[B, F]`` to ``[B, A]``; without memory."""
        choice = self.actor_critic.choice(params, features)
        action = choice.sample(keys) if self.sample else choice.mode()
        return self.actor_critic.action.denormalise(jax.lax.stop_gradient(action)), policy_state


@dataclasses.dataclass(frozen=True)
class CriticValue:
    """The critic as a value of `jaxwm.planning.Reward`; its parameters are those of the critic.

    Args:
      actor_critic: the critic's configuration.
    """

    actor_critic: ActorCritic

    def __call__(self, params: PyTree, features: Array) -> Array:
        """The mean return after states with features ``[B, F]``, ``[B]``."""
        return self.actor_critic.value(params, features).mean()


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """The networks and the losses.

    Args:
      action: what the world takes.
      units: width of the hidden layers.
      actor_layers: hidden layers of the actor.
      critic_layers: hidden layers of the critic.
      horizon: imagined actions.
      discount: of the reward one step later.
      return_lambda: λ of the returns.
      entropy_scale: weight of the actor's entropy in nats.
      unimix: share of the uniform distribution in a discrete actor: its entropy never falls to 0.
      slow_scale: weight of the slow critic's prediction as a second target of the critic.
      return_rate: step of the moving percentiles that scale the advantages.
      dtype: what the networks compute in.
    """

    action: ActionSpec
    units: int
    actor_layers: int
    critic_layers: int
    horizon: int
    discount: float
    return_lambda: float
    entropy_scale: float
    unimix: float
    slow_scale: float
    return_rate: float
    dtype: Any = jnp.float32

    def init(self, key: Array, features: int) -> dict[str, PyTree]:
        """Fresh parameters ``{"actor", "critic"}`` for features ``[..., F]``."""
        actor_key, critic_key = jax.random.split(key)
        example = jnp.zeros((1, features))
        return {
            "actor": _Actor(self).init(actor_key, example)["params"],
            "critic": _Critic(self).init(critic_key, example)["params"],
        }

    def choice(self, actor: PyTree, features: Array) -> Choice:
        """The distribution over actions, ``[..., A]``; continuous ones with the bounds at -1 and 1."""
        return _Actor(self).apply({"params": actor}, features)  # type: ignore[return-value]

    def value(self, critic: PyTree, features: Array) -> TwoHot:
        """The distribution over returns, ``[...]``."""
        return _Critic(self).apply({"params": critic}, features)  # type: ignore[return-value]

    def imagined_losses(
        self,
        model: WorldModel,
        variables: Variables,
        slow_critic: PyTree,
        return_range: Mapping[str, Array],
        keys: Array,
        starts: PyTree,
    ) -> Imagined:
        """The losses of actor and critic over dreams from ``starts``; nothing reaches the world model's parameters.

        Args:
          model: any world model that predicts rewards.
          variables: of the model; ``params`` also holds ``actor`` and ``critic``.
          slow_critic: parameters of the slow critic.
          return_range: before this update.
          keys: ``[N]``, one for each dream.
          starts: states ``[N, ...]``.

        Raises:
          ValueError: the model predicts no reward.
        """
        actor, critic = variables["params"]["actor"], variables["params"]["critic"]
        frozen = jax.lax.stop_gradient((variables, starts))
        dream = rollout(
            model, ActorPolicy(self), self.horizon, False, True, frozen[0], keys, frozen[1],
            None, jax.lax.stop_gradient(actor), None, None,
        )  # fmt: skip
        # Made once and kept: without the barrier XLA makes parts of the dream anew for each of those who read it.
        features, states = jax.lax.optimization_barrier(jax.lax.stop_gradient((dream.features, dream.states)))
        count, length = features.shape[:2]
        # The heads see all states at once: one wide product in place of a narrow one in each step of the dream.
        flat = jax.tree.map(lambda x: x.reshape(count * length, *x.shape[2:]), states)
        expected = model.decode(frozen[0], flat)
        if expected.reward is None:
            raise ValueError(f"{type(model).__name__} predicts no reward: an actor has nothing to learn from")
        rewards = expected.reward.reshape(count, length)
        going = jnp.ones_like(rewards)
        if expected.continuation is not None:
            going = expected.continuation.reshape(count, length)
        going = self.discount * going

        value = self.value(critic, features)
        values = jax.lax.stop_gradient(value.mean())
        returns = lambda_returns(rewards[:, 1:], going[:, 1:], values[:, 1:], values[:, -1], self.return_lambda)
        weights = jnp.cumprod(going, axis=1)[:, :-1] / self.discount

        moved = move_return_range(return_range, returns, self.return_rate)
        # Small returns are not blown up (equation 11).
        advantages = (returns - values[:, :-1]) / jnp.maximum(1.0, moved["high"] - moved["low"])
        choice = self.choice(actor, features[:, :-1])
        # The actions of the dream, unchanged, in the units of the distribution.
        taken = _normalised(self.action, dream.action[:, :-1])
        log_probs, entropy = choice.log_prob(taken), choice.entropy()
        actor_loss = -jnp.mean(weights * (log_probs * advantages + self.entropy_scale * entropy))

        early = jax.tree.map(lambda x: x[:, :-1], value)
        slow = self.value(slow_critic, features[:, :-1]).mean()
        critic_loss = jnp.mean(weights * self.critic_error(early, returns, slow))
        metrics = {
            "actor_entropy": jnp.mean(entropy),
            "imagined_reward": jnp.mean(rewards[:, 1:]),
            "imagined_return": jnp.mean(returns),
            "imagined_value": jnp.mean(values),
            "advantage": jnp.mean(jnp.abs(advantages)),
            "return_low": moved["low"],
            "return_high": moved["high"],
        }
        return Imagined(actor_loss, critic_loss, returns[:, 0], metrics)

    def critic_error(self, value: TwoHot, returns: Array, slow: Array) -> Array:
        """Minus the log probability of ``returns`` ``[...]`` and, as a regulariser, of the slow critic's ``slow``."""
        targets = jax.lax.stop_gradient((returns, slow))
        return -value.log_prob(targets[0]) - self.slow_scale * value.log_prob(targets[1])


class Imagined(struct.PyTreeNode):
    """What `ActorCritic.imagined_losses` returns: two scalars, the return of each start ``[N]``, and metrics.

    Among the metrics are ``return_low`` and ``return_high``: the range after this update.
    """

    actor_loss: Array
    critic_loss: Array
    returns: Array
    metrics: dict[str, Array]


def _normalised(action: ActionSpec, taken: Array) -> Array:
    """The inverse of `ActionSpec.denormalise`: `ActionSpec.normalise` would cut, and so change the density."""
    middle = action.denormalise(jnp.zeros(action.dim))
    return (taken - middle) / (action.denormalise(jnp.ones(action.dim)) - middle)
