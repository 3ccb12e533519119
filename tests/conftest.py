"""A run folder to look at, made in a second: the toy family in the world `bounce`, its episodes simulated."""

from __future__ import annotations

import chex
import jax
import pytest
import toy_family
import yaml

from jaxwm import data
from jaxwm.config import build_model, load_config
from jaxwm.training import Run, save_weights
from jaxwm.types import example_batch


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """The same program is compiled once in this process, however many runs use it; the folder of what is compiled."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    folder = str(tmp_path_factory.mktemp("compiled"))
    for name, value in zip(names, (folder, 0.1), strict=True):
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def traces_counted_anew():
    """`chex.assert_max_traces` knows a function by its test's name and its source, which two files may share."""
    chex.clear_trace_counter()


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory):
    """The path of a YAML file; its episodes are not on disk."""
    folder = tmp_path_factory.mktemp("toy")
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_family.toy_values(folder / "episodes")))
    return path


@pytest.fixture(scope="session")
def toy_run(toy_config) -> Run:
    """An untrained toy."""
    config = load_config(toy_config)
    spec = data.load_spec(config)
    model = build_model(config.model, spec)
    assert isinstance(model, toy_family.Toy)
    return Run(config, spec, model, model.init(jax.random.key(0), example_batch(spec, 1, 2)), 0)


@pytest.fixture(scope="session")
def toy_run_dir(toy_run, tmp_path_factory):
    """The folder of `toy_run`."""
    path = tmp_path_factory.mktemp("runs") / "toy"
    save_weights(toy_run, path)
    return path
