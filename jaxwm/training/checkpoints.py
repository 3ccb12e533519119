"""Checkpoints: written by Orbax in the background, whole or not at all; read again on any number of devices.

A checkpoint is a folder named by its step, with the parts ``params``, ``targets`` (where the model has any),
``average`` (where it is kept), ``optimizer``, ``experience`` (where an agent collects its own) and ``progress``.
Together with the configuration of the run they are all that is needed to go on bit for bit; the position in data that
lie on disk is the seed and the step.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxwm.training.optimizers import parameter_path
from jaxwm.training.sharding import place
from jaxwm.training.update import TrainState
from jaxwm.types import PyTree, Variables

Report = Callable[[str], None]


class CheckpointError(ValueError):
    """A checkpoint that is not there, cannot be read, or does not fit; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stood at a checkpoint.

    Args:
      step: updates done, over all stages.
      stage: name of the stage that the optimiser state belongs to.
      stage_index: its place among the stages of the run.
      stage_start: the step at which it began.
      seed: of the draws; with ``step`` the position in the data.
      loss: held-out loss at this step, or None where it was not measured.
    """

    step: int
    stage: str = ""
    stage_index: int = 0
    stage_start: int = 0
    seed: int = 0
    loss: float | None = None

    @property
    def rank(self) -> tuple[int, float, int]:
        """Larger is better: later stages first, since their losses do not compare, then the held-out loss."""
        loss = math.inf if self.loss is None or math.isnan(self.loss) else self.loss
        return self.stage_index, -loss, self.step


class Checkpoints:
    """The checkpoints of a run, for the process that trains it.

    Args:
      path: their folder; made if missing. What a killed process left half-written there is removed.
      keep: how many of the latest to keep, beside the best.
      report: gets a line for each checkpoint that had to be skipped.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int, report: Report) -> None:
        self._path = pathlib.Path(path).resolve()
        self._report = report
        self._progress = {step: found for step in list_steps(self._path) if (found := _try_progress(self._path, step))}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(keep, self._progress), cleanup_tmp_directories=True, save_root_metadata=False
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    @property
    def latest(self) -> int | None:
        """The last step that is saved or being saved."""
        return self._manager.latest_step()

    def kept(self, run: pathlib.Path) -> str:
        """What the folder ``run`` of a run that fails now holds, in words."""
        saved = self.latest
        return "nothing is saved yet" if saved is None else f"{run} keeps the good checkpoint of step {saved}"

    def is_best(self, progress: Progress) -> bool:
        """Whether a checkpoint of ``progress`` would be the best of all."""
        return all(progress.rank > other.rank for other in self._progress.values())

    def save(self, state: TrainState, progress: Progress, experience: PyTree = None) -> None:
        """Copies everything off the devices and writes it in the background; nothing if the step is saved already."""
        if progress.step in self._manager.all_steps():
            return
        self._progress[progress.step] = progress
        _save(self._manager, progress, state.variables, state.average, state.optimizer, experience)

    def restore(
        self, abstract: Callable[[Progress], TrainState], experience: PyTree = None
    ) -> tuple[TrainState, Progress, PyTree] | None:
        """The latest state that can be read; None where there are no checkpoints.

        Later ones that cannot be read are reported and moved aside, to ``<step>.damaged``.

        Args:
          abstract: gives the shapes and shardings of the state to restore.
          experience: shapes and shardings of what was collected; None where that is nothing.

        Returns:
          The state, where it stands, and the experience.

        Raises:
          CheckpointError: none can be read; one does not fit the model; one has no optimiser state.
        """
        failures: list[str] = []
        steps = list_steps(self._path)
        for step in reversed(steps):
            folder = self._path / str(step)
            progress = _try_progress(self._path, step)
            if progress is not None and not progress.stage:
                raise CheckpointError(f"{folder} has no optimiser state: start from it with training.init_from")
            wanted = abstract(progress) if progress is not None else None
            try:
                if progress is None or wanted is None:
                    raise FileNotFoundError("progress is missing or damaged")
                parts = _parts(wanted.variables, wanted.average, wanted.optimizer, experience)
                _check_fit(folder, parts)
                restored = _read(self._path, step, parts)
            except CheckpointError:
                raise
            except Exception as error:  # a damaged file can fail in any layer below
                failures.append(f"{folder} cannot be read and is skipped ({_first_line(error)})")
                self._report(failures[-1])
                continue
            self._set_aside([later for later in steps if later > step])
            targets = restored.get("targets", wanted.variables["targets"])
            state = dataclasses.replace(
                wanted,
                step=place(np.int32(step), wanted.step.sharding),
                variables={"params": restored["params"], "targets": targets},
                optimizer=restored["optimizer"],
                average=restored.get("average"),
                healthy=place(np.bool_(True), wanted.healthy.sharding),
            )
            return state, progress, restored.get("experience")
        if failures:
            raise CheckpointError(f"none of {len(steps)} checkpoints can be read; {failures[0]}")
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()

    def _set_aside(self, steps: Sequence[int]) -> None:
        for step in steps:
            self._progress.pop(step, None)
            if jax.process_index() == 0:
                shutil.rmtree(self._path / f"{step}.damaged", ignore_errors=True)
                os.replace(self._path / str(step), self._path / f"{step}.damaged")
        if steps:
            multihost_utils.sync_global_devices("jaxwm: checkpoints set aside")
            self._manager.reload()


@dataclasses.dataclass
class _Keep(checkpoint_managers.PreservationPolicy):
    """Keeps the last ``latest`` checkpoints and the one of the highest rank."""

    latest: int
    progress: Mapping[int, Progress]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = [step for step in steps if step in self.progress]
        best = max(ranked, key=lambda step: self.progress[step].rank, default=None)
        return [step in steps[-self.latest :] or step == best for step in steps]


def list_steps(path: str | os.PathLike[str]) -> list[int]:
    """The steps that have a finished checkpoint in folder ``path``, ascending."""
    folder = pathlib.Path(path)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def best_step(path: str | os.PathLike[str]) -> int | None:
    """The step of the checkpoint with the lowest held-out loss in the latest stage, or None without checkpoints."""
    known = [progress for step in list_steps(path) if (progress := _try_progress(path, step))]
    return max(known, key=lambda progress: progress.rank).step if known else None


def read_progress(path: str | os.PathLike[str], step: int) -> Progress:
    """The part ``progress`` of a checkpoint."""
    with _reader() as reader:
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return Progress(**reader.restore(_folder(path, step), args=args)["progress"])


def read_variables(path: str | os.PathLike[str], step: int) -> Variables:
    """The variables of a checkpoint, with the averaged parameters where there are any, on the default device."""
    with _reader() as reader:
        saved = reader.metadata(_folder(path, step)).item_metadata
    params = "average" if saved.get("average") is not None else "params"
    parts = {params: saved[params].tree}
    parts |= {"targets": saved["targets"].tree} if saved.get("targets") is not None else {}
    restored = _read(path, step, jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), parts))
    return jax.tree.map(jnp.asarray, {"params": restored[params], "targets": restored.get("targets", {})})


def write_variables(path: str | os.PathLike[str], progress: Progress, variables: Variables) -> None:
    """Writes a checkpoint that has no optimiser state, and waits for it."""
    with ocp.CheckpointManager(
        pathlib.Path(path).resolve(), options=ocp.CheckpointManagerOptions(save_root_metadata=False)
    ) as manager:
        _save(manager, progress, variables)


def _save(
    manager: ocp.CheckpointManager,
    progress: Progress,
    variables: Variables,
    average: PyTree | None = None,
    optimizer: PyTree | None = None,
    experience: PyTree | None = None,
) -> None:
    args: dict[str, Any] = {
        name: ocp.args.StandardSave(tree) for name, tree in _parts(variables, average, optimizer, experience).items()
    }
    args["progress"] = ocp.args.JsonSave(dataclasses.asdict(progress))
    manager.save(progress.step, args=ocp.args.Composite(**args), force=True)


def _parts(
    variables: Variables, average: PyTree | None, optimizer: PyTree | None, experience: PyTree | None
) -> dict[str, PyTree]:
    """The arrays of a checkpoint by the part that they lie in; parts without any are left out."""
    trees = {**variables, "average": average, "optimizer": optimizer, "experience": experience}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def _reader() -> ocp.Checkpointer:
    names = ("params", "targets", "average", "optimizer", "experience")
    arrays = {name: ocp.StandardCheckpointHandler() for name in names}
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(progress=ocp.JsonCheckpointHandler(), **arrays))


def _read(path: str | os.PathLike[str], step: int, parts: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
    args = {name: ocp.args.StandardRestore(tree) for name, tree in parts.items()}
    with _reader() as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax warns of shardings that changed, which is what we ask for.
        restored = reader.restore(_folder(path, step), args=ocp.args.Composite(**args))
    return {name: restored[name] for name in parts}


def _check_fit(folder: pathlib.Path, parts: Mapping[str, PyTree]) -> None:
    """Raises CheckpointError where the arrays of the checkpoint are not those that the model asks for."""
    with _reader() as reader:
        saved = reader.metadata(folder).item_metadata
    names = [name for name in ("params", "targets", "average", "experience") if name in parts]
    differences = compare_shapes({name: saved[name].tree for name in names}, {name: parts[name] for name in names})
    if differences:
        raise CheckpointError(f"{folder} does not fit the model: {summary(differences)}")


def compare_shapes(saved: PyTree, wanted: PyTree) -> list[str]:
    """A line for each array that is missing on one side or has another shape; trees of anything with a shape."""
    before, after = leaf_shapes(saved), leaf_shapes(wanted)
    lines = []
    for path in dict.fromkeys([*before, *after]):
        if before.get(path) != after.get(path):
            there, here = (list(shapes[path]) if path in shapes else "none" for shapes in (before, after))
            lines.append(f"{path}: there {there}, here {here}")
    return lines


def leaf_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """The shape of each array by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {parameter_path(path): tuple(leaf.shape) for path, leaf in leaves}


def summary(lines: Sequence[str], limit: int = 4) -> str:
    """The first lines in one, with the number of the others."""
    return "; ".join(lines[:limit]) + (f" (and {len(lines) - limit} more)" if len(lines) > limit else "")


def _try_progress(path: str | os.PathLike[str], step: int) -> Progress | None:
    try:
        return read_progress(path, step)
    except Exception:  # a damaged checkpoint is met, and reported, when it is read
        return None


def _folder(path: str | os.PathLike[str], step: int) -> pathlib.Path:
    return pathlib.Path(path).resolve() / str(step)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
