"""The seed document's PyTorch listings, unmodified."""

import pathlib
import re
from typing import Any

import torch


def read_listings(document: str) -> dict[str, Any]:
    """Names that the document's first two listings define (`SimpleWorldModel`, `WorldModelTrainer`, `RSSM`).

    Sets PyTorch to two threads and seed 0, what every comparison here runs with.
    """
    torch.set_num_threads(2)
    torch.manual_seed(0)
    scope: dict[str, Any] = {"__name__": "listings"}
    for listing in re.findall(r"```python\n(.*?)```", pathlib.Path(document).read_text(), flags=re.DOTALL)[:2]:
        exec(listing, scope)
    return scope
