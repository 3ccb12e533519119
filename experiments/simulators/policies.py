"""Policies of `drive` that live in a simulator, against those that live in the real one; see `run.py`.

Both are the same actor and critic, on the same features, by the same updates; only what follows on an action is
imagined by the model for the one, and comes from the world for the other.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from scipy.stats import spearmanr

from experiments.simulators.driving import world_of
from jaxwm.agents.actor_critic import ActorCritic, ActorPolicy, fresh_return_range
from jaxwm.types import Prediction
from jaxwm.worlds import random_policy
from jaxwm.worlds.drive import keep_lane

ROWS, CONTEXT, LENGTH = 32, 4, 50
UPDATES, KEPT = 600, (0, 50, 100, 200, 400, 600)
EPISODES = 64


class RealState(struct.PyTreeNode):
    """The world, what the model has seen of it, and what the last step came to."""

    world: object
    seen: object
    reward: jax.Array
    going: jax.Array


@dataclasses.dataclass(frozen=True)
class Real:
    """The real world as a world model: `predict` is what happens, features are the model's of what is then seen."""

    world: object
    model: object

    @property
    def spec(self):
        """The model's."""
        return self.model.spec

    def begin(self, variables, keys):
        """States ``[B]`` in which new episodes have gone on for `CONTEXT` frames under the scripted driver."""
        state = jax.vmap(self.world.reset)(keys)
        rows = len(keys)
        state = RealState(state, self.model.init_state(rows), jnp.zeros(rows), jnp.ones(rows))
        state = self._look(variables, keys, state, jnp.zeros((rows, 2)), jnp.ones(rows, bool))

        def drive(state, t):
            now = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
            action = jax.vmap(functools.partial(keep_lane, self.world))(now, state.world)
            return self.predict(variables, now, state, action), None

        return jax.lax.scan(drive, state, jnp.arange(CONTEXT - 1))[0]

    def predict(self, variables, keys, state, action, condition=None):
        """One frame on; what has ended stays as it is."""
        after = jax.vmap(self.world.step)(keys, state.world, action)
        on = state.going
        moved = RealState(after.state, state.seen, on * after.reward, on * (1.0 - after.is_terminal))
        return self._look(variables, keys, moved, action, jnp.zeros(len(keys), bool))

    def _look(self, variables, keys, state, action, is_first):
        seen = jax.vmap(self.world.observation)(state.world)
        return state.replace(seen=self.model.observe(variables, keys, state.seen, action, seen, is_first))

    def features(self, variables, state):
        """The model's."""
        return self.model.features(variables, state.seen)

    def decode(self, variables, state):
        """What the last step really came to."""
        return Prediction({}, state.reward, state.going)


def actor_critic(model):
    """The networks, as in DreamerV3 but small; returns reach 15 steps."""
    return ActorCritic(
        model.spec.action, units=128, actor_layers=2, critic_layers=2, horizon=15, discount=0.95, return_lambda=0.95,
        entropy_scale=3e-3, unimix=0.0, slow_scale=1.0, return_rate=0.01,
    )  # fmt: skip


def learn(run, inside, seed=0):
    """Actors by the number of their updates, that learned in `Real` if it is ``inside``, else in dreams."""
    model, agent, real = run.model, actor_critic(run.model), Real(world_of(run), run.model)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(3e-4))
    behaviour = jax.jit(agent.init, static_argnums=1)(jax.random.key(seed), model.features_size)
    carry = (behaviour, optimizer.init(behaviour), behaviour["critic"], fresh_return_range())

    @jax.jit
    def update(carry, key):
        behaviour, moments, slow, reach = carry
        start_key, key = jax.random.split(key)
        starts = real.begin(run.variables, jax.random.split(start_key, ROWS))
        starts, world = (starts, real) if inside is Real else (starts.seen, model)

        def loss(behaviour):
            variables = {**run.variables, "params": {**run.variables["params"], **behaviour}}
            found = agent.imagined_losses(world, variables, slow, reach, jax.random.split(key, ROWS), starts)
            return found.actor_loss + found.critic_loss, found.metrics

        gradients, metrics = jax.grad(loss, has_aux=True)(behaviour)
        changes, moments = optimizer.update(gradients, moments)
        behaviour = optax.apply_updates(behaviour, changes)
        slow = jax.tree.map(lambda s, c: s + 0.02 * (c - s), slow, behaviour["critic"])
        reach = {"low": metrics["return_low"], "high": metrics["return_high"]}
        return (behaviour, moments, slow, reach), metrics["imagined_reward"]

    kept = {}
    for step in range(UPDATES + 1):
        if step in KEPT:
            kept[step] = jax.device_get(carry[0]["actor"])
        carry, _ = update(carry, jax.random.fold_in(jax.random.key(seed + 1), step))
    return kept


def returns(run, act, inside, seed=10):
    """``[EPISODES]``: sums of rewards in `LENGTH` steps under ``act(keys, state, features) -> action``."""
    real = Real(world_of(run), run.model)
    world = real if inside is Real else run.model

    @jax.jit
    def play(keys):
        starts = real.begin(run.variables, keys)
        state = starts if inside is Real else starts.seen

        def step(carry, t):
            state, alive = carry
            now = jax.vmap(jax.random.fold_in, (0, None))(keys, CONTEXT + t)
            action = act(now, state, world.features(run.variables, state))
            state = world.predict(run.variables, now, state, action)
            expected = world.decode(run.variables, state)
            return (state, alive * (expected.continuation > 0.5)), alive * expected.reward

        rewards = jax.lax.scan(step, (state, jnp.ones(EPISODES)), jnp.arange(LENGTH))[1]
        return rewards.sum(0)

    return np.asarray(play(jax.random.split(jax.random.key(seed), EPISODES)))


def policy(runs):
    """Returns in the real world and in dreams of actors from the simulator and from the real world."""
    run = runs("drive")
    agent, table, pairs = actor_critic(run.model), {}, []
    for name, inside in (("simulator", None), ("real", Real)):
        for updates, actor in learn(run, inside).items():
            act = functools.partial(_act, ActorPolicy(agent, sample=False), actor)
            real, dreamt = returns(run, act, Real), returns(run, act, None)
            table[f"learned in the {name}, {updates} updates"] = {
                "real": real.mean(), "standard_error": real.std() / EPISODES**0.5, "dreamt": dreamt.mean()
            }  # fmt: skip
            pairs.append((real.mean(), dreamt.mean()))
    world = world_of(run)
    for name, choose in (("random", random_policy), ("keep_lane", keep_lane)):
        act = functools.partial(_scripted, world, choose)
        found = returns(run, act, Real)
        table[name] = {"real": found.mean(), "standard_error": found.std() / EPISODES**0.5}
    last = {name: table[f"learned in the {name}, {UPDATES} updates"]["real"] for name in ("simulator", "real")}
    return {
        "episodes": EPISODES, "steps": LENGTH, "returns": table,
        "simulator over real": last["simulator"] / last["real"],
        "rank_correlation": spearmanr(*zip(*pairs, strict=True)).statistic,
    }  # fmt: skip


def _act(policy, actor, keys, state, features):
    return policy(actor, keys, features, None)[0]


def _scripted(world, choose, keys, state, features):
    return jax.vmap(functools.partial(choose, world))(keys, state.world)


CLAIMS = {"policy": policy}
