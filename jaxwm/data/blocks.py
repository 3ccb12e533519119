"""Every k-th frame, with the k actions between two of them joined into one: a block.

What changes little from frame to frame is then predicted in fewer and larger steps, and a plan of the same number of
steps reaches k times as far (frame skip and action block of DINO-WM and LeWM: Zhou et al. 2025, arXiv:2411.04983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxwm.types import PyTree, Trajectory


def join_blocks(steps: Trajectory, size: int, previous_action: Any) -> Trajectory:
    """``[B, T * size, ...]`` of the world to ``[B, T, ...]`` of blocks, as numpy arrays.

    Frames and flags are those of the first of each ``size`` steps; where an episode ends within a block, its last
    frame is the next entry, as it is for who acts in blocks. The reward of a block is the sum over its steps. Actions
    that were not done are zeros, and an action is valid if all of its parts that were done are known.

    Args:
      steps: of the world.
      size: of a block.
      previous_action: ``[B, size * A]``, the block before the first one.
    """
    rows, length = np.shape(steps.reward)
    entries = np.arange(length // size) * size
    final = np.maximum(np.sum(steps.valid, axis=1) - 1, 0)[:, None]
    shown = np.minimum(entries, final)
    valid = (entries - size < final) & np.any(steps.valid, axis=1, keepdims=True)

    def first(tree: PyTree) -> PyTree:
        picked = lambda x: np.asarray(x)[np.arange(rows)[:, None], shown]  # noqa: E731
        return jax.tree.map(lambda x: np.where(_like(valid, x), picked(x), np.zeros((), x.dtype)), tree)

    grouped = lambda x: np.asarray(x).reshape(rows, length // size, size, *np.shape(x)[2:])  # noqa: E731
    done = grouped(steps.valid) & ~grouped(steps.is_last)
    arrays: dict[str, Any] = dict(
        observation=first(steps.observation),
        action=np.where(done[..., None], grouped(steps.action), 0.0).reshape(rows, length // size, -1),
        previous_action=previous_action,
        reward=np.where(done, grouped(steps.reward), 0.0).sum(2, dtype=np.float32),
        is_first=first(steps.is_first),
        is_last=first(steps.is_last),
        is_terminal=first(steps.is_terminal),
        valid=valid,
        action_valid=np.all(grouped(steps.action_valid) | ~done, axis=2) & valid,
        condition=first(steps.condition),
        info=first(steps.info),
    )
    return Trajectory(**arrays)


def _like(mask: np.ndarray, x: Any) -> np.ndarray:
    return mask.reshape(*mask.shape, *[1] * (np.ndim(x) - 2))


class Blocks:
    """Episodes in blocks of ``size`` actions: windows, lengths, places and spec as `jaxwm.data.Episodes` has them.

    Attributes:
      episodes: those that are read.
      size: actions in a block.
      spec: of the blocks.
      lengths: ``[N]`` int64, blocks of each episode; the last frame is an entry even if its block is cut short.
      path: of the episodes.
      split: of the episodes.
    """

    def __init__(self, episodes: Any, size: int) -> None:
        self.episodes, self.size = episodes, size
        self.spec = episodes.spec.blocked(size)
        self.lengths: np.ndarray = -(-(np.asarray(episodes.lengths) - 1) // size) + 1
        self.path, self.split = getattr(episodes, "path", "simulated"), getattr(episodes, "split", "episodes")

    def __len__(self) -> int:
        return len(self.lengths)

    def places(self, length: int) -> np.ndarray:
        """As `jaxwm.data.Episodes.places`: a window of blocks may begin at any frame."""
        counts: np.ndarray = self.episodes.places((length - 1) * self.size + 1)
        return counts

    def windows(self, indices: Sequence[int], starts: Sequence[int], length: int) -> Trajectory:
        """As `jaxwm.data.Episodes.windows`; ``starts`` count frames, ``length`` blocks."""
        steps = self.episodes.windows(indices, starts, length * self.size)
        previous = np.zeros((len(starts), self.size, steps.action.shape[-1]), np.float32)
        late = [row for row, start in enumerate(starts) if start]
        if late:
            counts = [min(starts[row], self.size) for row in late]
            before = [starts[row] - count for row, count in zip(late, counts, strict=True)]
            actions = self.episodes.windows([indices[row] for row in late], before, self.size).action
            for row, count, known in zip(late, counts, actions, strict=True):
                previous[row, self.size - count :] = known[:count]
        return join_blocks(steps, self.size, previous.reshape(len(starts), -1))
