"""Typed, frozen configuration: YAML files, dotted overrides, one-line errors.

The sections of a configuration are declared in `jaxwm.sections`. Into the section ``model`` come the fields of the
family's own dataclass and into ``data.generate.world`` those of the world's: each is declared once, where it is used.

    >>> config = load_config("configs/rssm_bounce.yaml", ["model.deter=256"])
    >>> config.model.deter
    256
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import yaml

from jaxwm import agents, models, planning, worlds  # noqa: F401  (agents register families of their own)
from jaxwm.sections import (  # noqa: F401  (they are all found here too)
    CollectConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    EvolutionConfig,
    GenerateConfig,
    ModelConfig,
    OptimizerConfig,
    PlanningConfig,
    Section,
    SolverConfig,
    StageConfig,
    TermConfig,
    TrainingConfig,
    WorldConfig,
)
from jaxwm.types import Spec, Stage, WorldModel, nearest


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
    fields = _fields(config)
    family = models.FAMILIES[fields.pop("family")]
    fields = {name: build_model(x, spec) if isinstance(x, ModelConfig) else x for name, x in fields.items()}
    try:
        return family(spec=spec, **_built_parts(family, fields))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None


def build_world(config: WorldConfig) -> worlds.World:
    """The simulator that ``config`` describes.

    Raises:
      ConfigError: parameters that do not fit each other.
    """
    fields = _fields(config)
    try:
        return worlds.WORLDS[fields.pop("name")](**fields)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_solver(config: SolverConfig) -> planning.Solver:
    """The solver that ``config`` describes.

    Raises:
      ConfigError: fields that do not fit each other.
    """
    fields = _fields(config)
    try:
        solver: planning.Solver = planning.SOLVERS[fields.pop("name")](**fields)
    except ValueError as error:
        raise ConfigError(f"planning.solver: {error}") from None
    return solver


def build_objective(config: Section, model: WorldModel) -> planning.Weighted:
    """The objective that the section ``planning.objective`` describes, for plans in ``model``.

    Raises:
      ConfigError: it has no terms, or asks for the critic of a model that has none.
    """
    terms = {name: _fields(term) for name, term in _fields(config).items()}
    if not terms:
        raise ConfigError("planning.objective: there are no terms")
    made = []
    for name, term in terms.items():
        weight, kind = term.pop("weight"), term.pop("kind")
        if term.get("value") == "critic":
            if not hasattr(model, "critic"):
                known = ", ".join(family for family, cls in models.FAMILIES.items() if hasattr(cls, "critic"))
                raise ConfigError(
                    f"planning.objective.{name}.value: {type(model).__name__} has no critic, {known} has"
                )
            term["value"] = model.critic
        made.append((weight, planning.OBJECTIVES[kind](**term)))
    return planning.Weighted(tuple(made))


def _fields(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in type(section).model_fields}


def _built_parts(cls: type, fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` of dataclass ``cls`` with the dataclasses that its parts are, where they are sections."""
    hints = typing.get_type_hints(cls)

    def built(name: str, x: Section) -> Any:
        part = next(part for part in _dataclasses_in(hints[name]) if type(x).__name__ == _section_name(part))
        return part(**_built_parts(part, _fields(x)))

    return {name: built(name, x) if isinstance(x, Section) else x for name, x in fields.items()}


def _dataclasses_in(hint: Any) -> tuple[type, ...]:
    """``hint`` if it is a dataclass, those that it is one of, or nothing."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return members if all(isinstance(x, type) and dataclasses.is_dataclass(x) for x in members) else ()


def _with_name(default: Any) -> Callable[[Any], Any]:
    """Values that do not say which of several sections they are for are for that of ``default``."""
    return lambda x: {"name": default.name, **x} if isinstance(x, dict) and default is not ... else x


def _section_name(cls: type) -> str:
    return f"{cls.__name__}Config"


def section(base: type[Section], cls: type, default: Any = None, **constants: str) -> type[Section]:
    """The section that holds the fields of dataclass ``cls``, with ``constants`` that name it.

    Left out is ``spec``. ``metadata={"configured": hint}`` of a field is its type in a configuration, where that
    differs: a name, for what only Python can hold. A field that is a dataclass, a part of a family, is a section
    itself, and one that may be one of several (`jaxwm.models.diffusion.AnyObjective`) is that which its ``name`` says.
    The defaults are those of ``cls``, or the values that its instance ``default`` has.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {name: (Literal[value], value) for name, value in constants.items()}
    for field in dataclasses.fields(cls):
        if field.name == "spec" or not field.init:
            continue
        if default is not None:
            value: Any = getattr(default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = ... if field.default is dataclasses.MISSING else field.default
        hint = field.metadata.get("configured", hints[field.name])
        hint = ModelConfig if hint is WorldModel else hint
        alone, *notes = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if parts := _dataclasses_in(alone):
            sections = [section(Section, part, value if type(value) is part else None) for part in parts]
            value = value if value is ... else sections[parts.index(type(value))]()
            hint = functools.reduce(operator.or_, sections)
            hint = Annotated[hint, *notes, pydantic.BeforeValidator(_with_name(value))] if notes else hint
        fields[field.name] = (hint, value)
    return pydantic.create_model(_section_name(cls), __base__=base, **fields)


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
    return next(_stages(field) for field in _fields(config).values() if isinstance(field, ModelConfig))


def _describe(error: pydantic.ValidationError, config_type: type[Config]) -> str:
    """The first error in one line, with the number of others."""
    first, *others = error.errors(include_url=False)
    location, known = _place(config_type, [str(part) for part in first["loc"]])
    key, kind = ".".join(location), first["type"]
    if kind == "extra_forbidden":
        line = f"{key}={first['input']!r} is an unknown key; {nearest(location[-1], known)}"
    elif kind == "missing":
        line = f"{key} is missing"
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        line = f"{key}={first['input']!r}: {message}"
    return line + (f" (and {len(others)} more)" if others else "")


def _place(section_type: Any, location: list[str]) -> tuple[list[str], list[str]]:
    """``location`` as it is written in a configuration, and the keys of the section that holds its last part."""
    written = []
    for part in location[:-1]:
        sections = [x for x in typing.get_args(section_type) if isinstance(x, type) and issubclass(x, Section)]
        if isinstance(section_type, types.UnionType) and sections:
            # The name by which one of several sections was chosen: it is not a key.
            section_type = next((x for x in sections if x.model_fields["name"].default == part), sections[0])
            continue
        written.append(part)
        if isinstance(section_type, type) and issubclass(section_type, Section):
            field = section_type.model_fields.get(part)
            annotation = None if field is None else field.annotation
        else:
            annotation = typing.get_args(section_type)[1]
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        is_optional = type(None) in typing.get_args(annotation)
        section_type = options[0] if is_optional else annotation
    holds_keys = isinstance(section_type, type) and issubclass(section_type, Section)
    keys = list(section_type.model_fields) if holds_keys else []
    return [*written, location[-1]], keys
