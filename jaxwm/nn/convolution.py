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
    return jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


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
    flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    return jax.lax.conv_general_dilated(
        x, flipped, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_LAYOUT
    )


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
