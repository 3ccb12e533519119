"""Episodes: on disk, simulated, recorded, imported; and batches of windows of them."""

from jaxwm.data.episodes import DataError, Episode, Episodes, open_episodes, step_flags, write_episodes
from jaxwm.data.generate import generate_dataset, simulate
from jaxwm.data.loading import ensure_dataset, episode_batch, load_spec, windows

__all__ = [
    "DataError",
    "Episode",
    "Episodes",
    "ensure_dataset",
    "episode_batch",
    "generate_dataset",
    "load_spec",
    "open_episodes",
    "simulate",
    "step_flags",
    "windows",
    "write_episodes",
]
