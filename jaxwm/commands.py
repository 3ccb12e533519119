"""What the commands of `jaxwm` share: arguments, the examples in their help, and opening the run that is named."""

from __future__ import annotations

import importlib.resources
import inspect
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jaxwm.training import Run

RunArgument = Annotated[
    pathlib.Path | None,
    typer.Argument(metavar="RUN", help="The folder of a run; without it the small trained model of the package."),
]
Data = Annotated[pathlib.Path | None, typer.Option(help="Other episodes than those of the run's configuration.")]
Step = Annotated[str | None, typer.Option(help="Which checkpoint: a step, or 'best'; by default the latest.")]


def example(*lines: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds ``lines`` to a command's help, each on a line of its own."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        examples = "\n".join(f"  {line}".replace("[", "\\[") for line in lines)
        command.__doc__ = f"{inspect.cleandoc(command.__doc__ or '')}\n\n\b\n[bold]Examples[/]\n{examples}\n"
        return command

    return add


def pretrained() -> pathlib.Path:
    """The folder of the small trained model that ships with the package.

    Raises:
      ValueError: this installation has none.
    """
    root = pathlib.Path(str(importlib.resources.files("jaxwm").joinpath("pretrained")))
    folders = [file.parent for file in [root / "format.json", *sorted(root.glob("*/format.json"))] if file.is_file()]
    if not folders:
        raise ValueError("this installation ships no trained model: name a run, for example jaxwm imagine runs/demo")
    return folders[0]


def open_run(folder: pathlib.Path | None, step: str | None, data: pathlib.Path | None = None) -> Run:
    """Opens a run, with other episodes where ``data`` names them."""
    from jaxwm.training import load_run

    if folder is not None and not folder.is_dir():
        from jaxwm.types import nearest

        siblings = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = f"; {nearest(str(folder), siblings)}" if siblings else ""
        raise ValueError(f"{folder}: there is no such run{hint}")
    if step is not None and step != "best" and not step.isdigit():
        raise ValueError(f"--step is {step!r}, expected a number or 'best'")
    run = load_run(folder or pretrained(), int(step) if step is not None and step.isdigit() else step)
    return run if data is None else run.with_data(data)
