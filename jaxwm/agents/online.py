"""An agent that learns while it lives: environments, replay and updates in turn.

Time goes in cycles: some steps of all environments, then some updates, in the ratio that ``data.collect.train_ratio``
asks for. With a simulated world a whole stretch of cycles is one compiled `lax.scan`, environment included; other
environments are stepped from Python, by the same functions. All that is random is a function of the seed and of
counters, so a run that was stopped goes on with what its checkpoint holds: parameters, replay and, for simulated
worlds, the worlds themselves, bit for bit. Other environments begin new episodes after a stop.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.acting import play, play_world
from jaxwm.agents.dreamer import Dreamer
from jaxwm.agents.experience import (
    Cycle,
    Experience,
    Finished,
    begin_experience,
    choose,
    draw,
    first_frames,
    learn,
    live,
    live_in_worlds,
    plan_cycle,
    rest,
)
from jaxwm.config import Config, ConfigError, build_model
from jaxwm.envs.base import Environments
from jaxwm.envs.opening import opened
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.training import run as runs
from jaxwm.training.checkpoints import Checkpoints, Progress
from jaxwm.training.console import Reporter, Stopwatch
from jaxwm.training.interruption import Interrupted, Interruption
from jaxwm.training.loop import Event, EventName, notify, own_copy
from jaxwm.training.metrics import Metrics, mean_figures
from jaxwm.training.run import Run
from jaxwm.training.sharding import make_mesh, replicated
from jaxwm.training.stages import Phase, find_phase, plan_phases
from jaxwm.training.update import TrainState, abstract_state, init_state, nonfinite_error, update_step
from jaxwm.types import Array, Trajectory


def train_agent(
    config: Config,
    run_dir: str | os.PathLike[str],
    callbacks: Sequence[Callable[[Event], None]] = (),
    progress: bool = True,
) -> Run:
    """Trains the agent of ``config`` in the environments of ``data.collect``, or goes on where the run stopped.

    Besides the losses the metrics of the run hold ``episode/score`` and ``episode/length`` of the episodes that ended
    while training, and every ``training.evaluate_every`` updates ``evaluation/score``, the mean of
    ``evaluation.episodes`` played apart from it. Each line says how many ``decisions`` (actions done in training) and
    ``frames`` (what the environment made of them: ``repeat``, and a frame skip of its own) there were. The best
    checkpoint is the one with the highest evaluation score.

    Args:
      config: all that there is to know; its family must be able to act (``dreamer``), its one stage is ``train``.
      run_dir: the run folder; made if missing.
      callbacks: called with every `jaxwm.training.Event`.
      progress: whether to print.

    Raises:
      ConfigError, EnvError: a configuration that fits neither model nor environment, or an environment that failed.
      RunError, CheckpointError: the folder holds another run, or one that cannot go on.
      NonFiniteError: a loss or a gradient was not finite.
      Interrupted: SIGTERM or SIGINT asked to stop; the state is saved.
    """
    path, settings = pathlib.Path(run_dir), config.data.collect
    if settings is None:
        raise ConfigError("data.collect is missing: it says where the agent lives")
    if config.training.probe_every:
        raise ConfigError(
            f"training.probe_every is {config.training.probe_every}, expected 0: an agent that lives through its own "
            "episodes keeps no physical truth of them"
        )
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Reporter(progress))

        # ------------------------------------------------------------------------------- environments and model
        environments = stack.enter_context(opened(settings, settings.copies))
        spec = environments.spec
        model = build_model(config.model, spec)
        if not isinstance(model, Dreamer):
            raise ConfigError(
                f"model.family is {config.model.family!r}, which does not act; data.collect needs dreamer"
            )
        phase = _only_phase(model, config)

        # ------------------------------------------------------------------------------------------- run folder
        runs.check_resume(path, config, spec)
        runs.write_definition(path, config, spec)
        store = Checkpoints(runs.checkpoints_folder(path), config.training.keep, report.say)
        stack.callback(store.close)

        # ------------------------------------------------------------------------------------------------ state
        loop = _Loop(config, path, model, environments, phase, store, report, callbacks)
        state, experience = loop.restore_or_begin()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
        report.say(f"model: {config.model.family}, {parameters:,} parameters")
        where = f"going on at update {int(state.step)} of" if int(state.step) else "new,"
        report.say(f"run: {path}, {where} {phase.stop} updates, about {loop.decisions_at(phase.stop):,} decisions")

        # --------------------------------------------------------------------------------------------- training
        metrics = Metrics(path, config.training, int(state.step))
        stack.callback(metrics.close)
        report.begin(int(state.step), phase.stop)
        with Interruption() as interruption:
            state = loop.run(state, experience, metrics, interruption)
        return Run(config, spec, model, own_copy(state.smooth_variables()), int(state.step))


def _only_phase(model: Dreamer, config: Config) -> Phase:
    phases = plan_phases(model, config)
    if [phase.stage.name for phase in phases] != ["train"]:
        raise ConfigError(
            f"stages holds {', '.join(config.stages)}: an agent that lives through its own episodes has the one "
            "stage train"
        )
    return phases[0]


class _Loop:
    """What the parts of the loop share, and the functions that it compiles."""

    def __init__(
        self,
        config: Config,
        path: pathlib.Path,
        model: Dreamer,
        environments: WorldEnvironments | Environments,
        phase: Phase,
        store: Checkpoints,
        report: Reporter,
        callbacks: Sequence[Callable[[Event], None]],
    ) -> None:
        assert config.data.collect is not None
        self.config, self.settings, self.path, self.model = config, config.data.collect, path, model
        self.environments, self.phase, self.store = environments, phase, store
        self.report, self.callbacks = report, callbacks
        self.agent, self.mesh = model.agent(), make_mesh()
        batch, length = config.data.batch, config.data.length
        self.cycle = plan_cycle(self.settings.train_ratio, self.settings.copies, batch, length)
        keys = jax.random.split(jax.random.key(config.seed), 5)
        self.init_key, self.live_key, self.learn_key, self.evaluate_key, self.reset_key = keys
        update = update_step(model, phase.stage, phase.optimizer(), config.training.ema, self.mesh)
        self.learn = functools.partial(learn, update, batch, length)
        self.learn_once = jax.jit(self.learn, donate_argnums=(1, 2))
        self.choose = jax.jit(functools.partial(choose, self.agent))
        self.live = jax.jit(live, donate_argnums=0)
        self.stretch = jax.jit(self._stretch, static_argnums=(2, 3), donate_argnums=(0, 1))

    # ------------------------------------------------------------------------------------------------ the state

    def restore_or_begin(self) -> tuple[TrainState, Experience]:
        """The state and the experience of the last checkpoint, or fresh ones."""
        ema, optimizer = self.config.training.ema, self.phase.optimizer()

        def abstract(progress: Progress) -> TrainState:
            stage = find_phase([self.phase], progress).stage
            return abstract_state(self.model, stage, optimizer, batch, ema=ema, mesh=self.mesh)

        fresh = self.begin_experience()
        batch = first_frames(self.model.spec, fresh)
        restored = self.store.restore(abstract, jax.tree.map(_shape, fresh))
        if restored is None:
            state = init_state(self.model, self.phase.stage, optimizer, self.init_key, batch, ema=ema, mesh=self.mesh)
            return runs.start_from(state, self.config.training, self.report.say), fresh
        state, _, kept = restored
        if isinstance(self.environments, WorldEnvironments):
            return state, kept
        # Episodes that were running are gone: what was lived through of them stays, and others begin.
        return state, fresh.replace(replay=kept.replay, decisions=kept.decisions)

    def begin_experience(self) -> Experience:
        """Fresh episodes in all environments."""
        count = self.settings.copies
        if isinstance(self.environments, WorldEnvironments):
            keys = jax.random.split(self.reset_key, count)
            world, step = jax.jit(self.environments.reset)(keys)
        else:
            # A run that goes on must not live through its first episodes again.
            world, step = None, self.environments.reset(self.config.seed + (self.store.latest or 0))
        experience = begin_experience(self.model.spec, self.agent, count, self.settings.capacity, step, world)
        # Placed as updates leave it: otherwise a run that goes on would compile its first update and then the others.
        return jax.device_put(jax.tree.map(jnp.array, experience), replicated(self.mesh))

    def decisions_at(self, updates: int) -> int:
        """Decisions that ``updates`` updates take, beginnings of episodes counted as such."""
        return (
            self.warm_up() * self.settings.copies
            + updates * self.cycle.steps * self.settings.copies // self.cycle.updates
        )

    def warm_up(self) -> int:
        """Steps of all environments before the first update."""
        return max(-(-self.settings.prefill // self.settings.copies), self.config.data.length)

    # --------------------------------------------------------------------------------------------------- the loop

    def run(
        self, state: TrainState, experience: Experience, metrics: Metrics, interruption: Interruption
    ) -> TrainState:
        """Lives and learns until the last update."""
        settings, step = self.config.training, int(state.step)
        log = _Log(metrics, self.report, getattr(self.environments, "frames_per_decision", 1))
        simulated = isinstance(self.environments, WorldEnvironments)
        advance = self.advance_worlds if simulated else self.advance_environments
        missing = self.warm_up() - int(experience.replay.written)
        if missing > 0:
            self.report.say(f"living through {missing * self.settings.copies} steps before the first update")
            state, experience, _ = advance(state, experience, Cycle(missing, 0), 1, log)
        intervals: dict[EventName, int] = {"evaluate": settings.evaluate_every, "video": settings.video_every}
        cycles = max(1, settings.log_every // self.cycle.updates) if simulated else 1
        self.report.say("compiling the first update ...")
        began = time.perf_counter() if step < self.phase.stop else None
        while step < self.phase.stop:
            before = step
            left = -(-(self.phase.stop - step) // self.cycle.updates)
            state, experience, figures = advance(state, experience, self.cycle, min(cycles, left), log)
            log.add(figures)
            step += self.cycle.updates * min(cycles, left)
            if began is not None:
                jax.block_until_ready(figures)
                self.report.say(f"compiled and first done in {time.perf_counter() - began:.1f} s")
                began = None
                log.watch = Stopwatch()
            else:
                log.watch.count(step - before)
            self.report.advance(step)
            is_last = step >= self.phase.stop
            passed = lambda every: every > 0 and step // every > before // every  # noqa: B023, E731
            due = lambda every: is_last or passed(every)  # noqa: B023, E731
            if due(settings.log_every) or any(due(every) for every in intervals.values()):
                log.decisions = int(experience.decisions)
            if due(settings.log_every):
                self.check_finite(state, experience)
                log.write(step, self.phase.stage.name)
            log.watch.pause()
            loss = None
            if settings.evaluate_every and due(settings.evaluate_every):
                self.check_finite(state, experience)
                loss = -self.evaluate(step, state, log)
            at = Progress(step, self.phase.stage.name, 0, 0, self.config.seed, loss)
            stop = interruption.requested(step)
            if due(settings.checkpoint_every) or stop is not None or (loss is not None and self.store.is_best(at)):
                self.check_finite(state, experience)
                self.store.save(state, at, experience)
            if stop is not None:
                raise Interrupted(stop, step, self.path)
            for name, every in intervals.items():
                if passed(every) and not is_last:
                    notify(self.callbacks, name, state, self.config, self.model, log.note, self.path)
            log.watch.resume()
        log.decisions = int(experience.decisions)
        notify(self.callbacks, "end", state, self.config, self.model, log.note, self.path)
        return state

    def advance_environments(
        self, state: TrainState, experience: Experience, cycle: Cycle, cycles: int, log: _Log
    ) -> tuple[TrainState, Experience, dict[str, Array]]:
        """``cycles`` cycles in environments that are stepped from Python."""
        assert not isinstance(self.environments, WorldEnvironments)
        figures: dict[str, Array] = {}
        for _ in range(cycles):
            for _ in range(cycle.steps):
                chosen, memory = self.choose(state.variables, self.live_key, experience)
                action = np.asarray(chosen)
                self.check_finite(state, experience)  # for the action the last update is over: nothing waits for this
                following = self.environments.step(action)
                experience, finished = self.live(experience, action, memory, following, None)
                log.episodes(finished)
            for _ in range(cycle.updates):
                state, experience, figures = self.learn_once(self.learn_key, state, experience)
        return state, experience, figures

    def advance_worlds(
        self, state: TrainState, experience: Experience, cycle: Cycle, cycles: int, log: _Log
    ) -> tuple[TrainState, Experience, dict[str, Array]]:
        """``cycles`` cycles in simulated worlds, in one compiled call."""
        state, experience, finished, figures = self.stretch(state, experience, cycle, cycles)
        log.episodes(finished)
        return state, experience, figures

    def _stretch(
        self, state: TrainState, experience: Experience, cycle: Cycle, cycles: int
    ) -> tuple[TrainState, Experience, Finished, dict[str, Array]]:
        assert isinstance(self.environments, WorldEnvironments)
        worlds = self.environments

        def one_update(carry: tuple[TrainState, Experience], _: None) -> tuple[Any, dict[str, Array]]:
            state, experience, metrics = self.learn(self.learn_key, *carry)
            return (state, experience), metrics

        def one_cycle(carry: tuple[TrainState, Experience], _: None) -> tuple[Any, Any]:
            state, experience = carry
            one_step = functools.partial(live_in_worlds, self.agent, worlds, state.variables, self.live_key)
            go_on = lambda life, _: jax.lax.cond(state.healthy, one_step, rest, life)  # noqa: E731
            experience, finished = jax.lax.scan(go_on, experience, length=cycle.steps)
            metrics: dict[str, Array] = {}
            if cycle.updates:
                (state, experience), metrics = jax.lax.scan(one_update, (state, experience), length=cycle.updates)
            return (state, experience), (finished, jax.tree.map(jnp.mean, metrics))

        (state, experience), (finished, metrics) = jax.lax.scan(one_cycle, (state, experience), length=cycles)
        return state, experience, finished, jax.tree.map(jnp.mean, metrics)

    # ------------------------------------------------------------------------------------------- apart from the loop

    def evaluate(self, step: int, state: TrainState, log: _Log) -> float:
        """The mean score of episodes that are apart from those trained on."""
        episodes = self.config.evaluation.episodes
        key, variables = jax.random.fold_in(self.evaluate_key, step), state.smooth_variables()
        with opened(self.settings, min(episodes, 8)) as environments:
            if isinstance(environments, WorldEnvironments):
                played = play_world(self.agent, variables, key, environments, episodes)
            else:
                played = play(self.agent, variables, key, environments, episodes, seed=1_000_000 + step)
        scores, lengths = np.asarray(played.score), np.asarray(played.length)
        values = {
            "evaluation/score": float(scores.mean()),
            "evaluation/score_std": float(scores.std()),
            "evaluation/length": float(lengths.mean()),
        }
        log.note(step, values)
        self.report.say(f"update {step}: score {scores.mean():.4g} +- {scores.std():.3g} in {episodes} episodes")
        return values["evaluation/score"]

    def check_finite(self, state: TrainState, experience: Experience) -> None:
        """Raises NonFiniteError if an update was not finite; state and experience are still those before it."""
        if bool(state.healthy):
            return
        length = self.config.data.length
        _, batch, windows, key = draw(self.config.data.batch, length, self.learn_key, state, experience)
        broken = np.flatnonzero(~_finite_rows(batch))
        places = zip(windows.stream[broken].tolist(), windows.start[broken].tolist(), strict=True)
        lines = [f"copy {stream}, steps {start} to {start + length - 1} of its life" for stream, start in places]
        what, end = f"update {int(state.step)} of the agent", "; ".join([*lines, self.store.kept(self.path)])
        raise nonfinite_error(self.model, self.phase.stage, state, key, batch, self.mesh, what, end)


class _Log:
    """Figures between two lines of the metrics."""

    def __init__(self, metrics: Metrics, report: Reporter, frames_per_decision: float) -> None:
        self.metrics, self.report, self.frames_per_decision = metrics, report, frames_per_decision
        self.watch = Stopwatch()
        self.decisions = 0
        self._figures: list[dict[str, Array]] = []
        self._scores: list[float] = []
        self._lengths: list[int] = []

    def add(self, figures: dict[str, Array]) -> None:
        """Notes the figures of an update."""
        if figures:
            self._figures.append(figures)

    def episodes(self, finished: Finished) -> None:
        """Notes the episodes that ended."""
        ended = np.asarray(finished.ended)
        if ended.any():
            self._scores += np.asarray(finished.score)[ended].tolist()
            self._lengths += np.asarray(finished.length)[ended].tolist()

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Writes ``values`` with the decisions and frames so far."""
        counts = {"decisions": self.decisions, "frames": self.decisions * self.frames_per_decision}
        self.metrics.write(step, {**values, **counts})

    def write(self, step: int, stage: str) -> None:
        """Writes the means since the last line, and shows them."""
        means = mean_figures("train", self._figures)
        means["train/steps_per_second"] = self.watch.read()
        if self._scores:
            means["episode/score"], means["episode/length"] = (
                float(np.mean(self._scores)),
                float(np.mean(self._lengths)),
            )
            self.report.say(f"{len(self._scores)} episodes ended, mean score {means['episode/score']:.4g}")
        self.note(step, means)
        self.report.figures(step, stage, means["train/loss"], means["train/steps_per_second"])
        self._figures, self._scores, self._lengths = [], [], []


def _finite_rows(batch: Trajectory) -> np.ndarray:
    """``[B]``: which windows hold nothing but finite values."""
    leaves = [np.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in jax.tree.leaves(jax.device_get(batch))]
    return np.all(leaves, axis=0)


def _shape(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
