"""Acting in the real world by what a model makes of it: the counterpart of `jaxwm.imagination`.

An `Agent` is frozen and pure like a model: what it remembers is handed to it and back, so that the same agent acts in
a compiled simulator (`play_world`) and in any other environment (`play`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxwm.envs.base import CompiledEnvironments, Environments
from jaxwm.imagination import Policy, row_keys
from jaxwm.types import Array, Arrays, PyTree, Spec, Trajectory, Variables, WorldModel


class Agent(Protocol):
    """Chooses actions for N environments at once; a frozen, hashable dataclass without parameters of its own."""

    @property
    def spec(self) -> Spec:
        """What it sees and does."""
        ...

    def init(self, count: int) -> PyTree:
        """What it remembers before the first frame of ``count`` environments, ``[N, ...]``."""
        ...

    def act(
        self, params: PyTree, keys: Array, memory: PyTree, observation: Arrays, is_first: Array
    ) -> tuple[Array, PyTree]:
        """The action ``[N, A]`` in raw units, and the new memory; rows with ``is_first`` forget the old one."""
        ...


class Memory(struct.PyTreeNode):
    """What a `PolicyAgent` remembers: the model's state ``[N, ...]`` and its last action ``[N, A]``."""

    state: PyTree
    action: Array


@dataclasses.dataclass(frozen=True)
class PolicyAgent:
    """Follows the frames with a world model and acts by a policy without memory on its features.

    Its ``params`` are the pair (variables of the model, parameters of the policy).

    Args:
      model: any world model.
      policy: acts on the features of its states.
    """

    model: WorldModel
    policy: Policy

    @property
    def spec(self) -> Spec:
        """The model's."""
        return self.model.spec

    def init(self, count: int) -> Memory:
        """A state that knows nothing."""
        return Memory(self.model.init_state(count), jnp.zeros((count, self.spec.action.dim)))

    def act(
        self, params: tuple[Variables, PyTree], keys: Array, memory: Memory, observation: Arrays, is_first: Array
    ) -> tuple[Array, Memory]:
        """See `Agent.act`."""
        variables, policy_params = params
        keys = jax.vmap(jax.random.split)(keys)
        previous = jnp.where(is_first[:, None], 0.0, memory.action)
        state = self.model.observe(variables, keys[:, 0], memory.state, previous, observation, is_first)
        features = self.model.features(variables, state)
        action, _ = self.policy(policy_params, keys[:, 1], features, None)
        return action, Memory(state, action)


class Played(struct.PyTreeNode):
    """Episodes that were played to their end.

    Attributes:
      score: ``[N]`` sum of rewards.
      length: ``[N]`` int32; actions done.
      is_terminal: ``[N]`` bool; ended by the rules, not by the time limit.
      trajectory: the episodes, ``[N, T, ...]`` and padded; None unless asked for.
    """

    score: Array
    length: Array
    is_terminal: Array
    trajectory: Trajectory | None = None


@functools.partial(jax.jit, static_argnames=("agent", "count", "record"))
def play_world(
    agent: Agent,
    params: PyTree,
    key: Array,
    environments: CompiledEnvironments,
    count: int,
    *,
    record: bool = False,
) -> Played:
    """Plays one episode in each of ``count`` simulated worlds, or dreams, in one compiled scan.

    Args:
      agent: who acts.
      params: its parameters.
      key: one PRNG key.
      environments: the worlds or dreams, and the frames after which an episode is cut.
      count: N.
      record: whether to keep the episodes, not only their scores.
    """
    reset_key, act_key, step_key = jax.random.split(key, 3)
    keys_at = lambda key, t: row_keys(jax.random.fold_in(key, t), count)  # noqa: E731

    def advance(carry: tuple[Any, ...], t: Array) -> tuple[tuple[Any, ...], Any]:
        world, step, memory, goes_on = carry
        action, memory = agent.act(params, keys_at(act_key, t), memory, step.observation, step.is_first)
        acts = goes_on & ~step.is_last
        action = jnp.where(acts[:, None], action, 0.0)
        info = environments.info(world) if record else None
        world, following = environments.step(keys_at(step_key, t), world, action)
        reward = jnp.where(acts, following.reward, 0.0)
        ended = goes_on & step.is_last
        kept = (step, action, info) if record else None
        return (world, following, memory, acts), (reward, acts, ended & step.is_terminal, goes_on, kept)

    world, first = environments.reset(keys_at(reset_key, jnp.int32(0)))
    carry = (world, first, agent.init(count), jnp.ones(count, bool))
    _, outputs = jax.lax.scan(advance, carry, jnp.arange(environments.length))
    rewards, acts, terminal, valid, kept = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs)
    trajectory = None
    if kept is not None:
        steps, actions, info = kept
        trajectory = Trajectory(
            observation=steps.observation,
            action=actions,
            previous_action=jnp.zeros_like(actions[:, 0]),
            reward=rewards,
            is_first=steps.is_first & (jnp.arange(environments.length) == 0),
            is_last=steps.is_last & valid,
            is_terminal=steps.is_terminal & valid,
            valid=valid,
            action_valid=valid,
            info=info,
        )
    return Played(rewards.sum(1), acts.sum(1), terminal.any(1), trajectory)


def play(
    agent: Agent, params: PyTree, key: Array, environments: Environments, episodes: int, *, seed: int = 0
) -> Played:
    """Plays ``episodes`` episodes in any environments, as many from each of them; scores only.

    Taking those that end first would favour the short ones.

    Args:
      agent: who acts.
      params: its parameters.
      key: one PRNG key.
      environments: where; they are reset first.
      episodes: how many in all.
      seed: of the environments.

    Raises:
      EnvError: an environment failed.
    """
    count = environments.count
    quota = np.array([episodes // count + (row < episodes % count) for row in range(count)])
    scores, lengths, terminals = [], [], []
    score, length = np.zeros(count), np.zeros(count, int)
    step, memory, t = environments.reset(seed), agent.init(count), 0
    while quota.any():
        action, memory = _act(agent, params, key, np.int32(t), memory, step.observation, step.is_first)
        step, t = environments.step(np.asarray(action)), t + 1
        score, length = np.where(step.is_first, 0.0, score + step.reward), np.where(step.is_first, 0, length + 1)
        for row in np.flatnonzero(step.is_last & (quota > 0)):
            scores.append(score[row])
            lengths.append(length[row])
            terminals.append(bool(step.is_terminal[row]))
            quota[row] -= 1
    arrays: dict[str, Any] = {
        "score": np.asarray(scores, np.float32),
        "length": np.asarray(lengths, np.int32),
        "is_terminal": np.asarray(terminals, bool),
    }
    return Played(**arrays)


@functools.partial(jax.jit, static_argnums=0)
def _act(
    agent: Agent, params: PyTree, key: Array, t: Array, memory: PyTree, observation: Arrays, is_first: Array
) -> tuple[Array, PyTree]:
    keys = row_keys(jax.random.fold_in(key, t), is_first.shape[0])
    return agent.act(params, keys, memory, observation, is_first)
