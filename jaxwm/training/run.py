"""The run folder: what defines a run, and everything needed to open it again.

    config.yaml     the resolved configuration       metrics.jsonl   a line for each logged step
    spec.json       what its world shows and takes   videos/         what callbacks drew
    format.json     the version of this layout       checkpoints/    a folder for each saved step

A run that goes on must have the configuration it was begun with, except for what changes no update: see `MAY_CHANGE`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxwm.config import Config, TrainingConfig, build_model, load_config
from jaxwm.training import checkpoints
from jaxwm.training.checkpoints import CheckpointError, Progress, compare_shapes, summary
from jaxwm.training.optimizers import parameter_path
from jaxwm.training.sharding import place
from jaxwm.training.update import TrainState
from jaxwm.types import PyTree, Spec, Variables, WorldModel

FORMAT = 1
"""Version of the layout that this code writes and reads."""

MAY_CHANGE = (
    "stages.*.steps",
    "data.path",
    "data.threads",
    "data.prefetch",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "training.evaluate_every",
    "training.video_every",
    "training.probe_every",
    "training.tensorboard",
    "training.wandb",
    "evaluation.*",
    "evolution.*",
    "planning",
    "planning.*",
)
"""Keys that may differ when a run goes on: those that change no update. ``stages.*.steps`` is among them so that a run
can be made longer (a falling schedule then falls towards the new end), and ``data.path`` because folders are moved."""


class RunError(ValueError):
    """A run folder that cannot be used; the message is one line that names the folder and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model: what `load_run` and `train` return.

    Attributes:
      config: the resolved configuration.
      spec: what the world of the model shows and takes.
      model: the model itself, a frozen dataclass without parameters.
      variables: its ``{"params", "targets"}``, with the averaged parameters where ``training.ema`` is set.
      step: updates that the variables have seen.
    """

    config: Config
    spec: Spec
    model: WorldModel
    variables: Variables
    step: int

    def with_data(self, path: str | os.PathLike[str]) -> Run:
        """The same run with other episodes than those of its configuration: the data set at ``path``."""
        data = self.config.data.model_copy(update={"path": str(path), "generate": None, "collect": None})
        return dataclasses.replace(self, config=self.config.model_copy(update={"data": data}))


def load_run(path: str | os.PathLike[str], step: int | str | None = None) -> Run:
    """Opens a run folder: builds the model and reads its variables, not its optimiser state.

    Args:
      path: the folder.
      step: which checkpoint: the latest (None), the one with the lowest held-out loss ("best"), or a saved step. A
        latest one that is damaged is skipped with a warning.

    Raises:
      RunError: no run, a layout of another version, no such checkpoint, or none that can be read.
      ConfigError: the configuration does not fit this version of the library.
    """
    path = pathlib.Path(path)
    config, spec = read_definition(path)
    model = build_model(config.model, spec)
    folder = checkpoints_folder(path)
    steps = checkpoints.list_steps(folder)
    if not steps:
        raise RunError(f"{path}: this run has no checkpoint yet")
    if step is None:
        choice = steps
    elif step == "best":
        choice = [best] if (best := checkpoints.best_step(folder)) is not None else []
    elif step in steps:
        choice = [int(step)]
    else:
        raise RunError(f"{path}: there is no checkpoint {step!r}; there are {', '.join(map(str, steps))} and 'best'")
    reasons = []
    for candidate in reversed(choice):
        try:
            # Shipped weights may lie there rounded; whatever the model computes in, it starts from float32.
            variables = _cast(checkpoints.read_variables(folder, candidate), "float32")
            return Run(config, spec, model, variables, candidate)
        except Exception as error:  # a damaged file can fail in any layer below
            reasons.append(f"checkpoint {candidate} cannot be read ({type(error).__name__}: {_one_line(error)})")
            if candidate != choice[0]:
                warnings.warn(f"{path}: {reasons[-1]}; taking the one before", stacklevel=2)
    raise RunError(f"{path}: {reasons[0] if reasons else 'no checkpoint can be read'}")


def save_weights(run: Run, path: str | os.PathLike[str], dtype: str | None = None) -> None:
    """Writes ``run`` as a small run folder that holds its variables alone; `load_run` opens it like any other.

    Args:
      run: what `load_run` returned.
      path: the new folder.
      dtype: what to round floats to on disk, for example ``float16`` for half the size; by default nothing is rounded.

    Raises:
      RunError: there is something at ``path`` already.
    """
    path = pathlib.Path(path)
    if path.exists() and any(path.iterdir()):
        raise RunError(f"{path}: this folder is not empty")
    write_definition(path, run.config, run.spec)
    variables = run.variables if dtype is None else _cast(run.variables, dtype)
    checkpoints.write_variables(checkpoints_folder(path), Progress(run.step, seed=run.config.seed), variables)


def _cast(tree: PyTree, dtype: str) -> PyTree:
    """``tree`` with all its floats as ``dtype``."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def checkpoints_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    """Where the checkpoints of run ``path`` lie."""
    return pathlib.Path(path) / "checkpoints"


def write_definition(path: pathlib.Path, config: Config, spec: Spec) -> None:
    """Writes format, specification and configuration of a run; each file whole or not at all."""
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "spec.json", json.dumps(spec.to_dict(), indent=1) + "\n")
    _write(path / "config.yaml", config.to_yaml())
    _write(path / "format.json", json.dumps({"format": FORMAT}) + "\n")


def read_definition(path: str | os.PathLike[str]) -> tuple[Config, Spec]:
    """Configuration and specification of a run.

    Raises:
      RunError: no run, or a layout of another version.
      ConfigError: a configuration that this version cannot use.
    """
    path = pathlib.Path(path)
    check_format(path)
    values = _read_json(path / "spec.json")
    try:
        spec = Spec.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path / 'spec.json'}: not a specification ({_one_line(error)})") from None
    return load_config(path / "config.yaml"), spec


def check_format(path: pathlib.Path) -> None:
    """Raises RunError unless ``path`` is a run folder of a version that this code can read."""
    if not (path / "format.json").is_file():
        raise RunError(f"{path}: there is no run in this folder (no format.json)")
    values = _read_json(path / "format.json")
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise RunError(f"{path}: this run has format {found!r}, this version of jaxwm reads format {FORMAT}")


def check_resume(path: pathlib.Path, config: Config, spec: Spec) -> None:
    """Raises RunError unless ``path`` is new (and no folder of episodes) or a run that may go on as described."""
    if (path / "format.json").exists():
        check_format(path)
    if (path / "dataset_info.json").exists():
        raise RunError(f"{path} holds episodes, whose spec.json a run would overwrite; take another run folder")
    if not checkpoints.list_steps(checkpoints_folder(path)):
        return
    saved_config, saved_spec = read_definition(path)
    differences = compare_configs(saved_config, config)
    if saved_spec != spec:
        before, after = (flatten_dict(x.to_dict(), sep=".") for x in (saved_spec, spec))
        differences += [f"spec.{line}" for line in _compare(before, after)]
    if differences:
        raise RunError(
            f"{path} was begun with another configuration: {'; '.join(differences)}. "
            f"Take another run folder, with training.init_from={path} to start from its parameters"
        )


def compare_configs(saved: Config, now: Config) -> list[str]:
    """A line ``model.deter: checkpoint 256, now 512`` for each key that differs and is not in `MAY_CHANGE`."""
    dumped = (config.model_dump(mode="json", serialize_as_any=True) for config in (saved, now))
    before, after = (flatten_dict(values, sep=".") for values in dumped)
    is_free = lambda key: any(fnmatch.fnmatch(key, pattern) for pattern in MAY_CHANGE)  # noqa: E731
    return _compare(*({k: v for k, v in values.items() if not is_free(k)} for values in (before, after)))


def take_over(source: Run, name: str, variables: Variables, strict: bool) -> tuple[Variables, list[str]]:
    """``variables`` with what fits of ``source``, and a report of what was taken and left, a line each.

    An array fits if it has the same path and shape. Each keeps the dtype and the sharding it has in ``variables``.

    Args:
      source: the run to start from.
      name: what to call it in the report.
      variables: fresh ones.
      strict: everything must fit.

    Raises:
      CheckpointError: ``strict`` and something does not fit, or nothing fits at all.
    """
    differences = compare_shapes(source.variables, variables)
    if strict and differences:
        raise CheckpointError(
            f"training.init_from={name} does not fit: {summary(differences)}; "
            "training.init_strict=false takes what fits"
        )
    there = {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source.variables)}
    taken: list[str] = []

    def choose(path: Sequence[Any], fresh: jax.Array) -> jax.Array:
        saved = there.get(parameter_path(path))
        if saved is None or saved.shape != fresh.shape:
            return fresh
        taken.append(parameter_path(path))
        return place(saved.astype(fresh.dtype), fresh.sharding)

    result = jax.tree_util.tree_map_with_path(choose, variables)
    if not taken:
        raise CheckpointError(f"training.init_from={name}: not one of its {len(there)} arrays fits this model")
    report = [f"taken from {name} (step {source.step}): {len(taken)} of {len(jax.tree.leaves(variables))} arrays"]
    return result, report + [f"not taken: {line}" for line in differences]


def start_from(state: TrainState, settings: TrainingConfig, log: Callable[[str], None]) -> TrainState:
    """``state``, with the parameters of another run where ``training.init_from`` names one; see `take_over`."""
    if settings.init_from is None:
        return state
    variables, report = take_over(
        load_run(settings.init_from), settings.init_from, state.variables, settings.init_strict
    )
    for line in report:
        log(line)
    average = None if state.average is None else jax.tree.map(jnp.copy, variables["params"])
    return state.replace(variables=variables, average=average)


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    show = lambda values, key: json.dumps(values[key]) if key in values else "none"  # noqa: E731
    return [
        f"{key}: checkpoint {show(before, key)}, now {show(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if key not in before or key not in after or before[key] != after[key]
    ]


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RunError(f"{path}: not valid JSON") from None


def _write(path: pathlib.Path, text: str) -> None:
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text)
    os.replace(draft, path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
