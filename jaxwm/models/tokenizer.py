"""Pictures as a few tokens and back: the part of a family that works on latents instead of pixels.

`Tokenizer` is the configuration, which a family holds as a field; `Tokenizer.bind` ties it to an image of the world.
Encoder and decoder are small vision transformers over patches, and a frame has one latent token for each patch.

What diffusion adds to latents is noise of unit variance, so each kind has latents on a scale of about 1:

* ``kl``: a Gaussian for each number, drawn to N(0, 1) by ``kl_scale``; latents are its means, whose mean square is
  near 1 where a number says something and near 0 where it doesn't (Kingma & Welling 2013, arXiv:1312.6114).
* ``masked``: a tanh, so within (-1, 1); the encoder is shown a part of the patches while it learns, and all of them
  later (the tokenizer of Dreamer 4, Hafner et al. 2025, arXiv:2509.24527).
* ``vq``: codes of root mean square 1 (`jaxwm.nn.quantise.quantise_cosine`).
* ``fsq``: rounded numbers, of mean 0 and variance 1 were all levels used equally (`quantise_scalars`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from flax import linen as nn
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from jaxwm.models.base import masked_mean
from jaxwm.nn import Linear, Normal, patchify, quantise, unpatchify
from jaxwm.nn.coders import mean_frame
from jaxwm.nn.quantise import Quantised
from jaxwm.nn.representation import watch_places
from jaxwm.nn.transformer import Cache, Entries, FrameTransformer, TokenTransformer, window_mask
from jaxwm.types import Array, Field, PyTree

Levels = tuple[Annotated[int, pydantic.Field(ge=2)], ...]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]

Places = tuple[tuple[int, int], ...]

_MOST_CODES = 1 << 20


class Tokens(NamedTuple):
    """Frames as tokens.

    Attributes:
      latents: ``[..., N, channels]`` float32, on a scale of about 1.
      indices: ``[..., N]`` int32, which code each of them is; None for the continuous kinds.
    """

    latents: Array
    indices: Array | None = None


class CodesFound(NamedTuple):
    """What a batch says about the codes, for `BoundTokenizer.after_update`.

    Attributes:
      shares: ``[codes]``, how often each occurred.
      candidates: ``[codes, channels]``, where dead codes may begin anew; None for ``fsq``, whose codes stay.
    """

    shares: Array
    candidates: Array | None = None


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """How a family turns pictures into tokens.

    Args:
      kind: of the latents, see above.
      patch: side of a patch in pixels; divides the image.
      width: of encoder and decoder.
      blocks: of encoder and decoder each.
      heads: of their attention.
      window: frames before its own that a frame is encoded and decoded with; 0: each frame for itself.
      channels: numbers in a latent token; ``fsq`` has one for each of its ``levels``.
      codes: of ``vq``.
      levels: of ``fsq``, for each number.
      kl_scale: of ``kl``, weight of the divergence against the squared error, both summed over a token.
      mask: of ``masked``, the greatest share of patches that the encoder is not shown.
      pixels: how the decoder's last layer becomes pixels, ``sigmoid`` or ``linear``.
      dtype: what the networks compute in; parameters and latents are float32.

    Raises:
      ValueError: heads that do not fit the width, or levels with more than 2^20 codes or none.
    """

    kind: Literal["kl", "masked", "vq", "fsq"] = "masked"
    patch: PositiveInt = 8
    width: PositiveInt = 64
    blocks: PositiveInt = 2
    heads: PositiveInt = 2
    window: NonNegativeInt = 0
    channels: PositiveInt = 8
    codes: Annotated[int, pydantic.Field(ge=2, le=_MOST_CODES)] = 512
    levels: Levels = (8, 5, 5, 5)
    kl_scale: NonNegativeFloat = 1e-3
    mask: Share = 0.5
    pixels: Literal["sigmoid", "linear"] = "sigmoid"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads) or self.width < 4 * self.heads:
            raise ValueError(
                f"tokenizer.heads is {self.heads}, expected heads of an even size from 4 that make up "
                f"tokenizer.width, {self.width}"
            )
        if not self.levels or math.prod(self.levels) > _MOST_CODES:
            raise ValueError(f"tokenizer.levels is {self.levels}, expected some, with at most {_MOST_CODES} codes")

    def bind(self, field: Field) -> BoundTokenizer:
        """The tokenizer of the image ``field``.

        Raises:
          ValueError: it is no image, or one that does not divide into patches.
        """
        return BoundTokenizer(self, field)


def _frames(config: Tokenizer, places: Places, **options: Any) -> FrameTransformer:
    """The blocks of a tokenizer that sees the frames before."""
    return FrameTransformer(
        config.blocks, config.heads, config.window, places, factorised=True, dtype=jnp.dtype(config.dtype), **options
    )


class _Blocks(nn.Module):
    """Blocks over the tokens of frames: of each frame for itself, or with those before it."""

    config: Tokenizer
    places: Places

    @nn.compact
    def __call__(self, tokens: Array, segments: Array | None, cache: Cache | None) -> tuple[Array, Entries]:
        """``[B, T, N, width]`` to the same, and what a cache is to keep."""
        c = self.config
        if c.window:
            mask = window_mask(tokens.shape[1], c.window, segments)
            out: tuple[Array, Entries] = _frames(c, self.places, name="trunk")(tokens, cache=cache, mask=mask)
            return out
        flat = tokens.reshape(-1, *tokens.shape[2:])
        trunk = TokenTransformer(c.blocks, c.heads, jnp.dtype(c.dtype), name="trunk")
        return trunk(flat, jnp.asarray(self.places)[None]).reshape(tokens.shape), Entries((), (), tokens)


class _Encoder(nn.Module):
    config: Tokenizer
    places: Places
    outputs: int

    @nn.compact
    def __call__(
        self,
        patches: Array,
        hidden: Array | None = None,
        segments: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Entries]:
        """Patches ``[B, T, N, pixels]``, of which those ``hidden`` ``[B, T, N]`` are not shown, to numbers."""
        c = self.config
        tokens = Linear(c.width, dtype=jnp.dtype(c.dtype), name="patches")(patches)
        if c.kind == "masked":
            instead = self.param("mask_token", nn.initializers.zeros_init(), (c.width,), jnp.float32)
            if hidden is not None:
                tokens = jnp.where(hidden[..., None], instead.astype(tokens.dtype), tokens)
        out, entries = _Blocks(c, self.places, name="blocks")(tokens, segments, cache)
        return Linear(self.outputs, dtype=jnp.dtype(c.dtype), name="latents")(out).astype(jnp.float32), entries


class _Decoder(nn.Module):
    config: Tokenizer
    places: Places
    shape: tuple[int, ...]

    @nn.compact
    def __call__(
        self, latents: Array, segments: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Entries]:
        """``[B, T, N, channels]`` to images ``[B, T, H, W, C]``, on the scale 0..1 and perhaps beyond it."""
        c, (height, width, colours) = self.config, self.shape
        tokens = Linear(c.width, dtype=jnp.dtype(c.dtype), name="latents")(latents)
        out, entries = _Blocks(c, self.places, name="blocks")(tokens, segments, cache)
        # A tenth of the usual size: at first the mean frame is all that is said.
        out = Linear(c.patch**2 * colours, 0.1, jnp.dtype(c.dtype), name="patches")(out).astype(jnp.float32)
        patches = out.reshape(*out.shape[:2], height // c.patch, width // c.patch, -1)
        background = self.param("background", nn.initializers.zeros_init(), self.shape, jnp.float32)
        image = unpatchify(patches, c.patch) + background
        return (nn.sigmoid(image) if c.pixels == "sigmoid" else image + 0.5), entries


@dataclasses.dataclass(frozen=True)
class BoundTokenizer:
    """A `Tokenizer` for one image of the world: pure functions of its parameters.

    Batches of clips are ``[B, T, ...]``. With a ``window`` a frame is encoded and decoded with those before it in the
    same clip that have its number in ``segments`` ``[B, T]`` (such as the running sum of ``is_first``). Where frames
    come one by one, a `Cache` keeps what is seen of the past, and `jaxwm.nn.transformer.clear_rows` makes it forget in
    the rows where an episode begins. Without a window a cache is None and costs nothing.

    Args:
      config: the settings.
      field: the image.
    """

    config: Tokenizer
    field: Field

    def __post_init__(self) -> None:
        if not self.field.is_image:
            raise ValueError(f"tokenizer takes an image, but {self.field.name!r} is {self.field.dtype}")
        if any(side % self.config.patch for side in self.field.shape[:2]):
            raise ValueError(
                f"tokenizer.patch is {self.config.patch}, which does not divide the image {list(self.field.shape)}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.field.shape[0] // self.config.patch, self.field.shape[1] // self.config.patch

    @property
    def places(self) -> Places:
        """``[N][2]``: row and column of each token."""
        return tuple((row, column) for row in range(self.grid[0]) for column in range(self.grid[1]))

    @property
    def tokens(self) -> int:
        """N, the tokens of a frame."""
        return math.prod(self.grid)

    @property
    def channels(self) -> int:
        """Numbers in a latent token."""
        return len(self.config.levels) if self.config.kind == "fsq" else self.config.channels

    @property
    def codes(self) -> int:
        """How many codes there are; 0 for the continuous kinds."""
        return {"vq": self.config.codes, "fsq": math.prod(self.config.levels)}.get(self.config.kind, 0)

    def init(self, key: Array, images: Array, valid: Array) -> tuple[PyTree, PyTree]:
        """Fresh parameters, and statistics to be kept among a family's targets.

        Args:
          key: one.
          images: uint8 ``[B, T, H, W, C]``; the decoder starts from their mean.
          valid: ``[B, T]``, which of them count.
        """
        keys = jax.random.split(key, 3)
        patches = jnp.zeros((1, 1, self.tokens, self.config.patch**2 * self.field.shape[2]))
        decoder = self._decoder.init(keys[1], jnp.zeros((1, 1, self.tokens, self.channels)))["params"]
        params = {
            "encoder": self._encoder.init(keys[0], patches)["params"],
            "decoder": {**decoder, "background": mean_frame(images, valid, self.config.pixels)},
        }
        if self.config.kind == "vq":
            params["codebook"] = jax.random.normal(keys[2], (self.codes, self.channels))
        # Nothing has been used so far: after the first update the other codes begin at what the encoder says.
        return params, {"usage": jnp.zeros(self.codes)} if self.codes else {}

    def encode(self, params: PyTree, images: Array, segments: Array | None = None) -> Tokens:
        """Images uint8 ``[B, T, H, W, C]`` to tokens ``[B, T, N, ...]``; deterministic."""
        return self._tokens(params, self._run_encoder(params, images, segments=segments)[0])

    def decode(self, params: PyTree, latents: Array, segments: Array | None = None) -> Array:
        """Latents ``[B, T, N, channels]`` to images float32 in [0, 1] ``[B, T, H, W, C]``."""
        return jnp.clip(self._run_decoder(params, latents, segments)[0], 0.0, 1.0)

    def init_cache(self, rows: int) -> Cache | None:
        """For `encode_step` or `decode_step`, which need one each: no frame so far."""
        if not self.config.window:
            return None
        return _frames(self.config, self.places).init_cache(rows, self.tokens, self.config.width)

    def encode_step(self, params: PyTree, cache: Cache | None, image: Array) -> tuple[Tokens, Cache | None]:
        """One frame uint8 ``[B, H, W, C]`` to tokens ``[B, N, ...]``, and the cache with this frame in it."""
        raw, entries = self._run_encoder(params, image[:, None], cache=cache)
        return self._tokens(params, raw[:, 0]), None if cache is None else cache.append(entries)

    def decode_step(self, params: PyTree, cache: Cache | None, latents: Array) -> tuple[Array, Cache | None]:
        """Latents ``[B, N, channels]`` of one frame to its image ``[B, H, W, C]``, and the cache with it.

        To look at a frame leaves the cache that was given as it was: keep the returned one to go on to the next.
        """
        image, entries = self._run_decoder(params, latents[:, None], cache=cache)
        return jnp.clip(image[:, 0], 0.0, 1.0), None if cache is None else cache.append(entries)

    def from_indices(self, params: PyTree, indices: Array) -> Array:
        """Indices ``[...]`` of a discrete kind to their latents ``[..., channels]``.

        Raises:
          ValueError: a continuous kind.
        """
        self._check_discrete()
        if self.config.kind == "fsq":
            return quantise.scalar_vectors(indices, self.config.levels)
        return quantise.to_sphere(params["codebook"])[indices]

    def to_indices(self, params: PyTree, latents: Array) -> Array:
        """Latents ``[..., channels]`` to the indices ``[...]`` of the nearest codes.

        Raises:
          ValueError: a continuous kind.
        """
        self._check_discrete()
        if self.config.kind == "fsq":
            return quantise.scalar_indices(latents, self.config.levels)
        return quantise.quantise_cosine(latents, params["codebook"]).indices

    def loss(
        self,
        params: PyTree,
        statistics: PyTree,
        keys: Array,
        images: Array,
        valid: Array,
        segments: Array | None = None,
    ) -> tuple[Array, dict[str, Array], CodesFound | None]:
        """The squared error of what comes back, with the terms of the kind; all summed over a token, a mean of tokens.

        Args:
          params: see `init`.
          statistics: see `init`.
          keys: ``[B]``: noise, masks, candidates.
          images: uint8 ``[B, T, H, W, C]``.
          valid: ``[B, T]``; other frames have no effect at all.
          segments: ``[B, T]``, see above.

        Returns:
          The scalar; metrics: the terms, ``psnr`` in dB of what comes back in training, ``latents/rms``, the figures
          of `watch_places` and of discrete kinds ``codes/used`` (share of codes that occur in the batch),
          ``codes/perplexity`` (of the batch) and ``codes/dead`` (share of codes not used for long); and what
          `after_update` takes.
        """
        segments = jnp.zeros(valid.shape, jnp.int32) if segments is None else segments
        segments = jnp.where(valid, segments, -1)
        mask_keys, noise_keys, code_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        raw, _ = self._run_encoder(params, images, self._hide(mask_keys, images.shape[1]), segments)
        tokens, losses, found = Tokens(jnp.tanh(raw)), {}, None
        if self.config.kind == "kl":
            posterior = self._posterior(raw)
            noise = jax.vmap(lambda key: jax.random.normal(key, posterior.location.shape[1:]))(noise_keys)
            tokens = Tokens(posterior.location + posterior.std * noise)
            divergence = posterior.kl(Normal(jnp.zeros(()), jnp.ones(())))
            losses["kl"] = masked_mean(jnp.mean(divergence, axis=-1), valid)
        elif self.codes:
            quantised = self._quantise(params, raw)
            tokens = Tokens(quantised.vectors, quantised.indices)
            if self.config.kind == "vq":
                losses["codes"] = masked_mean(jnp.mean(quantised.losses, axis=-1), valid)
            found = self._find_codes(code_keys, raw, quantised, valid)
        image, _ = self._run_decoder(params, tokens.latents, segments)
        error = jnp.sum(jnp.square(image - images.astype(jnp.float32) / 255.0), axis=(-3, -2, -1))
        losses["reconstruction"] = masked_mean(error, valid) / self.tokens

        total = losses["reconstruction"] + self.config.kl_scale * losses.get("kl", 0.0) + losses.get("codes", 0.0)
        metrics = {f"tokenizer/{name}": value for name, value in losses.items()}
        mean_error = losses["reconstruction"] * self.tokens / math.prod(self.field.shape)
        metrics["tokenizer/psnr"] = -10.0 * jnp.log10(jnp.maximum(mean_error, 1e-10))
        return total, metrics | self._watch(tokens, valid, statistics, found), found

    def after_update(self, params: PyTree, statistics: PyTree, found: CodesFound | None) -> tuple[PyTree, PyTree]:
        """Counts the codes that were used; those of ``vq`` that were not for long begin anew in the batch.

        To be called after updates of these parameters only: where they are frozen, codes must stay.
        """
        if found is None:
            return params, statistics
        usage = quantise.follow_usage(statistics["usage"], found.shares)
        if found.candidates is not None:
            codebook, usage = quantise.reseed_codes(params["codebook"], usage, found.candidates)
            params = {**params, "codebook": codebook}
        return params, {"usage": usage}

    @property
    def _encoder(self) -> _Encoder:
        return _Encoder(self.config, self.places, (2 if self.config.kind == "kl" else 1) * self.channels)

    @property
    def _decoder(self) -> _Decoder:
        return _Decoder(self.config, self.places, self.field.shape)

    def _run_encoder(
        self,
        params: PyTree,
        images: Array,
        hidden: Array | None = None,
        segments: Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Array, Entries]:
        if images.dtype != jnp.uint8 or images.shape[2:] != self.field.shape:
            raise ValueError(
                f"{self.field.name} is {images.dtype}{list(images.shape[2:])}, expected uint8{list(self.field.shape)}"
            )
        patches = patchify(images.astype(jnp.dtype(self.config.dtype)) / 255.0 - 0.5, self.config.patch)
        patches = patches.reshape(*images.shape[:2], self.tokens, -1)
        return self._encoder.apply({"params": params["encoder"]}, patches, hidden, segments, cache)  # type: ignore[return-value]

    def _run_decoder(
        self, params: PyTree, latents: Array, segments: Array | None = None, cache: Cache | None = None
    ) -> tuple[Array, Entries]:
        if latents.shape[2:] != (self.tokens, self.channels):
            raise ValueError(
                f"latents have shape {latents.shape[2:]} in a frame, expected {(self.tokens, self.channels)}"
            )
        return self._decoder.apply({"params": params["decoder"]}, latents, segments, cache)  # type: ignore[return-value]

    def _tokens(self, params: PyTree, raw: Array) -> Tokens:
        """What the encoder's numbers mean, without chance."""
        if self.config.kind == "kl":
            return Tokens(self._posterior(raw).mode())
        if self.config.kind == "masked":
            return Tokens(jnp.tanh(raw))
        quantised = self._quantise(params, raw)
        return Tokens(quantised.vectors, quantised.indices)

    def _posterior(self, raw: Array) -> Normal:
        mean, spread = jnp.split(raw, 2, axis=-1)
        # It begins narrow, so that the decoder hears something; the floor keeps the divergence finite.
        return Normal(mean, 1e-3 + jax.nn.softplus(spread - 2.0))

    def _quantise(self, params: PyTree, raw: Array) -> Quantised:
        if self.config.kind == "vq":
            return quantise.quantise_cosine(raw, params["codebook"])
        vectors, indices = quantise.quantise_scalars(raw, self.config.levels)
        return Quantised(vectors, indices, jnp.zeros(indices.shape))

    def _hide(self, keys: Array, length: int) -> Array | None:
        """``[B, T, N]``: which patches the encoder is not shown; of each frame a share drawn from U(0, mask)."""
        if self.config.kind != "masked":
            return None
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (length, self.tokens + 1)))(keys)
        return drawn[..., 1:] < self.config.mask * drawn[..., :1]

    def _find_codes(self, keys: Array, raw: Array, quantised: Quantised, valid: Array) -> CodesFound:
        counts = jnp.broadcast_to(valid[..., None], quantised.indices.shape)
        shares = quantise.code_shares(quantised.indices, counts, self.codes)
        if self.config.kind == "fsq":
            return CodesFound(shares)
        return CodesFound(shares, quantise.draw_candidates(keys, raw, quantised, counts, self.codes))

    def _watch(self, tokens: Tokens, valid: Array, statistics: PyTree, found: CodesFound | None) -> dict[str, Array]:
        """Figures of the latents and codes of a batch."""
        latents = jax.lax.stop_gradient(tokens.latents)
        places = jnp.broadcast_to(valid[..., None], latents.shape[:-1])
        figures = watch_places(latents, valid)
        figures["latents/rms"] = jnp.sqrt(masked_mean(jnp.mean(jnp.square(latents), axis=-1), places))
        if found is not None:
            figures["codes/used"] = quantise.used_share(found.shares)
            figures["codes/perplexity"] = quantise.perplexity(found.shares)
            figures["codes/dead"] = jnp.mean(quantise.dead_codes(statistics["usage"]).astype(jnp.float32))
        return figures

    def _check_discrete(self) -> None:
        if not self.codes:
            raise ValueError(f"tokenizer.kind is {self.config.kind!r}, which has no codes; expected 'vq' or 'fsq'")
