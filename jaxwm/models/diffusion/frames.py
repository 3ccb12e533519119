"""What a frame is to a diffusion model: tokens for the action that led to it, for its pictures, for its vectors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxwm.models.diffusion.cameras import Cameras
from jaxwm.nn import patchify
from jaxwm.nn.layers import symexp, symlog
from jaxwm.types import Array, Arrays, Spec, Trajectory, nearest


@dataclasses.dataclass(frozen=True)
class FrameTokens:
    """The M tokens of a frame, each of ``channels`` numbers: parts of the action, patches, parts of the vectors.

    Vectors are their symmetric logarithms; actions are on the scale -1..1, on which ``squash`` s > 0 of one of their
    numbers y makes room for what is small: ``sign(y) log(1 + s |y|) / log(1 + s y_max)``, y_max being the further of
    its bounds (GAIA-2, Russell et al. 2025, arXiv:2503.20523). Both are cut into tokens and filled up with zeros;
    patches are latents of the tokenizer.

    Args:
      spec: what the world shows and takes; at least one image, and vectors if there are any.
      cameras: of the images.
      squash: s of each number of the action, or nothing for linear scales.

    Raises:
      ValueError: a squash of another length than the action, not above 0, or of an action without bounds.
    """

    spec: Spec
    cameras: Cameras
    squash: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        action = self.spec.action
        if not self.squash:
            return
        if len(self.squash) != action.dim or min(self.squash) <= 0:
            raise ValueError(f"squash is {self.squash}, expected {action.dim} numbers above 0")
        if action.low is None:
            raise ValueError(f"squash is {self.squash}, but this world's action has no bounds to be squashed to")

    @property
    def channels(self) -> int:
        """Numbers in a token."""
        return self.cameras.channels

    @property
    def groups(self) -> tuple[int, ...]:
        """How many tokens there are for the action, for each image and, if there are any, for the vectors."""
        vectors = -(-sum(field.shape[0] for field in self.spec.vectors) // self.channels)
        parts = -(-self.spec.action.dim // self.channels), *[self.cameras.one.tokens] * self.cameras.count
        return (*parts, vectors) if vectors else parts

    @property
    def actions(self) -> int:
        """How many of them, the first ones, are for the action."""
        return self.groups[0]

    @property
    def count(self) -> int:
        """M."""
        return sum(self.groups)

    @property
    def is_action(self) -> Array:
        """``[M]``: which of them are for the action."""
        return jnp.arange(self.count) < self.actions

    @property
    def vectors_from(self) -> int:
        """The number of the first token of the vectors, M where there are none."""
        return self.actions + self.cameras.count * self.cameras.one.tokens

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Where each is, see `Cameras.places`; what is no patch stands below the first picture."""
        patches, rows = self.cameras.places, self.cameras.one.grid[0]
        first = (0,) * (len(patches[0]) - 2)
        acts = tuple((*first, rows, k) for k in range(self.actions))
        return (*acts, *patches, *((*first, rows + 2, k) for k in range(self.count - self.vectors_from)))

    def join(self, action: Array, latents: Array, observation: Arrays | None) -> Array:
        """Tokens ``[..., M, C]`` from actions ``[..., A]``, latents ``[..., N, C]`` and vectors, zeros for None."""
        parts = [self._cut(self._scaled(action), self.actions), latents]
        if self.spec.vectors:
            size = sum(field.shape[0] for field in self.spec.vectors)
            vectors = [jnp.zeros((*action.shape[:-1], size))]
            if observation is not None:
                vectors = [symlog(observation[field.name]) for field in self.spec.vectors]
            parts.append(self._cut(jnp.concatenate(vectors, axis=-1), self.groups[-1]))
        return jnp.concatenate(parts, axis=-2)

    def latents(self, tokens: Array) -> Array:
        """``[..., N, C]``: the patches among ``tokens`` ``[..., M, C]``."""
        return tokens[..., self.actions : self.vectors_from, :]

    def vectors(self, tokens: Array) -> dict[str, Array]:
        """The vectors ``[..., D]`` that tokens ``[..., M, C]`` stand for, by name."""
        found, start = {}, 0
        numbers = tokens[..., self.vectors_from :, :].reshape(*tokens.shape[:-2], -1)
        for field in self.spec.vectors:
            found[field.name] = symexp(numbers[..., start : start + field.shape[0]])
            start += field.shape[0]
        return found

    def action(self, tokens: Array) -> Array:
        """The actions ``[..., A]`` that tokens ``[..., M, C]`` stand for, within their bounds or one-hot."""
        spec = self.spec.action
        said = tokens[..., : self.actions, :].reshape(*tokens.shape[:-2], -1)[..., : spec.dim]
        if spec.discrete:
            return jax.nn.one_hot(jnp.argmax(said, axis=-1), spec.dim)
        if spec.low is None or spec.high is None:
            return said
        said = jnp.clip(said, -1.0, 1.0)
        if not self.squash:
            return spec.denormalise(said)
        squash = jnp.asarray(self.squash)
        stretched = jnp.sign(said) * jnp.expm1(jnp.abs(said) * jnp.log1p(squash * self._reach)) / squash
        return jnp.clip(stretched, jnp.asarray(spec.low), jnp.asarray(spec.high))

    def check_known(self, known: Arrays, rows: int, length: int) -> dict[str, Array]:
        """Levels of everything that a clip has, those that ``known`` does not name 0.

        Raises:
          ValueError: levels of something that is not there, or of another shape.
        """
        fields = {field.name: field for field in self.spec.observation}
        if "action" in fields:
            raise ValueError("known['action'] would be the action, but this world shows something of that name")
        for name in known:
            if name != "action" and name not in fields:
                raise ValueError(f"known[{name!r}] is not part of the spec; {nearest(name, [*fields, 'action'])}")
        levels = {name: jnp.asarray(known.get(name, jnp.zeros((rows, length)))) for name in (*fields, "action")}
        for name, level in levels.items():
            shapes: list[tuple[int, ...]] = [(rows, length)]
            if fields.get(name) in self.cameras.fields:
                shapes.append((rows, length, *fields[name].shape[:2]))
            if level.shape not in shapes:
                raise ValueError(f"known[{name!r}] has shape {level.shape}, expected {' or '.join(map(str, shapes))}")
        return levels

    def pixel_levels(self, known: dict[str, Array]) -> dict[str, Array]:
        """``[B, T, H, W]`` by name: how well each pixel is known."""
        height, width = self.cameras.fields[0].shape[:2]

        def of(level: Array) -> Array:
            level = level.reshape(*level.shape[:2], *(level.shape[2:] or (1, 1)))
            return jnp.broadcast_to(level, (*level.shape[:2], height, width))

        return {field.name: of(known[field.name]) for field in self.cameras.fields}

    def levels(self, known: dict[str, Array], trajectory: Trajectory) -> Array:
        """``[B, T, M]``: levels of all tokens, an action's at the frame that it leads to."""
        before = jnp.concatenate([jnp.ones_like(known["action"][:, :1]), known["action"][:, :-1]], axis=1)
        acted = jnp.where(trajectory.is_first, 0.0, before)[..., None]
        parts = [jnp.repeat(acted, self.actions, axis=-1)]
        parts += [self._patch_levels(known[field.name]) for field in self.cameras.fields]
        if self.spec.vectors:
            least = jnp.min(jnp.stack([known[field.name] for field in self.spec.vectors]), axis=0)
            parts.append(jnp.repeat(least[..., None], self.groups[-1], axis=-1))
        return jnp.concatenate(parts, axis=-1)

    def _patch_levels(self, level: Array) -> Array:
        """``[B, T, N]`` of a level of pictures ``[B, T]`` or of pixels ``[B, T, H, W]``: the least of them."""
        if level.ndim == 2:
            return jnp.repeat(level[..., None], self.cameras.one.tokens, axis=-1)
        return patchify(level[..., None], self.cameras.config.patch).min(-1).reshape(*level.shape[:2], -1)

    def _scaled(self, action: Array) -> Array:
        """Actions ``[..., A]`` on the scale -1..1."""
        spec = self.spec.action
        if not self.squash:
            return spec.normalise(action)
        squash, inside = jnp.asarray(self.squash), jnp.clip(action, jnp.asarray(spec.low), jnp.asarray(spec.high))
        return jnp.sign(inside) * jnp.log1p(squash * jnp.abs(inside)) / jnp.log1p(squash * self._reach)

    @property
    def _reach(self) -> Array:
        """``[A]``: y_max of each number of the action."""
        spec = self.spec.action
        return jnp.maximum(jnp.abs(jnp.asarray(spec.low)), jnp.abs(jnp.asarray(spec.high)))

    def _cut(self, numbers: Array, count: int) -> Array:
        padding = count * self.channels - numbers.shape[-1]
        padded = jnp.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, padding)])
        return padded.reshape(*numbers.shape[:-1], count, self.channels)
