"""What a frame is to a diffusion model: tokens for the action that led to it, for its picture, for its vectors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxwm.models.tokenizer import BoundTokenizer
from jaxwm.nn import patchify
from jaxwm.nn.layers import symexp, symlog
from jaxwm.types import Array, Arrays, Spec, Trajectory, nearest


@dataclasses.dataclass(frozen=True)
class FrameTokens:
    """The M tokens of a frame, each of ``channels`` numbers: parts of the action, patches, parts of the vectors.

    Actions are on the scale -1..1 and vectors their symmetric logarithms, both cut into tokens and filled up with
    zeros; patches are latents of the tokenizer.

    Args:
      spec: what the world shows and takes; exactly one image, and vectors if there are any.
      coder: of the image.
    """

    spec: Spec
    coder: BoundTokenizer

    @property
    def image(self) -> str:
        """The image's name."""
        return self.coder.field.name

    @property
    def channels(self) -> int:
        """Numbers in a token."""
        return self.coder.channels

    @property
    def groups(self) -> tuple[int, ...]:
        """How many tokens there are for the action, the image and, if there are any, the vectors."""
        vectors = -(-sum(field.shape[0] for field in self.spec.vectors) // self.channels)
        parts = -(-self.spec.action.dim // self.channels), self.coder.tokens, vectors
        return parts if vectors else parts[:2]

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
    def places(self) -> tuple[tuple[int, int], ...]:
        """Row and column of each; what is no patch stands below the picture."""
        below = [tuple((self.coder.grid[0] + kind, k) for k in range(count)) for kind, count in enumerate(self.groups)]
        return (*below[0], *self.coder.places, *(below[2] if len(below) > 2 else ()))

    def join(self, action: Array, latents: Array, observation: Arrays | None) -> Array:
        """Tokens ``[..., M, C]`` from actions ``[..., A]``, latents ``[..., N, C]`` and vectors, zeros for None."""
        parts = [self._cut(self.spec.action.normalise(action), self.actions), latents]
        if self.spec.vectors:
            size = sum(field.shape[0] for field in self.spec.vectors)
            vectors = [jnp.zeros((*action.shape[:-1], size))]
            if observation is not None:
                vectors = [symlog(observation[field.name]) for field in self.spec.vectors]
            parts.append(self._cut(jnp.concatenate(vectors, axis=-1), self.groups[2]))
        return jnp.concatenate(parts, axis=-2)

    def latents(self, tokens: Array) -> Array:
        """``[..., N, C]``: the patches among ``tokens`` ``[..., M, C]``."""
        return tokens[..., self.actions : self.actions + self.coder.tokens, :]

    def vectors(self, tokens: Array) -> dict[str, Array]:
        """The vectors ``[..., D]`` that tokens ``[..., M, C]`` stand for, by name."""
        found, start = {}, 0
        numbers = tokens[..., sum(self.groups[:2]) :, :].reshape(*tokens.shape[:-2], -1)
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
        return said if spec.low is None else spec.denormalise(jnp.clip(said, -1.0, 1.0))

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
            if name == self.image:
                shapes.append((rows, length, *fields[name].shape[:2]))
            if level.shape not in shapes:
                raise ValueError(f"known[{name!r}] has shape {level.shape}, expected {' or '.join(map(str, shapes))}")
        return levels

    def pixel_levels(self, known: dict[str, Array]) -> Array:
        """``[B, T, H, W]``: how well each pixel is known."""
        level = known[self.image]
        height, width = self.coder.field.shape[:2]
        return jnp.broadcast_to(
            level.reshape(*level.shape[:2], *(level.shape[2:] or (1, 1))), (*level.shape[:2], height, width)
        )

    def levels(self, known: dict[str, Array], trajectory: Trajectory) -> Array:
        """``[B, T, M]``: levels of all tokens, an action's at the frame that it leads to."""
        before = jnp.concatenate([jnp.ones_like(known["action"][:, :1]), known["action"][:, :-1]], axis=1)
        acted = jnp.where(trajectory.is_first, 0.0, before)[..., None]
        patches = patchify(self.pixel_levels(known)[..., None], self.coder.config.patch).min(-1)
        parts = [jnp.repeat(acted, self.actions, axis=-1), patches.reshape(*acted.shape[:2], -1)]
        if self.spec.vectors:
            least = jnp.min(jnp.stack([known[field.name] for field in self.spec.vectors]), axis=0)
            parts.append(jnp.repeat(least[..., None], self.groups[2], axis=-1))
        return jnp.concatenate(parts, axis=-1)

    def _cut(self, numbers: Array, count: int) -> Array:
        padding = count * self.channels - numbers.shape[-1]
        padded = jnp.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, padding)])
        return padded.reshape(*numbers.shape[:-1], count, self.channels)
