"""Probability distributions as pytrees, with one interface.

Each has some of: ``sample(keys, temperature=None)``, ``mode()``, ``mean()``, ``log_prob(x)``, ``entropy()``
and ``kl(other)``, which is KL(self ‖ other). The event axes are summed over and the batch shape is kept.
All of them compute in float32.

``keys`` is one key for the whole batch, or an array of keys whose shape begins the batch shape: then each row
draws from its own key, and its sample depends neither on the other rows nor on their number.
``temperature`` is a scalar or an array whose shape begins the batch shape, and may be traced: 1 samples the
distribution, 0 takes its mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxwm.nn.layers import symexp, symlog
from jaxwm.types import Array

Temperature = float | Array | None


@struct.dataclass
class Normal:
    """Diagonal Gaussian over the last axis; a sample is reparameterised.

    Attributes:
      location: mean, ``[..., D]``.
      std: standard deviation, ``[..., D]``.
    """

    location: Array
    std: Array

    def sample(self, keys: Array, temperature: Temperature = None) -> Array:
        """``[..., D]``: the mean plus noise of standard deviation ``temperature * std``."""
        noise = _draw(jax.random.normal, keys, self.location.shape)
        if temperature is not None:
            noise = noise * _align(temperature, noise.ndim)
        return self.location + self.std * noise

    def mode(self) -> Array:
        """``[..., D]``."""
        return self.location

    def mean(self) -> Array:
        """``[..., D]``."""
        return self.location

    def log_prob(self, x: Array) -> Array:
        """Log density of ``x`` ``[..., D]``, ``[...]``."""
        z = (x - self.location) / self.std
        return jnp.sum(-0.5 * jnp.square(z) - jnp.log(self.std) - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Array:
        """Differential entropy in nats, ``[...]``."""
        return jnp.sum(jnp.log(self.std) + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: Self) -> Array:
        """KL(self ‖ other) in nats, ``[...]``."""
        ratio = jnp.square(self.std / other.std)
        distance = jnp.square((self.location - other.location) / other.std)
        return 0.5 * jnp.sum(ratio + distance - 1.0 - jnp.log(ratio), axis=-1)


@struct.dataclass
class NormalMixture:
    """A vector whose entries are mixtures of K Gaussians, as a mixture density network gives it (Bishop 1994).

    With G = D every entry chooses its component by itself (World Models, Ha & Schmidhuber 2018); with G = 1 one choice
    holds for the whole vector, so that entries which belong together change together.

    Attributes:
      logits: of the components, ``[..., G, K]``.
      location: means, ``[..., D, K]``.
      std: standard deviations, ``[..., D, K]``.
    """

    logits: Array
    location: Array
    std: Array

    def sample(self, keys: Array, temperature: Temperature = None) -> Array:
        """``[..., D]``; ``temperature`` t divides the logits and multiplies the deviations by sqrt(t).

        Other distributions multiply the deviation by t itself: this is the convention of the paper, in which t is a
        factor of the variance.
        """
        shape = self.location.shape[:-1]
        keys = jax.vmap(jax.random.split)(keys.reshape(-1)).reshape(*keys.shape, 2)
        log_probs = jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)
        if temperature is None:
            component = _draw_class(jnp.exp(log_probs), keys[..., 0])
        else:
            positive = _align(temperature, log_probs.ndim - 1) > 0
            drawn = _draw_class(_tempered(log_probs, temperature), keys[..., 0])
            component = jnp.where(positive, drawn, _likeliest_class(log_probs))
        noise = _draw(jax.random.normal, keys[..., 1], shape)
        if temperature is not None:
            noise = noise * jnp.sqrt(_align(temperature, noise.ndim))
        return self._choose(self.location, component) + self._choose(self.std, component) * noise

    def mode(self) -> Array:
        """``[..., D]``: the mean of the likeliest component, which is where a sample of temperature 0 lies."""
        return self._choose(self.location, _likeliest_class(self.logits))

    def mean(self) -> Array:
        """``[..., D]``."""
        return jnp.sum(jax.nn.softmax(self.logits, axis=-1) * self.location, axis=-1)

    def log_prob(self, x: Array) -> Array:
        """Log density of ``x`` ``[..., D]``, ``[...]``."""
        z = (x[..., None] - self.location) / self.std
        log_density = -0.5 * jnp.square(z) - jnp.log(self.std) - 0.5 * math.log(2 * math.pi)
        if self.logits.shape[-2] != self.location.shape[-2]:
            log_density = jnp.sum(log_density, axis=-2, keepdims=True)
        log_probs = jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)
        return jnp.sum(jax.nn.logsumexp(log_probs + log_density, axis=-1), axis=-1)

    def _choose(self, values: Array, component: Array) -> Array:
        """``values`` ``[..., D, K]`` of the components ``[..., G]``, ``[..., D]``."""
        return jnp.sum(values * jax.nn.one_hot(component, values.shape[-1], dtype=values.dtype), axis=-1)


@struct.dataclass
class OneHot:
    """Categorical distributions whose samples are one-hot vectors with straight-through gradients.

    The classes lie on the last axis; with ``event_axes`` 2 the axis before it holds several independent
    variables of one event, as in DreamerV3's latent ``[..., S, K]``; with 1 there is a single variable
    ``[..., K]``, as in a discrete action. The probabilities are ``(1 - unimix) softmax + unimix / K``.

    Attributes:
      logits: ``[..., S, K]`` or ``[..., K]``.
      unimix: share of the uniform distribution.
      event_axes: 2 or 1, see above.
    """

    logits: Array
    unimix: float = struct.field(pytree_node=False, default=0.01)
    event_axes: int = struct.field(pytree_node=False, default=2)

    @property
    def probs(self) -> Array:
        """Probability of each class, shaped like the logits."""
        probs = jax.nn.softmax(self.logits.astype(jnp.float32), axis=-1)
        return (1.0 - self.unimix) * probs + self.unimix / probs.shape[-1] if self.unimix else probs

    @property
    def log_probs(self) -> Array:
        """Logarithm of `probs`."""
        if self.unimix:
            return jnp.log(self.probs)
        return jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)

    def sample(self, keys: Array, temperature: Temperature = None) -> Array:
        """One-hot vectors shaped like the logits, whose gradient is that of the probabilities."""
        probs = self.probs
        drawn = probs if temperature is None else _tempered(self.log_probs, temperature)
        index = _draw_class(drawn, keys)
        if temperature is not None:
            positive = _align(temperature, index.ndim) > 0
            index = jnp.where(positive, index, _likeliest_class(probs))
        return _straight_through(index, probs)

    def mode(self) -> Array:
        """One-hot vectors of the likeliest class, whose gradient is that of the probabilities."""
        probs = self.probs
        return _straight_through(_likeliest_class(probs), probs)

    def mean(self) -> Array:
        """The probabilities, shaped like the logits."""
        return self.probs

    def log_prob(self, x: Array) -> Array:
        """Log probability in nats of one-hot vectors ``x``, shaped like the logits; ``[...]``."""
        return self._sum(self.log_probs * x)

    def entropy(self) -> Array:
        """Entropy in nats, ``[...]``."""
        return -self._sum(self.probs * self.log_probs)

    def kl(self, other: Self) -> Array:
        """KL(self ‖ other) in nats, ``[...]``."""
        return self._sum(self.probs * (self.log_probs - other.log_probs))

    def _sum(self, x: Array) -> Array:
        return jnp.sum(x, axis=tuple(range(-self.event_axes, 0)))


@struct.dataclass
class Bernoulli:
    """Independent coins, one for each entry of ``logits`` ``[...]``; there is no event axis."""

    logits: Array

    def sample(self, keys: Array, temperature: Temperature = None) -> Array:
        """0.0 or 1.0, ``[...]``; without gradient."""
        uniform = _draw(jax.random.uniform, keys, self.logits.shape)
        logits = self.logits.astype(jnp.float32)
        if temperature is None:
            return (uniform < jax.nn.sigmoid(logits)).astype(jnp.float32)
        temperature = _align(temperature, logits.ndim)
        drawn = uniform < jax.nn.sigmoid(logits / jnp.where(temperature > 0, temperature, 1.0))
        return jnp.where(temperature > 0, drawn, logits > 0).astype(jnp.float32)

    def mode(self) -> Array:
        """0.0 or 1.0, ``[...]``."""
        return (self.logits > 0).astype(jnp.float32)

    def mean(self) -> Array:
        """Probability of 1, ``[...]``."""
        return jax.nn.sigmoid(self.logits.astype(jnp.float32))

    def log_prob(self, x: Array) -> Array:
        """``x ln p + (1 - x) ln(1 - p)`` in nats, ``[...]``; ``x`` may lie between 0 and 1."""
        logits = self.logits.astype(jnp.float32)
        return x * jax.nn.log_sigmoid(logits) + (1.0 - x) * jax.nn.log_sigmoid(-logits)

    def entropy(self) -> Array:
        """Entropy in nats, ``[...]``."""
        return -self.log_prob(self.mean())

    def kl(self, other: Self) -> Array:
        """KL(self ‖ other) in nats, ``[...]``."""
        return self.log_prob(self.mean()) - other.log_prob(self.mean())


_TWO_HOT_HALF = np.expm1(np.linspace(20.0, 0.0, 128))
_TWO_HOT_BINS = np.concatenate([-_TWO_HOT_HALF, _TWO_HOT_HALF[-2::-1]]).astype(np.float32)
# A neighbour beyond each end, so far away that the outermost bins keep full weight at their own value.
_TWO_HOT_EDGES = np.concatenate([_TWO_HOT_BINS[:1] * 2, _TWO_HOT_BINS, _TWO_HOT_BINS[-1:] * 2])


@struct.dataclass
class TwoHot:
    """A scalar as a categorical distribution over 255 bins that are spaced exponentially, symmetric around 0.

    The bins are ``symexp(linspace(-20, 0, 128))`` and their mirror image. A target is spread over the two bins
    around it, in proportion to its closeness in raw space (DreamerV3, Hafner et al. 2023, equation 10).

    Attributes:
      logits: ``[..., 255]``.
    """

    logits: Array

    @staticmethod
    def bins() -> np.ndarray:
        """The values of the 255 bins, ascending, float32."""
        return _TWO_HOT_BINS

    @property
    def probs(self) -> Array:
        """Probability of each bin, ``[..., 255]``."""
        return jax.nn.softmax(self.logits.astype(jnp.float32), axis=-1)

    def sample(self, keys: Array, temperature: Temperature = None) -> Array:
        """The value of a bin drawn by its probability, ``[...]``; without gradient."""
        if temperature is None:
            return jnp.asarray(_TWO_HOT_BINS)[_draw_class(self.probs, keys)]
        log_probs = jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)
        drawn = jnp.asarray(_TWO_HOT_BINS)[_draw_class(_tempered(log_probs, temperature), keys)]
        return jnp.where(_align(temperature, drawn.ndim) > 0, drawn, self.mode())

    def mode(self) -> Array:
        """The value that is encoded, `mean`: the likeliest bin alone says little of it. ``[...]``."""
        return self.mean()

    def mean(self) -> Array:
        """Expected value, ``[...]``; exactly 0 where the logits are symmetric."""
        probs = self.probs
        middle = len(_TWO_HOT_BINS) // 2
        # Opposite bins are joined first: summed one by one, values of 1e8 leave a remainder where 0 is due.
        surplus = probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]
        return jnp.sum(surplus * _TWO_HOT_BINS[middle + 1 :], axis=-1)

    def log_prob(self, x: Array) -> Array:
        """Minus the cross entropy in nats between the two-hot code of ``x`` ``[...]`` and the bins, ``[...]``."""
        x = jnp.clip(jax.lax.stop_gradient(x).astype(jnp.float32), _TWO_HOT_BINS[0], _TWO_HOT_BINS[-1])[..., None]
        gaps = np.diff(_TWO_HOT_EDGES)
        # A hat over each bin that reaches 0 at its neighbours: dense, so that it fuses and needs no scatter.
        rise = (x - _TWO_HOT_EDGES[:-2]) / gaps[:-1]
        fall = (_TWO_HOT_EDGES[2:] - x) / gaps[1:]
        target = jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)
        return jnp.sum(target * jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1), axis=-1)

    def entropy(self) -> Array:
        """Entropy of the bins in nats, ``[...]``."""
        log_probs = jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


@struct.dataclass
class SymlogSquaredError:
    """A vector predicted by its symmetric logarithm: a point estimate, scored by squared error in that space.

    Attributes:
      location: predicted ``symlog`` of the vector, ``[..., D]``.
    """

    location: Array

    def mode(self) -> Array:
        """The vector in raw units, ``[..., D]``."""
        return symexp(self.location.astype(jnp.float32))

    def mean(self) -> Array:
        """The same as `mode`."""
        return self.mode()

    def log_prob(self, x: Array) -> Array:
        """Minus the squared error in symlog space, summed over the last axis: ``x`` ``[..., D]`` to ``[...]``."""
        return -jnp.sum(jnp.square(self.location.astype(jnp.float32) - symlog(x)), axis=-1)


@struct.dataclass
class PixelSquaredError:
    """An image predicted by its pixels: a point estimate, scored by squared error.

    Attributes:
      location: predicted pixels on the scale 0..1, ``[..., H, W, C]``; may reach beyond it.
    """

    location: Array

    def mode(self) -> Array:
        """The image, float32 in [0, 1], ``[..., H, W, C]``."""
        return jnp.clip(self.location.astype(jnp.float32), 0.0, 1.0)

    def mean(self) -> Array:
        """The same as `mode`."""
        return self.mode()

    def log_prob(self, x: Array) -> Array:
        """Minus the squared error on the scale 0..1, summed over the image: bytes ``[..., H, W, C]`` to ``[...]``."""
        if x.dtype != jnp.uint8:
            raise ValueError(f"image has dtype {x.dtype}, expected uint8 in 0..255")
        error = self.location.astype(jnp.float32) - x.astype(jnp.float32) / 255.0
        return -jnp.sum(jnp.square(error), axis=(-3, -2, -1))


def _draw(sampler: Callable[[Array, tuple[int, ...]], Array], keys: Array, shape: tuple[int, ...]) -> Array:
    """Noise of ``shape`` from one key, or from one key for each of the leading rows."""
    if keys.ndim == 0:
        return sampler(keys, shape)
    if keys.shape != shape[: keys.ndim]:
        raise ValueError(f"keys have shape {keys.shape}, expected () or the first axes of {shape}")
    row = shape[keys.ndim :]
    return jax.vmap(lambda key: sampler(key, row))(keys.reshape(-1)).reshape(shape)


def _align(value: float | Array, ndim: int) -> Array:
    """``value`` with trailing axes of length 1, so that it multiplies arrays of ``ndim`` axes row by row."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (ndim - value.ndim))


def _tempered(log_probs: Array, temperature: float | Array) -> Array:
    """Probabilities in proportion to ``p^(1/temperature)``; those of temperature 1 where it is 0."""
    temperature = _align(temperature, log_probs.ndim)
    # The largest becomes 0 before the division: a tiny temperature must not make all of them infinite.
    log_probs = log_probs - jnp.max(log_probs, axis=-1, keepdims=True)
    return jax.nn.softmax(log_probs / jnp.where(temperature > 0, temperature, 1.0), axis=-1)


def _draw_class(probs: Array, keys: Array) -> Array:
    """Indices of classes drawn with ``probs`` ``[..., K]``, ``[...]``, by inversion: one uniform number each."""
    classes = probs.shape[-1]
    uniform = _draw(jax.random.uniform, keys, probs.shape[:-1])
    # A product with a triangle of ones adds up faster than a scan, in full precision also where that is optional.
    triangle = np.triu(np.ones((classes, classes - 1), np.float32))
    cumulative = jnp.dot(jax.lax.stop_gradient(probs), triangle, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(uniform[..., None] >= cumulative, axis=-1)


def _likeliest_class(probs: Array) -> Array:
    """Indices of the first largest of ``[..., K]``, ``[...]``: two plain reductions are faster than ``argmax``."""
    classes = probs.shape[-1]
    largest = jnp.max(probs, axis=-1, keepdims=True)
    return jnp.min(jnp.where(probs == largest, np.arange(classes, dtype=np.int32), classes), axis=-1)


def _straight_through(index: Array, probs: Array) -> Array:
    """One-hot vectors of ``index`` with the gradient of ``probs``."""
    one_hot = jax.nn.one_hot(index, probs.shape[-1], dtype=probs.dtype)
    return one_hot + (probs - jax.lax.stop_gradient(probs))
