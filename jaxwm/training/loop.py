"""From a configuration to a trained model: one linear function, `train`, in named parts.

A run resumes by itself: whatever stopped it, the same call goes on from its last checkpoint and ends with the same
parameters, bit for bit on the same devices, as if nothing had happened.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from jaxwm import data
from jaxwm.config import Config, build_model
from jaxwm.training import run as runs
from jaxwm.training.checkpoints import Checkpoints, Progress
from jaxwm.training.console import Reporter, Stopwatch, amount
from jaxwm.training.interruption import Interrupted, Interruption
from jaxwm.training.metrics import FILE as METRICS_FILE
from jaxwm.training.metrics import Metrics, mean_figures, raised_alarms
from jaxwm.training.run import Run
from jaxwm.training.sharding import check_batch, make_mesh, place, put_batch, replicated
from jaxwm.training.stages import Phase, find_phase, plan_phases
from jaxwm.training.update import (
    Compilable,
    TrainState,
    abstract_state,
    begin_stage,
    init_state,
    make_evaluate,
    make_update,
    nonfinite_error,
)
from jaxwm.types import Array, PyTree, Trajectory, Variables, WorldModel, example_batch, unread_conditions

STEPS_AHEAD = 4
"""Updates that may wait for the devices: enough to keep them busy, few enough to bound the memory of their batches."""

EventName = Literal["evaluate", "video", "probe", "end"]


@dataclasses.dataclass(frozen=True, eq=False)
class Event:
    """What a callback gets.

    Attributes:
      name: ``evaluate``, ``video`` and ``probe`` come at the intervals of the configuration, ``end`` after the last
        step.
      step: updates done.
      config: the configuration of the run.
      model: the model in training.
      variables: its variables, with the averaged parameters where there are any; a copy that may be kept.
      log: ``log({"test/psnr": 21.3})`` adds figures to the metrics of the run, at this step.
      run_dir: the run folder.
    """

    name: EventName
    step: int
    config: Config
    model: WorldModel
    variables: Variables
    log: Callable[[Mapping[str, float]], None]
    run_dir: pathlib.Path


def train(
    config: Config,
    run_dir: str | os.PathLike[str],
    callbacks: Sequence[Callable[[Event], None]] = (),
    progress: bool = True,
) -> Run:
    """Trains the model of ``config`` in the folder ``run_dir``, or goes on where the run in it stopped.

    Args:
      config: all that there is to know.
      run_dir: the run folder, see `jaxwm.training.run`; made if missing. A run over several processes needs one that
        all of them see.
      callbacks: called with every `Event`, in the first process.
      progress: whether to print.

    Raises:
      ConfigError, DataError: a configuration that fits neither model nor data, or data that cannot be read.
      RunError, CheckpointError: the folder holds another run, or one that cannot go on.
      NonFiniteError: a loss or a gradient was not finite.
      Interrupted: SIGTERM or SIGINT asked to stop; the state is saved.
    """
    path = pathlib.Path(run_dir)
    is_first_process = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Reporter(progress and is_first_process))

        # ---------------------------------------------------------------------------------------------- devices
        mesh = make_mesh()
        check_batch(config.data.batch, mesh)
        report.say(f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}")

        # ------------------------------------------------------------------------------------------------ model
        spec = data.load_spec(config)
        model = build_model(config.model, spec)
        phases = plan_phases(model, config)

        # ------------------------------------------------------------------------------------------- run folder
        runs.check_resume(path, config, spec)
        if is_first_process:
            runs.write_definition(path, config, spec)

        # ------------------------------------------------------------------------------------------------- data
        data.ensure_dataset(config.data, log=report.say)
        episodes = data.open_data(config.data, "train", info=False)
        held_out = _held_out(config, report)

        # ------------------------------------------------------------------------------------------------ state
        init_key, row_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
        store = Checkpoints(runs.checkpoints_folder(path), config.training.keep, report.say)
        stack.callback(store.close)
        restored = _restore(store, config, model, phases, mesh)
        state, phase = restored or _begin(config, model, phases, init_key, mesh, report, episodes)
        start = int(state.step)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
        report.say(f"model: {config.model.family}, {parameters:,} parameters")
        if unread := unread_conditions(model):
            report.say(f"{config.model.family} does not read conditions: without effect are {', '.join(unread)}")
        place_in_run = f"going on at step {start} of" if start else "new,"
        report.say(f"run: {path}, {place_in_run} {phases[-1].stop} steps")

        # --------------------------------------------------------------------------------------------- training
        metrics = Metrics(path, config.training, start) if is_first_process else None
        if metrics is not None:
            stack.callback(metrics.close)
        session = _Session(
            config, path, model, mesh, episodes, held_out, row_key, test_key, store, metrics, report, tuple(callbacks)
        )
        report.begin(start, phases[-1].stop)
        with Interruption() as interruption:
            for current in phases[phase.index :]:
                if current is not phase:
                    state = begin_stage(state, current.stage, current.optimizer(), mesh)
                state = session.run_phase(state, current, interruption, is_final=current is phases[-1])

        # -------------------------------------------------------------------------------------------------- end
        session.call("end", state)
        return Run(config, spec, model, own_copy(state.smooth_variables()), int(state.step))


def _restore(
    store: Checkpoints, config: Config, model: WorldModel, phases: Sequence[Phase], mesh: Mesh
) -> tuple[TrainState, Phase] | None:
    """The state of the last checkpoint and the phase that it belongs to."""
    batch = example_batch(model.spec, 1, config.data.length)

    def abstract(progress: Progress) -> TrainState:
        phase = find_phase(phases, progress)
        return abstract_state(model, phase.stage, phase.optimizer(), batch, ema=config.training.ema, mesh=mesh)

    restored = store.restore(abstract)
    return None if restored is None else (restored[0], find_phase(phases, restored[1]))


def _begin(
    config: Config,
    model: WorldModel,
    phases: Sequence[Phase],
    key: Array,
    mesh: Mesh,
    report: Reporter,
    episodes: data.Episodes | data.Blocks,
) -> tuple[TrainState, Phase]:
    """A fresh state, with the parameters of another run where ``training.init_from`` names one."""
    phase, settings = phases[0], config.training
    # Real episodes, the same ones in every process: a model may start from statistics of them.
    batch = data.episode_batch(episodes, range(min(16, len(episodes))), config.data.length)
    state = init_state(model, phase.stage, phase.optimizer(), key, batch, ema=settings.ema, mesh=mesh)
    return runs.start_from(state, settings, report.say), phase


def _held_out(config: Config, report: Reporter) -> list[Trajectory]:
    """The batches, always the same, that the held-out loss is measured on: this process's rows of them."""
    settings = config.data
    if not config.training.evaluate_every:
        return []
    try:
        episodes = data.open_data(settings, "test", info=False)
    except data.DataError as error:
        report.say(f"no held-out loss, and so no best checkpoint: {error}")
        return []
    batches = _windows(config, episodes, start=0)
    with contextlib.closing(batches):
        return [next(batches) for _ in range(-(-config.evaluation.episodes // settings.batch))]


def _windows(config: Config, episodes: data.Episodes | data.Blocks, start: int) -> Generator[Trajectory]:
    """This process's rows of the batches of steps ``start``, ``start + 1``, ..."""
    settings = config.data
    windows = data.windows(
        episodes,
        batch=settings.batch,
        length=settings.length,
        seed=config.seed,
        start=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=settings.threads,
        prefetch=settings.prefetch,
    )
    return cast("Generator[Trajectory]", windows)


def own_copy(variables: Variables) -> Variables:
    """Arrays on the default device that share nothing with the state, whose memory the next update takes."""
    return jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), variables)


def notify(
    callbacks: Sequence[Callable[[Event], None]],
    name: EventName,
    state: TrainState,
    config: Config,
    model: WorldModel,
    log: Callable[[int, Mapping[str, float]], None],
    run_dir: pathlib.Path,
) -> None:
    """Calls ``callbacks`` with the `Event` ``name`` of ``state``; ``log`` takes a step and figures."""
    if not callbacks:
        return
    step, variables = int(state.step), own_copy(state.smooth_variables())
    event = Event(name, step, config, model, variables, functools.partial(log, step), run_dir)
    for callback in callbacks:
        callback(event)


@dataclasses.dataclass(frozen=True, eq=False)
class _Session:
    """What the parts of the loop share."""

    config: Config
    path: pathlib.Path
    model: WorldModel
    mesh: Mesh
    episodes: data.Episodes | data.Blocks
    held_out: Sequence[Trajectory]
    row_key: Array
    test_key: Array
    store: Checkpoints
    metrics: Metrics | None
    report: Reporter
    callbacks: tuple[Callable[[Event], None], ...]

    def run_phase(self, state: TrainState, phase: Phase, interruption: Interruption, is_final: bool) -> TrainState:
        """Trains until the end of ``phase``."""
        settings, step = self.config.training, int(state.step)
        if step >= phase.stop:
            return state
        events: dict[EventName, int] = {
            "evaluate": settings.evaluate_every, "video": settings.video_every, "probe": settings.probe_every
        }  # fmt: skip
        key = place(self.row_key, replicated(self.mesh))
        windows = _windows(self.config, self.episodes, step)
        with contextlib.closing(windows):
            batch = put_batch(self.mesh, next(windows))
            update, evaluate = self.compile_phase(phase, state, key, batch)
            recent: list[dict[str, Array]] = []
            waiting: collections.deque[Array] = collections.deque()
            watch = Stopwatch()
            while step < phase.stop:
                state, figures = update(state, key, batch)
                step += 1
                is_last = step == phase.stop
                if not is_last:
                    batch = put_batch(self.mesh, next(windows))  # while the devices are at work
                recent.append(figures)
                waiting.append(figures["loss"])
                if len(waiting) > STEPS_AHEAD:
                    waiting.popleft().block_until_ready()
                watch.count()
                self.report.advance(step)

                if is_last or _is_due(step, settings.log_every):
                    self.check_finite(state, phase, key)
                    self.log(step, phase, recent, watch)
                    recent = []

                watch.pause()
                loss = None
                if evaluate is not None and (is_last or _is_due(step, settings.evaluate_every)):
                    self.check_finite(state, phase, key)
                    loss = self.test(step, state, evaluate)
                at = Progress(step, phase.stage.name, phase.index, phase.start, self.config.seed, loss)
                is_best = loss is not None and self.store.is_best(at)
                stop = interruption.requested(step)
                if is_last or is_best or stop is not None or _is_due(step, settings.checkpoint_every):
                    self.check_finite(state, phase, key)
                    self.store.save(state, at)
                if stop is not None:
                    raise Interrupted(stop, step, self.path)
                for name, every in events.items():
                    if not (is_last and is_final) and _is_due(step, every):
                        self.call(name, state)
                watch.resume()
        return state

    def compile_phase(
        self, phase: Phase, state: TrainState, key: Array, batch: Trajectory
    ) -> tuple[Compiled, Compiled | None]:
        """The update and, where there is held-out data, the held-out loss of ``phase``, compiled for these shapes."""
        name = phase.stage.name
        update = make_update(self.model, phase.stage, phase.optimizer(), self.config.training.ema, self.mesh)
        compiled_update = self.compile(f"the update of stage {name!r}", update, state, key, batch)
        if not self.held_out:
            return compiled_update, None
        evaluate, variables = make_evaluate(self.model, phase.stage, self.mesh), state.smooth_variables()
        return compiled_update, self.compile(f"the held-out loss of stage {name!r}", evaluate, variables, key, batch)

    def compile(self, what: str, function: Compilable, *arguments: PyTree) -> Compiled:
        """Compiles ``function`` ahead of its first call, and says how long that took and what a call costs."""
        self.report.say(f"compiling {what} ...")
        begin = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        line = f"compiled in {time.perf_counter() - begin:.1f} s"
        if (cost := compiled.cost_analysis()) and "flops" in cost:
            line += f"; {amount(cost['flops'], 'FLOP')} on each device"
        if (memory := compiled.memory_analysis()) is not None:
            line += f", {amount(memory.argument_size_in_bytes + memory.temp_size_in_bytes, 'B')}"
        self.report.say(line)
        return compiled

    def log(self, step: int, phase: Phase, recent: Sequence[Mapping[str, Array]], watch: Stopwatch) -> None:
        """Writes the means of the figures since the last time, and shows them."""
        means = mean_figures("train", recent)
        means["train/steps_per_second"] = watch.read()
        self.write(step, means)
        self.report.figures(step, phase.stage.name, means["train/loss"], means["train/steps_per_second"])
        for name in raised_alarms(means):
            self.report.say(f"step {step}: ALARM: {name} (train/alarm/{name} in {METRICS_FILE})")

    def test(self, step: int, state: TrainState, evaluate: Compiled) -> float:
        """The held-out loss, of the averaged parameters where there are any."""
        values = []
        for index, batch in enumerate(self.held_out):
            key = place(jax.random.fold_in(self.test_key, index), replicated(self.mesh))
            values.append(evaluate(state.smooth_variables(), key, put_batch(self.mesh, batch)))
        means = mean_figures("test", values)
        self.write(step, means)
        self.report.say(f"step {step}: held-out loss {means['test/loss']:.4g}")
        return means["test/loss"]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds figures to the metrics of the run."""
        if self.metrics is not None:
            self.metrics.write(step, values)

    def call(self, name: EventName, state: TrainState) -> None:
        """Calls the callbacks, in the first process."""
        if self.metrics is not None:
            notify(self.callbacks, name, state, self.config, self.model, self.write, self.path)

    def check_finite(self, state: TrainState, phase: Phase, key: Array) -> None:
        """Raises NonFiniteError if an update was not finite; the state is then still the one before it."""
        if bool(state.healthy):
            return
        step = int(state.step)
        windows = _windows(self.config, self.episodes, step)
        with contextlib.closing(windows):
            batch = put_batch(self.mesh, next(windows))
        what = f"update {step} of stage {phase.stage.name!r}"
        end = f"its batch is at data position (seed {self.config.seed}, step {step}); {self.store.kept(self.path)}"
        raise nonfinite_error(self.model, phase.stage, state, key, batch, self.mesh, what, end)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
