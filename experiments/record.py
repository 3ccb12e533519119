"""What all experiments do alike: who measured what and when, the file that it is added to, and pictures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def machine(*packages: str) -> dict[str, Any]:
    """What it was measured on: processor, cores, and the versions of jax and ``packages``."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", *packages)}
    return {"processor": platform.machine(), "cores": os.cpu_count(), **versions}


def head(command: str, *packages: str, **facts: Any) -> dict[str, Any]:
    """What stands beside figures: the command that measures them, ``facts`` about them, machine and date."""
    return {"command": command, **facts, "machine": machine(*packages), "date": time.strftime("%Y-%m-%d")}


def read(path: pathlib.Path) -> dict[str, Any]:
    """What has been measured so far; nothing if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Puts ``results`` in the place of what has been measured so far."""
    path.write_text(json.dumps(results, indent=1) + "\n")


def picture(figure: Figure, path: pathlib.Path) -> None:
    """Writes ``figure`` as a small PNG and forgets it."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
