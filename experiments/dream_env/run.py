"""Stable-Baselines3's PPO, unchanged, trains in a learned model of CartPole-v1 and is scored in the real one.

    jaxwm data record CartPole-v1 --out data/cartpole --observe vectors --train 600 --test 40 --parallel 8
    python experiments/dream_env/run.py --runs runs/dream_env data.path=data/cartpole

The model has seen random episodes alone. Whatever exists in the folder of the runs is not made anew, so an interrupted
experiment is started again the same way.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor
from vectorised import Vectorised

import jaxwm
from experiments.record import head, read, write
from jaxwm.data import open_episodes
from jaxwm.envs import Recorder, load_dream
from jaxwm.envs.dream_gym import DreamEnv, DreamVectorEnv

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "rssm_cartpole.yaml"
WORLD = "CartPole-v1"
SEEDS = (0, 1, 2)
DREAM_STEPS = 40_000
DREAM_LENGTH = 100
EPISODES = 100
"""That a score is the mean of."""


def falling(start: float):
    """A schedule that falls from ``start`` to 0."""
    return lambda left: left * start


# What Stable-Baselines3's collection of tuned settings has for this environment.
SETTINGS = dict(
    n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, ent_coef=0.0, learning_rate=falling(1e-3),
    clip_range=falling(0.2), device="cpu",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("overrides", nargs="*", help="of the model's configuration, as for jaxwm train")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)  # networks of 64 units are slower with more
    run = jaxwm.train(jaxwm.load_config(CONFIG, arguments.overrides), arguments.runs / "model")
    rows = [train_policy(arguments.runs / f"dream_seed{seed}", run, seed) for seed in SEEDS]
    seen = open_episodes(run.config.data.path, "train")
    result = {
        "configuration": CONFIG.name,
        "model_updates": run.step,
        "real_steps_for_the_model": int(seen.lengths.sum()) - len(seen),
        "dream_length": DREAM_LENGTH,
        "random": score_random(),
        "real": round(float(np.mean([row["real"] for row in rows])), 1),
        "dream": round(float(np.mean([row["dream"] for row in rows])), 1),
        "seeds": rows,
    }
    write_results("dream_env", "python experiments/dream_env/run.py", result)
    print(json.dumps(result, indent=1))


def score_random() -> float:
    """What random actions come to in the real world."""
    episodes = Recorder(WORLD, observe="vectors").episodes(EPISODES, seed=1)
    return round(float(np.mean([episode.reward.sum() for episode in episodes])), 1)


def train_policy(path: pathlib.Path, run: jaxwm.Run, seed: int) -> dict:
    """Trains a policy in dreams and scores it there and in the real world.

    It learns in short dreams that begin anywhere in the data, and is scored in whole ones.
    """
    summary = path.with_suffix(".json")
    if summary.exists():
        return json.loads(summary.read_text())
    short = load_dream(run, length=DREAM_LENGTH, context=2, starts=4096, anywhere=True, seed=seed)
    whole = load_dream(run, length=501, context=2, starts=512, seed=seed)
    check_env(DreamEnv(short))
    envs = DreamVectorEnv(short, 8, autoreset_mode=AutoresetMode.SAME_STEP)
    policy = PPO("MlpPolicy", VecMonitor(Vectorised(envs, seed)), seed=seed, **SETTINGS)
    policy.learn(DREAM_STEPS)
    real = evaluate_policy(policy, make_vec_env(WORLD, 4, seed=1000 + seed), EPISODES)
    dreamt = evaluate_policy(policy, make_vec_env(lambda: DreamEnv(whole), 4, seed=2000 + seed), 20)
    row = {"seed": seed, "real": round(float(real[0]), 1), "real_std": round(float(real[1]), 1)}
    row |= {"dream": round(float(dreamt[0]), 1), "dream_steps": policy.num_timesteps}
    policy.save(path)
    summary.write_text(json.dumps(row))
    print(row, flush=True)
    return row


def write_results(name: str, command: str, result: dict) -> None:
    """Adds ``result`` to results.json beside this file."""
    path = HERE / "results.json"
    about = head(command, "stable-baselines3", "gymnasium", **result, episodes=EPISODES)
    write(path, {**read(path), name: about})


if __name__ == "__main__":
    main()
