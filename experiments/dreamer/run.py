"""Learning curves of DreamerV3; adds what it measured to `results.json` and draws `curves.png` beside itself.

    python experiments/dreamer/run.py cartpole --seeds 0 1 2 --runs RUNS

Each seed is a run in the folder RUNS/TASK_SEED and goes on where it stopped, so an interrupted experiment is started
again the same way; seeds that are not finished yet are in the results as far as they have come.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import jax
import matplotlib.pyplot as plt

import jaxwm
from jaxwm.agents.online import train_agent
from jaxwm.training import read_metrics

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
TASKS = {
    "cartpole": {"title": "CartPole-v1", "target": 475, "by": ("decisions", 15_000), "seeds": 3},
    "balance": {"title": "dm_control cartpole_balance", "target": 950, "by": ("frames", 80_000), "seeds": 2},
    "pendulum": {"title": "dm_control pendulum_swingup", "target": 700, "by": ("frames", 100_000), "seeds": 1},
    "dodge": {"title": "dodge, pictures", "target": None, "by": ("decisions", 26_000), "seeds": 1},
}


def curve(folder: pathlib.Path) -> dict[str, list[float]]:
    """Evaluations of a run, as far as it has come, and the scores of the episodes that it was trained on."""
    lines = read_metrics(folder)
    scored = [line for line in lines if "evaluation/score" in line]
    trained = [line for line in lines if "episode/score" in line]
    return {
        "decisions": [line["decisions"] for line in scored],
        "frames": [line["frames"] for line in scored],
        "score": [round(line["evaluation/score"], 2) for line in scored],
        "training_decisions": [line["decisions"] for line in trained],
        "training_score": [round(line["episode/score"], 2) for line in trained],
        "hours": round((lines[-1]["time"] - lines[0]["time"]) / 3600, 2) if lines else 0.0,
    }


def draw(results: dict, path: pathlib.Path) -> None:
    """A picture of all tasks."""
    figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.2), squeeze=False)
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        task = TASKS[name]
        unit, budget = task["by"]
        for seed, found in result["seeds"].items():
            axis.plot(found[unit], found["score"], marker=".", label=f"seed {seed}")
        if task["target"] is not None:
            axis.axhline(task["target"], color="grey", linestyle=":", label=f"target by {budget:,}")
        axis.set(
            title=task["title"], xlabel=unit, ylabel="score of evaluation episodes", xlim=(0, budget), ylim=(0, None)
        )
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="where the run folders are, outside the tree")
    parser.add_argument("--collect", action="store_true", help="only gather what the runs have written")
    arguments = parser.parse_args()
    configuration = f"dreamer_{arguments.task}.yaml"
    found = {}
    for seed in arguments.seeds:
        folder = arguments.runs / f"{arguments.task}_{seed}"
        if not arguments.collect:
            train_agent(jaxwm.load_config(CONFIGS / configuration, [f"seed={seed}"]), folder)
        found[str(seed)] = curve(folder)
    result = {
        "command": f"python experiments/dreamer/run.py {arguments.task} --seeds {' '.join(map(str, arguments.seeds))}",
        "configuration": configuration,
        "episodes_per_evaluation": jaxwm.load_config(CONFIGS / configuration).evaluation.episodes,
        "target": TASKS[arguments.task]["target"],
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "seeds": found,
    }
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results = {**results, arguments.task: result}
    path.write_text(json.dumps(results, indent=1) + "\n")
    draw({name: results[name] for name in TASKS if name in results}, HERE / "curves.png")
    for seed, values in found.items():
        best = max(values["score"], default=float("nan"))
        print(
            f"{arguments.task} seed {seed}: best {best}, last {values['score'][-1:]} after {values['decisions'][-1:]}"
        )


if __name__ == "__main__":
    main()
