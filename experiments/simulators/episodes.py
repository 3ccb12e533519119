"""What the simulators of these experiments learn from: episodes of `drive` and `scene`, some combinations left out.

A model that has learned what words and weathers mean one by one can put them together in ways that it never saw.
Those that are kept from it are named here; `write` leaves out every episode in which one of them occurs.
"""

from __future__ import annotations

import itertools

import numpy as np

from jaxwm import data
from jaxwm.config import build_world
from jaxwm.data.generate import parameters, simulate
from jaxwm.worlds import captions
from jaxwm.worlds.drive import TIMES, WEATHERS

WORLDS = ("drive", "scene")
"""Those of which something is held out."""
WEATHER_AT = {("snow", "night"), ("fog", "dusk"), ("rain", "day")}
"""Weather and time of day that no training episode of `drive` has together."""
ROLLS = {("red", "left"), ("green", "right"), ("blue", "near"), ("yellow", "away")}
"""Colour of the sphere that rolls and where it rolls to, that no caption of a training episode of `scene` has."""
TOGETHER = {"red", "blue"}
"""Colours that no such caption has side by side."""


def scene_words(caption):
    """What a caption of `scene` says: the set of colours in sight, and ``(colour, way)`` of what rolls or None."""
    words = captions.decode(caption).split()
    if "rolls" not in words:
        return set(words[4:]), None
    at = words.index("rolls")
    return set(words[4 : at - 1]), (words[at - 1], words[at + 1])


def is_held_out(world, episode):
    """Whether it shows something that is to be kept from a training."""
    if world == "drive":
        met = {(WEATHERS[w], TIMES[t]) for w, t in zip(episode.info["weather"], episode.info["time"], strict=True)}
        return bool(met & WEATHER_AT)
    for caption in np.unique(episode.condition["caption"], axis=0):
        colours, rolls = scene_words(caption)
        if rolls in ROLLS or colours >= TOGETHER:
            return True
    return False


def write(path, settings):
    """Writes the data set that ``settings`` (``data.generate``) speak of without held-out combinations to ``path``.

    Its ``test`` split has none of them either; ask `simulate` for episodes that do.
    """
    world = build_world(settings.world)

    def kept(split, count):
        episodes = simulate(world, settings.seed, 100 * count, settings.length, settings.policy, split)
        return itertools.islice((e for e in episodes if not is_held_out(settings.world.name, e)), count)

    splits = {split: kept(split, getattr(settings, split)) for split in ("train", "test")}
    about = {
        "generate": parameters(world, settings.train, settings.test, settings.length, settings.policy, settings.seed)
    }
    data.write_episodes(path, world.spec, splits, settings.world.name, about)
