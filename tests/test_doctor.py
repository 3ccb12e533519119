"""The diagnosis: it knows the package's extras, and nothing makes it fail."""

from __future__ import annotations

import pathlib
import tomllib

import jax
from rich.console import Console

from jaxwm import doctor


def printed(width=200):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    doctor.print_diagnosis(console)
    return console.export_text()


def test_it_knows_the_extras_and_dependencies_of_the_package():
    project = tomllib.loads((pathlib.Path(doctor.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"])
    named = {line.split(">")[0].split("[")[0] for line in project["dependencies"]}
    assert named - {"PyYAML"} <= set(doctor.CORE)


def test_it_shows_versions_devices_and_memory():
    text = printed()
    assert (
        f"jax  ok  {jax.__version__}".split() == next(x for x in text.splitlines() if x.startswith("   jax ")).split()
    )
    assert "device 0" in text and "GiB free of" in text and "CPU cores" in text
    assert "broken" not in text


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "envs", doctor.Extra("environments", ("no_such_module",)))
    monkeypatch.setattr(doctor, "CORE", ("no-such-package",))
    text = printed()
    assert "environments  pip install 'jaxwm[envs]'" in text
    assert "missing  pip install no-such-package" in text


def test_a_broken_part_is_reported_and_the_others_go_on(monkeypatch):
    def broken():
        raise RuntimeError("no\ndevice")

    monkeypatch.setattr(jax, "local_devices", broken)
    text = printed()
    assert "RuntimeError: no device" in text and "broken" in text and "Extras" in text


def test_modules_belong_to_extras():
    assert doctor.install_line("gymnasium.spaces") == "pip install 'jaxwm[envs]'"
    assert doctor.install_line("elsewhere") == "pip install elsewhere"
