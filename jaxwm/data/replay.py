"""A replay of what an agent lives through, as a pytree: it lives on the device and inside compiled loops.

N streams (one for each environment) are written in step into rings. Windows are drawn uniformly, except that each
stretch of a stream is handed out once, first come first served, soon after it was lived through (the online queue of
DreamerV3). Beside the frames the ring keeps the model's states, so that a window that begins in mid-episode begins
with a memory; `refresh` replaces them by newer ones.

The rings are all that there is: whoever saves and restores the pytree has neither lost nor doubled anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxwm.types import Array, Arrays, PyTree, Spec, Trajectory


class Record(struct.PyTreeNode):
    """One time of N streams, in RLDS alignment: ``reward`` follows ``action``, both are void where ``is_last``.

    Attributes:
      observation: ``[N, ...]`` by name.
      action: ``[N, A]``.
      reward: ``[N]``.
      is_first: ``[N]`` bool.
      is_last: ``[N]`` bool.
      is_terminal: ``[N]`` bool.
      state: the model's state after this frame, ``[N, ...]``.
    """

    observation: Arrays
    action: Array
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array
    state: PyTree


class Windows(struct.PyTreeNode):
    """Where drawn windows lie: ``stream`` ``[B]`` and ``start`` ``[B]``, counted in records since the beginning."""

    stream: Array
    start: Array


class Replay(struct.PyTreeNode):
    """The rings.

    Attributes:
      records: ``[capacity, N, ...]``; record number p lies at ``p % capacity``.
      written: ``[]`` int32; records written so far, those that are overwritten by now included.
      served: ``[N]`` int32; up to which record each stream was handed out by the online queue.
    """

    records: Record
    written: Array
    served: Array

    @property
    def capacity(self) -> int:
        """Records of a stream that the ring holds."""
        return self.records.reward.shape[0]

    @property
    def streams(self) -> int:
        """N."""
        return self.records.reward.shape[1]


def make_replay(spec: Spec, state: PyTree, capacity: int) -> Replay:
    """An empty replay for streams of a world with ``spec``; ``state`` ``[N, ...]`` is a model's state for its shapes.

    Raises:
      ValueError: ``capacity`` is below 2.
    """
    if capacity < 2:
        raise ValueError(f"capacity is {capacity}, expected at least 2")
    count = jax.tree.leaves(state)[0].shape[0]
    empty = lambda shape, dtype: jnp.zeros((capacity, count, *shape), dtype)  # noqa: E731
    records = Record(
        observation={field.name: empty(field.shape, field.dtype) for field in spec.observation},
        action=empty((spec.action.dim,), jnp.float32),
        reward=empty((), jnp.float32),
        is_first=empty((), bool),
        is_last=empty((), bool),
        is_terminal=empty((), bool),
        state=jax.tree.map(lambda x: empty(x.shape[1:], x.dtype), state),
    )
    return Replay(records, jnp.zeros((), jnp.int32), jnp.zeros(count, jnp.int32))


def add(replay: Replay, record: Record) -> Replay:
    """Writes the next record of every stream, over the oldest one where the ring is full."""
    at = replay.written % replay.capacity
    write = lambda ring, x: jax.lax.dynamic_update_index_in_dim(ring, x.astype(ring.dtype), at, 0)  # noqa: E731
    return replay.replace(records=jax.tree.map(write, replay.records, record), written=replay.written + 1)


def can_sample(written: Array | int, length: int) -> Array | bool:
    """Whether a replay of ``written`` records holds a window of ``length``."""
    return written >= length


def sample(replay: Replay, key: Array, batch: int, length: int) -> tuple[Replay, Trajectory, Windows]:
    """Draws ``batch`` windows of ``length`` records; there must be that many (`can_sample`).

    Returns:
      The replay (its online queue has moved on), the windows with the state before each as ``initial_state``, and
      where they lie, for `refresh`.

    Raises:
      ValueError: ``length`` does not fit into the rings.
    """
    capacity, streams = replay.capacity, replay.streams
    if length >= capacity:
        raise ValueError(f"a window of {length} does not fit into a replay of {capacity} records")
    stream_key, start_key = jax.random.split(key)
    # The record before a window holds its initial state; record 0 has none before it, and needs none.
    oldest = jnp.where(replay.written <= capacity, 0, replay.written - capacity + 1)
    newest = replay.written - length
    stream = jax.random.randint(stream_key, (batch,), 0, streams)
    start = jax.random.randint(start_key, (batch,), oldest, newest + 1)

    # The streams that have waited longest come first; at most one window of each in a batch.
    rows = min(batch, streams)
    waiting = jnp.argsort(replay.served)[:rows]
    fresh = jnp.maximum(replay.served[waiting], oldest)
    ready = fresh <= newest
    stream = stream.at[:rows].set(jnp.where(ready, waiting, stream[:rows]))
    start = start.at[:rows].set(jnp.where(ready, fresh, start[:rows]))
    served = replay.served.at[waiting].set(jnp.where(ready, fresh + length, replay.served[waiting]))

    windows = Windows(stream, start)
    return replay.replace(served=served), read(replay, windows, length), windows


def read(replay: Replay, windows: Windows, length: int) -> Trajectory:
    """The records ``[B, length, ...]`` of ``windows``, with the state before each."""
    at = (windows.start[:, None] + jnp.arange(length)) % replay.capacity
    before = (windows.start - 1) % replay.capacity
    kept = jax.tree.map(lambda ring: ring[at, windows.stream[:, None]], replay.records.replace(state=None))
    is_first = kept.is_first[:, 0]
    previous = replay.records.action[before, windows.stream]
    every = jnp.ones(kept.reward.shape, bool)
    return Trajectory(
        observation=kept.observation,
        action=kept.action,
        previous_action=jnp.where(is_first[:, None], 0.0, previous),
        reward=kept.reward,
        is_first=kept.is_first,
        is_last=kept.is_last,
        is_terminal=kept.is_terminal,
        valid=every,
        action_valid=every,
        initial_state=jax.tree.map(lambda ring: ring[before, windows.stream], replay.records.state),
    )


def refresh(replay: Replay, windows: Windows, states: PyTree) -> Replay:
    """Replaces the kept states of ``windows`` by ``states`` ``[B, T, ...]``."""
    length = jax.tree.leaves(states)[0].shape[1]
    at = (windows.start[:, None] + jnp.arange(length)) % replay.capacity
    place = lambda ring, x: ring.at[at, windows.stream[:, None]].set(x.astype(ring.dtype))  # noqa: E731
    kept = jax.tree.map(place, replay.records.state, jax.lax.stop_gradient(states))
    return replay.replace(records=replay.records.replace(state=kept))
