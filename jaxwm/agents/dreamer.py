"""DreamerV3: a recurrent state-space model with an actor and a critic that learn in its imagination.

Hafner et al. 2023, "Mastering Diverse Domains through World Models", arXiv:2301.04104. One model, one loss, one
optimiser: the trainer treats it like any world model, on episodes from disk as well as on a replay.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from pydantic import Field, NonNegativeFloat, PositiveInt

from jaxwm.acting import Memory, PolicyAgent
from jaxwm.agents.actor_critic import ActorCritic, ActorPolicy, CriticValue, fresh_return_range, lambda_returns
from jaxwm.models import register
from jaxwm.models.base import masked_mean
from jaxwm.models.rssm import RSSM, RSSMState
from jaxwm.types import Array, Arrays, Aux, Spec, Stage, Trajectory, Variables

Share = Annotated[float, Field(gt=0, le=1)]

_WORLD = (
    "encoder", "decoder", "cell", "prior_hidden", "prior_output", "posterior_deter", "posterior_embed",
    "posterior_hidden", "posterior_output", "reward_hidden", "reward_output", "continue_hidden", "continue_output",
)  # fmt: skip


@register("dreamer")
@dataclasses.dataclass(frozen=True)
class Dreamer(RSSM):
    """DreamerV3's agent; the defaults are its size 1m, and its world model's fields are those of `RSSM`.

    Its stages: ``world_model`` learns the world alone, ``behaviour`` the actor and the critic in a world that stays as
    it is, ``train`` (the algorithm of the paper) everything at once.

    Args:
      actor_layers: hidden layers of the actor.
      critic_layers: hidden layers of the critic.
      horizon: imagined actions from each state of the batch.
      discount: of the reward one step later.
      return_lambda: λ of the returns.
      entropy_scale: weight of the actor's entropy in nats.
      actor_unimix: share of the uniform distribution in a discrete actor.
      slow_rate: step of the slow critic towards the critic, in each update.
      slow_scale: weight of the slow critic as a regulariser of the critic.
      return_rate: step of the moving percentiles that scale the advantages.
      replay_value_scale: weight of the critic's loss on the real sequences, which also trains the world model.
    """

    actor_layers: PositiveInt = 3
    critic_layers: PositiveInt = 3
    horizon: PositiveInt = 15
    discount: Share = 1 - 1 / 333
    return_lambda: Share = 0.95
    entropy_scale: NonNegativeFloat = 3e-4
    actor_unimix: Annotated[float, Field(ge=0, lt=1)] = 0.01
    slow_rate: Share = 0.02
    slow_scale: NonNegativeFloat = 1.0
    return_rate: Share = 0.01
    replay_value_scale: NonNegativeFloat = 0.3

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage("world_model", _WORLD),
        Stage("behaviour", ("actor", "critic"), fits=False),
        Stage("train"),
    )

    @property
    def actor_critic(self) -> ActorCritic:
        """The part that acts."""
        return ActorCritic(
            self.spec.action, self.units, self.actor_layers, self.critic_layers, self.horizon, self.discount,
            self.return_lambda, self.entropy_scale, self.actor_unimix, self.slow_scale, self.return_rate,
            self.compute_dtype,
        )  # fmt: skip

    @property
    def critic(self) -> CriticValue:
        """The return to be expected after the last step of a plan; its parameters are ``params.critic`` of the model.

        >>> objective = jaxwm.planning.Reward(model.discount, model.critic)
        >>> jaxwm.plan(model, variables, key, state, objective, solver, params=variables["params"]["critic"])
        """
        return CriticValue(self.actor_critic)

    def agent(self, sample: bool = True) -> DreamerAgent:
        """Acts in an environment; its parameters are this model's variables. ``sample`` False takes the modes."""
        return DreamerAgent(self, sample)

    def init(self, key: Array, batch: Trajectory) -> Variables:
        """Fresh variables; see `jaxwm.types.WorldModel.init`."""
        world_key, behaviour_key = jax.random.split(key)
        world = super().init(world_key, batch)
        features = self.deter + self.stoch * (1 if self.latent == "gaussian" else self.classes)
        behaviour = self.actor_critic.init(behaviour_key, features)
        targets = {**world["targets"], "slow_critic": behaviour["critic"], "return_range": fresh_return_range()}
        return {"params": {**world["params"], **behaviour}, "targets": targets}

    def loss(self, variables: Variables, keys: Array, batch: Trajectory, stage: str) -> tuple[Array, Aux]:
        """The sum of the world model's, the actor's and the critic's losses that ``stage`` trains.

        Every posterior state of the batch is the start of a dream (section 3 of the paper). The critic also learns on
        the real sequences, towards λ-returns that end in the imagined ones.
        """
        total, aux = super().loss(variables, keys, batch, stage)
        if stage == "world_model":
            return total, aux
        states = aux.states
        rows, length = batch.reward.shape
        starts = jax.tree.map(lambda x: x.reshape(rows * length, *x.shape[2:]), states)
        dream_keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, length), length))(keys).reshape(-1)
        slow_critic, before = variables["targets"]["slow_critic"], variables["targets"]["return_range"]
        imagined = self.actor_critic.imagined_losses(self, variables, slow_critic, before, dream_keys, starts)
        replayed = self._replay_value_loss(variables, batch, states, imagined.returns.reshape(rows, length))
        metrics = {
            **aux.metrics,
            **imagined.metrics,
            "loss/actor": imagined.actor_loss,
            "loss/critic": imagined.critic_loss,
            "loss/replay_critic": replayed,
        }
        behaviour = imagined.actor_loss + imagined.critic_loss + self.replay_value_scale * replayed
        return behaviour if stage == "behaviour" else total + behaviour, Aux(metrics, states)

    def after_update(self, variables: Variables, aux: Aux, stage: str) -> Variables:
        """Moves the slow critic and the range of the returns."""
        variables = super().after_update(variables, aux, stage)
        if stage == "world_model":
            return variables
        critic, targets = variables["params"]["critic"], variables["targets"]
        slow = jax.tree.map(lambda s, c: s + self.slow_rate * (c - s), targets["slow_critic"], critic)
        moved = {"low": aux.metrics["return_low"], "high": aux.metrics["return_high"]}
        return {**variables, "targets": {**targets, "slow_critic": slow, "return_range": moved}}

    def _replay_value_loss(self, variables: Variables, batch: Trajectory, states: RSSMState, imagined: Array) -> Array:
        """The critic's loss on the real sequences; ``imagined`` ``[B, T]`` are the returns dreamt from each state."""
        features = self.features(
            variables, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
        ).reshape(*imagined.shape, -1)  # fmt: skip
        going = self.discount * (1.0 - batch.is_terminal[:, 1:].astype(jnp.float32))
        # A run that was stopped in the middle of an episode goes on with another one, without a last step between.
        cut = jnp.pad(batch.is_first[:, 1:], ((0, 0), (0, 1)))
        ends = batch.is_last | cut
        known = batch.valid[:, 1:] & ~ends[:, 1:]
        imagined = jax.lax.stop_gradient(imagined)
        returns = lambda_returns(
            batch.reward[:, :-1], going, imagined[:, 1:], imagined[:, -1], self.return_lambda * known
        )
        actor_critic = self.actor_critic
        value = actor_critic.value(variables["params"]["critic"], features[:, :-1])
        slow = actor_critic.value(variables["targets"]["slow_critic"], jax.lax.stop_gradient(features[:, :-1])).mean()
        error = actor_critic.critic_error(value, returns, slow)
        counts = batch.valid[:, :-1] & batch.valid[:, 1:] & ~ends[:, :-1]
        return masked_mean(error, counts)


@dataclasses.dataclass(frozen=True)
class DreamerAgent:
    """A `Dreamer` as an agent of `jaxwm.acting`; its parameters are the variables of the model.

    Args:
      model: the trained agent.
      sample: False for the likeliest actions in place of drawn ones.
    """

    model: Dreamer
    sample: bool = True

    @property
    def spec(self) -> Spec:
        """The model's."""
        return self.model.spec

    @property
    def _follower(self) -> PolicyAgent:
        return PolicyAgent(self.model, ActorPolicy(self.model.actor_critic, self.sample))

    def init(self, count: int) -> Memory:
        """See `jaxwm.acting.Agent.init`."""
        return self._follower.init(count)

    def act(
        self, params: Variables, keys: Array, memory: Memory, observation: Arrays, is_first: Array
    ) -> tuple[Array, Memory]:
        """See `jaxwm.acting.Agent.act`; continuous actions are cut at their bounds."""
        action, memory = self._follower.act((params, params["params"]["actor"]), keys, memory, observation, is_first)
        action = self.spec.action.denormalise(self.spec.action.normalise(action))
        return action, Memory(memory.state, action)
