"""Configuration: files and overrides, one-line errors, the way back through YAML."""

import dataclasses
import pathlib
from typing import ClassVar

import pydantic
import pytest

import jaxwm
from jaxwm import models
from jaxwm.config import parse_config
from jaxwm.models import diffusion


@dataclasses.dataclass(frozen=True)
class Corner:
    """A part of a part."""

    angle: float = 90.0


@dataclasses.dataclass(frozen=True)
class Part:
    """What a family may hold: settings that belong together."""

    width: pydantic.PositiveInt = 4
    levels: tuple[int, ...] = (8, 5)
    corner: Corner = Corner()

    def __post_init__(self):
        if self.width > 100:
            raise ValueError(f"part.width is {self.width}, expected at most 100")


@dataclasses.dataclass(frozen=True)
class Composed:
    """A family with a part, whose defaults are its own."""

    spec: jaxwm.Spec
    part: Part = Part(width=6)
    stages: ClassVar = (jaxwm.Stage("train"),)


CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.yaml"))
SPEC = jaxwm.Spec((jaxwm.Field("image", (32, 32, 3), "uint8"),), jaxwm.ActionSpec(2))
MINIMAL = {"model": {"family": "rssm"}, "data": {"path": "data/x"}, "stages": {"train": {"steps": 10}}}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_survives_a_round_trip(path, tmp_path):
    config = jaxwm.load_config(path)
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    again = jaxwm.load_config(tmp_path / "resolved.yaml")
    assert again.model_dump() == config.model_dump()
    spec = jaxwm.build_world(config.data.generate.world).spec if config.data.generate else SPEC
    assert jaxwm.build_model(again.model, spec) == jaxwm.build_model(config.model, spec)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_begins_with_its_command(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# jaxwm train ") and f"configs/{path.name}" in first


def test_overrides_apply_in_order_and_keep_types():
    config = parse_config(MINIMAL, ["model.deter=256", "model.deter=128", "stages.train.optimizer.learning_rate=1e-4"])
    assert config.model.deter == 128
    assert config.stages["train"].optimizer.learning_rate == 1e-4


def test_a_size_fills_in_the_table_and_explicit_keys_win():
    assert parse_config(MINIMAL, ["model.size=12m"]).model.deter == 2048
    assert parse_config(MINIMAL, ["model.size=12m", "model.deter=64"]).model.deter == 64
    written = {**MINIMAL, "model": {"family": "rssm", "size": "12m", "deter": 64}}
    config = parse_config(written)
    assert (config.model.deter, config.model.hidden) == (64, 256)
    assert parse_config(written, ["model.size=25m"]).model.deter == 3072
    assert "size" not in config.to_yaml().split("data:")[0]


def test_values_are_frozen():
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.model.deter = 3


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.detr=5"], ["model.detr=5", "unknown key", "'deter'"]),
        (["modle.deter=5"], ["modle", "unknown key", "'model'"]),
        (["model.deter=abc"], ["model.deter='abc'", "integer"]),
        (["model.deter=1.5"], ["model.deter=1.5", "integer"]),
        (["model.deter=true"], ["model.deter=True", "integer"]),
        (["model.deter=-1"], ["model.deter=-1", "greater than 0"]),
        (["model.deter='512'"], ["model.deter='512'", "integer"]),
        (["model.latent=gausian"], ["model.latent='gausian'", "'gaussian' or 'categorical'"]),
        (["model.unimix=1.5"], ["model.unimix=1.5", "less than 1"]),
        (["model.family=rsm"], ["model.family", "'rsm'", "'rssm'"]),
        (["model.size=13m"], ["model.size", "'13m'", "'1m'"]),
        (["data.batch=0"], ["data.batch=0", "greater than 0"]),
        (["data.length=1"], ["data.length=1", "2"]),
        (["stages.trian.steps=5"], ["stages.trian", "no such stage", "'train'"]),
        (["stages.train.optimizer.name=sgd"], ["stages.train.optimizer.name='sgd'", "'laprop'"]),
        (["stages.train.optimizer.lr=1"], ["stages.train.optimizer.lr=1", "unknown key", "learning_rate"]),
        (["training.keep=null"], ["training.keep=None", "integer"]),
        (["model.deter.x=1"], ["model.deter.x"]),
        (["model.deter"], ["section.key=value"]),
        (["=3"], ["section.key=value"]),
        (["model.deter=[1"], ["model.deter", "not a valid value"]),
        (["data.generate.world.name=bounse"], ["data.generate.world.name", "'bounse'", "'bounce'"]),
        (["data.generate.world.name=bounce", "data.generate.world.bals=2"], ["bals=2", "unknown key", "'balls'"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(overrides, parts):
    with pytest.raises(jaxwm.ConfigError) as caught:
        parse_config({**MINIMAL, "model": {"family": "rssm", "deter": 512}}, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: [", ["not valid YAML"]),
        ("model: {family: rssm}\nmodel: {family: simple}", ["'model'", "twice"]),
        ("- 1", ["expected a mapping"]),
        ("model: {family: rssm}", ["data is missing"]),
        ("model: {}", ["model.family is missing"]),
        ("3: 4", ["3", "not a name"]),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(text, parts, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(jaxwm.ConfigError) as caught:
        jaxwm.load_config(path)
    for part in ["bad.yaml", *parts]:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_bytes_are_named(tmp_path):
    with pytest.raises(jaxwm.ConfigError, match=r"none\.yaml: cannot read"):
        jaxwm.load_config(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(jaxwm.ConfigError, match="not a text file"):
        jaxwm.load_config(tmp_path / "bytes.yaml")


def test_fields_that_do_not_fit_each_other_are_named():
    config = parse_config(MINIMAL, ["model.deter=30"])
    with pytest.raises(jaxwm.ConfigError, match="deter=30 does not divide into blocks=8"):
        jaxwm.build_model(config.model, SPEC)


@pytest.fixture
def composed(monkeypatch):
    monkeypatch.setitem(models.FAMILIES, "composed", Composed)
    return lambda model, *overrides: parse_config({**MINIMAL, "model": {"family": "composed", **model}}, overrides)


def test_a_part_of_a_family_is_a_section(composed, tmp_path):
    build = lambda config: jaxwm.build_model(config.model, SPEC)  # noqa: E731
    assert build(composed({})) == Composed(SPEC)
    config = composed({"part": {"levels": [7, 3]}}, "model.part.corner.angle=45")
    assert build(config) == Composed(SPEC, Part(6, (7, 3), Corner(45.0)))
    assert hash(build(config)) == hash(build(composed({"part": {"levels": [7, 3], "corner": {"angle": 45.0}}})))
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    assert build(jaxwm.load_config(tmp_path / "resolved.yaml")) == build(config)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.part.widht=5", ["model.part.widht=5", "unknown key", "'width'"]),
        ("model.prat.width=5", ["model.prat", "unknown key", "'part'"]),
        ("model.part.width=0", ["model.part.width=0", "greater than 0"]),
        ("model.part.width=wide", ["model.part.width='wide'", "integer"]),
        ("model.part.levels=[8,x]", ["model.part.levels.1='x'", "integer"]),
        ("model.part.corner.angel=1", ["model.part.corner.angel=1", "unknown key", "'angle'"]),
        ("model.part=3", ["model.part=3"]),
        ("model.part=null", ["model.part=None"]),
    ],
)
def test_a_mistake_in_a_part_is_one_line_that_names_it(composed, override, parts):
    with pytest.raises(jaxwm.ConfigError) as caught:
        composed({}, override)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_fields_of_a_part_that_do_not_fit_are_named(composed):
    with pytest.raises(jaxwm.ConfigError, match=r"^model: part.width is 101, expected at most 100$"):
        jaxwm.build_model(composed({}, "model.part.width=101").model, SPEC)


def test_a_part_that_may_be_one_of_several_is_the_one_that_is_named(tmp_path):
    values = {**MINIMAL, "model": {"family": "diffusion"}}
    values["stages"] = {"tokenizer": {"steps": 10}, "dynamics": {"steps": 10}}
    build = lambda *overrides: jaxwm.build_model(parse_config(values, overrides).model, SPEC).objective  # noqa: E731
    assert build() == diffusion.Shortcut()
    assert build("model.objective.halvings=3") == diffusion.Shortcut(halvings=3)
    assert build("model.objective={name: edm, largest: 5.0}") == diffusion.EDM(largest=5.0)
    (tmp_path / "resolved.yaml").write_text(parse_config(values, ["model.objective={name: flow}"]).to_yaml())
    again = jaxwm.load_config(tmp_path / "resolved.yaml")
    assert jaxwm.build_model(again.model, SPEC).objective == diffusion.Flow()
    with pytest.raises(jaxwm.ConfigError, match=r"model\.objective\.halving=3 is an unknown key; .*'halvings'"):
        build("model.objective.halving=3")
    with pytest.raises(jaxwm.ConfigError, match=r"model\.objective=.*'edm', 'flow', 'forcing', 'shortcut'"):
        build("model.objective={name: flwo}")
