"""The claims about `drive`; see `run.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from experiments.simulators.common import CONTEXT, clips, draw, dream, held_out, psnr
from experiments.simulators.episodes import WEATHER_AT, is_held_out
from experiments.simulators.judge import Judge
from jaxwm.config import build_world
from jaxwm.data.generate import simulate
from jaxwm.worlds import drive

LENGTH, HORIZON, EPISODES = 8, 20, 64
JUDGE = Judge((("weather", 4), ("time", 3)), ("aside", "heading", "speed"), kinds=6)
UNITS = {"aside": 3.5, "heading": 0.2, "speed": 10.0}
"""What a number of magnitude 1 means, in metres, radians and m/s."""
CAR, WALKER = drive.AGENT, drive.AGENT + 1
SMALLEST = 9
"""Pixels of the smallest box that is asked for."""


# Episodes that no training saw, and the judge of pictures.


def known(episode):
    """Whether trainings had its weather at its hour."""
    return not is_held_out("drive", episode)


def episodes(run, count, length, only=known):
    """``[count, length, ...]``: driving at random and by script, each episode in one weather; see `held_out`."""
    return held_out(world_of(run), count, length, "random+keep_lane", only=only)


def world_of(run):
    """The simulator that the run learned, its weather as it is at first."""
    return dataclasses.replace(build_world(run.config.data.generate.world), changes=0.0)


def judge(runs):
    """``pictures [..., T, H, W, 3] -> (answers, maps)``; see `Judge.taught`."""
    world = build_world(runs.config("cameras").data.generate.world)
    return JUDGE.taught(runs.folder / "judge_drive.pickle", lambda: lessons(world))


def lessons(world, count=400, rows=32, seed=2):
    """Pairs of real pictures of both cameras and the truth about them, without end."""
    found = list(simulate(world, seed, count, 48, "random+keep_lane"))
    rng = np.random.default_rng(seed)
    while True:
        pictures, truth = [], {name: [] for name in ("map", "weather", "time", *UNITS)}
        for _ in range(rows):
            episode = found[rng.integers(len(found))]
            at, view = rng.integers(len(episode.reward) - 1), rng.integers(len(world.views))
            pictures.append(episode.observation[world.views[view]][at : at + 2])
            truth["map"].append(episode.condition["segmentation"][at, ..., view])
            for name in ("weather", "time"):
                truth[name].append(episode.info[name][at])
            for name, unit in UNITS.items():
                truth[name].append(episode.info[name][at] / unit if view == 0 else np.nan)
        yield np.stack(pictures), {name: np.stack(values) for name, values in truth.items()}


# Claims.


def pose(runs):
    run, length = runs("drive"), CONTEXT + HORIZON + 1
    read, batch = judge(runs), episodes(run, EPISODES, length)
    strange = episodes(run, EPISODES, length, only=lambda episode: not known(episode))
    truth = {view: np.asarray(x)[:, CONTEXT:] / 255.0 for view, x in batch.observation.items()}
    others = jnp.roll(batch.action[:, CONTEXT - 1 : -1], 1, axis=0)
    found = {"true actions": dream(run, batch), "shuffled": dream(run, batch, actions=others), "real pictures": truth}
    found["last frame"] = {view: np.repeat(x[:, CONTEXT - 1 : CONTEXT], HORIZON + 1, 1) / 255.0 for view, x in
                           jax.device_get(batch.observation).items()}  # fmt: skip
    rows = ("real pictures", "true actions", "shuffled")
    draw("pose", {f"{name}, episode {i}": found[name]["front"][i, :HORIZON] for i in (0, 1) for name in rows}, every=2)
    table = {}
    for name, pictures in found.items():
        answers, _ = read(pictures["front"])
        table[name] = {
            f"{what}_error": np.mean(np.abs(answers[what] * unit - np.asarray(batch.info[what])[:, CONTEXT:-1]), 0)
            for what, unit in UNITS.items()
        }
        if name != "real pictures":
            table[name] |= {f"psnr_{view}": psnr(x, truth[view]) for view, x in pictures.items()}
    gap = {view: table["true actions"][f"psnr_{view}"] - table["shuffled"][f"psnr_{view}"] for view in truth}
    there = np.asarray(strange.observation["front"])[:, CONTEXT:] / 255.0
    return {"episodes": EPISODES, "units": "m, rad, m/s; by frame", "scores": table, "gap": gap,
            "psnr in weathers never together": psnr(dream(run, strange)["front"], there)}  # fmt: skip


def boxes(runs):
    run = runs("cameras")
    read, batch = judge(runs), episodes(run, 2 * EPISODES, LENGTH)
    told = {name: batch.condition[name] for name in ("boxes", "weather")}
    found = {"real pictures": jax.device_get(batch.observation)}
    for guidance in (None, 2.0):
        found[f"told boxes and weather, guidance {guidance or 1.0}"] = clips(run, batch, told, guidance=guidance)
    found["told weather alone"] = clips(run, batch, {"weather": told["weather"]})
    table = {name: located(read, batch, pictures) for name, pictures in found.items()}
    draw("boxes", {f"{name}, {view}": x[view][0] for name, x in found.items() for view in ("front", "left")})
    cut_in = np.asarray(batch.info["cut_in"]).any((1, 2))
    return {"clips": len(batch.reward), "frames": LENGTH, "clips with a cut-in": int(cut_in.sum()), "scores": table}


def located(read, batch, pictures):
    """How well agents stand in their boxes, and how many frames show as many agents of each kind as were told.

    A box is one that touches no other and has at least `SMALLEST` pixels; a frame counts if all of its boxes do.
    """
    boxes = np.asarray(batch.condition["boxes"])
    overlaps, right, frames = {"car": [], "walker": []}, 0, 0
    for view, name in enumerate(pictures):
        _, maps = read(pictures[name])
        for row, t in np.ndindex(maps.shape[:2]):
            told = boxes[row, t, view]
            told = told[told[:, 4:].any(1)]
            clear = [lonely(box, told) and area(box, maps.shape[-1]) >= SMALLEST for box in told]
            parts = {kind: components(maps[row, t] == number) for kind, number in (("car", CAR), ("walker", WALKER))}
            for box in told[clear]:
                kind = "car" if box[4] else "walker"
                best = max((overlap(box[:4], part) for part in parts[kind]), default=0.0)
                overlaps[kind].append(best)
            if all(clear):
                frames += 1
                right += [len(parts["car"]), len(parts["walker"])] == [int(n) for n in told[:, 4:].sum(0)]
    both = overlaps["car"] + overlaps["walker"]
    result = {"boxes": len(both), "iou": np.mean(both), "found": np.mean(np.array(both) > 0.3)}
    result |= {f"iou_{kind}": np.mean(values) for kind, values in overlaps.items()}
    return result | {"frames": frames, "count_accuracy": right / frames}


def components(mask, fewest=3):
    """Boxes ``left, top, right, bottom`` in shares of the picture of the connected parts of ``mask``."""
    numbered, _ = ndimage.label(mask)
    found = []
    for at, (rows, columns) in enumerate(ndimage.find_objects(numbered)):
        if np.sum(numbered[rows, columns] == at + 1) >= fewest:
            found.append(np.array([columns.start, rows.start, columns.stop, rows.stop]) / len(mask))
    return found


def overlap(left, right):
    """Intersection over union of two boxes."""
    shared = np.prod(np.maximum(np.minimum(left[2:], right[2:]) - np.maximum(left[:2], right[:2]), 0))
    return shared / (np.prod(left[2:] - left[:2]) + np.prod(right[2:] - right[:2]) - shared)


def lonely(box, boxes):
    """Whether a box touches none of the others."""
    return sum(overlap(box[:4], other[:4]) > 0 for other in boxes) == 1


def area(box, size):
    """Pixels of a box."""
    return np.prod(box[2:4] - box[:2]) * size**2


def weather(runs):
    run = runs("drive")
    read, batch = judge(runs), episodes(run, 24, LENGTH)
    table, right = {}, {"known": [], "never together": []}
    for number, name in enumerate(drive.WEATHERS):
        for hour, time in enumerate(drive.TIMES):
            told = told_weather(np.full(24, number), np.full(24, hour), LENGTH)
            answers, _ = read(clips(run, batch, {"weather": told})["front"])
            hits = np.stack([answers["weather"] == number, answers["time"] == hour])
            table[f"{name}, {time}"] = {"weather": hits[0].mean(), "time": hits[1].mean()}
            right["never together" if (name, time) in WEATHER_AT else "known"].append(hits.all(0).mean())
    answers, _ = read(np.asarray(batch.observation["front"]))
    hits = [answers[name] == np.asarray(batch.info[name])[:, :-1] for name in ("weather", "time")]
    return {
        "clips": 24, "frames": LENGTH, "scores": table, "both right": {k: np.mean(v) for k, v in right.items()},
        "both right in real pictures": np.all(hits, axis=0).mean(),
    }  # fmt: skip


def told_weather(weathers, hours, length):
    """The condition ``[B, length, 7]`` of weathers and hours ``[B]``, or ``[B, length]`` where they change."""
    both = [np.broadcast_to(np.reshape(x, (len(x), -1)), (len(x), length)) for x in (weathers, hours)]
    return jnp.concatenate([jax.nn.one_hot(both[0], 4), jax.nn.one_hot(both[1], 3)], axis=-1)


def cameras(runs):
    run = runs("cameras")
    world = world_of(run)
    batch = episodes(run, EPISODES, LENGTH)
    told = {"weather": batch.condition["weather"]}
    one, other = (clips(run, batch, told, seed=seed) for seed in (0, 1))
    seen = {"front": jnp.ones(batch.reward.shape)}
    beside = clips(run, batch, told, known=seen)
    apart = {"front": one["front"], "left": other["left"]}
    found = {"made together": one, "made apart": apart, "left made from the real front": beside,
             "real pictures": batch.observation}  # fmt: skip
    errors = {name: reprojection(world, pictures) for name, pictures in found.items()}
    return {"clips": EPISODES, "frames": LENGTH, "error": errors,
            "together over apart": errors["made together"] / errors["made apart"]}  # fmt: skip


def reprojection(world, pictures):
    """Mean difference, 0..1, of what both cameras see: the pixels of the left one looked up in the front one.

    Both stand at the same place, so that this takes no depth.
    """
    size = world.size
    shares, depth = world.camera("front").project(
        world.camera("left").rays(size).T + jnp.array(world.camera("front").position)
    )
    shares, depth = np.asarray(shares), np.asarray(depth)
    inside = (depth > 0) & (shares > 1 / size).all(1) & (shares < 1 - 1 / size).all(1)
    at = shares[inside][:, ::-1] * size - 0.5
    front, left = (np.asarray(pictures[name], np.float32) / 255.0 for name in ("front", "left"))
    left = left.reshape(*left.shape[:2], -1, 3)[:, :, inside]
    low = np.floor(at).astype(int)
    part = (at - low)[..., None]
    corner = lambda down, right: front[:, :, low[:, 0] + down, low[:, 1] + right]  # noqa: E731
    upper = corner(0, 0) * (1 - part[:, 1]) + corner(0, 1) * part[:, 1]
    lower = corner(1, 0) * (1 - part[:, 1]) + corner(1, 1) * part[:, 1]
    return float(np.abs(upper * (1 - part[:, 0]) + lower * part[:, 0] - left).mean())


def maps(runs):
    run = runs("cameras")
    read, batch = judge(runs), episodes(run, EPISODES, LENGTH)
    weather = {"weather": batch.condition["weather"]}
    told = {**weather, "segmentation": batch.condition["segmentation"]}
    found = {"told maps and weather": clips(run, batch, told), "told weather alone": clips(run, batch, weather),
             "real pictures": batch.observation}  # fmt: skip
    wanted = np.asarray(batch.condition["segmentation"])[:, :-1]
    draw("maps", {f"{name}, {view}": x[view][0] for name, x in found.items() for view in ("front", "left")})
    table = {}
    for name, pictures in found.items():
        seen = np.stack([read(np.asarray(pictures[view]))[1] for view in ("front", "left")], axis=-1)
        table[name] = same_places(seen, wanted)
    return {"clips": EPISODES, "frames": LENGTH, "scores": table}


def same_places(seen, wanted):
    """Intersection over union of the kinds of two maps, each and their mean, and the share of equal pixels."""
    kinds = {
        "road": drive.GROUND,
        "sky": drive.SKY,
        "line": drive.LINE,
        "grass": drive.GRASS,
        "car": CAR,
        "walker": WALKER,
    }
    each = {
        name: ((seen == k) & (wanted == k)).sum() / max(((seen == k) | (wanted == k)).sum(), 1)
        for name, k in kinds.items()
    }
    return {**each, "mean": np.mean(list(each.values())), "equal": (seen == wanted).mean()}


def edit(runs):
    """Every clip is given the next weather of the list, at the same hour."""
    run = runs("drive")
    read, batch = judge(runs), episodes(run, EPISODES, LENGTH)
    _, layout = read(np.asarray(batch.observation["front"]))
    old = np.asarray(batch.info["weather"])[:, 0]
    hours = np.asarray(batch.info["time"])[:, 0]
    new = np.array([next_weather(w, t) for w, t in zip(old, hours, strict=True)])
    really = jnp.broadcast_to(jnp.asarray(new)[:, None], batch.info["weather"].shape)
    told, table = told_weather(new, hours, LENGTH), {}
    _, seen = read(rendered(world_of(run), {**batch.info, "weather": really}))
    table["real pictures of the same in the other weather"] = {"flipped": 1.0, "layout_iou": same_layout(seen, layout)}
    rows = {"real": np.asarray(batch.observation["front"])[0]}
    for level in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        for guidance in (None, 2.0):
            kept = {field.name: jnp.full(batch.reward.shape, level) for field in run.spec.images}
            made = clips(run, batch, {"weather": told}, known=kept, guidance=guidance)
            after, seen = read(made["front"])
            rows |= {f"{level} of it kept": made["front"][0]} if guidance else {}
            table[f"level {level}, guidance {guidance or 1.0}"] = {
                "flipped": (after["weather"] == new[:, None]).mean(), "layout_iou": same_layout(seen, layout)
            }  # fmt: skip
    draw("edit", rows)
    return {"clips": EPISODES, "frames": LENGTH, "scores": table}


def same_layout(left, right):
    """Mean intersection over union of road, sky and grass of two maps."""
    kinds = (drive.GROUND, drive.SKY, drive.GRASS)
    return np.mean([((left == k) & (right == k)).sum() / ((left == k) | (right == k)).sum() for k in kinds])


def rendered(world, info):
    """Front pictures ``[B, T, H, W, 3]`` of the states ``[B, T]`` that ``info`` tells of."""
    states = drive.DriveState(**{f.name: jnp.asarray(info[f.name]) for f in dataclasses.fields(drive.DriveState)})
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
    pictures = jax.jit(lambda states: jax.lax.map(lambda s: world.look(s, "front").image, states))(flat)
    return np.asarray(pictures).reshape(*states.weather.shape, world.size, world.size, 3)


def next_weather(weather, hour):
    """The next one that is not kept from the trainings at this hour."""
    following = [(weather + step) % 4 for step in (1, 2, 3)]
    return next(w for w in following if (drive.WEATHERS[w], drive.TIMES[hour]) not in WEATHER_AT)


def shots(runs):
    """Dreams of 16 frames, told the weather of their context for 8 of them and then another one."""
    run, half = runs("drive"), 8
    read = judge(runs)
    batch = episodes(run, EPISODES, CONTEXT + 2 * half + 1)
    old, hours = (np.asarray(batch.info[name])[:, 0] for name in ("weather", "time"))
    new = np.array([next_weather(w, t) for w, t in zip(old, hours, strict=True)])
    names = np.where(np.arange(2 * half + 1) < half, old[:, None], new[:, None])
    told, table = told_weather(names, hours, 2 * half + 1), {}
    for guidance in (None, 2.0):
        pictures = dream(run, batch, condition={"weather": told}, guidance=guidance, temperature=1.0)["front"]
        answers, _ = read(pictures)
        if guidance is None:
            draw("shots", {f"dream {row}": pictures[row] for row in range(4)})
        jump = np.abs(np.diff(pictures, axis=1)).mean((0, 2, 3, 4))
        table[f"guidance {guidance or 1.0}"] = {
            "old": (answers["weather"] == old[:, None]).mean(0),
            "new": (answers["weather"] == new[:, None]).mean(0),
            "change between frames": jump,
        }
    return {"dreams": EPISODES, "switched before frame": half, "scores": table}


CLAIMS = {f.__name__: f for f in (pose, boxes, weather, cameras, maps, edit, shots)}
