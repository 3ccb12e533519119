"""Recurrent cells: GRU and LSTM with PyTorch's equations, and the block-diagonal GRU of DreamerV3."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxwm.nn.layers import BlockLinear, Linear, RMSNorm, activate, fan_in_normal, map_blocks
from jaxwm.types import Array


class GRUCell(nn.Module):
    """Gated recurrent unit (Cho et al. 2014) with the equations and the biases of ``torch.nn.GRUCell``.

    With gates in the order r, z, n: ``r, z = sigmoid(W_i x + b_i + W_h h + b_h)``,
    ``n = tanh(W_in x + b_in + r * (W_hn h + b_hn))``, ``h' = (1 - z) * n + z * h``. Parameters:
    ``input_kernel [D, 3H]``, ``hidden_kernel [H, 3H]`` (PyTorch's weights, transposed), ``input_bias`` and
    ``hidden_bias [3H]``.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array, inputs: Array) -> Array:
        """Hidden state ``[..., H]`` and inputs ``[..., D]`` to the next hidden state ``[..., H]``, in its dtype."""
        size, width = inputs.shape[-1], self.features
        if hidden.shape[-1] != width:
            raise ValueError(f"GRUCell: hidden has {hidden.shape[-1]} features, expected {width}")
        zeros = nn.initializers.zeros_init()
        input_kernel = self.param("input_kernel", fan_in_normal(size), (size, 3 * width), jnp.float32)
        hidden_kernel = self.param("hidden_kernel", fan_in_normal(width), (width, 3 * width), jnp.float32)
        input_bias = self.param("input_bias", zeros, (3 * width,), jnp.float32)
        hidden_bias = self.param("hidden_bias", zeros, (3 * width,), jnp.float32)
        from_inputs = jnp.dot(inputs.astype(self.dtype), input_kernel.astype(self.dtype)) + input_bias
        from_hidden = jnp.dot(hidden.astype(self.dtype), hidden_kernel.astype(self.dtype)) + hidden_bias
        reset_inputs, update_inputs, candidate_inputs = jnp.split(from_inputs, 3, axis=-1)
        reset_hidden, update_hidden, candidate_hidden = jnp.split(from_hidden, 3, axis=-1)
        reset = jax.nn.sigmoid(reset_inputs + reset_hidden)
        update = jax.nn.sigmoid(update_inputs + update_hidden)
        candidate = jnp.tanh(candidate_inputs + reset * candidate_hidden)
        return (candidate + update * (hidden - candidate)).astype(hidden.dtype)


class LSTMCell(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) with the equations of ``torch.nn.LSTMCell``.

    With gates in the order i, f, g, o: ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``, ``h' = sigmoid(o) * tanh(c')``.
    Parameters: ``input_kernel [D, 4H]``, ``hidden_kernel [H, 4H]`` (PyTorch's weights, transposed) and ``bias [4H]``
    (the sum of PyTorch's two). The bias of the forget gate starts at 1, so that a fresh cell remembers.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array, cell: Array, inputs: Array) -> tuple[Array, Array]:
        """``hidden`` and ``cell`` ``[..., H]`` and inputs ``[..., D]`` to the next two, in the dtype of ``cell``."""
        size, width = inputs.shape[-1], self.features
        for name, value in (("hidden", hidden), ("cell", cell)):
            if value.shape[-1] != width:
                raise ValueError(f"LSTMCell: {name} has {value.shape[-1]} features, expected {width}")
        input_kernel = self.param("input_kernel", fan_in_normal(size), (size, 4 * width), jnp.float32)
        hidden_kernel = self.param("hidden_kernel", fan_in_normal(width), (width, 4 * width), jnp.float32)
        bias = self.param("bias", _remember(width), (4 * width,), jnp.float32)
        gates = jnp.dot(inputs.astype(self.dtype), input_kernel.astype(self.dtype))
        gates += jnp.dot(hidden.astype(self.dtype), hidden_kernel.astype(self.dtype))
        write, keep, value, show = jnp.split(gates.astype(cell.dtype) + bias, 4, axis=-1)
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(value)
        return jax.nn.sigmoid(show) * jnp.tanh(cell), cell


def _remember(width: int) -> nn.initializers.Initializer:
    """Biases of zero but for those of the forget gate."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jnp.zeros(shape, dtype).at[width : 2 * width].set(1.0)

    return init


class BlockGRU(nn.Module):
    """The recurrent core of DreamerV3 (Hafner et al. 2023): a GRU whose large matrices are block-diagonal.

    State, latent and action are projected to ``hidden`` units each. The three projections join every block of
    the state; a block-diagonal layer, RMSNorm over the full vector and SiLU follow, ``dynamics_layers`` times;
    a last block-diagonal layer gives, per block, the gates r, c, u:
    ``h' = u * tanh(r * c) + (1 - u) * h`` with ``u = sigmoid(u - 1)``.

    Where the joined input enters, the block-diagonal matrix is kept as two: the blocks over the state, and one
    dense matrix over the projections, which all blocks share. That is the same map and the same number of
    parameters without a copy of the projections per block.
    """

    deter: int
    hidden: int
    blocks: int = 8
    dynamics_layers: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, deter: Array, stoch: Array, action: Array) -> Array:
        """State ``[..., deter]``, flat latent ``[..., S]`` and action ``[..., A]`` to the next state, in its dtype."""
        if self.dynamics_layers < 1:
            raise ValueError(f"BlockGRU: dynamics_layers is {self.dynamics_layers}, expected at least 1")
        if deter.shape[-1] != self.deter or self.deter % self.blocks:
            raise ValueError(
                f"BlockGRU: the state has {deter.shape[-1]} entries, "
                f"expected {self.deter} in {self.blocks} equal blocks"
            )
        action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
        projections = []
        for name, value in (("deter", deter), ("stoch", stoch), ("action", action)):
            value = Linear(self.hidden, dtype=self.dtype, name=f"{name}_projection")(value)
            projections.append(activate("silu", RMSNorm(dtype=self.dtype, name=f"{name}_norm")(value)))
        joined = jnp.concatenate(projections, axis=-1)
        fan_in = self.deter + self.blocks * joined.shape[-1]
        shared = self.param("shared_kernel", fan_in_normal(fan_in), (joined.shape[-1], self.deter), jnp.float32)
        shape = (self.blocks, self.deter // self.blocks, self.deter // self.blocks)
        kernel = self.param("block_kernel", fan_in_normal(fan_in), shape, jnp.float32)
        zeros = nn.initializers.zeros_init()
        bias = self.param("bias", zeros, (self.deter,), jnp.float32)
        x = map_blocks(jnp.dot, [deter.astype(self.dtype)], [kernel.astype(self.dtype)])
        x = x + jnp.dot(joined, shared.astype(self.dtype)) + bias.astype(self.dtype)
        x = activate("silu", RMSNorm(dtype=self.dtype, name="norm_0")(x))
        for layer in range(1, self.dynamics_layers):
            x = BlockLinear(self.deter, self.blocks, dtype=self.dtype, name=f"linear_{layer}")(x)
            x = activate("silu", RMSNorm(dtype=self.dtype, name=f"norm_{layer}")(x))
        size = self.deter // self.blocks
        shape = (self.blocks, size, 3 * size)
        gates_kernel = self.param("gates_kernel", fan_in_normal(self.deter), shape, jnp.float32)
        gates_bias = self.param("gates_bias", zeros, (self.blocks, 3 * size), jnp.float32)
        weights = [gates_kernel.astype(self.dtype), gates_bias.astype(self.dtype)]
        return map_blocks(_gated_update, [deter, x], weights).astype(deter.dtype)


def _gated_update(deter: Array, x: Array, kernel: Array, bias: Array) -> Array:
    """One block of the next state from the same block of the state and of the hidden layer."""
    reset, candidate, update = jnp.split(jnp.dot(x, kernel) + bias, 3, axis=-1)
    candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
    update = jax.nn.sigmoid(update - 1.0)
    return deter + update * (candidate - deter)
