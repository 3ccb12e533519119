"""What of the physical truth can be read from each family; adds what it measured to `results.json` beside itself.

    python experiments/probes/run.py table --runs RUNS --data data/bounce
    python experiments/probes/run.py curve --runs RUNS --data data/bounce

`table`: position and velocity of a ball by linear and MLP probes, beside an untrained network. `curve`: the same for
V-JEPA by the steps of its masked pretraining, drawn as `pretraining.png`. Each part is a run below the folder RUNS and
goes on where it stopped.
"""

import argparse
import json
import pathlib

import matplotlib.pyplot as plt

import jaxwm
from experiments.record import head, picture, read, write
from jaxwm.evaluation import probe_run

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
FAMILIES = {
    "jepa": ("jepa_bounce", []),
    "byol": ("byol_bounce", []),
    "rssm": ("rssm_bounce", []),
    "simple": ("simple_bounce", ["data.generate.world.size=32"]),
}
STEPS = (250, 500, 1000, 2000, 4000)
"""At which the masked pretraining is probed."""


def configure(name, data, *overrides):
    """A shipped configuration on the episodes of all of them."""
    return jaxwm.load_config(CONFIGS / f"{name}.yaml", [f"data.path={data}", *overrides])


def probed(run, episodes):
    """R^2 by quantity and probe, of the run and of an untrained network."""
    found = probe_run(run, episodes)
    wanted = ("position", "velocity")
    pick = lambda scores: {name: {k: round(v, 4) for k, v in scores[name].items()} for name in wanted}  # noqa: E731
    return {"trained": pick(found.trained), "untrained": pick(found.untrained), "features": found.features,
            "frames": found.frames, "steps": run.step}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["table", "curve"])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("--data", required=True, help="where the episodes are or will be")
    parser.add_argument("--only", nargs="*", help="families, or steps of the pretraining")
    parser.add_argument("--episodes", type=int, default=256, help="to fit the probes on")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    results = read(path)
    results |= head("python experiments/probes/run.py table|curve --runs RUNS --data data/bounce")
    rows = results.setdefault(arguments.part, {})
    for name in arguments.only or [*map(str, FAMILIES if arguments.part == "table" else STEPS)]:
        if arguments.part == "table":
            shipped, overrides = FAMILIES[name]
            run = jaxwm.train(configure(shipped, arguments.data, *overrides), arguments.runs / name)
        else:
            # The whole of its schedule, so that each is as good as so many steps can be.
            config = configure("vjepa_bounce", arguments.data, f"stages.pretrain.steps={name}")
            config = config.model_copy(update={"stages": {"pretrain": config.stages["pretrain"]}})
            run = jaxwm.train(config, arguments.runs / f"vjepa_{name}")
        rows[name] = probed(run, arguments.episodes)
        write(path, results)
        print(name, json.dumps(rows[name]), flush=True)
    if "curve" in results:
        draw(results["curve"], HERE / "pretraining.png")


def draw(rows, path):
    """R^2 by steps of pretraining."""
    figure, axis = plt.subplots(figsize=(4.6, 3.2))
    steps = sorted(map(int, rows))
    for quantity, colour in (("position", "C0"), ("velocity", "C1")):
        for kind, style in (("linear", "-"), ("mlp", ":")):
            values = [rows[str(step)]["trained"][quantity][kind] for step in steps]
            start = rows[str(steps[0])]["untrained"][quantity][kind]
            axis.plot([0, *steps], [start, *values], style, color=colour, marker=".", label=f"{quantity}, {kind}")
    axis.set(xlabel="steps of masked pretraining", ylabel="R² on held-out episodes", ylim=(None, 1))
    axis.legend(fontsize=7)
    picture(figure, path)


if __name__ == "__main__":
    main()
