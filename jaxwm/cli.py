"""The command line: `jaxwm doctor | data | train | evolve | imagine | plan | evaluate | report | export | bench`.

A person's mistake is one line on stderr and exit status 2; a traceback comes only with ``--debug``. Everything heavy
is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jaxwm.training import Run

app = typer.Typer(
    name="jaxwm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="World models in JAX: learn a simulator from what was seen and done, then imagine with it.",
    epilog="Every command takes --debug: a traceback in place of a one-line message.",
)


class Estimate(StrEnum):
    """What of the model is scored."""

    mode = "mode"
    sample = "sample"
    mean = "mean"


class Platform(StrEnum):
    """What an exported rollout runs on."""

    cpu = "cpu"
    cuda = "cuda"
    rocm = "rocm"
    tpu = "tpu"


RunArgument = Annotated[
    pathlib.Path | None,
    typer.Argument(metavar="RUN", help="The folder of a run; without it the small trained model of the package."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as model.deter=256.")
]
Step = Annotated[str | None, typer.Option(help="Which checkpoint: a step, or 'best'; by default the latest.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Split = Annotated[str, typer.Option(help="Of the data: test or train.")]
Data = Annotated[pathlib.Path | None, typer.Option(help="Other episodes than those of the run's configuration.")]
Context = Annotated[
    int | None, typer.Option(min=1, help="Frames to show; by default as the run's configuration says.")
]


def _example(*lines: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds ``lines`` to a command's help, each on a line of its own."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        examples = "\n".join(f"  {line}".replace("[", "\\[") for line in lines)
        command.__doc__ = f"{command.__doc__}\n\n\b\n[bold]Examples[/]\n{examples}\n"
        return command

    return add


@app.command()
@_example("jaxwm doctor")
def doctor() -> None:
    """Shows versions, devices, memory, threads and extras, and what to install for what is missing."""
    from rich.console import Console

    from jaxwm.doctor import print_diagnosis

    print_diagnosis(Console(highlight=False))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
@_example("jaxwm data generate bounce --out data/bounce", "jaxwm data inspect data/bounce --sheet frames.png")
def data(context: typer.Context) -> None:
    """Generates, records, imports and inspects episodes; `jaxwm data -h` lists how."""
    from jaxwm.data.cli import app as data_app

    status = typer.main.get_command(data_app).main(context.args, prog_name="jaxwm data", standalone_mode=False)
    if isinstance(status, int) and status:
        raise typer.Exit(status)


@app.command()
@_example(
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
    from jaxwm.evaluation import VideoCallback
    from jaxwm.training import train as start_training

    trained = start_training(resolved, folder, [VideoCallback()] if videos else [], progress=progress)
    if progress:
        typer.echo(f"{folder}: {trained.step} steps done. Next: jaxwm report {folder}")


@app.command()
@_example(
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
        list[str] | None, typer.Option(help="What to aggregate, a name in metrics.jsonl; by default test/*.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only says what would be run.")] = False,
) -> None:
    """Trains every combination of some settings, goes on where it was stopped, and aggregates over the seeds."""
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
@_example(
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
    step: Step = None,
) -> None:
    """Evolves a linear controller in the dream of a model, and scores it there and in the simulator it has never seen.

    Goes on where the evolution in the same folder stopped.
    """
    import json

    from jaxwm.agents.evolution import evolve_run, load_controller, score_controller
    from jaxwm.config import parse_config

    for override in overrides or ():
        if not override.startswith("evolution."):
            raise ValueError(f"{override}: only the section evolution can be overridden, the model is trained")
    loaded = _load(run, step)
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


@app.command()
@_example(
    "jaxwm imagine",
    "jaxwm imagine runs/bounce --horizon 40 --out dream.gif --sheet dream.png",
    "jaxwm imagine runs/bounce --actions random --temperature 1 --seed 3 --out dream.mp4",
    "jaxwm imagine runs/bounce --actions pushes.csv --start 7 --out pushed.gif",
)
def imagine(
    run: RunArgument = None,
    out: Annotated[
        pathlib.Path, typer.Option(help="A .gif or .mp4 video, a .png contact sheet, or the numbers as .npz.")
    ] = pathlib.Path("dream.gif"),
    sheet: Annotated[pathlib.Path | None, typer.Option(help="A contact sheet besides (.png).")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Frames to imagine; by default 40.")] = None,
    actions: Annotated[
        str, typer.Option(help="data (those of the episode), random, zero, or a .npy or .csv file with a row a step.")
    ] = "data",
    start: Annotated[int, typer.Option(min=0, help="The held-out episode whose first frames are shown.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many episodes, from --start.")] = 1,
    context: Context = None,
    temperature: Annotated[float, typer.Option(help="0 for the model's mode, 1 for a sample.")] = 0.0,
    seed: Seed = 0,
    scale: Annotated[int, typer.Option(min=1, help="Enlargement of each pixel.")] = 4,
    fps: Annotated[int, typer.Option(min=1, max=50, help="Frames per second.")] = 10,
    labels: Annotated[bool, typer.Option(help="Whether to write what is what.")] = True,
    data: Data = None,
    split: Split = "test",
    step: Step = None,
) -> None:
    """Shows a model the first frames of an episode, lets it imagine the rest, and draws that."""
    from jaxwm.evaluation import clips
    from jaxwm.evaluation.dream import dream_run

    if out.suffix not in (*clips.VIDEO_SUFFIXES, ".png", ".npz"):
        raise ValueError(f"--out {out}: {out.suffix or 'no suffix'} is not one of .gif, .mp4, .png, .npz")
    if sheet is not None and sheet.suffix not in clips.IMAGE_SUFFIXES:
        raise ValueError(
            f"--sheet {sheet}: {sheet.suffix or 'no suffix'} is not one of {', '.join(clips.IMAGE_SUFFIXES)}"
        )
    loaded = _load(run, step, data)
    dream = dream_run(
        loaded,
        actions,
        horizon,
        context=context,
        start=start,
        count=count,
        temperature=temperature,
        seed=seed,
        split=split,
    )
    if out.suffix == ".npz":
        dream.save(out)
    elif out.suffix == ".png":
        clips.write_image(out, dream.sheet(scale=max(1, scale // 2), labels=labels))
    else:
        clips.write_video(out, dream.film(scale=scale, labels=labels), fps)
    if sheet is not None:
        clips.write_image(sheet, dream.sheet(scale=max(1, scale // 2), labels=labels))
    rollout = dream.rollout
    length = rollout.valid.shape[1] - rollout.context
    typer.echo(
        f"saw {rollout.context} frames, imagined {length} with {actions} actions: {out}{f', {sheet}' if sheet else ''}"
    )


@app.command()
@_example(
    "jaxwm evaluate runs/bounce",
    "jaxwm evaluate runs/bounce --horizon 40 --episodes 64 --estimate sample --samples 8",
)
def evaluate(
    run: RunArgument = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Frames to imagine; by default as the configuration says.")
    ] = None,
    context: Context = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="How many; by default as the configuration says.")
    ] = None,
    estimate: Annotated[
        Estimate, typer.Option(help="Score the model's mode, each of --samples futures, or their mean picture.")
    ] = Estimate.mode,
    samples: Annotated[int, typer.Option(min=1, help="Sampled futures for each episode.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Episodes at a time.")] = 16,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for scores.json and scores.png; by default RUN/evaluation.")
    ] = None,
    seed: Seed = 0,
    data: Data = None,
    split: Split = "test",
    step: Step = None,
) -> None:
    """Scores open-loop prediction by horizon, against copying the last frame and the mean frame."""
    from rich.console import Console

    from jaxwm.evaluation import evaluate_run

    loaded = _load(run, step, data)
    scores = evaluate_run(
        loaded, episodes, context, horizon,
        estimate=estimate.value, samples=samples, split=split, batch=batch, seed=seed,
    )  # fmt: skip
    folder = out or (run / "evaluation" if run is not None else pathlib.Path("evaluation"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(scores.to_json() + "\n")
    scores.plot(folder / "scores.png")
    Console(highlight=False).print(scores.table())
    typer.echo(f"wrote {folder / 'scores.json'} and {folder / 'scores.png'}")


@app.command()
@_example(
    "jaxwm plan runs/simple_rooms",
    "jaxwm plan runs/simple_rooms --episodes 200 --solver mppi --seed 1",
    "jaxwm plan runs/simple_rooms planning.every=1 planning.solver.samples=512",
)
def plan(
    run: RunArgument = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as planning.every=3.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="random_shooting, predictive_sampling, cem, icem, mppi, gradient, ...")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many to play.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Episodes at a time.")] = 32,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Folder for scores.json, costs.png and episodes.gif; by default RUN/planning."),
    ] = None,
    shown: Annotated[int, typer.Option(min=1, help="Episodes in the video.")] = 4,
    seed: Seed = 0,
    step: Step = None,
) -> None:
    """Acts in the world of a run by planning in its model: success, time, cost by iteration, a video."""
    from rich.console import Console

    from jaxwm.evaluation import clips, control

    loaded = control.configure_planning(_load(run, step), overrides or (), solver)
    planned = control.plan_run(loaded, episodes, batch=batch, seed=seed, shown=shown)
    folder = out or (run / "planning" if run is not None else pathlib.Path("planning"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(planned.scores.to_json() + "\n")
    planned.scores.plot(folder / "costs.png")
    clips.write_video(folder / "episodes.gif", planned.film(control.run_environments(loaded).world))
    Console(highlight=False).print(planned.scores.table())
    typer.echo(f"wrote {folder / 'scores.json'}, {folder / 'costs.png'} and {folder / 'episodes.gif'}")


@app.command()
@_example("jaxwm report runs/bounce", "jaxwm report runs/bounce --horizon 40 --clips 9 --out bounce.html")
def report(
    run: RunArgument = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="The page; by default RUN/report.html.")] = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Frames to imagine; by default as the configuration says.")
    ] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="How many to score.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="How many to show.")] = 6,
    title: Annotated[str | None, typer.Option(help="The page's heading.")] = None,
    data: Data = None,
    step: Step = None,
) -> None:
    """Writes one HTML page about a run: videos, curves, the table against baselines, the facts."""
    from jaxwm.evaluation import run_report

    loaded = _load(run, step, data)
    path = out or (run / "report.html" if run is not None else pathlib.Path("report.html"))
    folder = run if run is not None else pretrained()
    run_report(
        loaded, path, run_dir=folder, episodes=episodes, horizon=horizon, clips=clips, title=title, log=typer.echo
    )


@app.command()
@_example(
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
    loaded = _load(run, step)
    platforms = [name.value for name in platform] if platform else None
    export_imagination(loaded.model, loaded.variables, path, horizon=horizon, batch=batch, platforms=platforms)
    typer.echo(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")


@app.command()
@_example("jaxwm bench", "jaxwm bench runs/bounce", "jaxwm bench configs/rssm_bounce.yaml model.deter=512 --seconds 5")
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


def pretrained() -> pathlib.Path:
    """The folder of the small trained model that ships with the package.

    Raises:
      ValueError: this installation has none.
    """
    import importlib.resources

    root = pathlib.Path(str(importlib.resources.files("jaxwm").joinpath("pretrained")))
    folders = [file.parent for file in [root / "format.json", *sorted(root.glob("*/format.json"))] if file.is_file()]
    if not folders:
        raise ValueError("this installation ships no trained model: name a run, for example jaxwm imagine runs/demo")
    return folders[0]


def _load(folder: pathlib.Path | None, step: str | None, data: pathlib.Path | None = None) -> Run:
    """Opens a run, with other episodes where ``data`` names them."""
    import dataclasses

    from jaxwm.training import load_run

    if folder is not None and not folder.is_dir():
        from jaxwm.types import nearest

        siblings = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = f"; {nearest(str(folder), siblings)}" if siblings else ""
        raise ValueError(f"{folder}: there is no such run{hint}")
    if step is not None and step != "best" and not step.isdigit():
        raise ValueError(f"--step is {step!r}, expected a number or 'best'")
    run = load_run(folder or pretrained(), int(step) if step is not None and step.isdigit() else step)
    if data is None:
        return run
    section = run.config.data.model_copy(update={"path": str(data), "generate": None})
    return dataclasses.replace(run, config=run.config.model_copy(update={"data": section}))


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
