"""``jaxwm data``: generate, record, import and inspect episodes."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated, Any, Literal

import typer

from jaxwm.commands import example
from jaxwm.data.episodes import DataError

app = typer.Typer(
    help="Episodes on disk: simulate, record, import or dream them, look at them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[pathlib.Path, typer.Option("--out", help="The folder to write; it must not exist yet.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same data.")]


@app.command()
@example(
    "jaxwm data generate bounce --out data/bounce",
    "jaxwm data generate bounce --out data/two --train 1000 world.balls=2 world.gravity=1.0",
    "jaxwm data generate rooms --out data/rooms --policy scripted",
)
def generate(
    world: Annotated[str, typer.Argument(help="A world of jaxwm.worlds, for example bounce or rooms.")],
    out: Out,
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[world.NAME=VALUE]...", help="Parameters of the world.")
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Episodes to train on.")] = 400,
    test: Annotated[int, typer.Option(min=1, help="Episodes held out.")] = 64,
    length: Annotated[int, typer.Option(min=2, help="Steps after which an episode is cut.")] = 64,
    policy: Annotated[
        str, typer.Option(help="random, scripted, or one of the world's policies; several, joined by +, take turns.")
    ] = "random",
    seed: Seed = 0,
) -> None:
    """Simulate episodes of a world."""
    from jaxwm import worlds
    from jaxwm.data.generate import generate_dataset

    made = worlds.make_world(world, **assignments(parameters, "world"))
    generate_dataset(out, made, train=train, test=test, length=length, policy=policy, seed=seed, log=_say)


@app.command()
@example(
    "jaxwm data record ALE/Breakout-v5 --out data/breakout --train 100 --test 10",
    "jaxwm data record LunarLander-v3 --out data/lander --observe both --max-length 300",
    "jaxwm data record CartPole-v1 --out data/cartpole --policy my_policies:balance",
    "jaxwm data record ALE/Pong-v5 --out data/pong env.frameskip=2",
    "jaxwm data record dm_control/walker-walk-v0 --out data/walker --observe vectors --repeat 2",
    "jaxwm data record gym_pusht:gym_pusht/PushT-v0 --out data/pusht --observe both --max-length 300",
)
def record(
    environment: Annotated[str, typer.Argument(help="A Gymnasium id, such as CartPole-v1 or ALE/Pong-v5.")],
    out: Out,
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[env.NAME=VALUE]...", help="Arguments for gymnasium.make.")
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="Episodes to train on.")] = 50,
    test: Annotated[int, typer.Option(min=0, help="Episodes held out.")] = 8,
    size: Annotated[int, typer.Option(min=1, help="Pictures are brought to this size.")] = 64,
    policy: Annotated[str, typer.Option(help="random, or module:function; see jaxwm.envs.Policy.")] = "random",
    observe: Annotated[Literal["pixels", "vectors", "both"], typer.Option(help="What to keep.")] = "pixels",
    repeat: Annotated[int, typer.Option(min=1, help="How often each action is done.")] = 1,
    max_length: Annotated[int | None, typer.Option(min=2, help="Steps after which an episode is cut.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Copies of the environment.")] = 4,
    seed: Seed = 0,
) -> None:
    """Record episodes of a Gymnasium environment."""
    from jaxwm.data.recording import record_dataset
    from jaxwm.envs import Recorder

    recorder = Recorder(
        environment,
        size=size,
        observe=observe,
        policy=policy,
        repeat=repeat,
        max_length=max_length,
        parallel=parallel,
        options=assignments(parameters, "env"),
    )
    record_dataset(out, recorder, train=train, test=test, seed=seed, log=_say)


@app.command("import")
@example(
    "jaxwm data import clips/ --out data/clips --every 2 --max-length 500",
    "jaxwm data import runs.npz --out data/runs --choices 4 --alignment precedes",
    "jaxwm data import demo.hdf5 --out data/demo --episodes data --key image=obs/camera --key action=actions",
    "jaxwm data import tfds:bair_robot_pushing_small --out data/bair --train 2000 --test 200",
)
def import_(
    source: Annotated[str, typer.Argument(help="A folder or file (MP4, GIF, NPZ, HDF5), or tfds:NAME.")],
    out: Out,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=NAME", help="Array NAME of a file is FIELD; nothing else is read."),
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Pictures are brought to this size.")] = 64,
    every: Annotated[int, typer.Option(min=1, help="Keep each such frame of a video.")] = 1,
    max_length: Annotated[int | None, typer.Option(min=2, help="Steps after which a file is cut.")] = None,
    episodes: Annotated[str | None, typer.Option(help="HDF5: the group whose members are the episodes.")] = None,
    choices: Annotated[int | None, typer.Option(min=1, help="Actions are integers below this.")] = None,
    bounds: Annotated[tuple[float, float] | None, typer.Option(help="Smallest and largest action.")] = None,
    alignment: Annotated[
        Literal["follows", "precedes"], typer.Option(help="How an action stands to the observation beside it.")
    ] = "follows",
    train: Annotated[int, typer.Option(min=1, help="tfds: episodes to train on.")] = 1000,
    test: Annotated[
        int | None, typer.Option(min=0, help="Files (tfds: episodes) held out; a tenth by default.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Turn one's own files, or a public data set, into episodes.

    A video has no actions. The arrays of an NPZ or HDF5 file are named like the fields of an episode (action, reward,
    is_terminal, info/NAME, condition/NAME, everything else an observation), or --key says which is which.
    """
    if source.startswith("tfds:"):
        from jaxwm.data.rlds import import_public

        held_out = train // 10 if test is None else test
        import_public(out, source.removeprefix("tfds:"), train=train, test=held_out, size=size, log=_say)
        return
    from jaxwm.data.importing import Importer, import_dataset

    importer = Importer(
        source,
        keys=dict(_pair(text, "--key") for text in key) if key else None,
        size=size,
        every=every,
        max_length=max_length,
        episodes=episodes,
        choices=choices,
        bounds=bounds,
        alignment=alignment,
    )
    import_dataset(out, importer, test=test, seed=seed, log=_say)


@app.command()
@example(
    "jaxwm data inspect data/bounce --sheet bounce.png",
    "jaxwm data inspect data/breakout --json",
)
def inspect(
    path: Annotated[pathlib.Path, typer.Argument(help="A data set.")],
    sheet: Annotated[pathlib.Path | None, typer.Option(help="Write a sheet of frames to this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Episodes of a split to read for the statistics.")] = 256,
    split: Annotated[str, typer.Option(help="The split on the sheet.")] = "train",
) -> None:
    """Count, summarise and show what a data set holds."""
    from jaxwm.data.episodes import read_header
    from jaxwm.data.inspecting import contact_sheet, inspect_dataset

    header = read_header(path)
    statistics = inspect_dataset(path, limit)
    if as_json:
        about = {"name": header["name"], "spec": header["spec"].to_dict(), "metadata": header["metadata"]}
        typer.echo(json.dumps({**about, "splits": [s.to_dict() for s in statistics]}, indent=1))
    else:
        _print(path, header, statistics)
    if sheet is not None:
        contact_sheet(path, sheet, split)
        _say(f"wrote {sheet}")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _pair(text: str, what: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise DataError(f"{what} {text!r}: expected the form NAME=VALUE")
    return name, value


def assignments(texts: list[str] | None, section: str) -> dict[str, Any]:
    """``section.name=value`` as a dict, the values read as YAML."""
    import yaml

    values: dict[str, Any] = {}
    for text in texts or ():
        key, value = _pair(text, "argument")
        head, _, name = key.partition(".")
        if head != section or not name:
            raise DataError(f"argument {text!r}: expected {section}.NAME=VALUE")
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise DataError(f"argument {text!r}: {value!r} is not a valid value") from None
    return values


def _print(path: pathlib.Path, header: dict[str, Any], statistics: list[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    action = header["spec"].action
    kind = f"{action.dim} choices" if action.discrete else f"{action.dim} numbers"
    bounds = f" from {list(action.low)} to {list(action.high)}" if action.low is not None else ""
    console.print(f"[bold]{path}[/bold]: {header['name']}, an action is {kind}{bounds}", highlight=False)
    for split in statistics:
        shortest, mean, longest = split.lengths
        least, average, most = split.returns
        console.print(f"\n[bold]{split.split}[/bold]: {split.episodes} episodes, {split.steps} steps", highlight=False)
        table = Table(*(Column(name, no_wrap=True) for name in ("field", "kind", "min", "mean", "max", "std")))
        for field in split.fields:
            numbers = (f"{number:.3g}" for number in (field.min, field.mean, field.max, field.std))
            table.add_row(field.name, f"{field.dtype}{escape(str(list(field.shape)))}", *numbers)
        console.print(table)
        lines = {
            "steps of an episode": f"{shortest} to {longest}, mean {mean:.1f}",
            "return": f"{least:.4g} to {most:.4g}, mean {average:.4g}",
            "ended by the world": f"{split.terminal:.0%} of the episodes",
            "actions known": f"{split.labelled:.0%} of the steps",
            "actions": _histograms(split.actions),
            "figures from": f"{split.read} episodes",
        }
        for name, text in lines.items():
            console.print(f"  {name}: {text}", highlight=False, markup=False)


def _histograms(counts: tuple[Any, ...]) -> str:
    """Counts of choices as numbers, histograms of dimensions as bars."""
    if not counts or not isinstance(counts[0], tuple):
        return ", ".join(f"{choice}: {count}" for choice, count in enumerate(counts))
    bars = "▁▂▃▄▅▆▇█"
    return "  ".join(
        f"[{index}] " + "".join(bars[round(7 * count / max(*dimension, 1))] for count in dimension)
        for index, dimension in enumerate(counts)
    )
