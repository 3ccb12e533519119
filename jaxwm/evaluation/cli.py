"""The commands `jaxwm imagine | evaluate | plan | report`: what a run is worth, and what it looks like."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jaxwm.commands import Data, RunArgument, Step, example, open_run, pretrained

if TYPE_CHECKING:
    from rich.table import Table

    from jaxwm.evaluation.control import PlanningScores
    from jaxwm.evaluation.scores import Scores


Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Split = Annotated[str, typer.Option(help="Of the data: test or train.")]
Horizon = Annotated[int | None, typer.Option(min=1, help="Frames to imagine; by default as the configuration says.")]
Context = Annotated[
    int | None, typer.Option(min=1, help="Frames to show; by default as the run's configuration says.")
]


@example(
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
    loaded = open_run(run, step, data)
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


@example(
    "jaxwm evaluate runs/bounce",
    "jaxwm evaluate runs/bounce --horizon 40 --episodes 64 --estimate sample --samples 8",
    "jaxwm evaluate runs/bounce --probes",
)
def evaluate(
    run: RunArgument = None,
    horizon: Horizon = None,
    context: Context = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="How many; by default as the configuration says.")
    ] = None,
    estimate: Annotated[
        Literal["mode", "sample", "mean"],
        typer.Option(help="Score the model's mode, each of --samples futures, or their mean picture."),
    ] = "mode",
    samples: Annotated[int, typer.Option(min=1, help="Sampled futures for each episode.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Episodes at a time.")] = 16,
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Folder for scores.json and scores.png; by default RUN/evaluation.")
    ] = None,
    probes: Annotated[
        bool, typer.Option("--probes", help="Also what of the physical truth can be read from the features.")
    ] = False,
    seed: Seed = 0,
    data: Data = None,
    split: Split = "test",
    step: Step = None,
) -> None:
    """Scores open-loop prediction by horizon, against copying the last frame and the mean frame."""
    from jaxwm.evaluation import evaluate_run, probe_run

    loaded = open_run(run, step, data)
    scores = evaluate_run(
        loaded, episodes, context, horizon,
        estimate=estimate, samples=samples, split=split, batch=batch, seed=seed,
    )  # fmt: skip
    folder = out or (run or pathlib.Path()) / "evaluation"
    _write(scores, folder, "scores.png")
    typer.echo(f"wrote {folder / 'scores.json'} and {folder / 'scores.png'}")
    if probes:
        read = probe_run(loaded, context=context or loaded.config.evaluation.context, seed=seed)
        (folder / "probes.json").write_text(read.to_json() + "\n")
        _print(read.table())
        typer.echo(f"wrote {folder / 'probes.json'}")


@example(
    "jaxwm plan runs/simple_rooms",
    "jaxwm plan runs/simple_rooms --episodes 200 --solver mppi --seed 1",
    "jaxwm plan runs/simple_rooms planning.every=1 planning.solver.samples=512",
    "jaxwm plan runs/dreamer_reach planning.objective.reward.value=critic planning.objective.reward.discount=0.997",
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
    """Acts in the simulated world of a run by planning in its model: success, time, cost by iteration, a video.

    It plans for predicted reward unless the run's configuration or KEY=VALUE says otherwise. A run of recorded
    episodes has no simulated world: in Python its planner plays in any environment, see
    jaxwm.evaluation.planners.planning_agent.
    """
    from jaxwm.evaluation import clips, planners

    loaded = planners.configure_planning(open_run(run, step), overrides or (), solver)
    planned = planners.plan_run(loaded, episodes, batch=batch, seed=seed, shown=shown)
    folder = out or (run or pathlib.Path()) / "planning"
    _write(planned.scores, folder, "costs.png")
    clips.write_video(folder / "episodes.gif", planned.film(planners.run_environments(loaded).world))
    typer.echo(f"wrote {folder / 'scores.json'}, {folder / 'costs.png'} and {folder / 'episodes.gif'}")


@example("jaxwm report runs/bounce", "jaxwm report runs/bounce --horizon 40 --clips 9 --out bounce.html")
def report(
    run: RunArgument = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="The page; by default RUN/report.html.")] = None,
    horizon: Horizon = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="How many to score.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="How many to show.")] = 6,
    title: Annotated[str | None, typer.Option(help="The page's heading.")] = None,
    data: Data = None,
    step: Step = None,
) -> None:
    """Writes one HTML page about a run: videos, curves, the table against baselines, the facts."""
    from jaxwm.evaluation import run_report

    loaded = open_run(run, step, data)
    path = out or (run or pathlib.Path()) / "report.html"
    folder = run or pretrained()
    run_report(
        loaded, path, run_dir=folder, episodes=episodes, horizon=horizon, clips=clips, title=title, log=typer.echo
    )


@example(
    "jaxwm data synthesize runs/bounce --out data/dreamt --train 200 --curate 0.99",
    "jaxwm data synthesize runs/diffusion_drive --out data/fog 'tell.weather=[0,0,1,0,1,0,0]' --length 24",
)
def synthesize(
    run: RunArgument = None,
    out: Annotated[pathlib.Path, typer.Option(help="The folder to write; it must not exist yet.")] = ...,  # type: ignore[assignment]
    tell: Annotated[
        list[str] | None,
        typer.Argument(metavar="[tell.NAME=VALUE]...", help="Conditions of all frames: numbers, words, or null."),
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Episodes that begin in recorded training episodes.")] = 200,
    test: Annotated[int, typer.Option(min=0, help="Episodes that begin in held-out ones.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Frames to imagine.")] = 32,
    actions: Annotated[str, typer.Option(help="data (those recorded), random or zero.")] = "data",
    curate: Annotated[
        float | None,
        typer.Option(help="Leave out clips that jump or surprise more than this share of recorded ones do."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 for the model's mode, 1 for a sample.")] = 1.0,
    context: Context = None,
    data: Data = None,
    step: Step = None,
    seed: Seed = 0,
) -> None:
    """Turn what a model imagines into episodes, with what it was told."""
    from jaxwm.data.cli import assignments
    from jaxwm.evaluation.synthesis import synthesize_dataset

    told = assignments(tell, "tell")
    synthesize_dataset(
        out, open_run(run, step, data), train=train, test=test, length=length, tell=told, curate=curate,
        actions=actions, temperature=temperature, context=context, seed=seed,
        log=lambda line: typer.echo(line, err=True),
    )  # fmt: skip


def _write(scores: Scores | PlanningScores, folder: pathlib.Path, plot: str) -> None:
    """``scores.json`` and the picture ``plot`` in ``folder``, and the table on the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(scores.to_json() + "\n")
    scores.plot(folder / plot)
    _print(scores.table())


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)
