"""What the diffusion simulator does with a ball that is pushed about; adds what it measured to `results.json`.

    python experiments/diffusion/run.py CLAIM --runs runs/diffusion

Claims train what they need in folders of ``--runs``, and go on where a training was stopped:

    open_loop  against an RSSM that trained as long; 1, 4 and 16 steps of the sampler
    atari      the same on recorded games of Breakout
    steps      4 steps of shortcut forcing against 64 of diffusion forcing: error and time
    control    true against shuffled actions, by guidance
    labels     the same with actions known in 100, 10 and 1 of 100 episodes
    inverse    the actions, made from the frames
    long       eight times the length that was trained, with and without noise on what a dream is built on
    fork       a ball that turns left or right by chance

What ``atari`` learns from is recorded before:

    jaxwm data record ALE/Breakout-v5 --out runs/diffusion/data_breakout --train 400 --test 24 --max-length 400
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxwm
from experiments import dreams
from experiments.record import head, picture, read, write
from experiments.runs import CONFIGS, Runs
from jaxwm import data, worlds
from jaxwm.config import build_world
from jaxwm.data.generate import simulated
from jaxwm.evaluation import evaluate_run
from jaxwm.evaluation.balls import VANISHED
from jaxwm.evaluation.parse import ball_positions
from jaxwm.worlds import Bounce

HERE = pathlib.Path(__file__).parent
FORCE = ["data.generate.world.force=2.0", "data.generate.train=4000"]
DIFFUSION = [*FORCE, "stages.dynamics.steps=22000", "training.evaluate_every=4000", "training.video_every=0"]
FORCING = "model.objective={name: forcing, mean: -1.5, spread: 1.5}"
RSSM = [
    *FORCE, "data.length=32", "stages.train.steps=27000", "model.embed=128", "model.depth=16",
    "training.evaluate_every=4000", "training.video_every=0",
]  # fmt: skip
RUNS = {
    "shortcut": ("diffusion_bounce.yaml", "data", DIFFUSION),
    "forcing": ("diffusion_bounce.yaml", "data", [*DIFFUSION, FORCING]),
    "rssm": ("rssm_bounce.yaml", "data", RSSM),
    "breakout": ("diffusion_breakout.yaml", "data_breakout", []),
    "rssm_breakout": ("rssm_breakout.yaml", "data_breakout", ["stages.train.steps=4800", "training.video_every=0"]),
    "fork": (
        "diffusion_bounce.yaml",
        "data_fork",
        [
            "data.generate.world.name=fork", "data.generate.world.force=0.0", "data.generate.length=12",
            "data.generate.train=4000", "data.length=12", "stages.dynamics.steps=4000", "training.video_every=0",
            "evaluation.context=4", "evaluation.horizon=6",
        ],
    ),
}  # fmt: skip
CONTEXT, HORIZON, EPISODES = 8, 10, 64


@dataclasses.dataclass(frozen=True)
class Fork(Bounce):
    """A ball that comes down the middle of the box and at half its height turns left or right, by a fair coin."""

    speed: tuple[float, float] = (0.7, 0.8)
    turn: float = 0.8

    def reset(self, key):
        """The ball near the middle of the upper side, on its way down."""
        state, shares = super().reset(key), jax.random.uniform(key, (3,))
        position = jnp.array([[0.47, 0.15]]) + jnp.array([[0.06, 0.05]]) * shares[:2]
        speed = self.speed[0] + (self.speed[1] - self.speed[0]) * shares[2]
        return dataclasses.replace(state, position=position, velocity=jnp.array([[0.0, 1.0]]) * speed)

    def step(self, key, state, action):
        """As in the box, but for the coin that is tossed where the ball comes to half the height."""
        transition = super().step(key, state, action)
        state = transition.state
        turns = (state.position[0, 1] > 0.5) & (state.velocity[0, 0] == 0)
        side = jnp.where(jax.random.bernoulli(key), self.turn, -self.turn)
        velocity = jnp.where(turns, state.velocity.at[0, 0].set(side), state.velocity)
        return transition._replace(state=dataclasses.replace(state, velocity=velocity))


worlds.WORLDS["fork"] = Fork


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="for the run folders, outside the work tree")
    arguments = parser.parse_args()
    result = CLAIMS[arguments.claim](Runs(arguments.runs, RUNS))
    about = head(f"python experiments/diffusion/run.py {arguments.claim}", seed=0)
    path = HERE / "results.json"
    write(path, {**read(path), arguments.claim: {**result, **about}})
    print(json.dumps(result, indent=1))


# Pictures of dreams and how far they are from the truth.


def held_out(run, length=CONTEXT + HORIZON, count=EPISODES):
    """``[count, length, ...]``: episodes of the run's world that no training saw, as long as is asked for."""
    simulation = run.config.data.generate.model_copy(update={"length": length, "test": count})
    settings = run.config.data.model_copy(update={"path": "simulated", "generate": simulation})
    config = run.config.model_copy(update={"data": settings})
    episodes = jaxwm.evaluation.runs.SimulatedEpisodes(config, "test", count)
    return jax.tree.map(jnp.asarray, episodes.windows(range(count), [0] * count, length))


def dream(run, batch, *, context=CONTEXT, **options):
    """Pictures ``[B, T - context, H, W, 3]`` in 0..1; see `experiments.dreams.dream`."""
    return dreams.dream(run, batch, context, **options)["image"]


def scores(pictures, batch, context=CONTEXT):
    """By frame: PSNR of the mean error in dB, distance of the ball in radii, share of the balls still there."""
    world, truth = Bounce(), batch.observation["image"][:, context:] / 255.0
    balls = ball_positions(pictures, world.colours, world.background)
    radius = batch.info["radius"][:, context:]
    there = np.asarray(balls.found & (balls.area >= VANISHED * jnp.pi * radius**2))
    distance = jnp.linalg.norm(balls.position - batch.info["position"][:, context:], axis=-1) / radius
    distance = np.where(there, np.asarray(distance), np.nan)
    return {
        "psnr": rounded(-10 * np.log10(np.asarray(jnp.mean(jnp.square(pictures - truth), axis=(0, 2, 3, 4))))),
        "position_error": rounded(np.nanmean(distance, axis=(0, 2))),
        "there": rounded(there.mean((0, 2))),
    }


def rounded(values):
    return [round(float(value), 3) for value in values]


def with_model(run, **fields):
    """The run with another model of the same variables."""
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **fields))


# Claims.


def open_loop(runs):
    draw_dreams({"RSSM": runs("rssm"), "shortcut, 4 steps": runs("shortcut"), "forcing, 4 steps": runs("forcing")})
    return against_rssm(runs, "rssm", ("shortcut", "forcing"), (1, 2, 3, 5, 10, 15, 20, 40))


def atari(runs):
    return against_rssm(runs, "rssm_breakout", ("breakout",), (1, 2, 3, 5, 10, 15))


def against_rssm(runs, rssm, names, horizons):
    models, table = {"rssm": runs(rssm)}, {}
    models |= {f"{name}, {n} steps": with_model(runs(name), steps=n) for name in names for n in (1, 4, 16)}
    for (title, run), estimate in itertools.product(models.items(), ("mode", "sample")):
        found = evaluate_run(run, horizon=horizons[-1], estimate=estimate)
        table[f"{title}, {estimate}"] = at(horizons, found.metrics["model"])
    table |= {name: at(horizons, found.metrics[name]) for name in ("copy", "mean")}
    return {"runs": runs.facts, "horizons": horizons, "scores": table, "scored": found.describe()}


def draw_dreams(models, episodes=2, frames=16):
    """Writes `dreams.png`: every second frame as it was and as each model's mode dreams it."""
    batch = held_out(next(iter(models.values())), CONTEXT + frames, episodes)
    rows = {"truth": batch.observation["image"][:, CONTEXT:] / 255.0}
    rows |= {name: dream(run, batch, temperature=0.0) for name, run in models.items()}
    figure, axes = plt.subplots(episodes * len(rows), 1, figsize=(8, 1.1 * episodes * len(rows)))
    for axis, (episode, (name, pictures)) in zip(axes, itertools.product(range(episodes), rows.items()), strict=True):
        axis.imshow(np.concatenate(np.asarray(pictures)[episode, ::2], axis=1))
        axis.set_title(f"{name}, episode {episode}", fontsize=8, loc="left")
        axis.axis("off")
    picture(figure, HERE / "dreams.png")


def at(horizons, metrics):
    wanted = ("image/psnr", "image/psnr_changed", "ball/within_radius", "ball/position_error")
    return {name: rounded(metrics[name][h - 1] for h in horizons) for name in wanted if name in metrics}


def steps(runs):
    table = {}
    for name, counts in (("shortcut", (1, 2, 4, 16, 64)), ("forcing", (1, 4, 16, 64))):
        for count in counts:
            run = with_model(runs(name), steps=count)
            batch = held_out(run)
            table[f"{name}, {count} steps"] = scores(dream(run, batch), batch)
    fast, slow = table["shortcut, 4 steps"], table["forcing, 64 steps"]
    timed = frame_seconds([with_model(runs("shortcut"), steps=4), with_model(runs("forcing"), steps=64)])
    fast["seconds_a_frame"], slow["seconds_a_frame"] = timed
    return {
        "runs": runs.facts,
        "episodes": EPISODES,
        "scores": table,
        "error_ratio": round(np.mean(fast["position_error"]) / np.mean(slow["position_error"]), 3),
        "speed_ratio": round(timed[1] / timed[0], 2),
    }


def frame_seconds(runs, rounds=5, frames=32, rows=16):
    """Median seconds for a frame of ``rows`` dreams, the runs taking turns."""
    times = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, found in zip(runs, times, strict=True):
            state, actions = run.model.init_state(rows), jnp.zeros((rows, frames, run.spec.action.dim))
            start = time.perf_counter()
            jax.block_until_ready(
                jaxwm.imagine(run.model, run.variables, jax.random.key(turn), state, actions).features
            )
            found.append(time.perf_counter() - start)
    return [round(float(np.median(found[1:])) / frames, 6) for found in times]


def control(runs):
    table = {}
    for name, count in (("shortcut", 4), ("shortcut", 16), ("forcing", 1), ("forcing", 4)):
        run, title = with_model(runs(name), steps=count), f"{name}, {count} steps"
        table[f"{title}, mode"] = gap(run, temperature=0.0)
        table |= {f"{title}, guidance {g}": gap(run, guidance=g) for g in (0.0, 1.0, 1.5, 2.0, 3.0)}
    return {"runs": runs.facts, "episodes": EPISODES, "scores": table}


def gap(run, **options):
    """Scores under the true actions, and by how much PSNR is lower under those of another episode."""
    batch = held_out(run)
    true = scores(dream(run, batch, **options), batch)
    others = jnp.roll(batch.action[:, CONTEXT - 1 : -1], 1, axis=0)
    shuffled = scores(dream(run, batch, actions=others, **options), batch)
    return {**true, "psnr_shuffled": shuffled["psnr"], "gap": rounded(np.subtract(true["psnr"], shuffled["psnr"]))}


def labels(runs):
    table = {}
    for share in (100, 10, 1):
        path = runs.folder / f"data_{share}"
        steps = ["stages.dynamics.steps=5000", f"data.path={path}"]
        if not path.exists():
            write_labelled(path, jaxwm.load_config(CONFIGS / RUNS["shortcut"][0], FORCE), share)
        run = with_model(runs("shortcut", *steps, title=f"labels_{share}"), steps=16)
        table[f"{share}% known"] = gap(run, temperature=0.0)
    return {"runs": runs.facts, "episodes": EPISODES, "scores": table}


def write_labelled(path, config, share):
    """The episodes of ``config``, with actions that are known in ``share`` of 100."""
    settings = config.data.generate
    counts = {name: getattr(settings, name) for name in ("train", "test", "length", "policy", "seed")}
    source = simulated(build_world(settings.world), **counts)

    def hidden(episode):
        unknown = np.zeros_like(episode.action_valid)
        return dataclasses.replace(episode, action=np.zeros_like(episode.action), action_valid=unknown)

    known = (e if i % 100 < share else hidden(e) for i, e in enumerate(source.splits["train"]))
    data.write_episodes(path, source.spec, {**source.splits, "train": known}, source.name, source.metadata)


def long(runs):
    run = runs("shortcut")
    length = 8 * run.config.data.length
    batch = held_out(run, CONTEXT + length, 32)
    table = {}
    for noise in (run.model.context_noise, 0.0):
        found = scores(dream(with_model(run, context_noise=noise), batch), batch)
        frames = np.arange(length)
        found["psnr_slope_a_frame"] = round(
            float(np.polyfit(frames[length // 8 :], found["psnr"][length // 8 :], 1)[0]), 5
        )
        table[f"context noise {noise}"] = found
    return {"runs": runs.facts, "episodes": 32, "frames": length, "scores": table}


def inverse(runs):
    run = runs("shortcut")
    batch = held_out(run, run.config.data.length, 256)
    make = jax.jit(functools.partial(run.model.sample, steps=16))
    known = {"image": jnp.ones(batch.reward.shape)}
    guesses = jnp.stack(
        [make(run.variables, key, batch, known).action for key in jax.random.split(jax.random.key(0), 16)]
    )
    true, guesses = batch.action[:, :-1], guesses[:, :, :-1]
    return {
        "runs": runs.facts,
        "episodes": len(true),
        "r2": {"one guess": explained(guesses[0], true), "mean of 16": explained(guesses.mean(0), true)},
    }


def explained(guess, true):
    """R² of guesses ``[B, T, A]``."""
    return round(float(1 - jnp.sum((guess - true) ** 2) / jnp.sum((true - true.mean((0, 1))) ** 2)), 3)


def fork(runs):
    run = runs("fork")
    batch = jax.tree.map(lambda x: jnp.repeat(x, 32, axis=0), held_out(run, 12, 16))
    table = {}
    for count in (1, 4, 16):
        pictures = dream(with_model(run, steps=count), batch, context=4)
        x = np.asarray(ball_positions(pictures[:, 5], Bounce().colours, Bounce().background).position)[:, 0, 0]
        table[f"{count} steps"] = {"left": float((x < 0.4).mean()), "right": float((x > 0.6).mean())}
    return {"runs": runs.facts, "dreams": 512, "scores": table}


CLAIMS = {f.__name__: f for f in (open_loop, atari, steps, control, labels, inverse, long, fork)}

if __name__ == "__main__":
    main()
