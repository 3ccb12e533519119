"""The stages of a run, in order: which loss, which parameters, which optimiser, from which step to which."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import optax

from jaxwm.config import Config, ConfigError, StageConfig
from jaxwm.training.checkpoints import CheckpointError, Progress
from jaxwm.training.optimizers import is_below, make_optimizer
from jaxwm.types import Stage, WorldModel


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stage of a model as one run trains it.

    Args:
      index: its place among the phases of the run.
      stage: name, and the parameters that are trained.
      config: steps and optimiser.
      start: the step at which it begins, counted over the run.
      stop: the step at which it ends.
    """

    index: int
    stage: Stage
    config: StageConfig
    start: int
    stop: int

    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser, its schedule as long as the phase."""
        return make_optimizer(self.config.optimizer, self.config.steps)


def plan_phases(model: WorldModel, config: Config) -> list[Phase]:
    """The configured stages in the order of the model; ``trainable`` narrows what a stage trains.

    Raises:
      ConfigError: a path to train that the stage does not train, or an impossible optimiser.
    """
    phases: list[Phase] = []
    start = 0
    for stage in model.stages:
        if stage.name not in config.stages:
            continue
        settings = config.stages[stage.name]
        for path in settings.trainable or ():
            if not any(is_below(path, prefix) for prefix in stage.trainable):
                raise ConfigError(
                    f"stages.{stage.name}.trainable: {path!r} is not part of what this stage trains: "
                    f"{', '.join(stage.trainable)}"
                )
        if settings.trainable is not None:
            stage = stage._replace(trainable=settings.trainable)
        phase = Phase(len(phases), stage, settings, start, start + settings.steps)
        try:
            phase.optimizer()
        except ValueError as error:
            raise ConfigError(f"stages.{stage.name}.{error}") from None
        phases.append(phase)
        start = phase.stop
    return phases


def find_phase(phases: Sequence[Phase], progress: Progress) -> Phase:
    """The phase that a checkpoint belongs to.

    Raises:
      CheckpointError: the steps of the stages were changed so that the checkpoint has no place among them.
    """
    phase = next((phase for phase in phases if phase.stage.name == progress.stage), None)
    if phase is None:
        raise CheckpointError(f"the checkpoint of step {progress.step} is of stage {progress.stage!r}, which is gone")
    if phase.start != progress.stage_start:
        raise CheckpointError(
            f"stage {progress.stage!r} began at step {progress.stage_start}, but now the stages before it have "
            f"{phase.start} steps: the steps of a stage that is over cannot change"
        )
    if phase.stop < progress.step:
        raise CheckpointError(
            f"stages.{progress.stage}.steps is {phase.config.steps}, expected at least the "
            f"{progress.step - phase.start} that are done"
        )
    if phase.stop > progress.step and phase.index > progress.stage_index:
        raise CheckpointError(f"stage {progress.stage!r} was number {progress.stage_index}, now {phase.index}")
    return phase
