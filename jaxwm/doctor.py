"""What this installation can do: versions, devices, memory, threads, extras. Nothing here may fail."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

CORE = (
    "jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "grain", "tensorflow-datasets", "array-record",
    "flatbuffers", "pydantic", "numpy", "typer", "rich", "matplotlib", "dm-pix", "imageio", "av",
)  # fmt: skip
"""Distributions that jaxwm does not run without."""


@dataclasses.dataclass(frozen=True)
class Extra:
    """An optional part: what it is for, and the modules that must be there."""

    purpose: str
    modules: tuple[str, ...]


EXTRAS = {
    "envs": Extra(
        "Gymnasium, Box2D, Atari and dm_control environments",
        ("gymnasium", "Box2D", "ale_py", *(("shimmy", "dm_control") if sys.version_info < (3, 13) else ())),
    ),
    "pusht": Extra("the Push-T environment", ("gym_pusht",)),
    "evolution": Extra("evolve controllers in the dream", ("evosax",)),
    "hdf5": Extra("import HDF5 files", ("h5py",)),
    "rlds": Extra("read public TFDS/RLDS sets that are TFRecords", ("tensorflow",)),
    "logging": Extra("TensorBoard and Weights & Biases", ("tensorboardX", "wandb")),
    "cuda": Extra("NVIDIA GPUs", ("jax_cuda13_plugin",)),
    "tpu": Extra("TPUs", ("libtpu",)),
    "peers": Extra("compare with the PyTorch listings", ("torch",)),
    "rl": Extra("train Stable-Baselines3 in dreams", ("stable_baselines3",)),
    "dev": Extra("tests and linters", ("pytest", "hypothesis", "ruff", "mypy")),
}
"""The optional dependencies of the package by the name that pip takes."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the diagnosis; ``state`` is ok, missing (it works without) or broken."""

    name: str
    value: str
    state: str = "ok"
    advice: str = ""


def diagnose() -> dict[str, list[Line]]:
    """Every line by section. A part that fails says so in its line."""
    sections = {
        "jaxwm": _installation,
        "Machine": _machine,
        "Devices": _devices,
        "Core packages": _core,
        "Extras": _extras,
    }
    return {name: _guarded(part) for name, part in sections.items()}


def print_diagnosis(console: Console) -> None:
    """Prints `diagnose` as a table, and below it what to do about what is broken."""
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]ok[/]", "missing": "[yellow]-[/]", "broken": "[red]broken[/]"}
    table = Table(show_header=False, box=None, padding=(0, 1))
    for section, lines in diagnose().items():
        table.add_row(f"[bold]{section}[/]")
        for line in lines:
            advice = f"  [dim]{escape(line.advice)}[/]" if line.advice else ""
            table.add_row(f"  {escape(line.name)}", marks[line.state], escape(line.value) + advice)
        table.add_row()
    console.print(table)


def install_line(module: str) -> str:
    """The pip command that brings ``module``: an extra of jaxwm where one has it."""
    root = module.partition(".")[0]
    for name, extra in EXTRAS.items():
        if root in extra.modules:
            return f"pip install 'jaxwm[{name}]'"
    return f"pip install {root}"


def _guarded(part: Callable[[], Iterator[Line]]) -> list[Line]:
    """The lines of ``part``; what it raises becomes the last one."""
    lines: list[Line] = []
    try:
        for line in part():
            lines.append(line)
    except Exception as error:  # a diagnosis reports whatever is wrong
        message = " ".join(f"{type(error).__name__}: {error}".split())
        lines.append(Line("error", message[:200], "broken"))
    return lines


def _installation() -> Iterator[Line]:
    version = _version("jaxwm")
    if version is None:
        yield Line("version", "not installed as a package", "missing", "pip install -e .")
    else:
        yield Line("version", version)
    here = pathlib.Path(__file__).parent
    yield Line("folder", str(here))
    shipped = sorted(here.glob("pretrained/**/format.json"))
    if shipped:
        yield Line("trained model", str(shipped[0].parent.relative_to(here)))
    else:
        yield Line(
            "trained model", "none ships with this installation", "missing", "name a run: jaxwm imagine runs/demo"
        )


def _machine() -> Iterator[Line]:
    yield Line("Python", f"{platform.python_version()} ({sys.executable})")
    yield Line("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    cores = os.cpu_count() or 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    yield Line("CPU cores", f"{usable} usable of {cores}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        free, total = (os.sysconf(name) * page / 2**30 for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
        yield Line("memory", f"{free:.1f} GiB free of {total:.1f}")
    yield Line("disk", f"{shutil.disk_usage(os.getcwd()).free / 2**30:.1f} GiB free here")
    for name in ("JAX_PLATFORMS", "XLA_FLAGS", "OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR"):
        if name in os.environ:
            yield Line(name, os.environ[name])


def _devices() -> Iterator[Line]:
    import jax

    yield Line("backend", jax.default_backend())
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        memory = f", {limit / 2**30:.1f} GiB" if limit else ""
        yield Line(f"device {device.id}", f"{device.device_kind}{memory}")
    if jax.process_count() > 1:
        yield Line("processes", f"{jax.process_index()} of {jax.process_count()}")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        yield Line("GPU", "there is one, JAX does not use it", "missing", "pip install 'jaxwm[cuda]'")


def _core() -> Iterator[Line]:
    for name in CORE:
        version = _version(name)
        if version is None:
            yield Line(name, "missing", "broken", f"pip install {name}")
        else:
            yield Line(name, version)


def _extras() -> Iterator[Line]:
    for name, extra in EXTRAS.items():
        missing = [module for module in extra.modules if importlib.util.find_spec(module) is None]
        if missing:
            lacks = f" (without {', '.join(missing)})" if len(missing) < len(extra.modules) else ""
            yield Line(name, extra.purpose + lacks, "missing", f"pip install 'jaxwm[{name}]'")
        else:
            yield Line(name, extra.purpose)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
