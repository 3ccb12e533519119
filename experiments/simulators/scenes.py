"""The claims about `scene`; see `run.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxwm
from experiments.simulators.common import clips, draw, dream, held_out, psnr
from experiments.simulators.episodes import ROLLS, TOGETHER, scene_words
from experiments.simulators.judge import Judge
from jaxwm.config import build_world
from jaxwm.data.generate import simulate
from jaxwm.worlds import captions, scene

LENGTH, EPISODES = 8, 64
COLOURS, WAYS = tuple(scene.COLOURS), ("left", "right", "away", "near")
FIRST = scene.SPHERE
"""Kind of a red sphere in the maps of the judge; the other colours follow, then paint."""
PAINT = FIRST + len(COLOURS)
SMALLEST = 6
"""Pixels of the smallest sphere or patch of paint that counts."""
JUDGE = Judge((*((f"sees_{name}", 2) for name in COLOURS), ("roller", 5), ("way", 5)), (), kinds=PAINT + 1)
AWAY = 5
"""Frames that a camera needs to turn until it sees nothing of what it saw."""


# The truth, and the judge of pictures.


def world_of(run):
    """The simulator that the run learned."""
    return build_world(run.config.data.generate.world)


def states_of(info):
    """The states ``[...]`` that ``info`` tells of."""
    return scene.SceneState(**{name: jnp.asarray(info[name]) for name in scene.SceneState.__dataclass_fields__})


def truth_maps(world, info):
    """``[B, T, H, W]``: floor, sky, ground, spheres by colour, paint on the floor."""
    states = states_of(info)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
    leading = states.heading.shape
    return np.asarray(_maps(world, flat)).reshape(*leading, world.size, world.size)


@functools.partial(jax.jit, static_argnums=0)
def _maps(world, states):
    def of(state):
        seen, bare = world.look(state), world.look(state.replace(painted=jnp.zeros_like(state.painted)))
        kind = seen.segmentation.astype(jnp.int32)
        colour = state.colour[jnp.clip(kind - scene.SPHERE, 0, len(state.colour) - 1)]
        painted = jnp.abs(seen.image.astype(jnp.int32) - bare.image).max(-1) > 8
        kind = jnp.where(kind >= scene.SPHERE, FIRST + colour, kind)
        return jnp.where((kind == scene.FLOOR) & painted, PAINT, kind).astype(jnp.uint8)

    return jax.lax.map(of, states, batch_size=64)


def answers_of(captions):
    """What captions ``[..., 12]`` say, as the judge would: by name ``[...]``."""
    flat = np.asarray(captions).reshape(-1, np.shape(captions)[-1])
    found = {name: [] for name, _ in JUDGE.choices}
    for caption in flat:
        colours, rolls = scene_words(caption)
        for colour in COLOURS:
            found[f"sees_{colour}"].append(int(colour in colours))
        found["roller"].append(1 + COLOURS.index(rolls[0]) if rolls else 0)
        found["way"].append(1 + WAYS.index(rolls[1]) if rolls else 0)
    return {name: np.array(values).reshape(np.shape(captions)[:-1]) for name, values in found.items()}


def judge(runs):
    """``pictures [..., T, H, W, 3] -> (answers, maps)``; see `Judge.taught`."""
    world = build_world(runs.config("scene").data.generate.world)
    return JUDGE.taught(runs.folder / "judge_scene.pickle", lambda: lessons(world))


def lessons(world, count=1200, length=16, rows=32, seed=2):
    """Pairs of real pictures and the truth about them, without end."""
    found = list(simulate(world, seed, count, length, "stand_still+random+stand_still+look_around"))
    info = {name: np.stack([e.info[name] for e in found]) for name in scene.SceneState.__dataclass_fields__}
    maps, answers = truth_maps(world, info), answers_of(np.stack([e.condition["caption"] for e in found]))
    rng = np.random.default_rng(seed)
    while True:
        which, at = rng.integers(count, size=rows), rng.integers(length - 1, size=rows)
        pictures = np.stack([found[i].observation["image"][t : t + 2] for i, t in zip(which, at, strict=True)])
        yield pictures, {"map": maps[which, at], **{name: x[which, at] for name, x in answers.items()}}


# Claims.


def text(runs):
    """Clips from nothing, told only a caption that stays the same; the camera stands still."""
    run = runs("scene")
    read, world = judge(runs), world_of(run)
    table, rows = {}, {}
    for name, wanted in (("known combinations", False), ("never together", True)):
        batch = held_out(world, 2 * EPISODES, LENGTH, "stand_still", only=functools.partial(_says, held=wanted))
        for guidance in (None, 2.0, 4.0):
            made = clips(run, batch, {"caption": batch.condition["caption"]}, guidance=guidance)["image"]
            rows |= {captions.decode(batch.condition["caption"][i, 0]): made[i] for i in range(3)} if guidance else {}
            table[f"{name}, guidance {guidance or 1.0}"] = attributes(read, made, batch)
        table[f"{name}, real pictures"] = attributes(read, np.asarray(batch.observation["image"]), batch)
    draw("text", rows)
    return {"clips": 2 * EPISODES, "frames": LENGTH, "scores": table}


def _says(episode, held):
    """Whether an episode has one caption throughout, with something in sight, and one that is ``held`` out or not."""
    captions = np.unique(episode.condition["caption"], axis=0)
    if len(captions) > 1:
        return False
    colours, rolls = scene_words(captions[0])
    return bool(colours) and (rolls in ROLLS or colours >= TOGETHER) == held


def attributes(read, pictures, batch):
    """Shares of clips in most of whose frames the judge reads what was told."""
    answers, _ = read(pictures)
    told = answers_of(np.asarray(batch.condition["caption"])[:, :-1])
    right = {name: (answers[name] == told[name]).mean(1) > 0.5 for name in told}
    sees = [f"sees_{colour}" for colour in COLOURS]
    count = sum(answers[name] for name in sees) == sum(told[name] for name in sees)
    rolls = told["way"][:, 0] > 0
    return {
        "colours": np.all([right[name] for name in sees], axis=0).mean(),
        "count": (count.mean(1) > 0.5).mean(),
        "what_rolls": right["roller"].mean(),
        "direction": right["way"][rolls].mean(),
    }


def shots(runs):
    """Dreams of 16 frames, told one caption for 8 of them and then that of another scene."""
    run, half = runs("scene"), 8
    read, world = judge(runs), world_of(run)
    batch = held_out(world, EPISODES, 2 * half, "stand_still", only=functools.partial(_says, held=False))
    one, other = answers_of(batch.condition["caption"][:, 0]), jnp.roll(batch.condition["caption"][:, 0], 1, axis=0)
    captions = jnp.concatenate(
        [batch.condition["caption"][:, :half], jnp.repeat(other[:, None], half, axis=1)], axis=1
    )
    two, sees = answers_of(other), [f"sees_{colour}" for colour in COLOURS]
    table = {}
    for guidance in (1.0, 2.0, 4.0):
        pictures = dream(
            run, batch, context=1, actions=jnp.zeros((EPISODES, 2 * half, 2)), condition={"caption": captions},
            temperature=1.0, guidance=guidance,
        )["image"]  # fmt: skip
        answers, _ = read(pictures)
        shows = lambda wanted: np.all([answers[name] == wanted[name][:, None] for name in sees], axis=0).mean(0)  # noqa: B023, E731
        table[f"guidance {guidance}"] = {"first caption": shows(one), "second caption": shows(two)}
    return {"dreams": EPISODES, "switched before frame": half, "scores": table}


def loop(runs):
    """A camera that looks at the spheres, turns away until it sees none of what it saw, and turns back."""
    run = runs("scene")
    read, world = judge(runs), world_of(run)
    context, turn = 8, jnp.array([[0.0, 1.0]])
    actions = jnp.concatenate(
        [jnp.zeros((context - 1, 2)), turn.repeat(AWAY, 0), -turn.repeat(AWAY, 0), jnp.zeros((2, 2))]
    )
    batch = film(world, actions, EPISODES)
    last, back = np.asarray(batch.observation["image"])[:, context - 1] / 255.0, AWAY * 2 - 1
    real = np.asarray(batch.observation["image"]) / 255.0
    seen = context + AWAY
    found = {
        "seen before it turned": dream(run, batch, context=context)["image"],
        "told where it is": dream(run, batch, context=context, condition={
            "camera": batch.condition["camera"][:, context:]})["image"],
        # Two frames of what is there when it has turned away: it cannot know what it comes back to.
        "seen only when away": np.concatenate(
            [real[:, context:seen], dream(run, late(batch, seen - 2), context=2)["image"]], axis=1),
        "last frame": np.repeat(last[:, None], real.shape[1] - context, 1),
    }  # fmt: skip
    truth, maps = real[:, context:], truth_maps(world, batch.info)[:, context:]
    draw("loop", {"real": truth[0], **{name: pictures[0] for name, pictures in found.items()}})
    before = truth_maps(world, batch.info)[:, context - 1]
    still = np.asarray(batch.info["colour"])[:, 0, 1:]
    table = {"real pictures": {"spheres_back": kept(read(truth)[1][:, back], maps[:, back], before, still)}}
    for name, pictures in found.items():
        table[name] = {
            "psnr": psnr(pictures, truth),
            "psnr_back": psnr(pictures, truth)[back],
            "spheres_back": kept(read(pictures)[1][:, back], maps[:, back], before, still),
        }
    return {"dreams": EPISODES, "turned away for": 2 * AWAY, "scores": table}


def kept(seen, truth, before, colours):
    """Share of the spheres that stand, were seen before and are really there again, that are seen in their place."""
    hits = []
    for row in range(len(seen)):
        for colour in colours[row]:
            kind = FIRST + colour
            if (before[row] == kind).sum() >= SMALLEST and (truth[row] == kind).sum() >= SMALLEST:
                there, wanted = seen[row] == kind, truth[row] == kind
                hits.append((there & wanted).sum() / (there | wanted).sum() > 0.3)
    return np.mean(hits)


def trace(runs):
    """What was painted before the dream began is still painted while nothing stands before it."""
    run, context, frames = runs("scene"), 8, 16
    read, world = judge(runs), world_of(run)
    batch = film(world, jnp.zeros((context + frames, 2)), 4 * EPISODES)
    maps = truth_maps(world, batch.info)
    made = {"dreams": dream(run, batch, context=context)["image"],
            "real pictures": np.asarray(batch.observation["image"])[:, context:] / 255.0}  # fmt: skip
    draw("trace", {f"{name}, {row}": pictures[row] for row in (0, 1, 2) for name, pictures in made.items()})
    old = (maps[:, context - 1 : context] == PAINT) & (maps[:, context:-1] == PAINT)
    counted = (old.sum((2, 3)) >= SMALLEST).all(1)
    table = {}
    for name, pictures in made.items():
        seen = read(pictures)[1] == PAINT
        table[name] = [((seen & old)[counted, t].sum() / old[counted, t].sum()) for t in range(frames - 1)]
    return {"dreams": int(counted.sum()), "share still painted by frame": table}


def film(world, actions, count, seed=1):
    """Episodes ``[count, T + 1, ...]`` of the same actions ``[T, A]``; those of which a training knows nothing."""
    episodes = _film(world, actions, jax.random.split(jax.random.key(seed), count))
    return jax.tree.map(jnp.asarray, episodes)


@functools.partial(jax.jit, static_argnums=0)
def _film(world, actions, keys):
    length = len(actions) + 1
    given = jnp.concatenate([actions, jnp.zeros((1, actions.shape[1]))])

    def episode(key):
        start_key, key = jax.random.split(key)
        first = world.reset(start_key)
        after = jax.lax.scan(lambda s, a: (world.step(key, s, a).state, world.step(key, s, a).state), first, actions)[
            1
        ]
        states = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, after)
        flags = {name: jnp.zeros(length, bool) for name in ("is_last", "is_terminal")}
        return jaxwm.Trajectory(
            observation=jax.vmap(world.observation)(states), action=given,
            previous_action=jnp.zeros(actions.shape[1]), reward=jnp.zeros(length), is_first=jnp.arange(length) == 0,
            valid=jnp.ones(length, bool), action_valid=jnp.ones(length, bool),
            condition=jax.vmap(world.condition)(states), info=jax.vmap(world.info)(states), **flags,
        )  # fmt: skip

    return jax.lax.map(episode, keys)


def late(batch, start):
    """The episodes from frame ``start`` on, as if they began there."""
    cut = batch.cut(start)
    return cut.replace(previous_action=jnp.zeros_like(batch.action[:, 0]), is_first=cut.is_first.at[:, 0].set(True))


CLAIMS = {"text": text, "scene_shots": shots, "loop": loop, "trace": trace}
