"""A world with goals in which half of the work is done already."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tests.planning.point import SPEC, Plane


@dataclasses.dataclass(frozen=True)
class HalfSolved(Plane):
    """Every other episode begins in the goal."""

    spec: ClassVar = SPEC

    def reset(self, key):
        return jnp.where(jax.random.bernoulli(key), 1.0, 0.0) * jnp.ones(2)
