import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import SPEC, TinyModel, assert_same, synthetic_batch

from jaxwm.training import (
    begin_stage,
    init_state,
    make_evaluate,
    make_mesh,
    make_update,
    put_batch,
    replicated,
)
from jaxwm.training.update import first_nonfinite
from jaxwm.types import Stage, example_batch

MODEL = TinyModel(SPEC)
JOINT = Stage("joint")
KEY = jax.random.key(3)
ADAM = optax.adam(1e-2)


@functools.lru_cache
def on_host(model, stage, ema):
    return jax.device_get(init_state(model, stage, ADAM, jax.random.key(0), example_batch(SPEC, 1, 2), ema=ema))


def fresh(model=MODEL, stage=JOINT, ema=None):
    """A state at step 0 that may be donated."""
    return jax.device_put(jax.tree.map(np.copy, on_host(model, stage, ema)), replicated(make_mesh()))


@functools.lru_cache
def averaging_update(model):
    return make_update(model, JOINT, ADAM, ema=0.15)


def reference_keys():
    return jnp.stack([jax.random.fold_in(jax.random.fold_in(KEY, 0), row) for row in range(8)])


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def placed(seed=0):
    return put_batch(make_mesh(), synthetic_batch(seed=seed))


@pytest.fixture(scope="session")
def update():
    """The compiled update of the joint stage, which fails if it is ever traced twice."""

    class Traced(TinyModel):
        pass

    Traced.loss = chex.assert_max_traces(TinyModel.loss, n=1)
    return make_update(Traced(SPEC), JOINT, ADAM)


def test_update_equals_plain_gradient_descent(update):
    batch = dataclasses.replace(synthetic_batch(), info={})
    start = fresh().variables

    @jax.jit
    def reference(params):
        loss, gradients = jax.value_and_grad(
            lambda params: MODEL.loss({**start, "params": params}, reference_keys(), batch, "joint")[0]
        )(params)
        updates, _ = ADAM.update(gradients, ADAM.init(params), params)
        return loss, gradients, updates, optax.apply_updates(params, updates)

    loss, gradients, updates, expected = jax.device_get(reference(start["params"]))
    state, metrics = update(fresh(), KEY, placed())
    chex.assert_trees_all_close(state.variables["params"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm(gradients), rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], norm(updates), rtol=1e-5)
    np.testing.assert_allclose(metrics["parameter_norm"], norm(expected), rtol=1e-5)
    assert int(state.step) == 1
    assert int(state.variables["targets"]["count"]) == 1


def test_steps_draw_differently_but_repeatably(update):
    noise = []
    for _ in range(2):
        state = fresh()
        for _ in range(2):
            state, metrics = update(state, KEY, placed())
            noise.append(float(metrics["noise"]))
    assert noise[0] != noise[1]
    assert noise[:2] == noise[2:]


def test_old_state_is_donated(update):
    state = fresh()
    update(state, KEY, placed())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.variables, state.optimizer)))


def test_update_traces_once(update):
    state = fresh()
    for step in range(3):
        state, _ = update(state, KEY, placed(step))
    assert int(state.step) == 3


def test_nothing_piles_up(update):
    state, batch = fresh(), placed()
    state, _ = update(state, KEY, batch)
    before = len(jax.live_arrays())
    for _ in range(50):
        state, _ = update(state, KEY, batch)
    assert len(jax.live_arrays()) <= before + 12  # one set of metrics


def test_frozen_parameters_stay_and_have_no_state():
    stage = MODEL.stages[1]
    state = fresh(stage=stage)
    assert {leaf.shape for leaf in jax.tree.leaves(state.optimizer)} == {(), (6, 4), (4,)}
    update = make_update(MODEL, stage, ADAM)
    before = jax.device_get(state.variables["params"])
    for step in range(3):
        state, _ = update(state, KEY, placed(step))
    after = jax.device_get(state.variables["params"])
    assert_same((after["encoder"], after["decoder"]), (before["encoder"], before["decoder"]))
    assert not np.array_equal(after["dynamics"]["kernel"], before["dynamics"]["kernel"])
    # The hand-over keeps everything but the optimiser's state, which is as the next stage needs it.
    kept = jax.device_get(state.variables)
    following = begin_stage(state, JOINT, ADAM)
    assert_same(following.variables, kept)
    assert int(following.step) == 3
    assert jax.tree.structure(following.optimizer) == jax.tree.structure(fresh().optimizer)


def test_average_follows_the_parameters():
    update = averaging_update(MODEL)
    state = fresh(ema=0.15)
    expected = jax.device_get(state.variables["params"])
    for step, decay in enumerate([0.1, 0.15, 0.15]):  # (1 + step) / (10 + step), but never above 0.15
        state, _ = update(state, KEY, placed(step))
        params = jax.device_get(state.variables["params"])
        expected = jax.tree.map(lambda a, p, decay=decay: decay * a + (1 - decay) * p, expected, params)
    chex.assert_trees_all_close(state.average, expected, rtol=1e-5)
    chex.assert_trees_all_equal(state.smooth_variables()["params"], state.average)


def test_evaluate_is_the_loss_at_given_keys():
    variables = fresh().variables
    metrics = make_evaluate(MODEL, JOINT)(variables, KEY, placed())
    batch = dataclasses.replace(synthetic_batch(), info={})
    loss = jax.jit(lambda variables: MODEL.loss(variables, reference_keys(), batch, "joint")[0])(variables)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)


def spoil(state, path):
    """``state`` with a NaN in the parameter at ``path``."""
    group, name = path
    params = dict(state.variables["params"])
    params[group] = {**params[group], name: params[group][name].at[0].set(jnp.nan)}
    return state.replace(variables={**state.variables, "params": params})


@pytest.mark.parametrize(
    ("model", "batch_is_bad", "bad_parameter", "tensor"),
    [
        (MODEL, True, None, "batch/observation/vector"),
        (MODEL, False, ("decoder", "bias"), "variables/params/decoder/bias"),
        (TinyModel(SPEC, fails_at=0), False, None, "gradients/dynamics/bias"),
    ],
)
def test_what_is_not_finite_is_not_applied_and_named(model, batch_is_bad, bad_parameter, tensor):
    update = averaging_update(model)
    state = fresh(ema=0.15)
    if bad_parameter:
        state = spoil(state, bad_parameter)
    batch = synthetic_batch()
    if batch_is_bad:
        batch.observation["vector"][2, 3, 1] = np.inf
    batch = put_batch(make_mesh(), batch)
    before = jax.device_get(state)
    state, _ = update(state, KEY, batch)
    state, _ = update(state, KEY, placed(1))  # a good batch, but it comes after the failure
    assert not bool(state.healthy)
    assert_same(state.replace(healthy=jnp.array(True)), before)
    found, where = first_nonfinite(model, JOINT, state, KEY, batch)
    assert found == tensor
    assert where.startswith(
        "1 value, as loss, reconstruction of" if tensor != "gradients/dynamics/bias" else "1 value"
    )


def test_unknown_parameters_to_train():
    with pytest.raises(ValueError, match="'encodr'; did you mean 'encoder'"):
        fresh(stage=Stage("joint", ("encodr",)))
