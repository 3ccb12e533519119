"""Dense building blocks: normalisation, linear and block-diagonal layers, MLP, symmetric logarithm.

Every module computes in its ``dtype`` and keeps its parameters in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxwm.types import Array, nearest

Norm = Literal["rms", "none"]
Activation = Literal["silu", "relu"]

# The gradients of SiLU and of the norm compute their intermediates anew: on a CPU that is faster than fetching copies
# from memory.
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": jax.checkpoint(jax.nn.silu), "relu": jax.nn.relu}


def activate(name: Activation, x: Array) -> Array:
    """Applies the activation function called ``name`` to ``x``; an unknown name is a ValueError."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; {nearest(name, tuple(_ACTIVATIONS))}")
    return _ACTIVATIONS[name](x)


def normalise(name: Norm, x: Array, dtype: DTypeLike, module_name: str) -> Array:
    """Applies the normalisation called ``name`` over the last axis of ``x``, as a submodule ``module_name``.

    Called from inside a compact linen method. An unknown name is a ValueError.
    """
    if name == "none":
        return x
    if name == "rms":
        return RMSNorm(dtype=dtype, name=module_name)(x)
    raise ValueError(f"norm is {name!r}; {nearest(name, ('rms', 'none'))}")


def symlog(x: Array) -> Array:
    """``sign(x) ln(1 + |x|)``, the symmetric logarithm (DreamerV3, Hafner et al. 2023, equation 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """``sign(x) (exp(|x|) - 1)``, the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def fan_in_normal(fan_in: int, output_scale: float = 1.0) -> Initializer:
    """Normal of standard deviation ``output_scale / sqrt(fan_in)``, truncated at two of its own sigmas.

    The factor 1.1368 makes up for the variance that the truncation takes away. With ``output_scale`` 0 the
    weights are zero, so that a head starts with the same output everywhere.
    """
    if output_scale == 0.0:
        return nn.initializers.zeros_init()
    return nn.initializers.truncated_normal(1.1368 * output_scale / math.sqrt(fan_in), lower=-2.0, upper=2.0)


class RMSNorm(nn.Module):
    """Divides the last axis by its root mean square and scales it: ``x / sqrt(mean(x^2) + epsilon) * scale``.

    The statistics are float32 whatever the ``dtype`` (Zhang & Sennrich 2019).
    """

    epsilon: float = 1e-4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., D]`` to ``[..., D]``."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)

        @jax.checkpoint
        def normalised(x: Array, scale: Array) -> Array:
            x = x.astype(jnp.float32)
            inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
            return (x * inverse * scale).astype(self.dtype)

        return normalised(x, scale)


class Linear(nn.Module):
    """A dense layer ``x @ kernel + bias`` whose initial outputs have ``output_scale`` times the inputs' deviation.

    ``output_scale`` is 1 inside a network, 0 for heads that must start at zero and 0.01 for policies.
    """

    features: int
    output_scale: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., D]`` to ``[..., features]``."""
        initialiser = fan_in_normal(x.shape[-1], self.output_scale)
        kernel = self.param("kernel", initialiser, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


def map_blocks(function: Callable[..., Array], arrays: Sequence[Array], weights: Sequence[Array]) -> Array:
    """Applies ``function(*arrays, *weights)`` to each block of its operands and joins the results again.

    Args:
      function: of one block: arrays ``[..., D / blocks]`` and weights ``[...]`` to ``[..., F / blocks]``.
      arrays: ``[..., D]`` each, whose last axis consists of ``blocks`` equal parts.
      weights: ``[blocks, ...]`` each.

    Returns:
      ``[..., F]``.
    """
    blocks = weights[0].shape[0]
    if jax.default_backend() == "cpu":
        # Batched products copy their operands there, and joined results cost a pass over the memory.
        parts = zip(*(jnp.split(array, blocks, axis=-1) for array in arrays), strict=True)
        return jnp.concatenate(
            [function(*part, *(weight[i] for weight in weights)) for i, part in enumerate(parts)], axis=-1
        )
    split = [array.reshape(*array.shape[:-1], blocks, -1) for array in arrays]
    mapped = jax.vmap(function, in_axes=(-2,) * len(arrays) + (0,) * len(weights), out_axes=-2)(*split, *weights)
    return mapped.reshape(*mapped.shape[:-2], -1)


class BlockLinear(nn.Module):
    """A linear layer with a block-diagonal matrix: the i-th part of the output sees the i-th part of the input.

    The kernel is ``[blocks, D / blocks, features / blocks]``. It is initialised with a fan-in of the *whole*
    input ``D``, the convention of DreamerV3's public code, not of the ``D / blocks`` entries that a unit sees.
    """

    features: int
    blocks: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., D]`` to ``[..., features]``; ValueError unless ``blocks`` divides both."""
        inputs, blocks = x.shape[-1], self.blocks
        for name, size in (("input", inputs), ("features", self.features)):
            if size % blocks:
                raise ValueError(f"BlockLinear: {name} {size} is not divisible by blocks {blocks}")
        shape = (blocks, inputs // blocks, self.features // blocks)
        kernel = self.param("kernel", fan_in_normal(inputs), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        return map_blocks(jnp.dot, [x.astype(self.dtype)], [kernel.astype(self.dtype)]) + bias.astype(self.dtype)


class MLP(nn.Module):
    """``layers`` hidden layers, each Linear, normalisation, activation; a head comes after it as a `Linear`."""

    features: int
    layers: int
    norm: Norm = "rms"
    activation: Activation = "silu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., D]`` to ``[..., features]`` (to ``[..., D]``, unchanged, with no layers)."""
        for layer in range(self.layers):
            x = Linear(self.features, dtype=self.dtype, name=f"linear_{layer}")(x)
            x = activate(self.activation, normalise(self.norm, x, self.dtype, f"norm_{layer}"))
        return x
