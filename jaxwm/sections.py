"""The sections of a configuration: what each key means, its type and its default; `jaxwm.config` reads them."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, lt=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the key and the value."""


class Section(pydantic.BaseModel):
    """A group of settings: frozen, typed strictly, closed to unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class ModelConfig(Section):
    """The family of a world model, and below it the fields of that family's dataclass."""

    family: str


class WorldConfig(Section):
    """The name of a simulator in `jaxwm.worlds`, and below it the fields of its dataclass."""

    name: str


class GenerateConfig(Section):
    """How to make the data set when ``data.path`` does not hold it yet.

    Episodes of ``length`` steps are simulated in ``world``; ``train`` and ``test`` count the episodes of the splits.
    ``policy`` is ``random``, ``scripted`` (the world's first scripted policy) or the name of one of the world's;
    several, joined by ``+``, take turns.
    """

    world: WorldConfig
    train: PositiveInt = 400
    test: PositiveInt = 64
    length: Annotated[int, Field(ge=2)] = 64
    policy: str = "random"
    seed: NonNegativeInt = 0


class CollectConfig(Section):
    """How an agent lives through its own episodes while it learns, in ``copies`` of an environment at once.

    The environment is a Gymnasium id (``environment``) or a simulator (``world``), whose episodes are cut after
    ``length`` decisions. A decision is an action that the agent chooses; it is repeated for ``repeat`` frames.
    ``options`` are arguments of ``gymnasium.make``.
    ``train_ratio`` is how many steps of replayed windows are trained on for each decision, so that a run of U updates
    of ``batch`` windows of ``length`` steps makes U * batch * length / train_ratio decisions, after the ``prefill``
    before the first update. The replay holds ``capacity`` steps.
    """

    environment: str | None = None
    options: dict[str, bool | int | float | str] = {}
    world: WorldConfig | None = None
    copies: PositiveInt = 1
    length: Annotated[int, Field(ge=2)] | None = None
    repeat: PositiveInt = 1
    observe: Literal["pixels", "vectors", "both"] = "vectors"
    size: PositiveInt = 64
    train_ratio: PositiveFloat = 512.0
    prefill: PositiveInt = 1000
    capacity: PositiveInt = 1_000_000

    @pydantic.model_validator(mode="after")
    def _check(self) -> CollectConfig:
        if (self.environment is None) == (self.world is None):
            raise ValueError("expected either an environment or a world")
        if self.world is not None and self.length is None:
            raise ValueError("a world needs the length of an episode")
        if self.world is not None and self.repeat != 1:
            raise ValueError("repeat is for environments, a world has its own time step")
        if self.world is not None and self.options:
            raise ValueError("options are for environments, a world takes its own fields")
        return self


class DataConfig(Section):
    """Where the episodes lie and how windows are cut from them: ``batch`` windows of ``length`` steps each.

    With ``frame_skip`` k a step is every k-th frame, and its action the k actions up to the next, side by side. With
    ``collect`` there is no folder to begin with: an agent lives through its own episodes.
    """

    path: str = ""
    batch: PositiveInt = 16
    length: Annotated[int, Field(ge=2)] = 32
    frame_skip: PositiveInt = 1
    threads: PositiveInt = 2
    prefetch: PositiveInt = 8
    generate: GenerateConfig | None = None
    collect: CollectConfig | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not self.path and self.collect is None:
            raise ValueError("path is missing, or collect for an agent that lives through its own episodes")
        if self.collect is not None and self.generate is not None:
            raise ValueError("generate and collect exclude each other")
        if self.collect is not None and self.frame_skip != 1:
            raise ValueError("frame_skip is for recorded episodes; an agent repeats its actions (collect.repeat)")
        return self

    @property
    def simulation(self) -> GenerateConfig | None:
        """How such episodes are simulated: as ``generate`` says, or by random play in the world of ``collect``."""
        if self.collect is None or self.collect.world is None or self.collect.length is None:
            return self.generate
        return GenerateConfig(world=self.collect.world, length=self.collect.length)


class OptimizerConfig(Section):
    """An Optax chain: clip, precondition, decay, schedule.

    ``laprop`` is RMS normalisation before momentum (DreamerV3); ``agc`` clips each tensor's update to that
    fraction of its parameter's norm; ``clip_norm`` clips the global gradient norm. The schedule warms up linearly over
    ``warmup`` steps and then stays ``constant`` or falls to zero at the stage's last step.
    """

    name: Literal["adam", "adamw", "laprop"] = "adam"
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: NonNegativeInt = 0
    b1: Fraction = 0.9
    b2: Fraction = 0.999
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    agc: PositiveFloat | None = None


class StageConfig(Section):
    """One phase of training: how many steps, with which optimiser, and (to narrow it) which parameters."""

    steps: PositiveInt
    optimizer: OptimizerConfig = OptimizerConfig()
    trainable: tuple[str, ...] | None = None


class TrainingConfig(Section):
    """What happens around the updates; the intervals count steps, 0 switches one off.

    ``probe_every`` measures what can be read of the physical truth, where the episodes hold it (see
    `jaxwm.evaluation.ProbeCallback`); it is refused where an agent lives through its own episodes.
    ``keep`` checkpoints are kept beside the best one; ``ema`` is the decay of an average of the parameters;
    ``init_from`` names a run whose parameters are the start (``init_strict``: all of them must fit).
    """

    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2
    evaluate_every: NonNegativeInt = 1000
    video_every: NonNegativeInt = 1000
    probe_every: NonNegativeInt = 0
    ema: Fraction | None = None
    init_from: str | None = None
    init_strict: bool = True
    tensorboard: bool = False
    wandb: str | None = None


class EvaluationConfig(Section):
    """Open-loop evaluation: ``context`` observed frames, then ``horizon`` imagined ones, on held-out ``episodes``."""

    context: PositiveInt = 5
    horizon: PositiveInt = 15
    episodes: PositiveInt = 64


class EvolutionConfig(Section):
    """A linear controller evolved in the dream of a trained model (`jaxwm evolve`).

    Each of ``generations`` tries ``population`` controllers in ``dreams`` dreams each, of at most ``horizon`` steps,
    sampled at ``temperature``; they begin with the first frames of ``starts`` episodes. ``end_odds`` multiplies the
    odds that a dream ends: above 1 a dream is more dangerous than the model believes the world to be, so that what it
    forgives by mistake is worth less. ``sigma`` is the first standard deviation of the parameters. ``sep_cma_es``
    keeps only the diagonal of the covariance: for controllers of more than about a thousand parameters, whose full
    matrix would cost more than the dreams.
    """

    strategy: Literal["cma_es", "sep_cma_es"] = "cma_es"
    population: Annotated[int, Field(ge=4)] = 64
    dreams: PositiveInt = 16
    horizon: PositiveInt = 300
    generations: PositiveInt = 100
    temperature: NonNegativeFloat = 1.0
    end_odds: PositiveFloat = 1.0
    sigma: PositiveFloat = 0.1
    starts: PositiveInt = 256
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt = 10


class SolverConfig(Section):
    """The name of a solver in `jaxwm.planning`, and below it the fields of its dataclass."""

    name: str


class TermConfig(Section):
    """A term of an objective: its weight, its kind in `jaxwm.planning`, and below it the fields of that dataclass."""

    kind: str
    weight: float = 1.0


class PlanningConfig(Section):
    """How to plan in the trained model (`jaxwm plan`); ``objective`` is a sum of named terms.

    ``every`` actions are done of each plan before the next one. ``temperature`` 0 imagines the likeliest future, above
    it costs are means over ``particles`` random ones. The horizon and ``every`` count steps, which are blocks of
    actions if frames are skipped; ``length`` and ``goal_offset`` count frames. An episode of ``length`` frames has
    failed (by default as long as those in ``data.generate``). Goals are the world's own, or with ``goal_offset`` what
    the (first) policy of the data shows so many frames after the start. In a term of the kind ``reward``, with
    ``value: critic`` the critic of a dreamer says what follows the last step (``discount`` should then be its own).
    """

    solver: SolverConfig
    objective: Section
    every: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    particles: PositiveInt = 1
    length: Annotated[int, Field(ge=2)] | None = None
    goal_offset: PositiveInt | None = None


class Config(Section):
    """Everything that defines a run."""

    seed: NonNegativeInt = 0
    model: ModelConfig
    data: DataConfig
    stages: dict[str, StageConfig]
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    planning: PlanningConfig | None = None

    def to_yaml(self) -> str:
        """The resolved configuration; `load_config` reads it back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json", serialize_as_any=True), sort_keys=False)
