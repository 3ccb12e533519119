"""Learning curves of DreamerV3; adds what it measured to `results.json` and draws `curves.png` beside itself.

    python experiments/dreamer/run.py cartpole --seeds 0 1 2 --runs RUNS
    python experiments/dreamer/run.py                    # only draws what has been measured

Each seed is a run in the folder RUNS/TASK_SEED and goes on where it stopped, so an interrupted experiment is started
again the same way; seeds that are not finished yet are in the results as far as they have come.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt

import jaxwm
from experiments.record import head, picture, read, write
from jaxwm.agents.online import train_agent
from jaxwm.training import read_metrics

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
TASKS = {
    "cartpole": {
        "title": "CartPole-v1", "target": 475, "by": ("decisions", 15_000),
        "published": ("another library", 8_000, 500),
    },
    "balance": {
        "title": "dm_control cartpole_balance", "target": 950, "by": ("frames", 80_000),
        "published": ("published", 80_000, 700), "end": (490_000, 991),
    },
    "pendulum": {
        "title": "dm_control pendulum_swingup", "target": 700, "by": ("frames", 100_000),
        "published": ("published", 100_000, 700), "end": (490_000, 779),
    },
    "dodge": {"title": "dodge, pictures", "target": None, "by": ("decisions", 26_000)},
}  # fmt: skip
"""``target`` is to be reached ``by`` so many steps. ``published`` is who reached which score by when, ``end`` what the
published curve comes to: own averages over the score files of the authors of DreamerV3, 5 seeds."""


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
    """A picture of all tasks that there are results of."""
    tasks = {name: task for name, task in TASKS.items() if name in results}
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.2), squeeze=False)
    for axis, (name, task) in zip(axes[0], tasks.items(), strict=True):
        unit, budget = task["by"]
        for seed, found in results[name]["seeds"].items():
            axis.plot(found[unit], found["score"], marker=".", label=f"seed {seed}")
        if task["target"] is not None:
            axis.axhline(task["target"], color="grey", linestyle=":", label=f"target by {budget:,}")
        if "published" in task:
            who, when, score = task["published"]
            # On top of the frame: some are reached with the last step that is drawn.
            axis.plot(when, score, "kX", ms=9, clip_on=False, zorder=9, label=f"{who}: {score} by {when:,}")
        if "end" in task:
            when, score = task["end"]
            axis.axhline(score, color="black", linestyle="--", lw=0.8, label=f"published: {score} by {when:,}")
        axis.set(
            title=task["title"], xlabel=unit, ylabel="score of evaluation episodes", xlim=(0, budget), ylim=(0, None)
        )
        axis.legend(fontsize=7)
    picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS, nargs="?", help="by default only draws what there is")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--runs", type=pathlib.Path, help="where the run folders are, outside the tree")
    parser.add_argument("--collect", action="store_true", help="only gather what the runs have written")
    arguments = parser.parse_args()
    path = HERE / "results.json"
    if arguments.task is None:
        draw(read(path), HERE / "curves.png")
        return
    if arguments.runs is None:
        parser.error("a task needs --runs")
    configuration = f"dreamer_{arguments.task}.yaml"
    found = {}
    for seed in arguments.seeds:
        folder = arguments.runs / f"{arguments.task}_{seed}"
        if not arguments.collect:
            train_agent(jaxwm.load_config(CONFIGS / configuration, [f"seed={seed}"]), folder)
        found[str(seed)] = curve(folder)
    about = head(
        f"python experiments/dreamer/run.py {arguments.task} --seeds {' '.join(map(str, arguments.seeds))}",
        configuration=configuration,
        episodes_per_evaluation=jaxwm.load_config(CONFIGS / configuration).evaluation.episodes,
        target=TASKS[arguments.task]["target"],
    )
    write(path, {**read(path), arguments.task: {**about, "seeds": found}})
    draw(read(path), HERE / "curves.png")
    for seed, values in found.items():
        best = max(values["score"], default=float("nan"))
        print(
            f"{arguments.task} seed {seed}: best {best}, last {values['score'][-1:]} after {values['decisions'][-1:]}"
        )


if __name__ == "__main__":
    main()
