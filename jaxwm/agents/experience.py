"""Living and learning, as pure functions: what happens to an agent between two frames, and in an update.

They are put together in compiled loops and in Python ones by `jaxwm.agents.online`.
"""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxwm.acting import Agent
from jaxwm.config import ConfigError
from jaxwm.data import replay as replays
from jaxwm.data.replay import Record, Replay, Windows
from jaxwm.envs.base import Step
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.imagination import row_keys
from jaxwm.training.update import TrainState
from jaxwm.types import Array, PyTree, Spec, Trajectory, Variables, example_batch


class Experience(struct.PyTreeNode):
    """All that collecting changes.

    Attributes:
      replay: what was lived through.
      memory: the agent's, ``[N, ...]``.
      step: what the environments show now.
      world: where simulated worlds stand; None for other environments.
      score: ``[N]`` rewards so far in the running episodes.
      length: ``[N]`` int32; decisions so far in them.
      decisions: ``[]`` int32; actions done in all, beginnings of episodes not counted.
    """

    replay: Replay
    memory: PyTree
    step: Step
    world: PyTree
    score: Array
    length: Array
    decisions: Array


class Finished(NamedTuple):
    """Which of N episodes ended at a step: ``ended`` ``[N]`` bool, and for these ``score`` and ``length`` ``[N]``."""

    ended: Array
    score: Array
    length: Array


class Cycle(NamedTuple):
    """Steps of all environments, then updates."""

    steps: int
    updates: int


def plan_cycle(train_ratio: float, copies: int, batch: int, length: int) -> Cycle:
    """The shortest cycle in which ``batch * length`` replayed steps an update make ``train_ratio`` a decision.

    Raises:
      ConfigError: the cycle would be absurdly long.
    """
    per_step = fractions.Fraction(train_ratio).limit_denominator(1 << 20) * copies / (batch * length)
    cycle = Cycle(per_step.denominator, per_step.numerator)
    if max(cycle) > 4096:
        raise ConfigError(
            f"data.collect.train_ratio is {train_ratio}: with {copies} environments and {batch} x {length} steps an "
            f"update that is {cycle.updates} updates every {cycle.steps} steps; choose a simpler ratio"
        )
    return cycle


def begin_experience(spec: Spec, agent: Agent, count: int, capacity: int, step: Step, world: PyTree) -> Experience:
    """Nothing yet but the first frames of ``count`` environments; ``capacity`` steps of all of them are kept."""
    memory = agent.init(count)
    zeros = jnp.zeros(count)
    empty = replays.make_replay(spec, memory.state, max(capacity // count, 2))
    return Experience(empty, memory, step, world, zeros, zeros.astype(jnp.int32), jnp.zeros((), jnp.int32))


def first_frames(spec: Spec, experience: Experience) -> Trajectory:
    """What the environments show before anything was done in them, ``[N, 1, ...]``; models may start from its mean."""
    batch = example_batch(spec, experience.step.reward.shape[0], 1)
    return batch.replace(observation={name: frame[:, None] for name, frame in experience.step.observation.items()})


def choose(agent: Agent, variables: Variables, key: Array, experience: Experience) -> tuple[Array, PyTree]:
    """The actions ``[N, A]`` for what the environments show, and the new memory."""
    step = experience.step
    key = jax.random.fold_in(key, experience.replay.written)
    keys = row_keys(key, step.reward.shape[0])
    action, memory = agent.act(variables, keys, experience.memory, step.observation, step.is_first)
    return jnp.where(step.is_last[:, None], 0.0, action), memory


def live(
    experience: Experience, action: Array, memory: PyTree, following: Step, world: PyTree
) -> tuple[Experience, Finished]:
    """Remembers that ``action`` was done in what the environments showed, and led to ``following``."""
    step = experience.step
    acts = ~step.is_last
    reward = jnp.where(acts, following.reward, 0.0)
    record = Record(step.observation, action, reward, step.is_first, step.is_last, step.is_terminal, memory.state)
    score, length = experience.score + reward, experience.length + acts
    finished = Finished(step.is_last, experience.score, experience.length)
    experience = Experience(
        replay=replays.add(experience.replay, record),
        memory=memory,
        step=following,
        world=world,
        score=jnp.where(step.is_last, 0.0, score),
        length=jnp.where(step.is_last, 0, length),
        decisions=experience.decisions + jnp.sum(acts),
    )
    return experience, finished


def rest(experience: Experience) -> tuple[Experience, Finished]:
    """A step at which nothing happens, in place of `live`: there is no going on with what is not finite."""
    return experience, Finished(jnp.zeros_like(experience.step.is_last), experience.score, experience.length)


def live_in_worlds(
    agent: Agent, environments: WorldEnvironments, variables: Variables, key: Array, experience: Experience
) -> tuple[Experience, Finished]:
    """One step of simulated worlds: `choose`, the worlds, `live`; for use inside compiled functions."""
    act_key, step_key = jax.random.split(key)
    action, memory = choose(agent, variables, act_key, experience)
    step_key = jax.random.fold_in(step_key, experience.replay.written)
    keys = row_keys(step_key, action.shape[0])
    world, following = environments.step(keys, experience.world, action)
    return live(experience, action, memory, following, world)


def learn(
    update: Callable[..., tuple[TrainState, dict[str, Array], PyTree]],
    batch: int,
    length: int,
    key: Array,
    state: TrainState,
    experience: Experience,
) -> tuple[TrainState, Experience, dict[str, Array]]:
    """One update on windows of the replay, whose kept states are refreshed by it.

    One that is not finite leaves the experience as it was, and so does any later one: `draw` gives its windows again.
    """
    replay, windows, where, update_key = draw(batch, length, key, state, experience)
    state, metrics, states = update(state, update_key, windows)
    kept = experience.replay
    replay = jax.lax.cond(state.healthy, lambda: replays.refresh(replay, where, states), lambda: kept)
    return state, experience.replace(replay=replay), metrics


def draw(
    batch: int, length: int, key: Array, state: TrainState, experience: Experience
) -> tuple[Replay, Trajectory, Windows, Array]:
    """What the next update learns from, as `jaxwm.data.replay.sample` gives it, and its key."""
    sample_key, update_key = jax.random.split(key)
    sample_key = jax.random.fold_in(sample_key, state.step)
    return (*replays.sample(experience.replay, sample_key, batch, length), update_key)
