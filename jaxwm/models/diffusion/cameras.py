"""Several pictures of one moment, coded one by one by the same tokenizer, their tokens side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxwm.models.tokenizer import BoundTokenizer, CodesFound, Tokenizer
from jaxwm.nn.transformer import Cache
from jaxwm.types import Array, Arrays, Field, PyTree


@dataclasses.dataclass(frozen=True)
class Cameras:
    """A `Tokenizer` for all V images of a world: pure functions of its parameters.

    The tokens of a frame are the N of the first camera, then those of the second, and so on. For the tokenizer each
    camera's video is a row of its own; see `jaxwm.models.tokenizer.BoundTokenizer` for what is the same otherwise.

    Args:
      config: the settings.
      fields: the images, all of one shape.

    Raises:
      ValueError: no image, images of several shapes, or a patch that does not fit them.
    """

    config: Tokenizer
    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        shapes = {field.shape for field in self.fields}
        if len(shapes) != 1:
            found = ", ".join(f"{field.name} {list(field.shape)}" for field in self.fields) or "none"
            raise ValueError(f"diffusion takes images of one shape, but this world shows {found}")
        self.one  # noqa: B018  (refuses an image that it does not fit)

    @property
    def one(self) -> BoundTokenizer:
        """The tokenizer of any of them."""
        return self.config.bind(self.fields[0])

    @property
    def count(self) -> int:
        """V."""
        return len(self.fields)

    @property
    def channels(self) -> int:
        """Numbers in a token."""
        return self.one.channels

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Row and column of each of the ``V * N`` tokens, after the number of its camera if there are several."""
        if self.count == 1:
            return self.one.places
        return tuple((camera, *place) for camera in range(self.count) for place in self.one.places)

    def init(self, key: Array, observation: Arrays, valid: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters and statistics; images are uint8 ``[B, T, H, W, C]``."""
        return self.one.init(key, self._rows(observation), self._each(valid))

    def encode(self, params: PyTree, observation: Arrays, segments: Array) -> Array:
        """Latents ``[B, T, V * N, channels]`` of images uint8 ``[B, T, H, W, C]``; segments are ``[B, T]``."""
        return self._beside(self.one.encode(params, self._rows(observation), self._each(segments)).latents)

    def decode(self, params: PyTree, latents: Array, segments: Array) -> dict[str, Array]:
        """Images float32 in [0, 1] ``[B, T, H, W, C]`` by name, of latents ``[B, T, V * N, channels]``."""
        return self._named(self.one.decode(params, self._apart(latents), self._each(segments)))

    def init_cache(self, rows: int) -> Cache | None:
        """For `encode_step` or `decode_step`, ``[B, V, ...]``: no frame so far."""
        return self._split(self.one.init_cache(rows * self.count))

    def encode_step(self, params: PyTree, cache: Cache | None, observation: Arrays) -> tuple[Array, Cache | None]:
        """Latents ``[B, V * N, channels]`` of images uint8 ``[B, H, W, C]``, and the cache with these in it."""
        found, cache = self.one.encode_step(params, self._merge(cache), self._rows(observation))
        return self._beside(found.latents), self._split(cache)

    def decode_step(
        self, params: PyTree, cache: Cache | None, latents: Array
    ) -> tuple[dict[str, Array], Cache | None]:
        """Images ``[B, H, W, C]`` by name, of latents ``[B, V * N, channels]``, and the cache with these in it."""
        images, cache = self.one.decode_step(params, self._merge(cache), self._apart(latents))
        return self._named(images), self._split(cache)

    def loss(
        self, params: PyTree, statistics: PyTree, keys: Array, observation: Arrays, valid: Array, segments: Array
    ) -> tuple[Array, dict[str, Array], CodesFound | None]:
        """See `BoundTokenizer.loss`; the mean of all cameras."""
        if self.count > 1:
            keys = jax.vmap(lambda key: jax.random.split(key, self.count))(keys).reshape(-1)
        images = self._rows(observation)
        return self.one.loss(params, statistics, keys, images, self._each(valid), self._each(segments))

    def _rows(self, images: Arrays) -> Array:
        """``[B * V, ...]`` of ``[B, ...]`` by name."""
        return self._merge(jnp.stack([images[field.name] for field in self.fields], axis=1))

    def _named(self, images: Array) -> dict[str, Array]:
        """The inverse of `_rows`."""
        apart = self._split(images)
        return {field.name: apart[:, camera] for camera, field in enumerate(self.fields)}

    def _beside(self, tokens: Array) -> Array:
        """``[B, ..., V * N, C]`` of ``[B * V, ..., N, C]``."""
        apart = jnp.moveaxis(self._split(tokens), 1, -3)
        return apart.reshape(*apart.shape[:-3], -1, apart.shape[-1])

    def _apart(self, tokens: Array) -> Array:
        """The inverse of `_beside`."""
        apart = tokens.reshape(*tokens.shape[:-2], self.count, self.one.tokens, tokens.shape[-1])
        return self._merge(jnp.moveaxis(apart, -3, 1))

    def _each(self, value: Array) -> Array:
        """``[B * V, ...]``: what is so for all cameras of a row."""
        return jnp.repeat(value, self.count, axis=0)

    def _split(self, rows: Any) -> Any:
        """``[B, V, ...]`` of ``[B * V, ...]``, of all arrays of a tree."""
        return jax.tree.map(lambda x: x.reshape(len(x) // self.count, self.count, *x.shape[1:]), rows)

    def _merge(self, rows: Any) -> Any:
        """The inverse of `_split`."""
        return jax.tree.map(lambda x: x.reshape(len(x) * self.count, *x.shape[2:]), rows)
