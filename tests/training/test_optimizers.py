import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxwm.config import OptimizerConfig
from jaxwm.training.optimizers import (
    adaptive_clip,
    check_trainable,
    make_optimizer,
    make_schedule,
    train_only,
    trainable_mask,
)

PARAMS = {
    "encoder": {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)},
    "head": np.ones(3, np.float32),
}


def run(optimizer, gradients, parameter):
    """The parameter after each of the ``gradients``."""
    state, values = optimizer.init(parameter), []
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, parameter)
        parameter = optax.apply_updates(parameter, updates)
        values.append(np.asarray(parameter))
    return values


def test_laprop_by_hand():
    # b1 = 0.5, b2 = 0.75, learning rate 0.1, gradients 2 and then 4.
    # 1: v = 0.25 * 4 = 1, hat 1 / 0.25 = 4, u = 2 / 2 = 1; m = 0.5, hat 0.5 / 0.5 = 1;     p = 1 - 0.1
    # 2: v = 0.75 + 0.25 * 16 = 4.75, hat 4.75 / 0.4375 = 10.857143, u = 4 / 3.2950083 = 1.2139571;
    #    m = 0.25 + 0.6069786 = 0.8569786, hat / 0.75 = 1.1426381;                            p = 0.9 - 0.11426381
    optimizer = make_optimizer(OptimizerConfig(name="laprop", learning_rate=0.1, b1=0.5, b2=0.75, epsilon=1e-20), 10)
    first, second = run(optimizer, [[2.0], [4.0]], jnp.array([1.0]))
    np.testing.assert_allclose(first, [0.9], rtol=1e-6)
    np.testing.assert_allclose(second, [0.78573619], rtol=1e-6)


def test_laprop_momentum_does_not_follow_the_scale_of_gradients():
    # The order that gives LaProp its name: in Adam the second update would carry the momentum of the large gradient.
    config = OptimizerConfig(name="laprop", learning_rate=1.0, b1=0.9, b2=0.0, epsilon=1e-20)
    first, second = run(make_optimizer(config, 10), [[1e6], [1.0]], jnp.array([0.0]))
    np.testing.assert_allclose([first[0], second[0] - first[0]], [-1.0, -1.0], rtol=1e-5)


def test_adaptive_clip_is_of_whole_tensors():
    # Parameter norm 5, so at most 0.3 * 5 = 1.5; the gradient's norm is 5: all of it times 0.3, whatever a row's norm.
    parameters = {"large": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "tiny": jnp.zeros(2), "small": jnp.array([100.0])}
    gradients = {
        "large": jnp.array([[3.0, 0.0], [0.0, 4.0]]),
        "tiny": jnp.array([3.0, 4.0]),
        "small": jnp.array([2.0]),
    }
    clip = adaptive_clip(0.3)
    clipped, _ = clip.update(gradients, clip.init(parameters), parameters)
    np.testing.assert_allclose(clipped["large"], [[0.9, 0.0], [0.0, 1.2]], rtol=1e-6)
    np.testing.assert_allclose(clipped["tiny"], [0.3e-3 * 0.6, 0.3e-3 * 0.8], rtol=1e-6)  # norm counts as 1e-3
    np.testing.assert_allclose(clipped["small"], [2.0], rtol=1e-6)


def test_dreamer_optimizer_clips_before_it_normalises():
    # After AGC the gradients 100 and 1 of a parameter of norm 1 are 0.3 and 0.3: two equal steps.
    config = OptimizerConfig(name="laprop", learning_rate=1e-3, agc=0.3, b1=0.0, b2=0.999, epsilon=1e-20)
    first, second = run(make_optimizer(config, 10), [[100.0], [1.0]], jnp.array([1.0]))
    np.testing.assert_allclose([1 - first[0], first[0] - second[0]], [1e-3, 1e-3], rtol=1e-3)


def test_adamw_decays_matrices_only():
    config = OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["encoder"]["kernel"], np.full((2, 2), -0.05), rtol=1e-6)
    np.testing.assert_array_equal(updates["encoder"]["bias"], np.zeros(2))


def test_clip_norm_is_global():
    config = OptimizerConfig(name="adam", learning_rate=1.0, clip_norm=1.0, epsilon=1.0, b1=0.0, b2=0.0)
    optimizer = make_optimizer(config, 10)
    parameters = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    updates, _ = optimizer.update(
        {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, optimizer.init(parameters), parameters
    )
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6 / 1.6, -0.8 / 1.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5, 0.0]),
        ("cosine", [0.0, 0.5, 1.0, 0.5, 0.0]),
    ],
)
def test_schedules(schedule, expected):
    # Two steps of warm-up, then eight to the end: at 0, 1, 2, 6 and 10.
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup=2), 10)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 6, 10)], expected, atol=1e-6)


def test_trainable_subset():
    optimizer = train_only(make_optimizer(OptimizerConfig(learning_rate=0.1), 10), ("encoder/kernel",))
    state = optimizer.init(PARAMS)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, state = optimizer.update(ones, state, PARAMS)
    np.testing.assert_allclose(updates["encoder"]["kernel"], np.full((2, 2), -0.1), rtol=1e-5)
    np.testing.assert_array_equal(updates["encoder"]["bias"], np.zeros(2))
    np.testing.assert_array_equal(updates["head"], np.zeros(3))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert shapes == {(), (2, 2)}, "frozen parameters have optimiser state"


def test_paths_name_whole_components():
    params = {"encoder": {"a": 1.0}, "encoder_2": 1.0}
    assert trainable_mask(params, ("encoder",)) == {"encoder": {"a": True}, "encoder_2": False}
    assert trainable_mask(params, ("",)) == {"encoder": {"a": True}, "encoder_2": True}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_optimizer(OptimizerConfig(weight_decay=0.1), 10), "optimizer.weight_decay is 0.1.*use adamw"),
        (lambda: make_schedule(OptimizerConfig(schedule="cosine", warmup=10), 10), "optimizer.warmup is 10.*10 steps"),
        (lambda: check_trainable(PARAMS, ("encodr",)), "'encodr'; did you mean 'encoder'"),
        (lambda: check_trainable(PARAMS, ("encoder/kernle",)), "did you mean 'encoder/kernel'"),
        (lambda: adaptive_clip(0.3).update({}, optax.EmptyState(), None), "needs the parameters"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
