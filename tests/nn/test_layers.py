import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm.nn import MLP, BlockLinear, Linear, RMSNorm, activate, fan_in_normal, map_blocks, symexp, symlog


def test_symlog_of_known_values():
    e = np.e
    values = jnp.array([0.0, e - 1, 1 - e, e**3 - 1])
    np.testing.assert_allclose(symlog(values), [0.0, 1.0, -1.0, 3.0], atol=1e-6)
    np.testing.assert_allclose(symexp(jnp.array([0.0, 1.0, -2.0])), [0.0, e - 1, 1 - e**2], rtol=1e-6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.floats(-1e6, 1e6, width=32))
def test_symexp_inverts_symlog(x):
    np.testing.assert_allclose(symexp(symlog(jnp.float32(x))), x, rtol=1e-4, atol=1e-6)


def test_rms_norm_by_hand():
    x = jnp.array([[3.0, 4.0, 0.0, 0.0]])
    scale = {"params": {"scale": jnp.array([1.0, 2.0, 1.0, 1.0])}}
    # The mean square is 25 / 4, so that the root is 2.5.
    np.testing.assert_allclose(RMSNorm(epsilon=0.0).apply(scale, x), [[1.2, 3.2, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(RMSNorm(epsilon=2.75).apply(scale, x), [[1.0, 8 / 3, 0.0, 0.0]], rtol=1e-6)


def test_rms_norm_keeps_its_statistics_in_float32():
    x = jnp.full((1, 4), 300.0, jnp.bfloat16)
    y = RMSNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)[0]
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), 1.0, atol=1e-2)


@pytest.mark.parametrize("output_scale", [1.0, 0.01])
def test_initial_weights_have_the_stated_deviation_and_bound(output_scale):
    weights = fan_in_normal(64, output_scale)(jax.random.key(0), (64, 512), jnp.float32)
    assert np.std(weights) == pytest.approx(output_scale / 8, rel=0.02)
    assert np.abs(weights).max() <= 2 * 1.1368 * output_scale / 8 * 1.001


def test_output_scale_zero_starts_at_zero():
    y, variables = Linear(5, output_scale=0.0).init_with_output(jax.random.key(0), jnp.ones((2, 3)))
    np.testing.assert_array_equal(y, 0.0)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"kernel": (3, 5), "bias": (5,)}


def test_linear_by_hand():
    variables = {"params": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([10.0, 20.0])}}
    np.testing.assert_array_equal(Linear(2).apply(variables, jnp.array([[1.0, -1.0]])), [[8.0, 18.0]])


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_block_linear_is_a_block_diagonal_matrix(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    y, variables = BlockLinear(9, 3).init_with_output(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    matrix = np.zeros((6, 9))
    for i in range(3):
        matrix[2 * i : 2 * i + 2, 3 * i : 3 * i + 3] = kernel[i]
    np.testing.assert_allclose(y, x @ matrix, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_map_blocks_gives_each_block_its_own_operands(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, y, weights = jnp.arange(8.0).reshape(2, 4), jnp.ones((2, 4)), jnp.array([10.0, 100.0])
    result = map_blocks(lambda x, y, w: x * w + y, [x, y], [weights])
    np.testing.assert_array_equal(result, [[1, 11, 201, 301], [41, 51, 601, 701]])


def test_block_linear_counts_the_whole_input_as_fan_in():
    _, variables = BlockLinear(512, 4).init_with_output(jax.random.key(0), jnp.ones((1, 256)))
    assert np.std(variables["params"]["kernel"]) == pytest.approx(1 / 16, rel=0.03)


@pytest.mark.parametrize(("features", "inputs", "culprit"), [(6, 5, "input 5"), (7, 6, "features 7")])
def test_block_linear_refuses_what_it_cannot_divide(features, inputs, culprit):
    with pytest.raises(ValueError, match=f"{culprit} is not divisible by blocks 3"):
        BlockLinear(features, 3).init(jax.random.key(0), jnp.ones((1, inputs)))


def test_mlp_is_linear_norm_activation():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    y, variables = MLP(5, 2).init_with_output(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    assert sorted(params) == ["linear_0", "linear_1", "norm_0", "norm_1"]
    for layer in range(2):
        x = x @ params[f"linear_{layer}"]["kernel"]
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4)
        x = x / (1 + np.exp(-x))
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_mlp_without_norm_and_with_relu():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    y, variables = MLP(5, 1, norm="none", activation="relu").init_with_output(jax.random.key(0), x)
    assert list(variables["params"]) == ["linear_0"]
    np.testing.assert_allclose(y, np.maximum(x @ np.asarray(variables["params"]["linear_0"]["kernel"]), 0), atol=1e-5)


def test_compute_dtype_leaves_parameters_in_float32():
    y, variables = MLP(4, 1, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), jnp.ones((2, 3)))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="activation is 'slu'; did you mean 'silu'"):
        activate("slu", jnp.ones(3))
    with pytest.raises(ValueError, match="norm is 'rsm'; did you mean 'rms'"):
        MLP(4, 1, norm="rsm").init(jax.random.key(0), jnp.ones((2, 3)))
