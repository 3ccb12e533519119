"""Rollouts: dreaming with a world model and following real frames with it, each one `lax.scan`.

Every row has its own stream of random numbers, made from the caller's key, the row's number and the step, so the
same key gives the same dream whatever the batch is split over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxwm.types import SAMPLING_CONTROLS, Array, Arrays, Prediction, PyTree, Trajectory, Variables, WorldModel


class Policy(Protocol):
    """A frozen, hashable callable; its parameters are arguments, so that an update never recompiles a rollout."""

    def __call__(self, params: PyTree, keys: Array, features: Array, policy_state: PyTree) -> tuple[Array, PyTree]:
        """Gives the action ``[B, A]`` for ``features`` ``[B, F]`` with one key a row, and its own next state."""
        ...


class Dream(struct.PyTreeNode):
    """What was imagined: ``T+1`` entries, of which entry 0 is the state that was given.

    Attributes:
      features: ``[B, T+1, F]``.
      prediction: what the model expects to see, ``[B, T+1, ...]``; None unless asked for.
      action: ``[B, T+1, A]``; ``action[t]`` leads from entry t to t+1, the last is void (zeros).
      final_state: the model's state at entry T.
      states: the model's states ``[B, T+1, ...]``; None unless asked for.
    """

    features: Array
    prediction: Prediction | None
    action: Array
    final_state: PyTree
    states: PyTree | None


class Observed(struct.PyTreeNode):
    """What a model made of real frames.

    Attributes:
      features: ``[B, T, F]`` after each frame.
      prediction: what each state decodes to (the reconstruction), ``[B, T, ...]``; None unless asked for.
      surprise: ``[B, T]``, how little each frame was expected; 0 where an episode begins; None unless asked for.
      final_state: the state after each row's last valid frame.
      states: the states ``[B, T, ...]``; None unless asked for.
    """

    features: Array
    prediction: Prediction | None
    surprise: Array | None
    final_state: PyTree
    states: PyTree | None


def imagine(
    model: WorldModel,
    variables: Variables,
    key: Array,
    state: PyTree,
    actions: Array | None = None,
    *,
    policy: Policy | None = None,
    policy_params: PyTree = None,
    policy_state: PyTree = None,
    horizon: int | None = None,
    decode: bool = False,
    condition: Arrays | None = None,
    return_states: bool = False,
) -> Dream:
    """Imagines what follows from ``state`` under an action sequence or a policy; compiled once for each shape.

    Args:
      model: any world model.
      variables: its variables.
      key: one PRNG key; row i at step t draws from a key that is a function of (key, i, t).
      state: the model's state, ``[B, ...]``.
      actions: ``[B, T, A]`` float32 in raw units; either this or ``policy``.
      policy: acts on the features of each imagined state.
      policy_params: the policy's parameters.
      policy_state: the policy's first state, ``[B, ...]``.
      horizon: T; by default the length of ``actions``, of which otherwise the first T are used.
      decode: whether to decode every entry.
      condition: the spec's conditions ``[B, T, ...]``, where entry t steers the step to entry t+1, and
        sampling controls ``[B]`` (`jaxwm.types.SAMPLING_CONTROLS`).
      return_states: whether to keep whole states (large for models with a cache).

    Raises:
      ValueError: an argument that does not fit the model's spec, by name.
    """
    horizon = _check(model, state, actions, policy, horizon, condition)
    return _imagine_jit(
        model, policy, horizon, decode, return_states,
        variables, key, state, actions, policy_params, policy_state, condition,
    )  # fmt: skip


def imagine_pmap(
    model: WorldModel,
    variables: Variables,
    key: Array,
    state: PyTree,
    actions: Array | None = None,
    *,
    policy: Policy | None = None,
    policy_params: PyTree = None,
    policy_state: PyTree = None,
    horizon: int | None = None,
    decode: bool = False,
    condition: Arrays | None = None,
    return_states: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Dream:
    """`imagine`, with the batch split over all devices of this process (or ``devices``): the same dream, faster.

    A batch that does not divide by the number of devices is padded with copies of its last row, which are
    dropped from the result. Arguments, result and errors are those of `imagine`.
    """
    horizon = _check(model, state, actions, policy, horizon, condition)
    batch = _batch_size(state)
    devices = tuple(devices or jax.local_devices())
    rows = -(-batch // len(devices))

    def split(tree: PyTree) -> PyTree:
        padding = rows * len(devices) - batch
        pad = lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], padding, axis=0)]) if padding else x  # noqa: E731
        return jax.tree.map(lambda x: pad(x).reshape(len(devices), rows, *x.shape[1:]), tree)

    run = _pmapped(model, policy, horizon, decode, return_states, devices)  # type: ignore[arg-type]  # hashable
    dream = run(
        variables, split(row_keys(key, batch)), split(state), split(actions), policy_params,
        split(policy_state), split(condition),
    )  # fmt: skip
    return jax.tree.map(lambda x: x.reshape(rows * len(devices), *x.shape[2:])[:batch], dream)


def counterfactuals(
    model: WorldModel,
    variables: Variables,
    key: Array,
    state: PyTree,
    actions: Array,
    *,
    decode: bool = False,
    condition: Arrays | None = None,
    return_states: bool = False,
) -> Dream:
    """What would follow from the same state, with the same luck, under each of N action sequences.

    Args:
      model: any world model.
      variables: its variables.
      key: one PRNG key; all sequences of a row share its random numbers, so that only the actions differ.
      state: the model's state, ``[B, ...]``.
      actions: ``[N, T, A]``, the same for every row, or ``[B, N, T, A]``.
      decode: whether to decode every entry.
      condition: as in `imagine`, with leading ``[B]``.
      return_states: whether to keep whole states.

    Returns:
      A `Dream` whose arrays lead with ``[B, N]`` in place of ``[B]``.

    Raises:
      ValueError: an argument that does not fit the model's spec, by name.
    """
    batch = _batch_size(state)
    if jnp.ndim(actions) == 3:
        actions = jnp.broadcast_to(actions, (batch, *actions.shape))
    if jnp.ndim(actions) != 4 or actions.shape[0] != batch:
        raise ValueError(f"actions has shape {jnp.shape(actions)}, expected [N, T, A] or [{batch}, N, T, A]")
    count, horizon = actions.shape[1:3]
    repeat = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), tree)  # noqa: E731
    state, condition = repeat(state), repeat(condition)
    actions = actions.reshape(batch * count, horizon, -1)
    _check(model, state, actions, None, horizon, condition)
    dream = _rollout_jit(
        model, None, horizon, decode, return_states,
        variables, repeat(row_keys(key, batch)), state, actions, None, None, condition,
    )  # fmt: skip
    return jax.tree.map(lambda x: x.reshape(batch, count, *x.shape[1:]), dream)


def observe_sequence(
    model: WorldModel,
    variables: Variables,
    key: Array,
    trajectory: Trajectory,
    state: PyTree = None,
    *,
    decode: bool = False,
    surprise: bool = False,
    temperature: float | Array | None = None,
    return_states: bool = False,
) -> Observed:
    """Follows real frames: a scan over `WorldModel.observe` along ``trajectory``.

    Args:
      model: any world model.
      variables: its variables.
      key: one PRNG key; row i at step t draws from a key that is a function of (key, i, t).
      trajectory: ``[B, T, ...]``; padding leaves the state as it was.
      state: the state before entry 0; by default a fresh one.
      decode: whether to decode every state.
      surprise: whether to measure each frame's surprise.
      temperature: sampling control, a scalar or ``[B]``; by default the model's own sampling.
      return_states: whether to keep whole states.

    Raises:
      ValueError: a trajectory or state that does not fit the model's spec, by name.
    """
    model.spec.check_trajectory(trajectory)
    batch = trajectory.reward.shape[0]
    if state is None:
        state = model.init_state(batch)
    _check_state(model, state)
    if temperature is not None:
        temperature = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (batch,))
    return _observe_jit(
        model, decode, surprise, return_states, variables, row_keys(key, batch), state,
        trajectory.replace(info={}), temperature,
    )  # fmt: skip


def rollout(
    model: WorldModel,
    policy: Policy | None,
    horizon: int,
    decode: bool,
    return_states: bool,
    variables: Variables,
    row_keys: Array,
    state: PyTree,
    actions: Array | None,
    policy_params: PyTree,
    policy_state: PyTree,
    condition: Arrays | None,
) -> Dream:
    """The scan behind `imagine`, uncompiled and unchecked, for use inside other compiled functions.

    Arguments are those of `imagine`, but for ``row_keys``, ``[B]`` keys in place of one.
    """
    batch = row_keys.shape[0]
    controls, steered = _split_condition(condition)

    def entry_of(state: PyTree) -> tuple[Array, Prediction | None, PyTree | None]:
        return (
            model.features(variables, state),
            model.decode(variables, state) if decode else None,
            state if return_states else None,
        )

    def step(t: Array, carry: tuple[PyTree, PyTree, PyTree, Array]) -> tuple[PyTree, PyTree, PyTree, Array]:
        state, policy_state, entries, chosen = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, t)
        entry = entry_of(state)
        if policy is None:
            action = jax.lax.dynamic_index_in_dim(chosen, t, axis=1, keepdims=False)
        else:
            keys, policy_keys = _split_keys(keys)
            action, policy_state = policy(policy_params, policy_keys, entry[0], policy_state)
            chosen = jax.lax.dynamic_update_index_in_dim(chosen, action, t, axis=1)
        condition_t = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False), steered)
        following = model.predict(variables, keys, state, action, _join_condition(controls, condition_t))
        return following, policy_state, _write(entries, entry, t), chosen

    # The entries are written where they belong in batch-major arrays that the loop carries: stacking them by time
    # and transposing would copy everything twice, which for a small model costs as much as the model.
    shapes = jax.eval_shape(entry_of, state)
    entries = jax.tree.map(lambda x: jax.lax.empty((batch, horizon + 1, *x.shape[1:]), x.dtype), shapes)
    void = jnp.zeros((batch, 1, model.spec.action.dim))
    chosen = jnp.zeros((batch, horizon + 1, model.spec.action.dim))
    if actions is not None:
        chosen = jnp.concatenate([actions[:, :horizon], void], axis=1)
    # Without decoder and policy a step is so short that the loop's overhead shows; five steps at a time hide it.
    (state, policy_state, entries, chosen), _ = jax.lax.scan(
        lambda carry, t: (step(t, carry), None),
        (state, policy_state, entries, chosen),
        jnp.arange(horizon),
        unroll=1 if decode or policy is not None else min(5, horizon),
    )
    features, prediction, states = _write(entries, entry_of(state), horizon)
    return Dream(features, prediction, chosen, state, states)


def _write(buffers: PyTree, entry: PyTree, t: Array | int) -> PyTree:
    """``buffers`` ``[B, T+1, ...]`` with ``entry`` ``[B, ...]`` at time ``t``."""
    return jax.tree.map(lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, t, axis=1), buffers, entry)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _imagine_jit(
    model: WorldModel,
    policy: Policy | None,
    horizon: int,
    decode: bool,
    return_states: bool,
    variables: Variables,
    key: Array,
    state: PyTree,
    *rest: Any,
) -> Dream:
    keys = row_keys(key, _batch_size(state))
    return rollout(model, policy, horizon, decode, return_states, variables, keys, state, *rest)


_rollout_jit = jax.jit(rollout, static_argnums=(0, 1, 2, 3, 4))


@functools.lru_cache(maxsize=64)
def _pmapped(
    model: WorldModel,
    policy: Policy | None,
    horizon: int,
    decode: bool,
    return_states: bool,
    devices: tuple[jax.Device, ...],
) -> Callable[..., Dream]:
    run = functools.partial(rollout, model, policy, horizon, decode, return_states)
    return jax.pmap(run, in_axes=(None, 0, 0, 0, None, 0, 0), devices=devices)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _observe_jit(
    model: WorldModel,
    decode: bool,
    surprise: bool,
    return_states: bool,
    variables: Variables,
    row_keys: Array,
    state: PyTree,
    trajectory: Trajectory,
    temperature: Array | None,
) -> Observed:
    controls = {} if temperature is None else {"temperature": temperature}

    def step(state: PyTree, inputs: tuple) -> tuple[PyTree, Any]:
        t, previous_action, observation, is_first, valid, condition_t = inputs
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, t)
        condition = _join_condition(controls, condition_t)
        measured = None
        if surprise:
            keys, surprise_keys = _split_keys(keys)
            measured = model.surprise(variables, surprise_keys, state, previous_action, observation, condition)
            measured = jnp.where(is_first | ~valid, 0.0, measured)
        seen = model.observe(variables, keys, state, previous_action, observation, is_first, condition)
        state = where_rows(valid, seen, state)
        decoded = model.decode(variables, state) if decode else None
        return state, (model.features(variables, state), decoded, measured, state if return_states else None)

    swap = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    length = trajectory.reward.shape[1]
    inputs = swap((
        trajectory.previous_actions(), trajectory.observation, trajectory.is_first, trajectory.valid,
        trajectory.condition or None,
    ))  # fmt: skip
    final_state, outputs = jax.lax.scan(step, state, (jnp.arange(length), *inputs))
    features, prediction, measured, states = swap(outputs)
    return Observed(features, prediction, measured, final_state, states)


def where_rows(mask: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` ``[B, ...]`` in the rows in which ``mask`` ``[B]`` is True, ``old`` in the others."""
    return jax.tree.map(lambda n, o: jnp.where(mask.reshape(-1, *[1] * (n.ndim - 1)), n, o), new, old)


def row_keys(key: Array, batch: int) -> Array:
    """``[B]``: the key of each row, a function of ``key`` and the row's number alone."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def _split_keys(keys: Array) -> tuple[Array, Array]:
    both = jax.vmap(jax.random.split)(keys)
    return both[:, 0], both[:, 1]


def _split_condition(condition: Arrays | None) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """The sampling controls, constant along a rollout, and the conditions of each step."""
    given = dict(condition or {})
    controls = {name: given.pop(name) for name in SAMPLING_CONTROLS if name in given}
    return controls, given or None


def _join_condition(controls: dict[str, Array], condition: Arrays | None) -> dict[str, Array] | None:
    return {**controls, **(condition or {})} or None


def _batch_size(state: PyTree) -> int:
    leaves = jax.tree.leaves(state)
    if not leaves or jnp.ndim(leaves[0]) < 1:
        raise ValueError("state has no array with a leading batch axis")
    return leaves[0].shape[0]


def _check_state(model: WorldModel, state: PyTree) -> None:
    """Raises ValueError unless ``state`` has the structure and shapes of ``model.init_state``."""
    expected = _expected_state(model, _batch_size(state))  # type: ignore[arg-type]  # hashable
    given, wanted = str(jax.tree.structure(state)), str(jax.tree.structure(expected))
    if given != wanted:
        raise ValueError(f"state is {given}, expected {wanted}")
    for (path, want), got in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(state), strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} is {got.dtype}{list(got.shape)}, "
                f"expected {want.dtype}{list(want.shape)}"
            )


@functools.lru_cache(maxsize=256)
def _expected_state(model: WorldModel, batch: int) -> PyTree:
    """Shapes and dtypes of a state; remembered, because tracing takes longer than a short rollout."""
    return jax.eval_shape(lambda: model.init_state(batch))


def _check(
    model: WorldModel,
    state: PyTree,
    actions: Array | None,
    policy: Policy | None,
    horizon: int | None,
    condition: Arrays | None,
) -> int:
    """Checks the arguments of `imagine` and returns the horizon."""
    _check_state(model, state)
    batch = _batch_size(state)
    if (actions is None) == (policy is None):
        raise ValueError("imagine takes either actions or a policy")
    if actions is not None:
        if jnp.ndim(actions) != 3:
            raise ValueError(f"actions has shape {jnp.shape(actions)}, expected [B, T, A]")
        length = actions.shape[1]
        model.spec.check_action(actions, (batch, length), "actions")
        if horizon is not None and horizon > length:
            raise ValueError(f"horizon is {horizon}, but actions has only {length} steps")
        horizon = length if horizon is None else horizon
    if horizon is None:
        raise ValueError("imagine with a policy needs a horizon")
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}, expected at least 1")
    controls, steered = _split_condition(condition)
    for name, control in controls.items():
        if jnp.shape(control) != (batch,):
            raise ValueError(f"condition[{name!r}] has shape {jnp.shape(control)}, expected ({batch},)")
    model.spec.check_condition(steered, (batch, horizon))
    return horizon
