"""Coloured noise: random action sequences that go somewhere.

White noise around a plan cancels itself along the horizon. Noise whose power falls with the frequency f as 1/f^beta is
correlated in time and reaches far (Pinneri et al. 2020, arXiv:2008.06389).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.types import Array


@functools.lru_cache(maxsize=64)
def coloured_basis(length: int, exponent: float) -> np.ndarray:
    """``[K, T]``: independent standard normal numbers ``[..., K]`` times this are coloured noise of unit variance.

    The rows are the sines and cosines of the Fourier series over ``length`` steps, each as large as the spectrum says.
    The constant part has the power of the lowest frequency.
    """
    time = np.arange(length)
    rows = []
    for frequency in range(length // 2 + 1):
        size = max(frequency, 1) ** (-exponent / 2)
        angle = 2 * np.pi * frequency * time / length
        rows.append(size * np.cos(angle))
        if 0 < 2 * frequency < length:
            rows.append(size * np.sin(angle))
    basis = np.stack(rows)
    # A cosine and its sine have the same variance at every step, so one number normalises all of them.
    return (basis / np.sqrt(np.square(basis).sum(0))).astype(np.float32)


def coloured(keys: Array, count: int, length: int, dim: int, exponent: float) -> Array:
    """Noise ``[B, count, length, dim]`` of unit variance, coloured in time; exponent 0 is white.

    Args:
      keys: ``[B]``.
      count: sequences for each key.
      length: steps.
      dim: dimensions, independent of each other.
      exponent: beta in 1/f^beta; 1 is pink, 2 is red.
    """
    if exponent == 0.0:
        return jax.vmap(lambda key: jax.random.normal(key, (count, length, dim)))(keys)
    basis = coloured_basis(length, exponent)
    drawn = jax.vmap(lambda key: jax.random.normal(key, (count, dim, basis.shape[0])))(keys)
    return jnp.swapaxes(drawn @ basis, -1, -2)
