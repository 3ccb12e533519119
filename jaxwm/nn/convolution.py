"""Convolution and transposed convolution of stride 2, kernel 4 and padding 1: halving and doubling of images.

On TPU and GPU these are XLA's own convolutions. On the CPU backend XLA's strided gradients and transposed
convolutions are several times slower than the arithmetic takes, so there the two functions are built from
three kernels that it does well, and are each other's derivative. Both ways give the same values.

Images are ``[B, H, W, channels]`` and weights ``[4, 4, C, F]`` in both directions, with ``C`` the channels of
the finer image: `conv_stride2` maps C to F, `conv_transpose_stride2` F to C. PyTorch's ``Conv2d`` weights
``[F, C, 4, 4]`` and ``ConvTranspose2d`` weights ``[F, C, 4, 4]`` both become these by ``transpose(2, 3, 1, 0)``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxwm.nn.layers import fan_in_normal
from jaxwm.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 4
_CACHE = 1_300_000  # bytes of one operand of `_weight_gradient`, most of the second-level cache of current cores


def conv_stride2(x: Array, w: Array) -> Array:
    """Halves an image: ``y[i, j] = sum x[2i + k - 1, 2j + l - 1] w[k, l]``, zeros outside the image.

    Args:
      x: ``[B, 2h, 2w, C]``.
      w: ``[4, 4, C, F]``.

    Returns:
      ``[B, h, w, F]``.

    Raises:
      ValueError: the weights are not ``[4, 4, C, F]``, or the image does not fit them or has odd sides.
    """
    _check("conv_stride2", x, w, channels=w.shape[-2])
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv_stride2: the image is {x.shape[1]}x{x.shape[2]}, expected even sides")
    return _cpu_conv(x, w) if jax.default_backend() == "cpu" else _native_conv(x, w)


def conv_transpose_stride2(x: Array, w: Array) -> Array:
    """Doubles an image: the adjoint of `conv_stride2`, ``y[2i + k - 1, 2j + l - 1] += x[i, j] w[k, l]``.

    Args:
      x: ``[B, h, w, F]``.
      w: ``[4, 4, C, F]``.

    Returns:
      ``[B, 2h, 2w, C]``.

    Raises:
      ValueError: the weights are not ``[4, 4, C, F]``, or the image does not fit them.
    """
    _check("conv_transpose_stride2", x, w, channels=w.shape[-1])
    return _cpu_conv_transpose(x, w) if jax.default_backend() == "cpu" else _native_conv_transpose(x, w)


def _native_conv(x: Array, w: Array) -> Array:
    return jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _native_conv_transpose(x: Array, w: Array) -> Array:
    flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    padding = ((2, 2), (2, 2))
    return jax.lax.conv_general_dilated(x, flipped, (1, 1), padding, lhs_dilation=(2, 2), dimension_numbers=_LAYOUT)


@jax.custom_vjp
def _cpu_conv(x: Array, w: Array) -> Array:
    if w.shape[2] > _FEW_CHANNELS:
        return _native_conv(x, w)
    # With few channels the native kernel's inner loop is too short; one product with all that a pixel sees is better.
    seen = _patches(x)
    return jnp.dot(seen, _split_taps(w).reshape(seen.shape[-1], -1))


@jax.custom_vjp
def _cpu_conv_transpose(x: Array, w: Array) -> Array:
    # Each 2x2 block of the padded output is the 2x2 convolution of the padded input with 4C output channels.
    channels, features = w.shape[2:]
    taps = w.reshape(2, 2, 2, 2, channels, features)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    taps = taps.reshape(2, 2, features, 4 * channels)
    y = jax.lax.conv_general_dilated(x, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)
    batch, rows, columns, _ = y.shape
    y = y.reshape(batch, rows, columns, 2, 2, channels).swapaxes(2, 3)
    return y.reshape(batch, 2 * rows, 2 * columns, channels)[:, 1:-1, 1:-1]


def _weight_gradient(x: Array, y: Array) -> Array:
    """The derivative ``[4, 4, C, F]`` of ``sum(conv_stride2(x, w) * y)`` with respect to ``w``.

    One matrix product for each of the four shifts between the 2x2 blocks of ``x`` and ``y``, over a few rows of
    the batch at a time, so that the copies stay in the cache; with few channels one product for all shifts.
    """
    channels, features = x.shape[-1], y.shape[-1]
    if channels <= _FEW_CHANNELS:
        seen = _patches(x)
        product = jnp.dot(
            seen.reshape(-1, seen.shape[-1]).T, y.reshape(-1, features), preferred_element_type=jnp.float32
        )
        return _join_taps(product, channels).astype(x.dtype)
    blocks = _blocks(x)
    batch, rows, columns, depth = blocks.shape
    count = _chunks(batch, rows * columns * depth * blocks.dtype.itemsize)
    blocks = blocks.reshape(count, batch // count, rows, columns, depth)
    y = y.reshape(count, -1, features)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        blocks, y = chunk
        # The barrier keeps the transposition out of the product, whose packing of a transposed matrix is slow.
        y = jax.lax.optimization_barrier(y.T)
        product = [
            jnp.dot(y, shifted.reshape(-1, depth), preferred_element_type=jnp.float32) for shifted in _shifts(blocks)
        ]
        return total + jnp.stack(product), None

    total = jnp.zeros((4, features, depth), jnp.float32)
    total, _ = jax.lax.scan(add, total, (blocks, y))
    return _join_taps(total.swapaxes(1, 2), channels).astype(x.dtype)


_cpu_conv.defvjp(
    lambda x, w: (_cpu_conv(x, w), (x, w)),
    lambda saved, dy: (_cpu_conv_transpose(dy, saved[1]), _weight_gradient(saved[0], dy)),
)
_cpu_conv_transpose.defvjp(
    lambda x, w: (_cpu_conv_transpose(x, w), (x, w)),
    lambda saved, dy: (_cpu_conv(dy, saved[1]), _weight_gradient(dy, saved[0])),
)


def _blocks(x: Array) -> Array:
    """Pads by 1 and joins 2x2 pixels: ``[B, 2h, 2w, C]`` to ``[B, h + 1, w + 1, 4C]``."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _patches(x: Array) -> Array:
    """The 4x4 pixels under each weight, as `_split_taps` orders them: ``[B, 2h, 2w, C]`` to ``[B, h, w, 16C]``."""
    return jnp.concatenate(_shifts(_blocks(x)), axis=-1)


def _shifts(blocks: Array) -> list[Array]:
    """The blocks ``[B, h + 1, w + 1, D]`` under each quarter of the weights: four ``[B, h, w, D]``."""
    rows, columns = blocks.shape[1] - 1, blocks.shape[2] - 1
    return [blocks[:, i : i + rows, j : j + columns] for i in (0, 1) for j in (0, 1)]


def _split_taps(w: Array) -> Array:
    """The weights ``[4, 4, C, F]`` of `conv_stride2` as those of a 2x2 convolution of `_blocks`."""
    channels, features = w.shape[2:]
    w = w.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return w.reshape(2, 2, 4 * channels, features)


def _join_taps(taps: Array, channels: int) -> Array:
    """`_split_taps` undone, from any shape of the same order: ``[4, 4, C, F]``."""
    taps = taps.reshape(2, 2, 2, 2, channels, -1)
    return taps.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, channels, -1)


def _chunks(batch: int, row_bytes: int) -> int:
    """How many equal parts to cut a batch into so that each fits the cache."""
    return next(n for n in range(1, batch + 1) if n == batch or (batch % n == 0 and batch // n * row_bytes <= _CACHE))


def _check(function: str, x: Array, w: Array, channels: int) -> None:
    if w.ndim != 4 or w.shape[:2] != (4, 4):
        raise ValueError(f"{function}: the weights have shape {w.shape}, expected [4, 4, C, F]")
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"{function}: the image has shape {x.shape}, expected [B, H, W, {channels}]")


class StrideConv(nn.Module):
    """`conv_stride2` with a bias: ``[B, 2h, 2w, C]`` to ``[B, h, w, features]``."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Parameters: ``kernel [4, 4, C, features]``, ``bias [features]``."""
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", fan_in_normal(16 * x.shape[-1]), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return conv_stride2(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class StrideConvTranspose(nn.Module):
    """`conv_transpose_stride2` with a bias: ``[B, h, w, F]`` to ``[B, 2h, 2w, features]``."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Parameters: ``kernel [4, 4, features, F]``, ``bias [features]``."""
        shape = (4, 4, self.features, x.shape[-1])
        # Of the 16 taps only 4 reach any one pixel.
        kernel = self.param("kernel", fan_in_normal(4 * x.shape[-1]), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return conv_transpose_stride2(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)
