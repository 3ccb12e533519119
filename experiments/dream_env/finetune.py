"""A policy trained in the dream and then in the real CartPole-v1, against one trained only there.

    python experiments/dream_env/run.py --runs runs/dream_env data.path=data/cartpole
    python experiments/dream_env/finetune.py --runs runs/dream_env

Both are Stable-Baselines3's PPO with the same settings and as many real steps. The model of the dream has seen
random episodes alone; their steps are real ones too, and the dashed curve of the picture counts them.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from matplotlib.figure import Figure
from run import HERE, SEEDS, SETTINGS, WORLD, write_results
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

REAL_STEPS = 40_960
EVERY = 4096
SOLVED = 475


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="that of run.py, which has finished")
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    first = json.loads((HERE / "results.json").read_text())["dream_env"]
    curves = {
        name: np.array([train(runs, name, seed)["scores"] for seed in SEEDS]) for name in ("dream, then real", "real")
    }
    steps = np.arange(0, REAL_STEPS + 1, EVERY)
    reached = {name: [solved_at(steps, row) for row in rows] for name, rows in curves.items()}
    write_results(
        "dream_to_real",
        "python experiments/dream_env/finetune.py",
        {
            "real_steps_for_the_model": first["real_steps_for_the_model"],
            "real_steps": steps.tolist(),
            "scores": {name: rows.round(1).tolist() for name, rows in curves.items()},
            f"real_steps_to_{SOLVED}": reached,
        },
    )
    plot(steps, curves, first["real_steps_for_the_model"])
    for name, rows in curves.items():
        print(f"{name:18s} {rows.mean(0).round().astype(int).tolist()} {reached[name]}")


def train(runs: pathlib.Path, name: str, seed: int) -> dict:
    """Scores of one policy in the real world, before and while it trains there."""
    path = runs / f"{name.replace(', ', '_').replace(' ', '_')}_seed{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    real, test = make_vec_env(WORLD, 8, seed=seed), make_vec_env(WORLD, 4, seed=1000 + seed)
    if name == "real":
        policy = PPO("MlpPolicy", real, seed=seed, **SETTINGS)
    else:
        # A dream's vectors have no bounds, and the two spaces have to be equal.
        spaces = {"observation_space": real.observation_space}
        policy = PPO.load(runs / f"dream_seed{seed}", env=real, custom_objects=spaces, device="cpu")
    before, _ = evaluate_policy(policy, test, 20)
    callback = EvalCallback(
        test, n_eval_episodes=20, eval_freq=EVERY // 8, log_path=str(path.with_suffix("")), verbose=0
    )
    policy.learn(REAL_STEPS, callback)
    after = np.load(path.with_suffix("") / "evaluations.npz")["results"].mean(1)
    row = {"seed": seed, "scores": [float(before), *after.tolist()]}
    path.write_text(json.dumps(row))
    print(name, row, flush=True)
    return row


def solved_at(steps: np.ndarray, scores: np.ndarray) -> int | None:
    """The first of ``steps`` at which ``scores`` has reached `SOLVED`."""
    found = np.flatnonzero(scores >= SOLVED)
    return int(steps[found[0]]) if found.size else None


def plot(steps: np.ndarray, curves: dict[str, np.ndarray], spent: int) -> None:
    """Mean and range over seeds."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    lines = [(name, steps, rows) for name, rows in curves.items()]
    lines.append(("dream, then real; with the model's steps", steps + spent, curves["dream, then real"]))
    for name, x, rows in lines:
        (line,) = axes.plot(x, rows.mean(0), label=name, linestyle="--" if x[0] else "-")
        axes.fill_between(x, rows.min(0), rows.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="real steps", ylabel=f"score in {WORLD}", xlim=(0, REAL_STEPS), ylim=(0, 510))
    axes.legend(loc="lower right")
    figure.savefig(HERE / "dream_to_real.png", dpi=110)


if __name__ == "__main__":
    main()
