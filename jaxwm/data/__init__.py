"""Episodes: on disk, simulated, recorded, imported; and batches of windows of them."""

from jaxwm.data.blocks import Blocks
from jaxwm.data.episodes import DataError, Episode, Episodes, open_episodes, step_flags, write_episodes
from jaxwm.data.generate import generate_dataset, simulate
from jaxwm.data.importing import Importer, import_dataset
from jaxwm.data.inspecting import contact_sheet, inspect_dataset
from jaxwm.data.loading import ensure_dataset, episode_batch, in_blocks, load_spec, open_data, windows
from jaxwm.data.recording import record_dataset
from jaxwm.data.rlds import FieldMap, import_public

__all__ = [
    "Blocks",
    "DataError",
    "Episode",
    "Episodes",
    "FieldMap",
    "Importer",
    "contact_sheet",
    "ensure_dataset",
    "episode_batch",
    "generate_dataset",
    "import_dataset",
    "import_public",
    "in_blocks",
    "inspect_dataset",
    "load_spec",
    "open_data",
    "open_episodes",
    "record_dataset",
    "simulate",
    "step_flags",
    "windows",
    "write_episodes",
]
