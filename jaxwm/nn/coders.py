"""Encoders and decoders of observations: images, vectors, and dicts of both.

This is where raw units are normalised: bytes become floats and vectors their symmetric logarithm in `Encoder`,
and `Decoder` answers with distributions that take raw observations again.

The kind of image coder:

* ``"patch"``, the default: 4x4 patches through one dense layer, then stride-2 layers. Most of the work is
  matrix products, which are fast on every backend.
* ``"stride"``: three stride-2 convolutions (kernel 4, padding 1), the layers of a common small autoencoder,
  for parity with published weights and figures.

Both have ``depth`` channels at half the resolution and twice as many at each further halving, so that at an
eighth, ``4 * depth`` channels meet the dense layer in either kind.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxwm.nn.convolution import StrideConv, StrideConvTranspose
from jaxwm.nn.distributions import PixelSquaredError, SymlogSquaredError
from jaxwm.nn.layers import MLP, Activation, Linear, Norm, activate, normalise, symlog
from jaxwm.types import Array, Arrays, PyTree, Spec, Trajectory, nearest

Kind = Literal["patch", "stride"]

_PATCH = 4


def patchify(image: Array, size: int) -> Array:
    """Cuts ``[..., H, W, C]`` into patches: ``[..., H / size, W / size, size * size * C]``, rows first."""
    *leading, height, width, channels = image.shape
    x = image.reshape(*leading, height // size, size, width // size, size, channels)
    return x.swapaxes(-4, -3).reshape(*leading, height // size, width // size, size * size * channels)


def unpatchify(patches: Array, size: int) -> Array:
    """The inverse of `patchify`."""
    *leading, rows, columns, features = patches.shape
    x = patches.reshape(*leading, rows, columns, size, size, features // size**2)
    return x.swapaxes(-4, -3).reshape(*leading, rows * size, columns * size, features // size**2)


def _stride_channels(height: int, width: int, depth: int, kind: Kind) -> tuple[int, ...]:
    """Channels after each stride-2 layer, from fine to coarse."""
    if kind not in ("patch", "stride"):
        raise ValueError(f"kind is {kind!r}; {nearest(str(kind), ('patch', 'stride'))}")
    if height % 8 or width % 8 or not height or not width:
        raise ValueError(f"the image is {height}x{width}, expected sides that are multiples of 8")
    if kind == "stride":
        return (depth, 2 * depth, 4 * depth)
    rows, columns, channels = height // 8, width // 8, [4 * depth]
    while min(rows, columns) >= 16 and rows % 2 == columns % 2 == 0:
        rows, columns = rows // 2, columns // 2
        channels.append(2 * channels[-1])
    return tuple(channels)


class ImageEncoder(nn.Module):
    """Encodes images as vectors; see the module's docstring for ``kind`` and ``depth``.

    The last feature map is flattened in the order height, width, channels before the dense layer. Weights from
    a network that flattens channels first, ``[embed, C * h * w]``, become this layer's kernel by
    ``reshape(embed, C, h, w).transpose(2, 3, 1, 0).reshape(h * w * C, embed)``.
    """

    embed: int
    depth: int = 32
    kind: Kind = "patch"
    norm: Norm = "rms"
    activation: Activation = "silu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Float images ``[..., H, W, C]`` (of unit scale) to ``[..., embed]``; no activation at the end.

        Raises:
          ValueError: H or W is not a multiple of 8, or an unknown kind, norm or activation.
        """
        height, width = image.shape[-3:-1]
        channels = _stride_channels(height, width, self.depth, self.kind)
        leading, x = image.shape[:-3], image.reshape(-1, *image.shape[-3:])
        if self.kind == "patch":
            x = Linear(2 * self.depth, dtype=self.dtype, name="patches")(patchify(x, _PATCH))
            x = activate(self.activation, normalise(self.norm, x, self.dtype, "patches_norm"))
        for level, features in enumerate(channels):
            x = StrideConv(features, dtype=self.dtype, name=f"conv_{level}")(x)
            x = activate(self.activation, normalise(self.norm, x, self.dtype, f"norm_{level}"))
        return Linear(self.embed, dtype=self.dtype, name="embed_layer")(x.reshape(*leading, -1))


class ImageDecoder(nn.Module):
    """Decodes vectors as images, `ImageEncoder` mirrored; the same remark on the order of flattening holds.

    Weights of a dense layer ``[C * h * w, F]`` that a channels-first network unflattens become the kernel of
    ``features_layer`` by ``reshape(C, h, w, F).transpose(3, 1, 2, 0).reshape(F, h * w * C)``.
    """

    shape: tuple[int, ...]
    depth: int = 32
    kind: Kind = "patch"
    norm: Norm = "rms"
    activation: Activation = "silu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """``[..., F]`` to images ``[..., H, W, C]`` without a squashing function at the end.

        Raises:
          ValueError: H or W is not a multiple of 8, or an unknown kind, norm or activation.
        """
        height, width, colours = self.shape
        channels = _stride_channels(height, width, self.depth, self.kind)
        shrink = 2 ** len(channels) * (_PATCH if self.kind == "patch" else 1)
        coarse = (height // shrink, width // shrink, channels[-1])
        x = Linear(math.prod(coarse), dtype=self.dtype, name="features_layer")(features)
        x = x.reshape(-1, *coarse)
        x = activate(self.activation, normalise(self.norm, x, self.dtype, "features_norm"))
        finer = (2 * self.depth if self.kind == "patch" else colours, *channels[:-1])
        for level in reversed(range(len(channels))):
            x = StrideConvTranspose(finer[level], dtype=self.dtype, name=f"conv_{level}")(x)
            if self.kind == "patch" or level > 0:
                x = activate(self.activation, normalise(self.norm, x, self.dtype, f"norm_{level}"))
        if self.kind == "patch":
            x = Linear(_PATCH**2 * colours, dtype=self.dtype, name="patches")(x)
            x = unpatchify(x, _PATCH)
        return x.reshape(*features.shape[:-1], *self.shape)


class VectorEncoder(nn.Module):
    """Encodes raw vectors: symlog, then an MLP whose last hidden layer has ``embed`` units, the others ``units``."""

    embed: int
    units: int = 256
    layers: int = 3
    norm: Norm = "rms"
    activation: Activation = "silu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, vector: Array) -> Array:
        """``[..., D]`` in raw units to ``[..., embed]``."""
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}, expected at least 1")
        x = MLP(self.units, self.layers - 1, self.norm, self.activation, self.dtype, name="hidden")(symlog(vector))
        return MLP(self.embed, 1, self.norm, self.activation, self.dtype, name="last")(x)


class VectorDecoder(nn.Module):
    """Decodes features as named vectors: one MLP, and a dense layer for each vector."""

    sizes: tuple[tuple[str, int], ...]
    units: int = 256
    layers: int = 3
    norm: Norm = "rms"
    activation: Activation = "silu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> dict[str, Array]:
        """``[..., F]`` to the symlog of each vector, ``[..., D]`` by name."""
        x = MLP(self.units, self.layers, self.norm, self.activation, self.dtype, name="hidden")(features)
        return {name: Linear(size, dtype=self.dtype, name=f"{name}_layer")(x) for name, size in self.sizes}


class Encoder(nn.Module):
    """Encodes a raw observation: an image encoder for each image, one vector encoder for all vectors.

    With one part its output is the embedding (a world of vectors alone and ``units == embed`` gives DreamerV3's
    encoder exactly); several parts are joined by a dense layer. That of vectors alone ends in an activation, and with
    ``linear`` in a dense layer, as all others do: a representation that is to have a certain distribution must be able
    to take any value.
    """

    spec: Spec
    embed: int
    depth: int = 32
    units: int = 256
    layers: int = 3
    kind: Kind = "patch"
    norm: Norm = "rms"
    activation: Activation = "silu"
    dtype: DTypeLike = jnp.float32
    linear: bool = False

    @nn.compact
    def __call__(self, observation: Arrays) -> Array:
        """Images uint8 ``[..., H, W, C]`` and vectors float32 ``[..., D]``, by name, to ``[..., embed]``."""
        style: dict[str, Any] = {"norm": self.norm, "activation": self.activation, "dtype": self.dtype}
        parts = []
        for field in self.spec.images:
            image = observation[field.name]
            if image.dtype != jnp.uint8:
                raise ValueError(f"observation[{field.name!r}] has dtype {image.dtype}, expected uint8 in 0..255")
            image = image.astype(self.dtype) / 255.0 - 0.5
            coder = ImageEncoder(self.embed, self.depth, self.kind, name=f"image_{field.name}", **style)
            parts.append(coder(image))
        if self.spec.vectors:
            vectors = [observation[field.name].astype(jnp.float32) for field in self.spec.vectors]
            joined = jnp.concatenate(vectors, axis=-1)
            parts.append(VectorEncoder(self.embed, self.units, self.layers, name="vectors", **style)(joined))
        if len(parts) == 1 and (self.spec.images or not self.linear):
            return parts[0]
        return Linear(self.embed, dtype=self.dtype, name="join")(jnp.concatenate(parts, axis=-1))


class Decoder(nn.Module):
    """Decodes features as an observation: an image decoder for each image, one vector decoder for all vectors.

    ``pixels`` says how the last layer becomes pixels on the scale 0..1: ``sigmoid`` squashes, ``linear`` adds one
    half. On small bright objects the sigmoid learns sharper images in the same number of steps. With ``background``
    a learned picture is added before, which `start_from_mean_frame` sets: steps that would go into what stands still
    go into what moves.
    """

    spec: Spec
    depth: int = 32
    units: int = 256
    layers: int = 3
    kind: Kind = "patch"
    norm: Norm = "rms"
    activation: Activation = "silu"
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    background: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> dict[str, PixelSquaredError | SymlogSquaredError]:
        """``[..., F]`` to a distribution for each part of the observation, by name.

        ``mode()`` gives images float32 in [0, 1] and vectors in raw units; ``log_prob`` takes raw observations
        and gives minus the squared error summed over the part, ``[...]``.
        """
        style: dict[str, Any] = {"norm": self.norm, "activation": self.activation, "dtype": self.dtype}
        parts: dict[str, PixelSquaredError | SymlogSquaredError] = {}
        for field in self.spec.images:
            decoder = ImageDecoder(field.shape, self.depth, self.kind, name=f"image_{field.name}", **style)
            image = decoder(features)
            if self.background:
                image += self.param(f"background_{field.name}", nn.initializers.zeros_init(), field.shape, jnp.float32)
            parts[field.name] = PixelSquaredError(nn.sigmoid(image) if self.pixels == "sigmoid" else image + 0.5)
        if self.spec.vectors:
            sizes = tuple((field.name, field.shape[0]) for field in self.spec.vectors)
            vectors = VectorDecoder(sizes, self.units, self.layers, name="vectors", **style)(features)
            parts.update({name: SymlogSquaredError(vector) for name, vector in vectors.items()})
        return parts


def mean_frame(images: Array, valid: Array, pixels: str) -> Array:
    """``[H, W, C]`` float32: what a last layer says that ``pixels`` turns into the mean of ``images``.

    Args:
      images: uint8 ``[B, T, H, W, C]``.
      valid: ``[B, T]``, which of them count.
      pixels: ``sigmoid`` or ``linear``, see `Decoder`.
    """
    counts = valid[..., None, None, None]
    frames = jnp.where(counts, images.astype(jnp.float32) / 255.0, 0.0)
    mean = jnp.sum(frames, axis=(0, 1)) / jnp.maximum(jnp.sum(counts), 1)
    # Saturated pixels keep a gradient: beyond this a sigmoid would need very long to come back.
    return jax.scipy.special.logit(jnp.clip(mean, 0.01, 0.99)) if pixels == "sigmoid" else mean - 0.5


def start_from_mean_frame(decoder: PyTree, spec: Spec, batch: Trajectory, pixels: str) -> PyTree:
    """The parameters of a `Decoder` with ``background`` such that it starts from the mean frame of ``batch``.

    The last layer of each image gets a tenth of its usual size. With all of it the first lesson of the features would
    be to keep quiet, since what they add to the mean frame is noise, and a stochastic state takes hundreds of updates
    to be heard again.

    Args:
      decoder: fresh parameters of the decoder.
      spec: what the world shows.
      batch: ``[B, T, ...]``; padding does not count.
      pixels: the decoder's ``pixels``.
    """
    decoder = dict(decoder)
    for field in spec.images:
        decoder[f"background_{field.name}"] = mean_frame(batch.observation[field.name], batch.valid, pixels)
        image = dict(decoder[f"image_{field.name}"])
        last = "patches" if "patches" in image else "conv_0"
        decoder[f"image_{field.name}"] = image | {last: jax.tree.map(lambda x: 0.1 * x, image[last])}
    return decoder
