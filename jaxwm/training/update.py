"""One training step: loss, gradients, optimiser, targets and average, compiled as one donated function.

    state = init_state(model, stage, optimizer, key, batch, ema=0.999)
    update = make_update(model, stage, optimizer, ema=0.999)
    state, metrics = update(state, key, batch)        # the old ``state`` is gone: its memory holds the new one

The key is the same at every step: row r of step s draws from ``fold_in(fold_in(key, s), r)``, so what is drawn depends
neither on the number of devices nor on whether the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from jaxwm.training.optimizers import check_trainable, parameter_path, train_only, trainable_mask
from jaxwm.training.sharding import batch_sharding, make_mesh, replicated, state_sharding
from jaxwm.types import Array, Aux, PyTree, Stage, Trajectory, Variables, WorldModel

Compilable = jax.stages.Wrapped
"""A function under `jax.jit`: call it, or ``.lower(...).compile()`` it ahead of time."""


class TrainState(struct.PyTreeNode):
    """All that an update changes.

    Attributes:
      step: ``[]`` int32; updates done, over all stages.
      variables: ``{"params", "targets"}`` of the model.
      optimizer: the optimiser's state; has no entries for parameters that the stage does not train.
      average: moving average of the parameters, or None.
      healthy: ``[]`` bool; False once a step was not finite. That step and all later ones are then not applied:
        the state stays as it was before it, and ``step`` says which one it was.
    """

    step: Array
    variables: Variables
    optimizer: PyTree
    average: PyTree | None
    healthy: Array

    def smooth_variables(self) -> Variables:
        """The variables to imagine with: those of the average where there is one."""
        return self.variables if self.average is None else {**self.variables, "params": self.average}


def init_state(
    model: WorldModel,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    key: Array,
    batch: Trajectory,
    *,
    ema: float | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """A fresh state at step 0, on all devices of ``mesh``.

    ``batch`` is what `WorldModel.init` takes; every process gives the same.

    Raises:
      ValueError: ``stage.trainable`` names parameters that do not exist.
    """
    mesh = make_mesh() if mesh is None else mesh
    return jax.jit(_make_init(model, stage, optimizer, ema, mesh))(key, batch)


def abstract_state(
    model: WorldModel,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    batch: Trajectory,
    *,
    ema: float | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """What `init_state` would return, as shapes, dtypes and shardings; nothing is computed."""
    mesh = make_mesh() if mesh is None else mesh
    shapes = jax.eval_shape(_make_init(model, stage, optimizer, ema, mesh), jax.random.key(0), batch)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, state_sharding(mesh, shapes))


def _make_init(
    model: WorldModel, stage: Stage, optimizer: optax.GradientTransformation, ema: float | None, mesh: Mesh
) -> Callable[[Array, Trajectory], TrainState]:
    def init(key: Array, batch: Trajectory) -> TrainState:
        variables = model.init(key, batch)
        check_trainable(variables["params"], stage.trainable)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            variables=variables,
            optimizer=train_only(optimizer, stage.trainable).init(variables["params"]),
            average=None if ema is None else variables["params"],
            healthy=jnp.ones((), bool),
        )
        return jax.lax.with_sharding_constraint(state, state_sharding(mesh, state))

    return init


def begin_stage(
    state: TrainState, stage: Stage, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainState:
    """Hands ``state`` over to ``stage``: variables, average and step go on, the optimiser starts anew.

    Raises:
      ValueError: ``stage.trainable`` names parameters that do not exist.
    """
    mesh = make_mesh() if mesh is None else mesh
    check_trainable(state.variables["params"], stage.trainable)

    def init(params: PyTree) -> PyTree:
        fresh = train_only(optimizer, stage.trainable).init(params)
        return jax.lax.with_sharding_constraint(fresh, state_sharding(mesh, fresh))

    return state.replace(optimizer=jax.jit(init)(state.variables["params"]))


def make_update(
    model: WorldModel,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ema: float | None = None,
    mesh: Mesh | None = None,
) -> Compilable:
    """The compiled function ``update(state, key, batch) -> (state, metrics)`` of a stage; it consumes ``state``."""
    step = update_step(model, stage, optimizer, ema, mesh)
    return jax.jit(lambda state, key, batch: step(state, key, batch)[:2], donate_argnums=0)


def update_step(
    model: WorldModel,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ema: float | None = None,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Array, Trajectory], tuple[TrainState, dict[str, Array], PyTree]]:
    """What `make_update` compiles, for use inside other compiled functions: ``-> (state, metrics, aux.states)``.

    ``metrics`` are scalars on the device: ``loss``, what the model reports, and the norms ``gradient_norm``,
    ``update_norm`` (over the trained parameters) and ``parameter_norm`` (over all, after the update). A step whose
    loss, gradient or update is not finite changes nothing but ``state.healthy``.
    """
    mesh = make_mesh() if mesh is None else mesh
    optimizer = train_only(optimizer, stage.trainable)

    def update(state: TrainState, key: Array, batch: Trajectory) -> tuple[TrainState, dict[str, Array], PyTree]:
        params = state.variables["params"]
        loss, aux, gradients = _differentiate(model, stage, mesh, state.variables, key, state.step, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, params)
        is_trained = trainable_mask(params, stage.trainable)
        new_params = jax.tree.map(lambda p, u, trained: p + u if trained else p, params, updates, is_trained)
        variables = model.after_update({**state.variables, "params": new_params}, aux, stage.name)
        metrics = {
            "loss": loss,
            **aux.metrics,
            "gradient_norm": optax.tree.norm(gradients),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(new_params),
        }
        finite = jnp.isfinite(jnp.stack([metrics[name] for name in ("loss", "gradient_norm", "update_norm")]))
        new_state = TrainState(
            step=state.step + 1,
            variables=variables,
            optimizer=optimizer_state,
            average=_average(state.average, new_params, state.step, ema),
            healthy=state.healthy,
        )
        healthy = state.healthy & jnp.all(finite)
        new_state = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), new_state, state)
        new_state = new_state.replace(healthy=healthy)
        new_state = jax.lax.with_sharding_constraint(new_state, state_sharding(mesh, new_state))
        return new_state, jax.lax.with_sharding_constraint(metrics, replicated(mesh)), aux.states

    return update


def make_evaluate(model: WorldModel, stage: Stage, mesh: Mesh | None = None) -> Compilable:
    """The compiled function ``evaluate(variables, key, batch) -> metrics``: the loss of ``stage`` and its parts."""
    mesh = make_mesh() if mesh is None else mesh

    def evaluate(variables: Variables, key: Array, batch: Trajectory) -> dict[str, Array]:
        keys = _row_keys(key, jnp.zeros((), jnp.int32), batch, mesh)
        loss, aux = model.loss(variables, keys, batch, stage.name)
        return jax.lax.with_sharding_constraint({"loss": loss, **aux.metrics}, replicated(mesh))

    return jax.jit(evaluate)


class NonFiniteError(FloatingPointError):
    """Training met a value that is not finite, and stopped before it did harm; the message is one line.

    Attributes:
      step: the update that could not be done; with the seed its position in the data.
      tensor: the first tensor that is not finite: its path, which begins with batch, variables or gradients.
    """

    def __init__(self, step: int, tensor: str, message: str) -> None:
        super().__init__(message)
        self.step, self.tensor = step, tensor


def nonfinite_error(
    model: WorldModel, stage: Stage, state: TrainState, key: Array, batch: Trajectory, mesh: Mesh, what: str, end: str
) -> NonFiniteError:
    """The error of the step that ``state`` could not do with ``batch``; its line is ``what``, why, and ``end``."""
    tensor, where = first_nonfinite(model, stage, state, key, batch, mesh)
    return NonFiniteError(int(state.step), tensor, f"{what} is not finite, first in {tensor} ({where}); {end}")


def first_nonfinite(
    model: WorldModel, stage: Stage, state: TrainState, key: Array, batch: Trajectory, mesh: Mesh | None = None
) -> tuple[str, str]:
    """Which tensor is the first that is not finite in the step that ``state`` could not do with ``batch``.

    Looked at in this order: batch, variables, gradients.

    Returns:
      Its path, for example ``gradients/encoder/kernel``; and in words how many of its values are not finite, and
      which figures of the loss.
    """
    mesh = make_mesh() if mesh is None else mesh

    def count(state: TrainState, key: Array, batch: Trajectory) -> tuple[PyTree, dict[str, Array]]:
        loss, aux, gradients = _differentiate(model, stage, mesh, state.variables, key, state.step, batch)
        groups = {"batch": batch, "variables": state.variables, "gradients": gradients}
        counts = [
            jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), {name: tree}) for name, tree in groups.items()
        ]
        return jax.lax.with_sharding_constraint((counts, {"loss": loss, **aux.metrics}), replicated(mesh))

    counts, parts = jax.device_get(jax.jit(count)(state, key, batch))
    bad_parts = [name for name, value in parts.items() if not np.all(np.isfinite(value))]
    for group in counts:
        for path, number in jax.tree_util.tree_leaves_with_path(group):
            if number:
                values = f"{number} {'value' if number == 1 else 'values'}"
                return parameter_path(path), values + (f", as {', '.join(bad_parts)} of the loss" if bad_parts else "")
    return "a norm", "the gradient's or the update's; every tensor is"


def _differentiate(
    model: WorldModel,
    stage: Stage,
    mesh: Mesh,
    variables: Variables,
    key: Array,
    step: Array,
    batch: Trajectory,
) -> tuple[Array, Aux, PyTree]:
    """Loss, what it reports, and the gradients of the parameters; zeros for those that the stage does not train."""
    keys = _row_keys(key, step, batch, mesh)
    is_trained = trainable_mask(variables["params"], stage.trainable)

    def loss(params: PyTree) -> tuple[Array, Aux]:
        params = jax.tree.map(lambda p, trained: p if trained else jax.lax.stop_gradient(p), params, is_trained)
        return model.loss({**variables, "params": params}, keys, batch, stage.name)

    (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return value, aux, gradients


def _row_keys(key: Array, step: Array, batch: Trajectory, mesh: Mesh) -> Array:
    rows = jnp.arange(batch.reward.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), rows)
    return jax.lax.with_sharding_constraint(keys, batch_sharding(mesh))


def _average(average: PyTree | None, params: PyTree, step: Array, ema: float | None) -> PyTree | None:
    """The next average; young ones forget faster, so that the random start does not linger in short runs."""
    if average is None or ema is None:
        return None
    decay = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
