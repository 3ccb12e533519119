"""Every k-th frame, with the k actions between two of them joined into one: a block.

What changes little from frame to frame is then predicted in fewer and larger steps, and a plan of the same number of
steps reaches k times as far (frame skip and action block of DINO-WM and LeWM: Zhou et al. 2025, arXiv:2411.04983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxwm.types import Trajectory


def join_blocks(steps: Trajectory, size: int, previous_action: Any) -> Trajectory:
    """``[B, T * size, ...]`` of the world to ``[B, T, ...]`` of blocks, as numpy arrays.

    Frames and flags are those of the first of each ``size`` steps, the reward is the sum over them, and an action is
    valid if all of its parts are. An episode's last frame, and with it that it has ended, is seen only if it is the
    first of its block.

    Args:
      steps: of the world.
      size: of a block.
      previous_action: ``[B, size * A]``, the block before the first one.
    """
    rows, length = np.shape(steps.reward)
    grouped = lambda x: np.asarray(x).reshape(rows, length // size, size, *np.shape(x)[2:])  # noqa: E731
    first = lambda tree: jax.tree.map(lambda x: grouped(x)[:, :, 0], tree)  # noqa: E731
    there = grouped(steps.valid)
    arrays: dict[str, Any] = dict(
        observation=first(steps.observation),
        action=np.where(there[..., None], grouped(steps.action), 0.0).reshape(rows, length // size, -1),
        previous_action=previous_action,
        reward=np.where(there, grouped(steps.reward), 0.0).sum(2, dtype=np.float32),
        is_first=first(steps.is_first),
        is_last=first(steps.is_last),
        is_terminal=first(steps.is_terminal),
        valid=first(steps.valid),
        action_valid=np.all(grouped(steps.action_valid) & there, axis=2),
        condition=first(steps.condition),
        info=first(steps.info),
    )
    return Trajectory(**arrays)


class Blocks:
    """Episodes in blocks of ``size`` actions; has what `jaxwm.data.Episodes` has, except single windows.

    Attributes:
      episodes: those that are read.
      size: actions in a block.
      spec: of the blocks.
      lengths: ``[N]`` int64, blocks of each episode; the last one may be cut short.
      path: of the episodes.
      split: of the episodes.
    """

    def __init__(self, episodes: Any, size: int) -> None:
        self.episodes, self.size = episodes, size
        self.spec = episodes.spec.blocked(size)
        self.lengths: np.ndarray = -(-np.asarray(episodes.lengths) // size)
        self.path, self.split = getattr(episodes, "path", None), getattr(episodes, "split", None)

    def __len__(self) -> int:
        return len(self.lengths)

    def places(self, length: int) -> np.ndarray:
        """As `jaxwm.data.Episodes.places`: a window of blocks may begin at any frame."""
        counts: np.ndarray = self.episodes.places(length * self.size)
        return counts

    def windows(self, indices: Sequence[int], starts: Sequence[int], length: int) -> Trajectory:
        """As `jaxwm.data.Episodes.windows`; ``starts`` count frames, ``length`` blocks."""
        steps = self.episodes.windows(indices, starts, length * self.size)
        previous = np.zeros((len(starts), self.spec.action.dim), np.float32)
        late = [row for row, start in enumerate(starts) if start >= self.size]
        if late:
            before = [starts[row] - self.size for row in late]
            actions = self.episodes.windows([indices[row] for row in late], before, self.size).action
            previous[late] = np.asarray(actions).reshape(len(late), -1)
        return join_blocks(steps, self.size, previous)
