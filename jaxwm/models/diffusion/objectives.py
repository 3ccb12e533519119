"""What a diffusion model learns: how data turn into noise, how levels are drawn, what the network says, the loss.

Everything is told by a level in 0..1 for each token: 0 is noise alone, 1 the data as they are. A token at a level is
``alpha * data + sigma * noise``; alpha and sigma are functions of an objective's own clock, in which its samplers take
their steps. A token that is known stays at level 1, so that predicting, filling in and editing are one thing.

Four objectives: `EDM` and `Flow`, in whose training a clip has one level, and `Forcing` and `Shortcut`, in which every
frame has a level of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat

from jaxwm.types import Array

Network = Callable[[Array, Array, Array], tuple[Array, Any]]
"""Tokens ``[..., C]``, levels and step sizes ``[...]`` to the raw output ``[..., C]`` and whatever else it says."""


class Objective(Protocol):
    """What samplers and models know of an objective; levels ``[...]``, tokens ``[..., C]``.

    Attributes:
      smallest: the smallest step that the network knows of; 0 where it is told none.
    """

    @property
    def smallest(self) -> float:
        """See above."""
        ...

    def clock(self, level: Array) -> Array:
        """The time of the objective's differential equation at ``level``."""
        ...

    def scales(self, time: Array) -> tuple[Array, Array]:
        """Alpha and sigma."""
        ...

    def rates(self, time: Array) -> tuple[Array, Array]:
        """Their derivatives by time."""
        ...

    def embedded(self, level: Array) -> Array:
        """The number of magnitude 1 that tells the network the level."""
        ...

    def scaled(self, noisy: Array, level: Array) -> Array:
        """What the network is shown of ``noisy``, of unit variance."""
        ...

    def denoised(self, output: Array, noisy: Array, level: Array) -> Array:
        """The expected data, from what the network puts out."""
        ...

    def draw(self, keys: Array, frames: int) -> tuple[Array, Array]:
        """Levels and step sizes ``[B, frames]`` to learn from, for ``[B]`` keys."""
        ...

    def loss(self, network: Network, clean: Array, noise: Array, level: Array, step: Array) -> tuple[Array, Any]:
        """Error of each token ``[...]``, and what else the network said; known tokens (level 1) count for nothing."""
        ...


def mix(objective: Objective, clean: Array, noise: Array, level: Array) -> Array:
    """Data ``[..., C]`` at ``level`` ``[...]``; at level 1 exactly the data."""
    alpha, sigma = objective.scales(objective.clock(level))
    return alpha[..., None] * clean + sigma[..., None] * noise


class _Straight:
    """Straight lines from noise to data: ``t * data + (1 - t) * noise``, the clock is the level."""

    def clock(self, level: Array) -> Array:
        """The level itself."""
        return level

    def scales(self, time: Array) -> tuple[Array, Array]:
        """Time and what is left of it."""
        return time, 1.0 - time

    def rates(self, time: Array) -> tuple[Array, Array]:
        """1 and -1."""
        return jnp.ones_like(time), -jnp.ones_like(time)

    def embedded(self, level: Array) -> Array:
        """The level around zero."""
        return 2.0 * level - 1.0

    def scaled(self, noisy: Array, level: Array) -> Array:
        """As it is."""
        return noisy


@dataclasses.dataclass(frozen=True)
class Flow(_Straight):
    """Rectified flow (Liu et al. 2022, arXiv:2209.03003): the network says the velocity, data minus noise.

    Levels are logit-normal (Esser et al. 2024, arXiv:2403.03206).

    Args:
      name: of the objective.
      mean: of the logit of the level.
      spread: of the logit.
    """

    smallest: ClassVar[float] = 0.0

    name: Literal["flow"] = "flow"
    mean: float = 0.0
    spread: PositiveFloat = 1.0

    def denoised(self, output: Array, noisy: Array, level: Array) -> Array:
        """Where the velocity leads at level 1."""
        return noisy + (1.0 - level)[..., None] * output

    def draw(self, keys: Array, frames: int) -> tuple[Array, Array]:
        """See `Objective.draw`; the same level for all frames of a row."""
        level = jax.nn.sigmoid(self.mean + self.spread * draw_rows(jax.random.normal, keys, 1))
        return _alike(level, frames)

    def loss(self, network: Network, clean: Array, noise: Array, level: Array, step: Array) -> tuple[Array, Any]:
        """Squared error of the velocity."""
        output, also = network(mix(self, clean, noise, level), level, step)
        return _unknown(level, jnp.mean(jnp.square(output - (clean - noise)), axis=-1)), also


@dataclasses.dataclass(frozen=True)
class Forcing(Flow):
    """Diffusion forcing (Chen et al. 2024, arXiv:2407.01392): a flow with a level of its own for every frame.

    Args:
      name: of the objective.
      mean: of the logit of the level.
      spread: of the logit.
    """

    name: Literal["forcing"] = "forcing"  # type: ignore[assignment]

    def draw(self, keys: Array, frames: int) -> tuple[Array, Array]:
        """See `Objective.draw`."""
        level = jax.nn.sigmoid(self.mean + self.spread * draw_rows(jax.random.normal, keys, frames))
        return level, jnp.zeros_like(level)


@dataclasses.dataclass(frozen=True)
class EDM:
    """Denoising with unit variances throughout (Karras et al. 2022, arXiv:2206.00364, table 1), as DIAMOND does it.

    The clock is sigma, from ``largest`` at level 0 to 0; the grid of a sampler is that of equation 5 with the least
    sigma 0.

    Args:
      name: of the objective.
      largest: sigma at level 0.
      data: standard deviation of the data.
      rho: the curve of sigma over the level.
      mean: of the logarithm of sigma in training.
      spread: of that logarithm.
    """

    smallest: ClassVar[float] = 0.0

    name: Literal["edm"] = "edm"
    largest: PositiveFloat = 20.0
    data: PositiveFloat = 1.0
    rho: Annotated[float, Field(ge=1)] = 7.0
    mean: float = 0.0
    spread: PositiveFloat = 1.2

    def clock(self, level: Array) -> Array:
        """Sigma at ``level``."""
        return self.largest * (1.0 - level) ** self.rho

    def scales(self, time: Array) -> tuple[Array, Array]:
        """1 and sigma."""
        return jnp.ones_like(time), time

    def rates(self, time: Array) -> tuple[Array, Array]:
        """0 and 1."""
        return jnp.zeros_like(time), jnp.ones_like(time)

    def embedded(self, level: Array) -> Array:
        """A quarter of the logarithm of sigma."""
        return jnp.log(jnp.maximum(self.clock(level), 2e-3)) / 4.0

    def scaled(self, noisy: Array, level: Array) -> Array:
        """Divided by its standard deviation."""
        return noisy / jnp.sqrt(jnp.square(self.clock(level)) + self.data**2)[..., None]

    def denoised(self, output: Array, noisy: Array, level: Array) -> Array:
        """Noisy tokens and output in the shares that suit the level."""
        skip, out = self._shares(level)
        return skip[..., None] * noisy + out[..., None] * output

    def draw(self, keys: Array, frames: int) -> tuple[Array, Array]:
        """See `Objective.draw`; the same level for all frames of a row."""
        sigma = jnp.exp(self.mean + self.spread * draw_rows(jax.random.normal, keys, 1))
        level = 1.0 - (jnp.minimum(sigma, self.largest) / self.largest) ** (1.0 / self.rho)
        return _alike(level, frames)

    def loss(self, network: Network, clean: Array, noise: Array, level: Array, step: Array) -> tuple[Array, Any]:
        """Squared error of the output, which has unit variance at every level."""
        noisy = mix(self, clean, noise, level)
        output, also = network(noisy, level, step)
        skip, out = self._shares(level)
        wanted = (clean - skip[..., None] * noisy) / jnp.maximum(out, 1e-6)[..., None]
        return _unknown(level, jnp.mean(jnp.square(output - wanted), axis=-1)), also

    def _shares(self, level: Array) -> tuple[Array, Array]:
        """c_skip and c_out."""
        sigma = self.clock(level)
        total = jnp.square(sigma) + self.data**2
        return self.data**2 / total, sigma * self.data / jnp.sqrt(total)


@dataclasses.dataclass(frozen=True)
class Shortcut(_Straight):
    """Shortcut forcing (Hafner et al. 2025, arXiv:2509.24527): a few large steps, learned from pairs of half steps.

    Every frame has a level and a step size of its own, and the network is told both; it puts out the data. Most rows
    learn the smallest step from the data, the others a larger one from what two of half its size say (Frans et al.
    2024, arXiv:2410.12557). A token whose step is 0, which is one that is known, stays as it is in both halves. Levels
    of the smallest step are ``u ** power`` for u uniform in 0..1 (the papers: 1): near level 1 the noisy frame itself
    shows what it is to be, and only near 0 must the past tell. Large steps stand on all multiples of theirs alike, as
    they do in a sampler.

    Args:
      name: of the objective.
      power: see above.
      halvings: the smallest step is 2 to the minus this; the papers halve further, and the largest steps, which learn
        from the smaller ones, come last.
      bootstrapped: share of the rows that learn from two steps.
    """

    name: Literal["shortcut"] = "shortcut"
    power: PositiveFloat = 3.0
    halvings: Annotated[int, Field(ge=1, le=10)] = 4
    bootstrapped: Annotated[float, Field(gt=0, lt=1)] = 0.25

    def denoised(self, output: Array, noisy: Array, level: Array) -> Array:
        """The output itself."""
        return output

    @property
    def smallest(self) -> float:
        """2 to the minus ``halvings``."""
        return 0.5**self.halvings

    def draw(self, keys: Array, frames: int) -> tuple[Array, Array]:
        """See `Objective.draw`; levels of large steps are multiples of them."""
        size, place = split_rows(keys, 2)
        halvings = jnp.floor(self.halvings * draw_rows(jax.random.uniform, size, frames))
        learns = jnp.arange(len(keys))[:, None] < self._learners(len(keys))
        step = jnp.where(learns, 0.5**halvings, self.smallest)
        level = draw_rows(jax.random.uniform, place, frames)
        return jnp.where(learns, jnp.floor(level / step) * step, level**self.power), step

    def loss(self, network: Network, clean: Array, noise: Array, level: Array, step: Array) -> tuple[Array, Any]:
        """Squared error of the data, or of where two half steps lead; the first rows are those that do the latter."""
        noisy, count = mix(self, clean, noise, level), self._learners(len(clean))
        output, also = network(noisy, level, step)
        wanted = clean
        if count:
            first = self._two_halves(network, *jax.tree.map(lambda x: x[:count], (noisy, level, step)))
            wanted = jnp.concatenate([first, clean[count:]])
        error = jnp.mean(jnp.square(output - wanted), axis=-1)
        return _unknown(level, error), also

    def _learners(self, rows: int) -> int:
        return round(self.bootstrapped * rows)

    def _two_halves(self, network: Network, noisy: Array, level: Array, step: Array) -> Array:
        """The data that one step would have to aim at to come to where two half steps lead."""
        left = jnp.maximum(1.0 - level, self.smallest)  # of a token that stays, no matter what
        first = (network(noisy, level, step / 2)[0] - noisy) / left[..., None]
        halfway = noisy + (step / 2)[..., None] * first
        then = left - step / 2
        second = (network(halfway, level + step / 2, step / 2)[0] - halfway) / then[..., None]
        return jax.lax.stop_gradient(noisy + left[..., None] * (first + second) / 2)


def split_rows(keys: Array, count: int) -> Array:
    """``[count, B]``: keys for as many purposes, of each of ``[B]`` keys."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, count))(keys), 1, 0)


def draw_rows(draw: Callable[..., Array], keys: Array, *shape: int) -> Array:
    """``[B, *shape]`` numbers such as `jax.random.normal` draws, each row from a key of its own."""
    return jax.vmap(lambda key: draw(key, shape))(keys)


def _alike(level: Array, frames: int) -> tuple[Array, Array]:
    """``level`` ``[B, 1]`` for all frames, and no steps."""
    level = jnp.broadcast_to(level, (len(level), frames))
    return level, jnp.zeros_like(level)


def _unknown(level: Array, error: Array) -> Array:
    return jnp.where(level < 1.0, error, 0.0)


AnyObjective = Annotated[EDM | Flow | Forcing | Shortcut, Field(discriminator="name")]
"""For a field of a configuration: the one that ``name`` says."""
