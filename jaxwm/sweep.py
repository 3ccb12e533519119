"""Many runs of one configuration: a grid of settings, each a run of its own, and what came of them in figures.

    >>> sweep = plan("configs/rssm_bounce.yaml", ["seeds=0..2", "model.deter=128,256"], "sweeps/deter")
    >>> run(sweep)
    >>> print(summarise(sweep, ["test/loss"]).to_json())

A run has a folder named by its settings, and is a process of its own: what fails or is killed takes nothing else with
it. The same call goes on where it was stopped: finished runs are not run again, others go on from their checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxwm.config import Config, ConfigError, load_config
from jaxwm.training import read_metrics
from jaxwm.training.checkpoints import list_steps
from jaxwm.training.metrics import FILE
from jaxwm.training.run import checkpoints_folder, compare_configs, read_definition
from jaxwm.types import nearest

if TYPE_CHECKING:
    from rich.table import Table

COMMAND = (sys.executable, "-m", "jaxwm", "train")
"""What trains a run; gets ``CONFIG KEY=VALUE... --run FOLDER --no-videos``."""

QUARTILES = (25, 75)
HEADLINES = ("evaluation/score", "test/loss")
"""What a run is judged by, if nothing else is asked for: an agent by the episodes that it is tried in, and what has no
such episodes by its loss on held-out data."""


@dataclasses.dataclass(frozen=True, eq=False)
class SweepRun:
    """One point of the grid.

    Attributes:
      folder: its run folder.
      settings: what varies, by key and as text, without the seed.
      seed: of the run.
      overrides: all that distinguishes it from the configuration file.
      config: resolved.
    """

    folder: pathlib.Path
    settings: Mapping[str, str]
    seed: int
    overrides: tuple[str, ...]
    config: Config

    @property
    def steps(self) -> int:
        """Updates from the first to the last stage."""
        return sum(stage.steps for stage in self.config.stages.values())

    def done(self) -> int:
        """Updates of its last checkpoint, 0 if there is none.

        Raises:
          ConfigError: the folder holds a run of another configuration.
        """
        steps = list_steps(checkpoints_folder(self.folder))
        if not steps:
            return 0
        saved, _ = read_definition(self.folder)
        if differences := compare_configs(saved, self.config):
            raise ConfigError(
                f"{self.folder} was begun with another configuration: {'; '.join(differences)}. Take another --out"
            )
        return max(steps)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs of the configuration file ``config``, in the order in which they are run."""

    config: pathlib.Path
    out: pathlib.Path
    runs: tuple[SweepRun, ...]


class SweepStoppedError(SystemExit):
    """A sweep was asked to stop, and has stopped its runs; ends a program quietly with 128 + signal."""

    def __init__(self, signum: int, out: pathlib.Path) -> None:
        super().__init__(128 + signum)
        self.message = f"stopped by {signal.Signals(signum).name}; the same command goes on in {out}"

    def __str__(self) -> str:
        return self.message


def plan(config: str | os.PathLike[str], grid: Sequence[str], out: str | os.PathLike[str] | None = None) -> Sweep:
    """The runs of a grid, each checked before any of them begins.

    Args:
      config: a YAML file.
      grid: ``KEY=VALUE``, ``KEY=VALUE,VALUE`` or ``KEY=FIRST..LAST`` (whole numbers), with the keys of an override;
        ``seeds`` is another name of ``seed``. The last key varies fastest.
      out: the folder of the run folders; by default ``sweeps/NAME``.

    Raises:
      ConfigError: a key, a value or a range that is none, or a key that is given twice.
    """
    config = pathlib.Path(config)
    out = pathlib.Path("sweeps") / config.stem if out is None else pathlib.Path(out)
    axes: dict[str, tuple[str, ...]] = {}
    for text in grid:
        key, values = _axis(text)
        if key in axes:
            raise ConfigError(f"{key} is given twice")
        axes[key] = values
    varying = [key for key, values in axes.items() if len(values) > 1]
    runs = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        overrides = tuple(f"{key}={value}" for key, value in chosen.items())
        resolved = load_config(config, overrides)
        name = ",".join(f"{key}={re.sub('[^A-Za-z0-9._+-]+', '-', chosen[key])}" for key in varying)
        settings = {key: chosen[key] for key in varying if key != "seed"}
        runs.append(SweepRun(out / (name or "run"), settings, resolved.seed, overrides, resolved))
    folders = [run.folder.name for run in runs]
    if doubled := {name for name in folders if folders.count(name) > 1}:
        raise ConfigError(
            f"two runs would have the folder {doubled.pop()!r}: their values differ too little in letters"
        )
    return Sweep(config, out, tuple(runs))


def run(
    sweep: Sweep, jobs: int = 1, log: Callable[[str], None] = print, command: Sequence[str] = COMMAND
) -> list[SweepRun]:
    """Runs what is not finished, ``jobs`` at a time, and returns the runs that failed.

    What a run prints is in ``log.txt`` of its folder. A run that another process is busy with is left to it and counts
    as failed.

    Args:
      sweep: what `plan` returned.
      jobs: runs at a time; they share the devices.
      log: gets a line for each run that begins, ends or is skipped.
      command: what trains a run, see `COMMAND`.

    Raises:
      ConfigError: a folder holds a run of another configuration.
      SweepStoppedError: SIGTERM or SIGINT asked to stop; the runs have saved.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    waiting = []
    for planned in sweep.runs:
        done = planned.done()
        if done >= planned.steps:
            log(f"{planned.folder.name}: finished, {done} steps")
        else:
            waiting.append(planned)
    failed: list[SweepRun] = []
    active: list[_Job] = []
    with _signals() as received, contextlib.ExitStack() as stack:
        stack.callback(_stop, active)
        while waiting or active:
            if received:
                raise SweepStoppedError(received[0], sweep.out)
            while waiting and len(active) < jobs:
                planned = waiting.pop(0)
                job = _begin(sweep.config, planned, command)
                if job is None:
                    log(f"{planned.folder.name}: another process is busy with this run")
                    failed.append(planned)
                    continue
                log(f"{planned.folder.name}: {'goes on at' if planned.done() else 'begins at'} {planned.done()} steps")
                active.append(job)
            for job in [job for job in active if job.process.poll() is not None]:
                active.remove(job)
                log(f"{job.planned.folder.name}: {job.outcome()}")
                if job.process.returncode:
                    failed.append(job.planned)
            time.sleep(0.05)
    return failed


@dataclasses.dataclass(frozen=True)
class _Job:
    planned: SweepRun
    process: subprocess.Popen[bytes]
    begun: float

    def outcome(self) -> str:
        """How it ended, in a line."""
        if not self.process.returncode:
            return f"done in {time.monotonic() - self.begun:.0f} s"
        printed = (self.planned.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        return f"failed with status {self.process.returncode}: {printed[-1] if printed else 'it said nothing'}"


def _begin(config: pathlib.Path, planned: SweepRun, command: Sequence[str]) -> _Job | None:
    """Starts a run, unless another process is busy with it."""
    planned.folder.mkdir(parents=True, exist_ok=True)
    # The run's own process inherits the lock, and so holds it for as long as it lives, whatever becomes of this one.
    with (planned.folder / "lock").open("w") as lock, (planned.folder / "log.txt").open("a") as output:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        process = subprocess.Popen(
            [*command, str(config), *planned.overrides, "--run", str(planned.folder), "--no-videos"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
            # Ctrl-C reaches a terminal's whole group, and a second signal would not let a run save.
            start_new_session=True,
        )
    return _Job(planned, process, time.monotonic())


def _stop(active: Sequence[_Job]) -> None:
    """Lets runs save, and waits for them."""
    for job in active:
        job.process.terminate()
    for job in active:
        job.process.wait()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The requests to stop that have come, while it is entered; signals reach the main thread alone."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over the runs of one setting that have it.

    Attributes:
      settings: what varies, by key, without the seed.
      seeds: those of the runs, ``[N]``.
      steps: updates at which all of them have a figure, ``[T]``.
      values: ``[N, T]``.
    """

    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    steps: np.ndarray
    values: np.ndarray

    @property
    def label(self) -> str:
        """Its settings in a line."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "all"

    def to_dict(self) -> dict[str, Any]:
        """Mean and interquartile range at each step and at the last, and what each seed came to."""
        low, high = np.percentile(self.values, QUARTILES, axis=0)
        series = {"steps": self.steps, "mean": self.values.mean(0), "q25": low, "q75": high}
        last = {name: float(array[-1]) for name, array in series.items() if name != "steps"}
        values = {str(seed): float(row[-1]) for seed, row in zip(self.seeds, self.values, strict=True)}
        return {
            "settings": dict(self.settings),
            "runs": len(self.seeds),
            "last": {"step": int(self.steps[-1]), **last, "values": values},
            **{name: array.tolist() for name, array in series.items()},
        }


@dataclasses.dataclass(frozen=True)
class Summary:
    """What came of a sweep.

    Attributes:
      curves: for each metric a `Curve` for each setting, what is shown first.
      shown: the metrics in table and picture.
    """

    curves: Mapping[str, tuple[Curve, ...]]
    shown: tuple[str, ...]

    def to_json(self) -> str:
        """All figures, also of metrics that are not shown."""
        return json.dumps({metric: [curve.to_dict() for curve in curves] for metric, curves in self.curves.items()})

    def table(self) -> Table:
        """The last figures of what is shown, for a terminal."""
        from rich.table import Table

        table = Table("metric", "settings", "runs", "step", "mean", "interquartile range")
        for metric in self.shown:
            for curve in self.curves[metric]:
                last = curve.to_dict()["last"]
                spread = f"{last['q25']:.4g} .. {last['q75']:.4g}"
                table.add_row(
                    metric, curve.label, str(len(curve.seeds)), str(last["step"]), f"{last['mean']:.4g}", spread
                )
        return table

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws each shown metric over the steps: the mean, and the interquartile range as a band."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.5 * len(self.shown)), layout="constrained")
        for axes, metric in zip(figure.subplots(len(self.shown), squeeze=False)[:, 0], self.shown, strict=True):
            for curve in self.curves[metric]:
                low, high = np.percentile(curve.values, QUARTILES, axis=0)
                (line,) = axes.plot(curve.steps, curve.values.mean(0), label=f"{curve.label} (n={len(curve.seeds)})")
                axes.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
            axes.set(xlabel="updates", ylabel=metric)
            axes.legend()
        figure.savefig(path, dpi=120)


def summarise(sweep: Sweep, metrics: Sequence[str] = ()) -> Summary:
    """Aggregates figures of the runs over their seeds.

    A figure counts at a step if all finished runs of a setting have it there; where none is finished, all begun ones.

    Args:
      sweep: what `plan` returned.
      metrics: which to show, by their names in ``metrics.jsonl``; by default the first of `HEADLINES` that there is,
        or else all. The others are in the JSON.

    Raises:
      ValueError: no run has figures, or none has one of this name.
    """
    found = {run.folder: read_metrics(run.folder) for run in sweep.runs if (run.folder / FILE).is_file()}
    names = sorted({name for lines in found.values() for line in lines for name in line} - {"step", "time"})
    if not names:
        raise ValueError(f"{sweep.out}: no run has figures yet")
    for metric in metrics:
        if metric not in names:
            raise ValueError(f"metric {metric!r} is in no run; {nearest(metric, names)}")
    chosen = metrics or [name for name in HEADLINES if name in names][:1] or names
    groups: dict[tuple[str, ...], list[SweepRun]] = {}
    for run in sweep.runs:
        groups.setdefault(tuple(run.settings.values()), []).append(run)
    curves: dict[str, tuple[Curve, ...]] = {}
    for metric in dict.fromkeys([*chosen, *names]):
        made = (_curve(members, found, metric) for members in groups.values())
        curves[metric] = tuple(curve for curve in made if curve is not None)
    curves = {metric: of_metric for metric, of_metric in curves.items() if of_metric}
    return Summary(curves, tuple(metric for metric in chosen if metric in curves))


def _curve(runs: Sequence[SweepRun], found: Mapping[pathlib.Path, list[dict[str, Any]]], metric: str) -> Curve | None:
    begun = [run for run in runs if run.folder in found]
    finished = [run for run in begun if run.done() >= run.steps]
    series = {
        run: {line["step"]: line[metric] for line in found[run.folder] if line.get(metric) is not None}
        for run in finished or begun
    }
    steps = sorted(set.intersection(*map(set, series.values()))) if series else []
    if not steps:
        return None
    values = np.array([[points[step] for step in steps] for points in series.values()])
    return Curve(runs[0].settings, tuple(run.seed for run in series), np.array(steps), values)


def _axis(text: str) -> tuple[str, tuple[str, ...]]:
    """``KEY=A,B`` or ``KEY=1..3`` as key and values; commas within brackets separate nothing."""
    key, separator, values = text.partition("=")
    if not separator or not key or not values:
        raise ConfigError(f"{text!r}: expected KEY=VALUE, KEY=VALUE,VALUE or KEY=FIRST..LAST")
    key = "seed" if key == "seeds" else key
    if found := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", values):
        first, last = map(int, found.groups())
        if first > last:
            raise ConfigError(f"{text!r}: {first} is above {last}")
        return key, tuple(map(str, range(first, last + 1)))
    parts, depth = [""], 0
    for letter in values:
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    if not all(parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"{text!r}: a value is empty or stands twice")
    return key, tuple(parts)
