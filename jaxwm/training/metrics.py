"""Where figures go: a JSONL file always, TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import importlib
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import IO, Any, Protocol

import jax
import numpy as np

from jaxwm.config import TrainingConfig
from jaxwm.types import Array

FILE = "metrics.jsonl"


class Writer(Protocol):
    """Something that figures can be written to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Notes ``values`` by name for ``step``."""
        ...

    def close(self) -> None:
        """Writes out what is not written yet."""
        ...


class Metrics:
    """Hands figures to all writers that ``config`` asks for.

    Args:
      run_dir: the run folder; a resumed run goes on in its files.
      config: says which writers besides JSONL.
      start: the step that the run goes on from; what was written for later steps is dropped.

    Raises:
      ValueError: a writer whose package is not installed.
    """

    def __init__(self, run_dir: pathlib.Path, config: TrainingConfig, start: int = 0) -> None:
        self._writers: list[Writer] = []
        if config.tensorboard:
            self._writers.append(TensorBoard(run_dir, start))
        if config.wandb is not None:
            self._writers.append(WandB(run_dir, config.wandb))
        self._writers.append(JSONLines(run_dir / FILE, start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Notes ``values`` by name for ``step``, with all writers."""
        for writer in self._writers:
            writer.write(step, values)

    def close(self) -> None:
        """Closes all writers."""
        for writer in self._writers:
            writer.close()


class JSONLines:
    """A line ``{"step": 50, "time": ..., "train/loss": ...}`` a call; what is not finite becomes null.

    Args:
      path: of the file; lines of steps after ``start``, and what a killed process left half-written, are dropped.
      start: the step that the run goes on from.
    """

    def __init__(self, path: pathlib.Path, start: int = 0) -> None:
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start]
            draft = path.with_suffix(".tmp")
            draft.write_text("".join(f"{line}\n" for line in kept))
            os.replace(draft, path)
        self._file: IO[str] = path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line; ``time`` is in seconds since 1970."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard in ``<run>/tensorboard``, through tensorboardX."""

    def __init__(self, run_dir: pathlib.Path, start: int = 0) -> None:
        package = _optional("tensorboardX", "training.tensorboard")
        self._writer = package.SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandB:
    """A Weights & Biases run in ``project``; a resumed run goes on in the same one, by the id in ``wandb_id.txt``."""

    def __init__(self, run_dir: pathlib.Path, project: str) -> None:
        package = _optional("wandb", "training.wandb")
        id_file = run_dir / "wandb_id.txt"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._run: Any = package.init(
            project=project, name=run_dir.name, id=id_file.read_text(), resume="allow", dir=str(run_dir)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self._run.finish()


def mean_figures(group: str, figures: Sequence[Mapping[str, Array]]) -> dict[str, float]:
    """The means of ``figures``, at least one, that have the same names: as ``group/name``."""
    values = jax.device_get(list(figures))
    return {f"{group}/{name}": float(np.mean([value[name] for value in values])) for name in values[0]}


def raised_alarms(figures: Mapping[str, float]) -> list[str]:
    """What a model warns of: the metrics ``alarm/NAME`` that were set in more than half of the steps."""
    return [name.split("alarm/")[1] for name, value in figures.items() if "alarm/" in name and value > 0.5]


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, each a dict with ``step``, ``time`` and what was logged."""
    path = pathlib.Path(run_dir) / FILE
    return [json.loads(line) for line in path.read_text().splitlines() if _step_of(line) < math.inf]


def _step_of(line: str) -> float:
    """The step of a line; infinity where it is no whole line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _optional(package: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(f"{key} needs the package {package}: pip install 'jaxwm[logging]'") from None
