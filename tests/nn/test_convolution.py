import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm.nn import StrideConv, StrideConvTranspose, conv_stride2, conv_transpose_stride2, convolution

GOLDEN = Path(__file__).parent / "golden"
FUNCTIONS = {"conv": conv_stride2, "conv_transpose": conv_transpose_stride2}


def _random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _result_and_gradients(function, x, weights, cotangent):
    result, gradients = jax.vjp(function, x, weights)
    return result, *gradients(cotangent)


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_torch_with_its_gradients(monkeypatch, name, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    golden = {key: jnp.asarray(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}
    for key, value in golden.items():
        golden[key] = value.transpose(2, 3, 1, 0) if "weight" in key else value.transpose(0, 2, 3, 1)
    function = functools.partial(FUNCTIONS[name])  # a new object: what was compiled for the other backend is not used
    result, image_gradient, weight_gradient = _result_and_gradients(
        function, golden["image"], golden["weight"], golden["cotangent"]
    )
    np.testing.assert_allclose(result, golden["result"], atol=1e-5)
    np.testing.assert_allclose(image_gradient, golden["image_gradient"], atol=1e-5)
    np.testing.assert_allclose(weight_gradient, golden["weight_gradient"], atol=2e-5)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_cpu_kernels_equal_native_convolutions(batch, rows, columns, channels, features):
    fine, coarse = _random(batch, 2 * rows, 2 * columns, channels), _random(batch, rows, columns, features, seed=1)
    weights = _random(4, 4, channels, features, seed=2)
    pairs = (
        (convolution._cpu_conv, convolution._native_conv, fine, coarse),
        (convolution._cpu_conv_transpose, convolution._native_conv_transpose, coarse, fine),
    )
    for kernel, native, x, cotangent in pairs:
        ours, theirs = (_result_and_gradients(function, x, weights, cotangent) for function in (kernel, native))
        chex.assert_trees_all_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_transposed_convolution_is_the_adjoint():
    x, y, weights = _random(2, 8, 6, 3), _random(2, 4, 3, 5, seed=1), _random(4, 4, 3, 5, seed=2)
    left, right = jnp.vdot(conv_stride2(x, weights), y), jnp.vdot(x, conv_transpose_stride2(y, weights))
    np.testing.assert_allclose(left, right, rtol=1e-5)


def test_one_pixel_reaches_its_four_blocks():
    weights = jnp.arange(16.0).reshape(4, 4, 1, 1)
    image = jnp.zeros((1, 2, 2, 1)).at[0, 0, 1, 0].set(1.0)
    # Output column 1 begins at 2 * 1 - 1, so that tap l of it lies at column l + 1 of the four.
    expected = [[0, 4, 5, 6], [0, 8, 9, 10], [0, 12, 13, 14], [0, 0, 0, 0]]
    np.testing.assert_array_equal(conv_transpose_stride2(image, weights)[0, :, :, 0], expected)


@pytest.mark.parametrize("batch", [6, 7])
def test_weight_gradient_in_parts_equals_the_whole(monkeypatch, batch):
    x, y = _random(batch, 4, 4, 2), _random(batch, 2, 2, 3, seed=1)
    whole = convolution._weight_gradient(x, y)
    row_bytes = 3 * 3 * 8 * 4
    monkeypatch.setattr(convolution, "_CACHE", 3 * row_bytes)
    assert convolution._chunks(batch, row_bytes) == {6: 2, 7: 7}[batch]
    np.testing.assert_allclose(convolution._weight_gradient(x, y), whole, atol=1e-5)


def test_gradients_inside_a_scan():
    images, weights = _random(3, 2, 4, 4, 2), _random(4, 4, 2, 3, seed=1)
    score = lambda weights, image: jnp.sum(jnp.sin(conv_stride2(image, weights)))  # noqa: E731

    def scanned(weights):
        return jax.lax.scan(lambda total, image: (total + score(weights, image), None), 0.0, images)[0]

    expected = sum(jax.grad(score)(weights, image) for image in images)
    np.testing.assert_allclose(jax.grad(scanned)(weights), expected, atol=1e-5)


def test_gradients_of_gradients():
    x, weights = _random(1, 4, 4, 2), _random(4, 4, 2, 3, seed=1)

    def penalty(conv):
        inner = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, weights))))
        return jax.jit(jax.grad(lambda x: jnp.sum(inner(x) ** 2)))(x)

    np.testing.assert_allclose(penalty(conv_stride2), penalty(convolution._native_conv), atol=1e-4)


def test_half_precision_stays_half_precision():
    x, weights = _random(2, 4, 4, 2).astype(jnp.bfloat16), _random(4, 4, 2, 3).astype(jnp.bfloat16)
    result, gradients = jax.vjp(conv_stride2, x, weights)
    assert {result.dtype, *(g.dtype for g in gradients(result))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("function", "image", "weights", "message"),
    [
        (conv_stride2, (1, 4, 4, 2), (4, 4, 3, 5), r"expected \[B, H, W, 3\]"),
        (conv_stride2, (4, 4, 3), (4, 4, 3, 5), r"expected \[B, H, W, 3\]"),
        (conv_stride2, (1, 5, 4, 3), (4, 4, 3, 5), "the image is 5x4, expected even sides"),
        (conv_stride2, (1, 4, 4, 3), (3, 3, 3, 5), r"expected \[4, 4, C, F\]"),
        (conv_transpose_stride2, (1, 4, 4, 3), (4, 4, 3, 5), r"expected \[B, H, W, 5\]"),
    ],
)
def test_wrong_shapes_are_named(function, image, weights, message):
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros(image), jnp.zeros(weights))


def test_layers_add_a_bias_and_keep_the_scale():
    x = _random(4, 16, 16, 8)
    for layer, shape in ((StrideConv(16), (4, 8, 8, 16)), (StrideConvTranspose(16), (4, 32, 32, 16))):
        y, variables = layer.init_with_output(jax.random.key(0), x)
        assert y.shape == shape
        assert np.std(y) == pytest.approx(1.0, abs=0.15)
        variables["params"]["bias"] += 3.0
        np.testing.assert_allclose(layer.apply(variables, x), y + 3.0, atol=1e-5)
