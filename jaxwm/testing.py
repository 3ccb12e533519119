"""The laws that every world model keeps, as checks for anybody's model.

    >>> check_world_model(MyModel(spec), MyModel(spec).spec)

runs them all on small made-up data; a broken law is an AssertionError that says which, and what was seen. Each
law is also a function of its own. The number of devices is that of the process: with
``XLA_FLAGS=--xla_force_host_platform_device_count=8`` the laws about sharding have something to say on a CPU.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxwm.imagination import imagine, imagine_pmap, observe_sequence
from jaxwm.types import Array, PyTree, Spec, Trajectory, Variables, WorldModel, example_batch

BATCH, LENGTH = 2, 5
TOLERANCE = 1e-5
_OPTIMIZER = optax.adam(3e-3)


def check_world_model(model: WorldModel, spec: Spec, *, seed: int = 0, updates: int = 200) -> None:
    """Checks all laws on a small model; takes seconds to a minute, most of it compilation.

    Args:
      model: a small instance of the family.
      spec: what the model was built for.
      seed: of the data, the parameters and the noise.
      updates: Adam steps in which the loss on one clip has to halve.

    Raises:
      AssertionError: a law is broken; the message names it.
    """
    hash(model)
    if model.spec != spec:
        raise AssertionError(f"model.spec is {model.spec}, expected {spec}")
    key = jax.random.key(seed)
    batch = moving_clips(spec, BATCH, LENGTH, seed)
    variables = jax.jit(model.init)(key, batch)
    check_rollout(model, variables, key, batch)
    check_devices(model, variables, key, batch)
    check_causality(model, variables, key, batch)
    check_rows(model, variables, key, batch)
    check_long_dream(model, variables, key, batch)
    check_sharding(model, variables, key)
    check_errors(model, variables, key, batch)
    for stage in model.stages:
        check_training(model, variables, key, batch, stage.name, updates)
        check_resuming(model, variables, key, batch, stage.name)


def moving_clips(spec: Spec, batch: int, length: int, seed: int = 0) -> Trajectory:
    """Made-up episodes with the shapes of ``spec``: a bright square on a tinted ground, smooth vectors."""
    random = np.random.default_rng(seed)
    clips = example_batch(spec, batch, length)
    observation: dict[str, Array] = {}
    for name, shape, _ in spec.images:
        frames = np.empty((batch, length, *shape), np.uint8)
        frames[:] = random.integers(0, 100, (batch, 1, 1, 1, shape[2]))
        side = max(2, shape[0] // 4)
        for row in range(batch):
            y, x = random.integers(0, shape[0] - side, 2)
            for t in range(length):
                frames[row, t, y : y + side, (x + t) % (shape[1] - side) :][:, :side] = 255
        observation[name] = jnp.asarray(frames)
    for name, shape, _ in spec.vectors:
        phase = random.uniform(0, 2 * np.pi, (batch, 1, *shape))
        observation[name] = jnp.asarray(np.sin(phase + 0.3 * np.arange(length)[:, None]), jnp.float32)
    condition = {}
    for name, shape, dtype in spec.condition:
        condition[name] = jnp.asarray(random.integers(0, 2, (batch, length, *shape)), dtype)
    actions = random_actions(spec, batch, length, seed)
    reward = jnp.asarray(random.normal(size=(batch, length)), jnp.float32)
    return clips.replace(observation=observation, action=actions, reward=reward, condition=condition)


def random_actions(spec: Spec, batch: int, length: int, seed: int = 0) -> Array:
    """``[B, T, A]`` actions within the bounds of ``spec``, one-hot where it is discrete."""
    random = np.random.default_rng(seed + 1)
    action = spec.action
    if action.discrete:
        return jax.nn.one_hot(random.integers(0, action.dim, (batch, length)), action.dim)
    low, high = (-1.0, 1.0) if action.low is None else (np.asarray(action.low), np.asarray(action.high))
    return jnp.asarray(random.uniform(low, high, (batch, length, action.dim)), jnp.float32)


def _with_another(spec: Spec, actions: Array, t: int) -> Array:
    """``actions`` ``[B, T, A]`` with other ones at time ``t``."""
    other = random_actions(spec, actions.shape[0], actions.shape[1], seed=7)[:, t]
    other = jnp.where(other == actions[:, t], jnp.roll(other, 1, axis=-1), other)
    return actions.at[:, t].set(other)


def check_rollout(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> None:
    """Law 1: `imagine` equals a Python loop over `predict`, and is traced once, also after an update."""
    state, actions = _seen(model, variables, key, batch).final_state, batch.action
    predict = jax.jit(model.predict)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(BATCH))
    loop, features = state, [model.features(variables, state)]
    for t in range(LENGTH):
        loop = predict(variables, jax.vmap(jax.random.fold_in, (0, None))(row_keys, t), loop, actions[:, t])
        features.append(model.features(variables, loop))
    dream = imagine(model, variables, key, state, actions)
    _same("1: imagine equals a loop over predict", dream.features, jnp.stack(features, axis=1))
    _same("1: the final state is that of the loop", dream.final_state, loop)

    traces = []

    @jax.jit
    def compiled(variables: Variables) -> Array:
        traces.append(1)
        return imagine(model, variables, key, state, actions).features

    compiled(variables)
    updated = jax.tree.map(lambda x: x + 0.01 if jnp.issubdtype(x.dtype, jnp.floating) else x, variables)
    _require("1: an update reaches the compiled rollout", not _close(compiled(updated), dream.features, 0.0))
    _require(f"1: the rollout is traced once (it was traced {len(traces)} times)", len(traces) == 1)


def check_devices(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> None:
    """Law 2: the same key gives the same dream, again and on all devices of the process, with any batch."""
    rows = 2 * jax.local_device_count() + 1  # does not divide, so that padding is tried
    repeated = jax.tree.map(lambda x: jnp.resize(x, (rows, *x.shape[1:])), batch)
    state = _seen(model, variables, key, repeated).final_state
    dreams = [imagine(model, variables, key, state, repeated.action, decode=True) for _ in range(2)]
    _same("2: the same key gives the same dream", dreams[0], dreams[1], tolerance=0.0)
    on_all = imagine_pmap(model, variables, key, state, repeated.action, decode=True)
    _same(f"2: pmap over {jax.local_device_count()} devices dreams as one device does", dreams[0], on_all)


def check_causality(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> None:
    """Law 3: the future does not reach the past, and ``action[t]`` acts from entry t+1 on."""
    t = LENGTH // 2
    plain = _seen(model, variables, key, batch)

    def changed(x: Array) -> Array:
        return x.at[:, t + 1 :].set(255 - x[:, t + 1 :] if x.dtype == jnp.uint8 else -x[:, t + 1 :] + 1)

    future = batch.replace(observation={name: changed(x) for name, x in batch.observation.items()})
    after = _seen(model, variables, key, future)
    _same("3: a changed future leaves the past untouched", plain.features[:, : t + 1], after.features[:, : t + 1])
    _require("3: frames reach the features", not _close(plain.features[:, t + 1 :], after.features[:, t + 1 :]))
    actions = _with_another(model.spec, batch.action, t)
    first = imagine(model, variables, key, plain.final_state, batch.action).features
    second = imagine(model, variables, key, plain.final_state, actions).features
    _same("3: action[t] leaves entries up to t untouched", first[:, : t + 1], second[:, : t + 1])
    _require("3: action[t] reaches entry t+1", not _close(first[:, t + 1], second[:, t + 1]))


def check_rows(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> None:
    """Law 4: rows of a batch don't see each other, and ``is_first`` gives a fresh start."""
    last = lambda x: x.at[-1].set(255 - x[-1] if x.dtype == jnp.uint8 else x[-1] + 1)  # noqa: E731
    other = batch.replace(
        observation={name: last(x) for name, x in batch.observation.items()}, action=jnp.roll(batch.action, 1, axis=-1)
    )
    other = other.replace(action=batch.action.at[-1].set(other.action[-1]))
    plain, changed = (_seen(model, variables, key, clips, decode=True) for clips in (batch, other))
    rows = functools.partial(jax.tree.map, lambda x: x[:-1])
    _same("4: rows don't see each other in observe", rows(plain.features), rows(changed.features))
    _same("4: rows don't see each other in decode", rows(plain.prediction), rows(changed.prediction))
    dreams = [
        imagine(model, variables, key, seen.final_state, clips.action, decode=True)
        for seen, clips in ((plain, batch), (changed, other))
    ]
    _same("4: rows don't see each other in predict", rows(dreams[0].prediction), rows(dreams[1].prediction))
    fresh, first = model.init_state(BATCH), jax.tree.map(lambda x: x[:, 0], batch.observation)
    keys, begins = jax.random.split(key, BATCH), jnp.ones(BATCH, bool)
    observe = jax.jit(model.observe)
    cold = observe(variables, keys, fresh, jnp.zeros_like(batch.action[:, 0]), first, begins)
    warm = observe(variables, keys, plain.final_state, batch.action[:, 1], first, begins)
    _same(
        "4: is_first gives what a fresh start gives", model.features(variables, cold), model.features(variables, warm)
    )
    _same("4: is_first gives a fresh state", cold, warm)


def check_long_dream(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> None:
    """Law 6: a dream of eight times the length of the clips stays finite."""
    state = _seen(model, variables, key, batch).final_state
    actions = random_actions(model.spec, BATCH, 8 * LENGTH)
    dream = imagine(model, variables, key, state, actions, decode=True)
    for path, value in jax.tree.leaves_with_path((dream.features, dream.prediction)):
        _require(f"6: a long dream stays finite (at {jax.tree_util.keystr(path)})", bool(jnp.all(jnp.isfinite(value))))


def check_training(
    model: WorldModel, variables: Variables, key: Array, batch: Trajectory, stage: str, updates: int
) -> None:
    """Law 5: a stage trains what it says and nothing else, and overfits one clip; void entries have no gradient."""
    keys = jax.random.split(key, BATCH)
    loss_of = jax.jit(lambda batch: model.loss(variables, keys, batch, stage)[0])
    other = batch.replace(action=_with_another(model.spec, batch.action, LENGTH - 1))
    _require("5: the loss ignores the void last action", loss_of(batch) == loss_of(other))
    fits = next(s for s in model.stages if s.name == stage).fits
    update = _updater(model, stage)
    trained, state, losses = variables, _OPTIMIZER.init(variables["params"]), []
    for step in range(updates if fits else 5):
        trained, state, loss = update(trained, state, jax.random.fold_in(key, step), batch)
        losses.append(float(loss))
        if step == min(5, updates) - 1:
            _check_trained(model, variables, trained, stage)
    _require("5: the loss is finite", bool(np.all(np.isfinite(losses))))
    if not fits:
        return
    start, end = np.mean(losses[:3]), np.mean(losses[-3:])
    _require(f"5: the loss on one clip halves in {updates} updates (from {start:.4g} to {end:.4g})", end < start / 2)


def check_resuming(model: WorldModel, variables: Variables, key: Array, batch: Trajectory, stage: str) -> None:
    """Law 7: save, restore and continue is bitwise the same as never having stopped."""
    update, optimizer = _updater(model, stage), _OPTIMIZER.init(variables["params"])

    def advance(start: tuple[Variables, PyTree], steps: range) -> tuple[Variables, PyTree]:
        for step in steps:
            *start, _ = update(*start, jax.random.fold_in(key, step), batch)
        return tuple(start)

    straight = advance((variables, optimizer), range(4))
    half = advance((variables, optimizer), range(2))
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        path = pathlib.Path(folder) / "half"
        checkpointer.save(path, half)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, half))
    # Restored arrays are bound to their device, for which the update would be compiled anew.
    restored = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), restored)
    _same("7: a restored run goes on bitwise", straight, advance(restored, range(2, 4)), tolerance=0.0)


def check_sharding(model: WorldModel, variables: Variables, key: Array) -> None:
    """Law 8: loss and gradients of a batch that is sharded over all devices equal those of an unsharded one.

    With one device there is nothing to compare.
    """
    if jax.local_device_count() == 1:
        return
    rows = 2 * jax.local_device_count()
    batch = moving_clips(model.spec, rows, LENGTH)
    keys = jax.random.split(key, rows)
    mesh = jax.make_mesh((jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,))
    by_row, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    for stage in model.stages:

        def loss(params: PyTree, batch: Trajectory, keys: Array, stage: str = stage.name) -> Array:
            return model.loss({**variables, "params": params}, keys, batch, stage)[0]

        value_and_grad = jax.jit(jax.value_and_grad(loss))
        plain = value_and_grad(variables["params"], batch, keys)
        sharded = value_and_grad(
            jax.device_put(variables["params"], whole), jax.device_put(batch, by_row), jax.device_put(keys, by_row)
        )
        scale = max(1.0, float(optax.tree.norm(plain[1])), abs(float(plain[0])))
        relative = functools.partial(jax.tree.map, lambda x, scale=scale: np.asarray(x) / scale)
        _same(f"8: sharded loss and gradients ({stage.name}) equal unsharded ones", relative(plain), relative(sharded))


def check_errors(model: WorldModel, variables: Variables, key: Array, batch: Trajectory) -> None:
    """Law 9: a wrong shape, dtype, name or action size is a ValueError that names the field, while tracing."""
    state, keys = model.init_state(BATCH), jax.random.split(key, BATCH)
    first = {name: x[:, 0] for name, x in batch.observation.items()}
    action, begins = batch.action[:, 0], jnp.ones(BATCH, bool)
    wide = jnp.zeros((BATCH, model.spec.action.dim + 1))

    def observe(observation: Any, action: Array = action) -> Callable[[], Any]:
        return functools.partial(model.observe, variables, keys, state, action, observation, begins)

    def surprise(observation: Any, action: Array = action) -> Callable[[], Any]:
        return functools.partial(model.surprise, variables, keys, state, action, observation)

    def loss(**changes: Any) -> Callable[[], Any]:
        return functools.partial(model.loss, variables, keys, batch.replace(**changes), model.stages[0].name)

    tries: list[tuple[str, Callable[[], Any]]] = [
        ("action", functools.partial(model.predict, variables, keys, state, wide)),
        ("previous_action", observe(first, wide)),
        ("misspelt", observe({**first, "misspelt": wide})),
        ("previous_action", surprise(first, wide)),
        ("misspelt", surprise({**first, "misspelt": wide})),
        ("action", loss(action=batch.action[..., :0])),
        ("reward", loss(reward=batch.reward.astype(jnp.int32))),
        ("actions", functools.partial(imagine, model, variables, key, state, wide[:, None])),
    ]
    for name, value in first.items():
        tries += [
            (name, observe({k: v for k, v in first.items() if k != name})),
            (name, observe({**first, name: value[:, :-1]})),
            (name, observe({**first, name: value.astype(jnp.float16)})),
        ]
    for name, call in tries:
        try:
            jax.eval_shape(call)
        except ValueError as error:
            _require(f"9: the error names {name!r} (it says {str(error)!r})", name in str(error))
        else:
            raise AssertionError(f"law 9: a wrong {name!r} was accepted")


def _make_updater(model: WorldModel, stage: str) -> Callable[..., tuple[Variables, PyTree, Array]]:
    """``update(variables, state, key, batch)`` with `_OPTIMIZER`, for the parameters that ``stage`` trains."""

    @jax.jit
    def update(variables: Variables, state: PyTree, key: Array, batch: Trajectory) -> tuple[Variables, PyTree, Array]:
        keys = jax.random.split(key, BATCH)

        def loss(params: PyTree) -> tuple[Array, Any]:
            return model.loss({**variables, "params": params}, keys, batch, stage)

        (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        keep = _trainable(model, variables["params"], stage)
        gradients = jax.tree.map(lambda trains, g: g if trains else jnp.zeros_like(g), keep, gradients)
        updates, state = _OPTIMIZER.update(gradients, state)
        params = optax.apply_updates(variables["params"], updates)
        return model.after_update({**variables, "params": params}, aux, stage), state, value

    return update


_updater: Any = functools.lru_cache(maxsize=1)(_make_updater)
"""Two laws need the same update: it is compiled once for both."""


def _trainable(model: WorldModel, params: PyTree, stage: str) -> PyTree:
    """Which leaves of ``params`` the stage trains, as a tree of bools."""
    prefixes = next(s.trainable for s in model.stages if s.name == stage)

    def trains(path: tuple[Any, ...], _: Any) -> bool:
        name = "/".join(str(part.key) for part in path)
        return any(not prefix or name == prefix or name.startswith(prefix + "/") for prefix in prefixes)

    return jax.tree.map_with_path(trains, params)


def _check_trained(model: WorldModel, before: Variables, after: Variables, stage: str) -> None:
    trains = jax.tree.leaves(_trainable(model, before["params"], stage))
    for (path, old), new, expected in zip(
        jax.tree.leaves_with_path(before["params"]), jax.tree.leaves(after["params"]), trains, strict=True
    ):
        changed = bool(jnp.any(old != new))
        name = jax.tree_util.keystr(path)
        _require(f"5: stage {stage} {'trains' if expected else 'leaves'} params{name}", changed == expected)


def _seen(model: WorldModel, variables: Variables, key: Array, batch: Trajectory, decode: bool = False) -> Any:
    return observe_sequence(model, variables, key, batch, decode=decode)


def _leaves(tree: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in jax.tree.leaves_with_path(tree):
        yield jax.tree_util.keystr(path), np.asarray(leaf)


def _close(a: PyTree, b: PyTree, tolerance: float = TOLERANCE) -> bool:
    return all(
        np.allclose(x, y, rtol=tolerance, atol=tolerance)
        for (_, x), (_, y) in zip(_leaves(a), _leaves(b), strict=True)
    )


def _same(law: str, a: PyTree, b: PyTree, tolerance: float = TOLERANCE) -> None:
    for (name, x), (_, y) in zip(_leaves(a), _leaves(b), strict=True):
        if x.shape != y.shape:
            raise AssertionError(f"law {law}: {name} has the shapes {x.shape} and {y.shape}")
        if not np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True):
            difference = np.max(np.abs(x.astype(np.float64) - y.astype(np.float64)))
            raise AssertionError(f"law {law}: {name} differs by up to {difference:.3g}")


def _require(law: str, holds: Any) -> None:
    if not holds:
        raise AssertionError(f"law {law}")
