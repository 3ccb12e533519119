"""What simulators of driving are asked for: rare scenes, data for others to learn from, doubt; see `run.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from experiments.simulators.common import CONTEXT, clips, dream, held_out
from experiments.simulators.driving import (
    EPISODES,
    LENGTH,
    episodes,
    judge,
    known,
    located,
    same_places,
    told_weather,
    world_of,
)
from experiments.simulators.episodes import WEATHER_AT
from experiments.simulators.judge import Judge
from jaxwm.worlds import drive

POLICY = "random+keep_lane"
CLEAR_DAY = (0, 0)
LEVEL = 0.2
"""How much of a clip is kept when it is made again in another weather."""
SCENES = {
    "a car cuts in": lambda episode: episode.info["cut_in"].any() and seen(episode, cars=True),
    "a walker crosses": lambda episode: episode.info["crossing"].any() and seen(episode, cars=False),
}
"""Rare scenes, by what is true of an episode that shows one."""


def seen(episode, cars):
    """Whether a camera sees a car, or a walker, in any frame."""
    return episode.condition["boxes"][..., 4 if cars else 5].any()


def requests(runs):
    """Rare scenes that are asked for by boxes and weather, each as it is and again in fog."""
    run = runs("cameras")
    read, table = judge(runs), {}
    for name, shows in SCENES.items():
        batch = episodes(run, EPISODES, LENGTH, only=lambda e, shows=shows: known(e) and shows(e))
        hours = np.asarray(batch.info["time"])[:, 0]
        hours = np.where(hours == drive.TIMES.index("dusk"), 0, hours)
        fog = told_weather(np.full(EPISODES, drive.WEATHERS.index("fog")), hours, LENGTH)
        for title, weather in ((name, batch.condition["weather"]), (f"{name}, in fog", fog)):
            made = clips(run, batch, {"boxes": batch.condition["boxes"], "weather": weather}, guidance=2.0)
            answers, _ = read(made["front"])
            right = answers["weather"] == np.asarray(weather)[:, :-1, :4].argmax(-1)
            table[title] = {**located(read, batch, made), "weather": right.mean()}
        table[f"{name}, real pictures"] = located(read, batch, jax.device_get(batch.observation))
    return {"clips": EPISODES, "frames": LENGTH, "guidance": 2.0, "scores": table}


def rare(runs):
    """What a network that tells road from grass learns, if all pictures with labels were taken on clear days.

    The simulator, which has seen all weathers but no label, makes the same clips again in the other weathers; their
    labels are those of the clips that they were made of.
    """
    run = runs("drive")
    world = dataclasses.replace(world_of(run), conditions=("segmentation",))
    clear = dataclasses.replace(world, weathers=("clear",), times=("day",))
    labelled = held_out(clear, EPISODES, LENGTH, POLICY, seed=3)
    pictures = np.asarray(labelled.observation["front"])
    kept = {"front": jnp.full(labelled.reward.shape, LEVEL)}
    made = []
    for names in np.ndindex(len(drive.WEATHERS), len(drive.TIMES)):
        if names != CLEAR_DAY and (drive.WEATHERS[names[0]], drive.TIMES[names[1]]) not in WEATHER_AT:
            told = told_weather(*(np.full(EPISODES, name) for name in names), LENGTH)
            made.append(clips(run, labelled, {"weather": told}, kept, guidance=2.0)["front"])
    every = held_out(world, EPISODES, LENGTH, POLICY, seed=3, only=known)
    lessons = {
        "real": [(labelled, pictures)],
        "real, brighter and darker": [
            (labelled, pictures),
            *((labelled, dimmed(pictures, seed)) for seed in range(8)),
        ],
        "real and made": [(labelled, pictures), *((labelled, x) for x in made)],
        "real of all weathers": [(every, np.asarray(every.observation["front"]))],
    }
    test = held_out(world, 2 * EPISODES, LENGTH, POLICY, only=lambda e: known(e) and weather_of(e) != CLEAR_DAY)
    reader, table = Judge((), (), kinds=6), {}
    for name, parts in lessons.items():
        scores = []
        for seed in range(3):
            _, maps = reader(reader.teach(pairs(parts, seed), 500, seed), np.asarray(test.observation["front"]))
            scores.append(same_places(maps, np.asarray(test.condition["segmentation"])[:, :-1, ..., 0]))
        table[name] = {kind: np.mean([score[kind] for score in scores]) for kind in scores[0]}
        table[name]["mean, by seed"] = [score["mean"] for score in scores]
    return {"labelled clips": EPISODES, "frames": LENGTH, "test clips": 2 * EPISODES, "level": LEVEL, "iou": table}


def weather_of(episode):
    """The weather and the hour in which an episode begins."""
    return int(episode.info["weather"][0]), int(episode.info["time"][0])


def dimmed(pictures, seed):
    """Clips ``[B, T, H, W, 3]`` in the light and the contrast of other days, each clip and colour in its own."""
    rng = np.random.default_rng(seed)
    light, contrast = (rng.uniform(low, 1.2, (len(pictures), 1, 1, 1, 3)) for low in (0.2, 0.4))
    middle = pictures.mean((1, 2, 3), keepdims=True)
    return np.clip(light * (middle + contrast * (pictures - middle)), 0, 255).astype(np.uint8)


def pairs(parts, seed, rows=32):
    """Pictures and their maps, without end, from each of ``parts`` as often as from the others."""
    rng = np.random.default_rng(seed)
    while True:
        taken, maps = [], []
        for which in rng.integers(len(parts), size=rows):
            batch, pictures = parts[which]
            row, at = rng.integers(len(pictures)), rng.integers(LENGTH - 1)
            taken.append(as_bytes(pictures[row, at : at + 2]))
            maps.append(np.asarray(batch.condition["segmentation"][row, at, ..., 0]))
        yield np.stack(taken), {"map": np.stack(maps)}


def as_bytes(pictures):
    """Pictures in 0..1 or in bytes as bytes."""
    return pictures if pictures.dtype == np.uint8 else np.round(pictures * 255).astype(np.uint8)


def doubt(runs, drawn=8, horizon=10):
    """Whether dreams of one beginning differ more from each other under actions that no training had."""
    run = runs("drive")
    batch = episodes(run, 2 * EPISODES, CONTEXT + horizon + 1)
    usual = batch.action[:, CONTEXT - 1 : CONTEXT - 1 + horizon]
    low, high = (jnp.asarray(bound) for bound in (run.spec.action.low, run.spec.action.high))
    found = {
        "usual": usual,
        "of other episodes": jnp.roll(usual, 1, axis=0),
        "uniform": jax.random.uniform(jax.random.key(0), usual.shape, minval=low, maxval=high),
        "hard to one side": jnp.broadcast_to(jnp.array([0.0, high[1]]), usual.shape),
        "full brake": jnp.broadcast_to(jnp.array([low[0], 0.0]), usual.shape),
    }
    spread = {}
    for name, actions in found.items():
        each = [dream(run, batch, actions=actions, temperature=1.0, seed=seed)["front"] for seed in range(drawn)]
        spread[name] = np.var(each, axis=0)[:, 1:].mean((1, 2, 3, 4))
    table = {
        name: {"variance": 1e3 * values.mean(), "auroc": above(values, spread["usual"])}
        for name, values in spread.items()
    }
    return {"dreams": 2 * EPISODES, "drawn": drawn, "frames": horizon, "variance": "in 1/1000", "scores": table}


def above(values, others):
    """Chance that one of ``values`` is above one of ``others`` (the area under the ROC)."""
    ranks, count = rankdata(np.concatenate([values, others])), len(values)
    return (ranks[:count].sum() - count * (count + 1) / 2) / (count * len(others))


CLAIMS = {f.__name__: f for f in (requests, rare, doubt)}
