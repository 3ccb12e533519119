"""Stable-Baselines3's PPO, unchanged, trains in a learned model of CartPole-v1 and is scored in the real one.

    python experiments/dream_env/run.py --runs runs/dream_env --data data/dream_env

Round 1 learns the model from random episodes. Its policy shows where that model is wrong, so round 2 adds episodes of
that policy (a third of its actions random), goes on with the model, and trains a policy from scratch again. Whatever
exists in the two folders is not made anew, so an interrupted experiment is started again the same way.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import platform
import time

import gymnasium as gym
import jax
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import jaxwm
from jaxwm.data import Episode, open_episodes, record_dataset, write_episodes
from jaxwm.envs import DreamEnvironments, Recorder, load_dream
from jaxwm.envs.dream_gym import DreamEnv

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "rssm_cartpole.yaml"
WORLD = "CartPole-v1"
SEEDS = (0, 1, 2)
DREAM_STEPS = 40_000
EPISODES = 100
"""That a score is the mean of."""
ROUNDS = {1: ["stages.train.steps=6000"], 2: ["stages.train.steps=4000", "stages.train.optimizer.learning_rate=5e-4"]}


def falling(start: float):
    """A schedule that falls from ``start`` to 0."""
    return lambda left: left * start


# What Stable-Baselines3's collection of tuned settings has for this environment.
SETTINGS = dict(
    n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, ent_coef=0.0, learning_rate=falling(1e-3),
    clip_range=falling(0.2), device="cpu",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Explorer:
    """Follows a policy of Stable-Baselines3, but for a share of the actions."""

    policy: PPO
    share: float

    def __call__(self, observation, is_first, rng):
        """See `jaxwm.envs.Policy`."""
        chosen, _ = self.policy.predict(observation["vector"], deterministic=True)
        return np.where(rng.random(len(chosen)) < self.share, rng.integers(2, size=len(chosen)), chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="a folder outside the work tree")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a folder outside the work tree")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # networks of 64 units are slower with more
    results: dict = {"random": score_random()}
    for number in ROUNDS:
        data = arguments.data / f"round{number}"
        if not data.exists():
            policy = PPO.load(arguments.runs / "round1_seed0.zip") if number > 1 else None
            record(data, arguments.data / f"round{number - 1}", policy)
        run = train_model(arguments.runs, data, number)
        dream = load_dream(run, length=500, context=2, starts=512)
        check_env(DreamEnv(dream))
        rows = [train_policy(arguments.runs / f"round{number}_seed{seed}", dream, seed) for seed in SEEDS]
        results[f"round {number}"] = {
            "real_steps_for_the_model": int(sum(len(episode) - 1 for episode in open_episodes(data, "train"))),
            "model_updates": run.step,
            "seeds": rows,
            "real_mean": round(float(np.mean([row["real"] for row in rows])), 1),
            "dream_mean": round(float(np.mean([row["dream"] for row in rows])), 1),
        }
        write_results("dream_env", "python experiments/dream_env/run.py", results)
        print(json.dumps(results[f"round {number}"]), flush=True)


def score_random() -> float:
    """What random actions come to in the real world."""
    episodes = Recorder(WORLD, observe="vectors").episodes(EPISODES, seed=1)
    return round(float(np.mean([episode.reward.sum() for episode in episodes])), 1)


def record(path: pathlib.Path, before: pathlib.Path, policy: PPO | None) -> None:
    """Random episodes; with a policy those of ``before`` and as many of its own steps again."""
    if policy is None:
        record_dataset(path, Recorder(WORLD, observe="vectors", parallel=8), train=600, test=40, log=print)
        return
    recorder = Recorder(WORLD, observe="vectors", parallel=8, policy=Explorer(policy, 1 / 3))
    splits = {
        split: itertools.chain(open_episodes(before, split), map(Episode.of, recorder.episodes(count, stream=stream)))
        for stream, (split, count) in enumerate((("train", 120), ("test", 16)))
    }
    write_episodes(path, recorder.spec, splits, WORLD, {"rounds": 2})


def train_model(runs: pathlib.Path, data: pathlib.Path, number: int) -> jaxwm.Run:
    """The world model of a round; the second goes on from the first."""
    overrides = [f"data.path={data}", *ROUNDS[number]]
    if number > 1:
        overrides.append(f"training.init_from={runs / f'model{number - 1}'}")
    return jaxwm.train(jaxwm.load_config(CONFIG, overrides), runs / f"model{number}")


def train_policy(path: pathlib.Path, dream: DreamEnvironments, seed: int) -> dict:
    """Trains a policy in dreams and scores it there and in the real world."""
    summary = path.with_suffix(".json")
    if summary.exists():
        return json.loads(summary.read_text())
    begun = time.perf_counter()
    policy = PPO("MlpPolicy", make_vec_env(lambda: DreamEnv(dream), 8, seed=seed), seed=seed, **SETTINGS)
    policy.learn(DREAM_STEPS)
    seconds = time.perf_counter() - begun
    real = evaluate_policy(policy, make_vec_env(WORLD, 4, seed=1000 + seed), EPISODES)
    dreamt = evaluate_policy(policy, make_vec_env(lambda: DreamEnv(dream), 4, seed=2000 + seed), 20)
    row = {"seed": seed, "real": float(real[0]), "real_std": round(float(real[1]), 1), "dream": float(dreamt[0])}
    row |= {"dream_steps": policy.num_timesteps, "seconds": round(seconds)}
    policy.save(path)
    summary.write_text(json.dumps(row))
    print(row, flush=True)
    return row


def write_results(name: str, command: str, result: dict) -> None:
    """Adds ``result`` to results.json beside this file."""
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    versions = {"jax": jax.__version__, "sb3": stable_baselines3.__version__, "gymnasium": gym.__version__}
    results[name] = {
        "command": command,
        **result,
        "episodes": EPISODES,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), **versions},
        "date": time.strftime("%Y-%m-%d"),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
