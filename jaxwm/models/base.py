"""What the families have in common: coders by their fields, the temperature that is asked for, means over a mask."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxwm.nn import Decoder, Encoder
from jaxwm.types import Array, Arrays


def make_coders(config: Any, embed: int, units: int) -> tuple[Encoder, Decoder]:
    """The coders of a family, by fields that have the same names in all of them.

    Args:
      config: has ``spec, depth, layers, coder, norm, activation, pixels, background, compute_dtype``.
      embed: size of the encoder's output.
      units: width of the vector coders.
    """
    shared: dict[str, Any] = dict(
        depth=config.depth, units=units, layers=config.layers, kind=config.coder, norm=config.norm,
        activation=config.activation, dtype=config.compute_dtype,
    )  # fmt: skip
    decoder = Decoder(config.spec, pixels=config.pixels, background=config.background, **shared)
    return Encoder(config.spec, embed=embed, **shared), decoder


def temperature_of(condition: Arrays | None) -> Array | None:
    """``[B]``: the sampling control ``temperature`` among ``condition``, or None."""
    return None if condition is None else condition.get("temperature")


def masked_mean(x: Array, mask: Array) -> Array:
    """The mean of ``x`` where ``mask``, which has its shape, is True; 0 where it never is."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
