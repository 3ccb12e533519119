"""A network that reads from a picture what is in it, taught by the truth of a simulator.

It has never seen a generated picture: what it reads from one says whether the picture shows what it was asked for. How
well it reads real pictures stands beside every figure that it measures.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

WIDTHS = (16, 32, 64)


class _Network(nn.Module):
    """A U-Net with heads on its coarsest map."""

    choices: tuple[tuple[str, int], ...]
    numbers: tuple[str, ...]
    kinds: int

    @nn.compact
    def __call__(self, pair):
        """Two pictures ``[B, H, W, 6]`` in 0..1 to logits, numbers and the map of the first."""
        x, skips = pair - 0.5, []
        for width in WIDTHS:
            x = _convolve(width)(x)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = _convolve(WIDTHS[-1])(x)
        flat = nn.Dense(128)(x.reshape(len(x), -1))
        flat = nn.silu(nn.LayerNorm()(flat))
        said = {name: nn.Dense(size, name=name)(flat) for name, size in self.choices}
        said |= {name: nn.Dense(1, name=name)(flat)[:, 0] for name in self.numbers}
        for width, skip in zip(WIDTHS[::-1], skips[::-1], strict=True):
            x = jnp.concatenate([x.repeat(2, 1).repeat(2, 2), skip], axis=-1)
            x = _convolve(width)(x)
        return said, nn.Conv(self.kinds, (1, 1), name="map")(x)


def _convolve(width):
    return nn.Sequential([nn.Conv(width, (3, 3)), nn.GroupNorm(8), nn.silu, nn.Conv(width, (3, 3)), nn.silu])


@dataclasses.dataclass(frozen=True)
class Judge:
    """What is to be read from a picture and the one after it.

    Args:
      choices: names of questions with one of so many answers.
      numbers: names of questions whose answer is a number of magnitude 1.
      kinds: of things in the map of the first picture.
    """

    choices: tuple[tuple[str, int], ...]
    numbers: tuple[str, ...]
    kinds: int

    @property
    def _network(self):
        return _Network(self.choices, self.numbers, self.kinds)

    def teach(self, batches, steps, seed=0) -> Any:
        """Parameters, learned from ``batches`` of ``(pictures [B, 2, H, W, 3] uint8, truth)``.

        The truth holds the answers ``[B]`` by name, -1 or nan where there is none, and ``map`` ``[B, H, W]``.
        """
        pictures, _ = next(batches)
        params = jax.jit(self._network.init)(jax.random.key(seed), as_pair(pictures[:1]))
        optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-4)

        @jax.jit
        def update(params, state, pictures, truth):
            gradients = jax.grad(self._loss)(params, pictures, truth)
            changes, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, changes), state

        state = optimizer.init(params)
        for _ in range(steps):
            params, state = update(params, state, *next(batches))
        return jax.device_get(params)

    def taught(self, path, lessons, steps=2500):
        """``pictures -> (answers, maps)``; it learns once from ``lessons()`` and is kept at ``path``."""
        if not path.exists():
            path.write_bytes(pickle.dumps(self.teach(lessons(), steps)))
        return functools.partial(self, pickle.loads(path.read_bytes()))

    def _loss(self, params, pictures, truth):
        said, seen = self._network.apply(params, as_pair(pictures))
        kinds = truth["map"].astype(jnp.int32)
        total = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(seen, kinds))
        for name, _ in self.choices:
            known = truth[name] >= 0
            error = optax.softmax_cross_entropy_with_integer_labels(said[name], jnp.maximum(truth[name], 0))
            total += jnp.sum(error * known) / jnp.maximum(jnp.sum(known), 1)
        for name in self.numbers:
            known = jnp.isfinite(truth[name])
            error = jnp.square(said[name] - jnp.where(known, truth[name], 0.0))
            total += jnp.sum(error * known) / jnp.maximum(jnp.sum(known), 1)
        return total

    def __call__(self, params, pictures, rows=256) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Answers ``[..., T - 1]`` by name and maps ``[..., T - 1, H, W]`` of all pictures but the last.

        Pictures ``[..., T, H, W, 3]`` are bytes, or floats in 0..1.
        """
        pictures = np.asarray(pictures)
        pairs = np.stack([pictures[..., :-1, :, :, :], pictures[..., 1:, :, :, :]], axis=-4)
        leading, flat = pairs.shape[:-4], pairs.reshape(-1, *pairs.shape[-4:])
        found = []
        for start in range(0, len(flat), rows):
            part = flat[start : start + rows]
            padded = np.concatenate([part, np.repeat(part[-1:], rows - len(part), axis=0)])
            read = jax.device_get(_read(self, params, padded))
            found.append(jax.tree.map(lambda x, part=part: x[: len(part)], read))
        said, seen = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        return {name: x.reshape(leading) for name, x in said.items()}, seen.reshape(*leading, *seen.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def _read(judge, params, pictures):
    said, seen = judge._network.apply(params, as_pair(pictures))
    said = {name: x.argmax(-1) if x.ndim > 1 else x for name, x in said.items()}
    return said, seen.argmax(-1).astype(jnp.uint8)


def as_pair(pictures):
    """``[B, 2, H, W, 3]``, bytes or in 0..1, to ``[B, H, W, 6]`` in 0..1."""
    pictures = pictures / 255.0 if pictures.dtype == jnp.uint8 else pictures
    return jnp.concatenate([pictures[:, 0], pictures[:, 1]], axis=-1)
