"""What the families have in common: coders by their fields, scans over time, sampling controls, masked means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.nn import Decoder, Encoder
from jaxwm.types import Array, Arrays, PyTree


def make_encoder(config: Any, embed: int, units: int, linear: bool = False) -> Encoder:
    """The encoder of a family, by fields that have the same names in all of them.

    Args:
      config: has ``spec, depth, layers, coder, norm, activation, compute_dtype``.
      embed: size of the output.
      units: width of the vector coder.
      linear: see `jaxwm.nn.Encoder`.
    """
    return Encoder(config.spec, embed=embed, linear=linear, **_shared(config, units))


def make_decoder(config: Any, units: int, background: bool) -> Decoder:
    """The decoder to `make_encoder`; ``config`` has ``pixels`` besides."""
    return Decoder(config.spec, pixels=config.pixels, background=background, **_shared(config, units))


def _shared(config: Any, units: int) -> dict[str, Any]:
    return dict(
        depth=config.depth, units=units, layers=config.layers, kind=config.coder, norm=config.norm,
        activation=config.activation, dtype=config.compute_dtype,
    )  # fmt: skip


def scan_time(step: Callable[[Any, Any], tuple[Any, Any]], start: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` along the second axis of ``inputs`` ``[B, T, ...]``, which is also that of its outputs."""
    swap = functools.partial(jax.tree.map, lambda x: jnp.swapaxes(x, 0, 1))
    last, outputs = jax.lax.scan(step, start, swap(inputs))
    return last, swap(outputs)


def temperature_of(condition: Arrays | None) -> Array | None:
    """``[B]``: the sampling control ``temperature`` among ``condition``, or None."""
    return None if condition is None else condition.get("temperature")


def masked_mean(x: Array, mask: Array) -> Array:
    """The mean of ``x`` where ``mask``, which has its shape, is True; 0 where it never is."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
