"""The command line: `jaxwm doctor | data | train | sweep | evolve | export | bench`, and where it leads.

`jaxwm imagine | evaluate | plan | report` are in `jaxwm.evaluation.cli`, those below `jaxwm data` in `jaxwm.data.cli`.
A person's mistake is one line on stderr and exit status 2; a traceback comes only with ``--debug``. Everything heavy
is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from jaxwm.commands import Data, RunArgument, Step, example, open_run, pretrained
from jaxwm.evaluation.cli import evaluate, imagine, plan, report, synthesize

app = typer.Typer(
    name="jaxwm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="World models in JAX: learn a simulator from what was seen and done, then imagine with it.",
    epilog="Every command takes --debug: a traceback in place of a one-line message.",
)


class Platform(StrEnum):
    """What an exported rollout runs on."""

    cpu = "cpu"
    cuda = "cuda"
    rocm = "rocm"
    tpu = "tpu"


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as model.deter=256.")
]


@app.command()
@example("jaxwm doctor")
def doctor() -> None:
    """Shows versions, devices, memory, threads and extras, and what to install for what is missing."""
    from rich.console import Console

    from jaxwm.doctor import print_diagnosis

    print_diagnosis(Console(highlight=False))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
@example("jaxwm data generate bounce --out data/bounce", "jaxwm data inspect data/bounce --sheet frames.png")
def data(context: typer.Context) -> None:
    """Generates, records, imports, synthesizes and inspects episodes; `jaxwm data -h` lists how."""
    from jaxwm.data.cli import app as data_app

    # It needs a trained model, of which the floor of the data knows nothing.
    if all(command.callback is not synthesize for command in data_app.registered_commands):
        data_app.command()(synthesize)
    status = typer.main.get_command(data_app).main(context.args, prog_name="jaxwm data", standalone_mode=False)
    if isinstance(status, int) and status:
        raise typer.Exit(status)


@app.command()
@example(
    "jaxwm train configs/rssm_bounce.yaml --run runs/bounce",
    "jaxwm train configs/rssm_bounce.yaml --run runs/small model.deter=128 stages.train.steps=500",
)
def train(
    config: Annotated[pathlib.Path, typer.Argument(help="A YAML file, see configs/.")],
    overrides: Overrides = None,
    run: Annotated[
        pathlib.Path | None, typer.Option(help="The run folder; by default runs/NAME for configs/NAME.yaml.")
    ] = None,
    videos: Annotated[bool, typer.Option(help="Whether to draw open-loop videos while training.")] = True,
    progress: Annotated[bool, typer.Option(help="Whether to print.")] = True,
) -> None:
    """Trains a world model, or with data.collect an agent; goes on where the run in the same folder stopped."""
    from jaxwm.config import load_config

    folder = run or pathlib.Path("runs") / config.stem
    resolved = load_config(config, overrides or ())
    if resolved.data.collect is not None:
        from jaxwm.agents.online import train_agent

        trained = train_agent(resolved, folder, progress=progress)
        if progress:
            typer.echo(f"{folder}: {trained.step} updates done, figures in {folder / 'metrics.jsonl'}")
        return
    from jaxwm.evaluation import ProbeCallback, VideoCallback
    from jaxwm.training import train as start_training

    trained = start_training(
        resolved, folder, [ProbeCallback(), *([VideoCallback()] if videos else [])], progress=progress
    )
    if progress:
        typer.echo(f"{folder}: {trained.step} steps done. Next: jaxwm report {folder}")


@app.command()
@example(
    "jaxwm sweep configs/rssm_bounce.yaml seeds=0..4",
    "jaxwm sweep configs/rssm_bounce.yaml seeds=0..2 model.deter=128,256 --jobs 2 --metric test/loss",
)
def sweep(
    config: Annotated[pathlib.Path, typer.Argument(help="A YAML file, see configs/.")],
    grid: Annotated[
        list[str], typer.Argument(metavar="KEY=A,B|KEY=0..4", help="What varies; 'seeds' is another name of 'seed'.")
    ],
    out: Annotated[
        pathlib.Path | None, typer.Option(help="The folder of the run folders; by default sweeps/NAME.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the devices.")] = 1,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="What to show, a name in metrics.jsonl; by default evaluation/score, else test/loss."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only says what would be run.")] = False,
) -> None:
    """Trains every combination of some settings, goes on where it was stopped, and aggregates over the seeds.

    summary.json holds all figures; the table and summary.png show what a run is judged by, or what --metric names.
    """
    from rich.console import Console

    from jaxwm import sweep as sweeping

    planned = sweeping.plan(config, grid, out)
    if dry_run:
        for run in planned.runs:
            typer.echo(f"{run.folder}: {run.done()} of {run.steps} steps done")
        return
    failed = sweeping.run(planned, jobs, typer.echo)
    summary = sweeping.summarise(planned, metric or ())
    (planned.out / "summary.json").write_text(summary.to_json() + "\n")
    summary.plot(planned.out / "summary.png")
    Console(highlight=False).print(summary.table())
    typer.echo(f"wrote {planned.out / 'summary.json'} and {planned.out / 'summary.png'}")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(planned.runs)} runs failed, see log.txt in their folders")


@app.command()
@example(
    "jaxwm evolve runs/dodge",
    "jaxwm evolve runs/dodge evolution.temperature=1.15 evolution.generations=200 --out runs/dodge/warm",
)
def evolve(
    run: Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="evolution.KEY=VALUE", help="Overrides of that section.")
    ] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Its folder; by default RUN/evolution.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many to score the controller by.")] = 100,
    data: Data = None,
    step: Step = None,
) -> None:
    """Evolves a linear controller in the dream of a model, and scores it there and in the simulator it has never seen.

    Goes on where the evolution in the same folder stopped.
    """
    from jaxwm.agents.evolution import evolve_run, load_controller, score_controller
    from jaxwm.config import parse_config

    for override in overrides or ():
        if not override.startswith("evolution."):
            raise ValueError(f"{override}: only the section evolution can be overridden, the model is trained")
    loaded = open_run(run, step, data)
    values = loaded.config.model_dump(mode="json", serialize_as_any=True)
    settings = parse_config(values, overrides or (), source=str(run)).evolution
    folder = out or run / "evolution"
    evolve_run(loaded, folder, settings, log=typer.echo)
    scores = score_controller(loaded, *load_controller(loaded, folder), settings, episodes)
    summary = {
        name: {"mean": float(x.mean()), "std": float(x.std()), "episodes": len(x)} for name, x in scores.items()
    }
    (folder / "scores.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name, figures in summary.items():
        typer.echo(f"{name:6s} {figures['mean']:.4g} ± {figures['std']:.4g} over {episodes} episodes")
    typer.echo(f"wrote {folder / 'scores.json'}")


for _command in (imagine, evaluate, plan, report):
    app.command()(_command)


@app.command()
@example(
    "jaxwm export runs/bounce --horizon 15",
    "jaxwm export runs/bounce --horizon 40 --batch 64 --platform cpu --platform cuda --out dream.jaxwm",
)
def export(
    run: RunArgument = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="The file; by default RUN/imagine_H15.jaxwm.")] = None,
    horizon: Annotated[int, typer.Option(min=1, help="Frames to imagine in a call.")] = 15,
    batch: Annotated[int | None, typer.Option(min=1, help="Dreams in a call; by default left open.")] = None,
    platform: Annotated[
        list[Platform] | None, typer.Option(help="Where the file shall run; by default as this process does.")
    ] = None,
    step: Step = None,
) -> None:
    """Saves the compiled rollout of a run with its parameters, to be called without its Python."""
    from jaxwm.exporting import export_imagination

    path = out or (run or pathlib.Path()) / f"imagine_H{horizon}.jaxwm"
    loaded = open_run(run, step)
    platforms = [name.value for name in platform] if platform else None
    export_imagination(loaded.model, loaded.variables, path, horizon=horizon, batch=batch, platforms=platforms)
    typer.echo(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")


@app.command()
@example("jaxwm bench", "jaxwm bench runs/bounce", "jaxwm bench configs/rssm_bounce.yaml model.deter=512 --seconds 5")
def bench(
    target: Annotated[
        pathlib.Path | None,
        typer.Argument(metavar="RUN|CONFIG", help="A run or a YAML file; without it the model of the package."),
    ] = None,
    overrides: Overrides = None,
    horizon: Annotated[int, typer.Option(min=1, help="Of the rollouts.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each measurement.")] = 2.0,
) -> None:
    """Measures imagination, the training step and the input pipeline against the machine's matrix-product peak.

    Medians over repetitions, compilation excluded.
    """
    from rich.console import Console

    from jaxwm.bench import measure
    from jaxwm.config import load_config
    from jaxwm.training.run import read_definition

    folder = target or pretrained()
    if folder.is_dir():
        if overrides:
            raise ValueError(f"{overrides[0]}: overrides need a configuration file, {folder} is a run")
        config, _ = read_definition(folder)
    else:
        config = load_config(folder, overrides or ())
    console = Console(highlight=False)
    console.print(measure(config, horizon, seconds, log=console.print).table())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0, 2 for a person's mistake, 1 for anything else that went wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = typer.main.get_command(app).main(words, prog_name="jaxwm", standalone_mode=False)
        except BrokenPipeError:
            # The reader (head, less) has gone: nobody is left to tell. Python would complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (KeyboardInterrupt, typer.Abort):
            return _say("interrupted", 130)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            # A bare number says nothing to a person: the parser ends so when the reader of its help has gone.
            return code if str(stop) == str(code) else _say(str(stop), code)
        except Exception as error:
            if debug:
                raise
            return _explain(error)
    if status == 130:
        return _say("interrupted", 130)
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> int:
    """Says what went wrong in one line and returns the exit status."""
    if hasattr(error, "format_message"):  # a command line that cannot be parsed
        context = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        return _say(f"{error.format_message()}{where}", getattr(error, "exit_code", 2))
    if isinstance(error, ModuleNotFoundError):
        from jaxwm.doctor import install_line

        return _say(f"{error}: {install_line(error.name or '')}", 2)
    if isinstance(error, ValueError | OSError):
        return _say(str(error), 2)
    if isinstance(error, FloatingPointError):
        return _say(str(error), 1)
    return _say(f"{type(error).__name__}: {error} (a bug? --debug shows where)", 1)


def _say(message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"jaxwm: {line if len(line) <= 1000 else line[:1000] + ' ...'}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"jaxwm: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
