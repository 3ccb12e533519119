"""What of the physical truth can be read from each family; adds what it measured to `results.json` beside itself.

    python experiments/probes/run.py table --runs RUNS --data data/bounce
    python experiments/probes/run.py curve --runs RUNS --data data/three_balls

`table`: position and velocity of a ball by linear and MLP probes, beside an untrained network. `curve`: what a line
reads of three balls from the clips that V-JEPA encodes, by the steps of its masked pretraining; drawn as
`pretraining.png`. Each part is a run below the folder RUNS and goes on where it stopped.
"""

import argparse
import json
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxwm
from experiments.record import head, picture, read, write
from jaxwm import data
from jaxwm.config import build_model
from jaxwm.evaluation import probe_run
from jaxwm.evaluation.probes import divide, fit_linear

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
FAMILIES = {
    "jepa": ("jepa_bounce", []),
    "byol": ("byol_bounce", []),
    "rssm": ("rssm_bounce", []),
    "simple": ("simple_bounce", ["data.generate.world.size=32"]),
}
CURVE = [
    "data.generate.world.balls=3",
    "data.generate.world.radius=[0.1,0.15]",
    "data.generate.train=1000",
    "stages.pretrain.steps=3000",
    "stages.pretrain.optimizer.learning_rate=5e-4",
    "model.target_rate=0.004",
    "model.short_blocks=2",
    "model.long_blocks=1",
    "model.long_share=0.3",
    "training.probe_every=0",
    "training.video_every=375",
]
"""Three large balls, and masks that hide about a third: what is hidden can then be told from what is not."""


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


def clip_reading(model, variables, config, episodes):
    """What is to be read of clips: a tubelet's patches side by side or their mean; the truth at its last frame."""
    encode = jax.jit(lambda variables, images: model.encode_clips(variables, images))
    readings = {"patches": [], "mean of patches": []}
    for split, count in (("train", episodes), ("test", config.evaluation.episodes)):
        source = data.open_data(config.data, split)
        found, truth = {name: [] for name in readings}, {"position": [], "velocity": []}
        for episode in (source[index] for index in range(count)):
            images = episode.observation["image"]
            length = len(images) // config.data.length * config.data.length
            clips = images[:length].reshape(-1, config.data.length, *images.shape[1:])
            tokens = np.asarray(encode(variables, clips))
            tokens = tokens.reshape(-1, *tokens.shape[2:])
            found["patches"].append(tokens.reshape(len(tokens), -1))
            found["mean of patches"].append(tokens.mean(1))
            for name, values in truth.items():
                values.append(episode.info[name][:length].reshape(length, -1)[model.tubelet - 1 :: model.tubelet])
        for name, reading in readings.items():
            reading.append((found[name], truth))
    return {name: divide(*reading) for name, reading in readings.items()}


def curve(arguments, rows, save):
    """R^2 of a line by steps of masked pretraining."""
    config = configure("vjepa_bounce", arguments.data, *CURVE)
    config = config.model_copy(update={"stages": {"pretrain": config.stages["pretrain"]}})

    def probe(step, model, variables):
        readings = clip_reading(model, variables, config, arguments.episodes)
        rows[str(step)] = {
            name: {quantity: round(score, 4) for quantity, score in fit_linear(reading).items()}
            for name, reading in readings.items()
        }
        print(step, json.dumps(rows[str(step)]), flush=True)
        save()

    data.ensure_dataset(config.data, log=print)
    model = build_model(config.model, jaxwm.load_spec(config))
    batch = data.episode_batch(data.open_data(config.data, "train"), range(16), config.data.length)
    probe(0, model, jax.jit(model.init)(jax.random.key(1), batch))
    watch = lambda event: event.name in ("video", "end") and probe(event.step, event.model, event.variables)  # noqa: E731
    jaxwm.train(config, arguments.runs / "vjepa", callbacks=[watch])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["table", "curve"])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("--data", required=True, help="where the episodes are or will be")
    parser.add_argument("--only", nargs="*", choices=FAMILIES, help="families of the table")
    parser.add_argument("--episodes", type=int, default=256, help="to fit the probes on")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    results = read(path)
    results |= head("python experiments/probes/run.py table|curve --runs RUNS --data DATA")
    rows = results.setdefault(arguments.part, {})
    if arguments.part == "curve":
        curve(arguments, rows, lambda: write(path, results))
        draw(rows, HERE / "pretraining.png")
        return
    for name in arguments.only or FAMILIES:
        shipped, overrides = FAMILIES[name]
        run = jaxwm.train(configure(shipped, arguments.data, *overrides), arguments.runs / name)
        rows[name] = probed(run, arguments.episodes)
        write(path, results)
        print(name, json.dumps(rows[name]), flush=True)


def draw(rows, path):
    """R^2 by steps of pretraining."""
    figure, axis = plt.subplots(figsize=(4.6, 3.2))
    steps = sorted(map(int, rows))
    for quantity, colour in (("position", "C0"), ("velocity", "C1")):
        for source, style in (("patches", "-"), ("mean of patches", ":")):
            values = [rows[str(step)][source][quantity] for step in steps]
            axis.plot(steps, values, style, color=colour, marker=".", label=f"{quantity}, {source}")
    axis.set(xlabel="steps of masked pretraining", ylabel="R² on held-out episodes", ylim=(None, 1))
    axis.legend(fontsize=7)
    picture(figure, path)


if __name__ == "__main__":
    main()
