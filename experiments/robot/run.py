"""A robot that learns to reach in the dream of recorded random play, then in the world, against one only in the world.

    python experiments/robot/run.py --runs RUNS --data data/reach_arm

Each part is a run below the folder RUNS and goes on where it stopped; what has been measured is added to
`results.json` and drawn as `dream_to_real.png` beside itself.
"""

import argparse
import json
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxwm
from experiments.record import head, picture, read, write
from jaxwm.acting import play_world
from jaxwm.agents.online import train_agent
from jaxwm.config import build_world
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.training import read_metrics

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
EPISODES = 200


def success(run, length):
    """Share of episodes that end before the limit, which is at the goal; and their mean score."""
    source = run.config.data.collect or run.config.data.generate
    environments = WorldEnvironments(build_world(source.world), length)
    played = play_world(run.model.agent(sample=False), run.variables, jax.random.key(42), environments, EPISODES)
    return {
        "success": round(float(np.mean(np.asarray(played.is_terminal))), 3),
        "score": round(float(np.mean(played.score)), 2),
        "episodes": EPISODES,
    }


def curve(folder):
    """Decisions in the world and scores of the evaluations of a run."""
    scored = [line for line in read_metrics(folder) if "evaluation/score" in line]
    return {
        "decisions": [line["decisions"] for line in scored],
        "score": [round(line["evaluation/score"], 2) for line in scored],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("--data", help="where the recorded episodes are or will be")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    arguments = parser.parse_args()
    path = HERE / "results.json"
    results = read(path) or {"seeds": {}}
    results |= head(f"python experiments/robot/run.py --seeds {' '.join(map(str, arguments.seeds))}")
    for seed in arguments.seeds:
        entry = results["seeds"].setdefault(str(seed), {})

        def keep(name, value, seed=seed, entry=entry):
            entry[name] = value
            write(path, results)
            draw(results["seeds"], HERE / "dream_to_real.png")
            print(seed, name, json.dumps(value), flush=True)

        overrides = [f"seed={seed}"] + ([f"data.path={arguments.data}"] if arguments.data else [])
        dreamt = jaxwm.train(
            jaxwm.load_config(CONFIGS / "dreamer_reach_offline.yaml", overrides), arguments.runs / f"dream_{seed}"
        )
        recorded = dreamt.config.data.generate
        keep("dream alone", success(dreamt, recorded.length) | {"recorded_episodes": recorded.train})
        for name, more in (
            ("world alone", []),
            ("dream, then world", [f"training.init_from={arguments.runs / f'dream_{seed}'}"]),
        ):
            folder = arguments.runs / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}"
            config = jaxwm.load_config(CONFIGS / "dreamer_reach.yaml", [f"seed={seed}", *more])
            run = train_agent(config, folder)
            keep(name, success(run, config.data.collect.length) | curve(folder))


def draw(seeds, path):
    """Scores by decisions in the world."""
    figure, axis = plt.subplots(figsize=(5, 3.4))
    for seed, entry in seeds.items():
        for name, style in (("world alone", ":"), ("dream, then world", "-")):
            if name in entry:
                axis.plot(entry[name]["decisions"], entry[name]["score"], style, label=f"{name}, seed {seed}")
        axis.axhline(entry["dream alone"]["score"], color="grey", lw=0.8, label=f"dream alone, seed {seed}")
    axis.set(xlabel="decisions in the world", ylabel="score of evaluation episodes")
    axis.legend(fontsize=7)
    picture(figure, path)


if __name__ == "__main__":
    main()
