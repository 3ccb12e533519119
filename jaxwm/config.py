"""Typed, frozen configuration: YAML files, dotted overrides, one-line errors.

A configuration has six sections (see `Config`). The section ``model`` holds the fields of the family's own
dataclass and ``data.generate.world`` those of the world's, so each is declared once, where it is used.

    >>> config = load_config("configs/rssm_bounce.yaml", ["model.deter=256"])
    >>> config.model.deter
    256
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from jaxwm import agents, models, planning, worlds  # noqa: F401  (agents register families of their own)
from jaxwm.types import Spec, Stage, WorldModel, nearest

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
    ``train_ratio`` is how many steps of replayed windows are trained on for each decision, so that a run of U updates
    of ``batch`` windows of ``length`` steps makes U * batch * length / train_ratio decisions, after the ``prefill``
    before the first update. The replay holds ``capacity`` steps.
    """

    environment: str | None = None
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
        return self


class DataConfig(Section):
    """Where the episodes lie and how windows are cut from them: ``batch`` windows of ``length`` steps each.

    With ``collect`` there is no folder to begin with: an agent lives through its own episodes.
    """

    path: str = ""
    batch: PositiveInt = 16
    length: Annotated[int, Field(ge=2)] = 32
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
        return self


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

    ``keep`` checkpoints are kept beside the best one; ``ema`` is the decay of an average of the parameters;
    ``init_from`` names a run whose parameters are the start (``init_strict``: all of them must fit).
    """

    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2
    evaluate_every: NonNegativeInt = 1000
    video_every: NonNegativeInt = 1000
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
    it costs are means over ``particles`` random ones. An episode of ``length`` frames has failed (by default as long
    as those in ``data.generate``).
    """

    solver: SolverConfig
    objective: Section
    every: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    particles: PositiveInt = 1
    length: Annotated[int, Field(ge=2)] | None = None


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


def load_config(path: str | pathlib.Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file and applies dotted overrides such as ``model.deter=512``, in order.

    Raises:
      ConfigError: an unknown key, a wrong type or an impossible value, in one line that names key and value.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file") from None
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(Config.model_fields)}")
    return parse_config(values, overrides, source=str(path))


def parse_config(values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> Config:
    """As `load_config`, from a nested dict; ``source`` is named in errors."""
    merged: dict[str, Any] = json.loads(json.dumps(values))
    _expand_size(merged, source)
    for override in overrides:
        _apply_override(merged, override)
        if override.startswith("model."):
            _expand_size(merged, override)
    config_type = _typed(merged, source)
    try:
        config = config_type.model_validate_json(json.dumps(merged))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {_describe(error, config_type)}") from None
    _check_stages(config, source)
    return config


def build_model(config: ModelConfig, spec: Spec) -> WorldModel:
    """The model that ``config`` describes, for a world with ``spec``.

    Raises:
      ConfigError: fields that do not fit each other or the spec.
    """
    fields = {name: getattr(config, name) for name in type(config).model_fields if name != "family"}
    fields = {name: build_model(x, spec) if isinstance(x, ModelConfig) else x for name, x in fields.items()}
    try:
        return models.FAMILIES[config.family](spec=spec, **fields)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def build_world(config: WorldConfig) -> worlds.World:
    """The simulator that ``config`` describes.

    Raises:
      ConfigError: parameters that do not fit each other.
    """
    fields = {name: getattr(config, name) for name in type(config).model_fields if name != "name"}
    try:
        return worlds.WORLDS[config.name](**fields)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_solver(config: SolverConfig) -> planning.Solver:
    """The solver that ``config`` describes.

    Raises:
      ConfigError: fields that do not fit each other.
    """
    fields = {name: getattr(config, name) for name in type(config).model_fields if name != "name"}
    try:
        solver: planning.Solver = planning.SOLVERS[config.name](**fields)
    except ValueError as error:
        raise ConfigError(f"planning.solver: {error}") from None
    return solver


def build_objective(config: Section) -> planning.Weighted:
    """The objective that the section ``planning.objective`` describes.

    Raises:
      ConfigError: it has no terms.
    """
    terms = [getattr(config, name) for name in type(config).model_fields]
    if not terms:
        raise ConfigError("planning.objective: there are no terms")
    own = lambda term: {name: getattr(term, name) for name in type(term).model_fields}  # noqa: E731
    made = []
    for term in terms:
        fields = own(term)
        weight, kind = fields.pop("weight"), fields.pop("kind")
        made.append((weight, planning.OBJECTIVES[kind](**fields)))
    return planning.Weighted(tuple(made))


def section(base: type[Section], cls: type, **constants: str) -> type[Section]:
    """The section that holds the fields of dataclass ``cls``, with ``constants`` that name it.

    Left out are ``spec``, and fields with ``metadata={"configured": False}``, which only Python can give.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {name: (Literal[value], value) for name, value in constants.items()}
    for field in dataclasses.fields(cls):
        if field.name == "spec" or not field.init or not field.metadata.get("configured", True):
            continue
        if field.default_factory is not dataclasses.MISSING:
            default: Any = field.default_factory()
        else:
            default = ... if field.default is dataclasses.MISSING else field.default
        hint = ModelConfig if hints[field.name] is WorldModel else hints[field.name]
        fields[field.name] = (hint, default)
    return pydantic.create_model(cls.__name__ + "Config", __base__=base, **fields)


class _Loader(yaml.SafeLoader):
    """YAML with ``1e-4`` as a number and repeated keys as an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r}{node.start_mark} is not a name")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


_NUMBER = r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_NUMBER), list("-+.0123456789"))


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"{override!r}: an override has the form section.key=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {text!r} is not a valid value") from None
    *parents, last = key.split(".")
    node: Any = values
    for parent in parents:
        node = (
            node.setdefault(parent, {}) if node.get(parent) is not None else node.update({parent: {}}) or node[parent]
        )
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {parent} is the value {node!r}, not a section")
    node[last] = value


def _expand_size(values: dict[str, Any], source: str, key: str = "model", where: str = "model") -> None:
    """Replaces ``model.size`` by the fields that the family's table gives for it; keys beside it win."""
    model = values.get(key)
    if not isinstance(model, dict):
        return
    for part in model:
        _expand_size(model, source, part, f"{where}.{part}")
    sizes = getattr(models.FAMILIES.get(model.get("family", "")), "SIZES", None)
    if "size" not in model or sizes is None:
        return
    size = model.pop("size")
    if size not in sizes:
        raise ConfigError(f"{source}: {where}.size: {size!r} is not a size; {nearest(str(size), list(sizes))}")
    overridden = source.startswith(f"{where}.size=")
    values[key] = {**model, **sizes[size]} if overridden else {**sizes[size], **model}


def _typed(values: dict[str, Any], source: str) -> type[Config]:
    """`Config` with the sections of the family, the worlds and the planner that ``values`` name."""
    types: dict[str, Any] = {"model": (_model_type(values.get("model"), "model", source), ...)}
    if isinstance(values.get("planning"), dict):
        types["planning"] = (_planning_type(values["planning"], source), ...)
    data = values.get("data")
    parts: dict[str, Any] = {}
    for key, base in (("generate", GenerateConfig), ("collect", CollectConfig)):
        part = data.get(key) if isinstance(data, dict) else None
        if not isinstance(part, dict) or (base is CollectConfig and part.get("world") is None):
            continue
        name = _named(part.get("world"), "name", f"data.{key}.world", worlds.WORLDS, source)
        world_type = section(WorldConfig, worlds.WORLDS[name], name=name)
        parts[key] = (pydantic.create_model(base.__name__, __base__=base, world=(world_type, ...)), ...)
    if parts:
        types["data"] = (pydantic.create_model("DataConfig", __base__=DataConfig, **parts), ...)
    return pydantic.create_model("Config", __base__=Config, **types)


def _model_type(values: Any, where: str, source: str) -> type[Section]:
    """The section of the family that ``values`` name; a field that is a world model is such a section itself."""
    family = _named(values, "family", where, models.FAMILIES, source)
    model_type = section(ModelConfig, models.FAMILIES[family], family=family)
    nested: dict[str, Any] = {
        name: (_model_type(values.get(name), f"{where}.{name}", source), ...)
        for name, field in model_type.model_fields.items()
        if field.annotation is ModelConfig
    }
    return pydantic.create_model(model_type.__name__, __base__=model_type, **nested) if nested else model_type


def _planning_type(values: dict[str, Any], source: str) -> type[Section]:
    """The section of the solver and the objectives that ``values`` name."""
    name = _named(values.get("solver"), "name", "planning.solver", planning.SOLVERS, source)
    terms: dict[str, Any] = {}
    for term, settings in (values.get("objective") or {}).items():
        kind = _named(settings, "kind", f"planning.objective.{term}", planning.OBJECTIVES, source)
        terms[term] = (section(TermConfig, planning.OBJECTIVES[kind], kind=kind), ...)
    solver_type = section(SolverConfig, planning.SOLVERS[name], name=name)
    objective_type = pydantic.create_model("ObjectiveConfig", __base__=Section, **terms)
    return pydantic.create_model(
        "PlanningConfig", __base__=PlanningConfig, solver=(solver_type, ...), objective=(objective_type, ...)
    )


def _named(values: Any, key: str, where: str, known: Mapping[str, Any], source: str) -> str:
    name = values.get(key) if isinstance(values, dict) else None
    if name is None:
        raise ConfigError(f"{source}: {where}.{key} is missing; known: {', '.join(sorted(known))}")
    if name not in known:
        raise ConfigError(f"{source}: {where}.{key}: {name!r} is unknown; {nearest(str(name), list(known))}")
    return str(name)


def _check_stages(config: Config, source: str) -> None:
    names = [stage.name for stage in _stages(config.model)]
    for name in config.stages:
        if name not in names:
            raise ConfigError(
                f"{source}: stages.{name}: {config.model.family} has no such stage; {nearest(name, names)}"
            )
    if not config.stages:
        raise ConfigError(f"{source}: stages is empty; {config.model.family} has the stages {', '.join(names)}")


def _stages(config: ModelConfig) -> tuple[Stage, ...]:
    """The stages of a family, or of the one that it is built of."""
    stages = models.FAMILIES[config.family].stages
    if not isinstance(stages, property):
        return tuple(stages)
    return next(
        _stages(x) for x in (getattr(config, f) for f in type(config).model_fields) if isinstance(x, ModelConfig)
    )


def _describe(error: pydantic.ValidationError, config_type: type[Config]) -> str:
    """The first error in one line, with the number of others."""
    first, *others = error.errors(include_url=False)
    location = [str(part) for part in first["loc"]]
    key, kind = ".".join(location), first["type"]
    if kind == "extra_forbidden":
        line = (
            f"{key}={first['input']!r} is an unknown key; {nearest(location[-1], _known_keys(config_type, location))}"
        )
    elif kind == "missing":
        line = f"{key} is missing"
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        line = f"{key}={first['input']!r}: {message}"
    return line + (f" (and {len(others)} more)" if others else "")


def _known_keys(section_type: Any, location: list[str]) -> list[str]:
    """The keys of the section that holds the last part of ``location``."""
    for part in location[:-1]:
        if isinstance(section_type, type) and issubclass(section_type, Section):
            annotation = section_type.model_fields[part].annotation
        else:
            annotation = typing.get_args(section_type)[1]
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        is_optional = type(None) in typing.get_args(annotation)
        section_type = options[0] if is_optional else annotation
    return list(section_type.model_fields)
