"""Data sets simulated in `jaxwm.worlds`: the same world, counts and seed give the same episodes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxwm import worlds
from jaxwm.data.episodes import DataError, Episode, Source, write_episodes
from jaxwm.types import Array, PyTree, Trajectory

_STEPS_TOGETHER = 2048
"""Simulated steps in one call: enough to keep a device busy, few enough to keep the frames in memory."""


def simulate(
    world: worlds.World, seed: int, count: int, length: int = 64, policy: str = "random", split: str = "train"
) -> Iterator[Episode]:
    """``count`` episodes of at most ``length`` steps in ``world``, simulated in batches under one compilation.

    Several policies, joined by ``+``, take turns: with ``random+scripted`` every second episode is scripted. Episode i
    depends on the world, the policy, ``length``, ``seed``, ``split`` and i alone; the splits ``train`` and ``test``
    never share a seed.

    Raises:
      DataError: the world has no such policy or no such split is known.
    """
    if split not in _SPLITS:
        raise DataError(f"split {split!r} is unknown, expected one of {', '.join(_SPLITS)}")
    act = tuple(find_policy(world, name.strip()) for name in policy.split("+"))
    key = jax.random.fold_in(jax.random.key(seed), _SPLITS.index(split))
    batch = max(1, min(64, _STEPS_TOGETHER // length))
    return _episodes(world, key, count, length, act, batch)


_SPLITS = ("train", "test")


def _episodes(
    world: worlds.World, key: Array, count: int, length: int, policies: tuple[worlds.Policy, ...], batch: int
) -> Iterator[Episode]:
    for start in range(0, count, batch):
        rows = jax.device_get(_rollouts(world, key, start, batch, length, policies))
        for row in range(min(batch, count - start)):
            yield Episode.of(jax.tree.map(lambda array, row=row: array[row], rows))


@functools.partial(jax.jit, static_argnames=("world", "batch", "length", "policies"))
def _rollouts(
    world: worlds.World, key: Array, start: Array | int, batch: int, length: int, policies: tuple[worlds.Policy, ...]
) -> Trajectory:
    def episode(index: Array) -> Trajectory:
        def act(world: worlds.World, key: Array, state: PyTree) -> Array:
            each = [functools.partial(policy, world, key, state) for policy in policies]
            return each[0]() if len(each) == 1 else jax.lax.switch(index % len(each), each)

        return worlds.rollout(world, jax.random.fold_in(key, index), length, act)

    return jax.vmap(episode)(start + jax.numpy.arange(batch))


def find_policy(world: worlds.World, name: str) -> worlds.Policy:
    """The policy of ``world`` called ``name``; ``scripted`` is the first that is not random.

    Raises:
      DataError: the world has none of that name.
    """
    world_name = _name(world)
    known = worlds.POLICIES.get(world_name, {"random": worlds.random_policy})
    if name == "scripted":
        name = next((other for other in known if other != "random"), name)
    if name not in known:
        raise DataError(f"policy {name!r} is unknown in the world {world_name}; known: {', '.join(sorted(known))}")
    return known[name]


def _name(world: worlds.World) -> str:
    for name, kind in worlds.WORLDS.items():
        if type(world) is kind:
            return name
    return type(world).__name__.lower()


def parameters(world: worlds.World, train: int, test: int, length: int, policy: str, seed: int) -> dict[str, Any]:
    """What defines a simulated data set, as plain values; kept as ``metadata["generate"]`` beside the data."""
    fields = {field.name: getattr(world, field.name) for field in dataclasses.fields(world)}  # type: ignore[arg-type]
    values = {
        "world": {"name": _name(world), **fields},
        "train": train,
        "test": test,
        "length": length,
        "policy": policy,
        "seed": seed,
    }
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def simulated(
    world: worlds.World, train: int = 400, test: int = 64, length: int = 64, policy: str = "random", seed: int = 0
) -> Source:
    """The data set that `generate_dataset` writes, not simulated yet."""
    splits = {
        split: simulate(world, seed, count, length, policy, split)
        for split, count in (("train", train), ("test", test))
    }
    metadata = {"generate": parameters(world, train, test, length, policy, seed)}
    return Source(_name(world), world.spec, splits, metadata)


def generate_dataset(
    path: str | os.PathLike[str],
    world: worlds.World,
    *,
    train: int = 400,
    test: int = 64,
    length: int = 64,
    policy: str = "random",
    seed: int = 0,
    log: Callable[[str], None] | None = None,
) -> None:
    """Simulates ``train`` and ``test`` episodes of at most ``length`` steps each and writes them to ``path``.

    Raises:
      DataError: the path is taken, or the world has no such policy.
    """
    source = simulated(world, train, test, length, policy, seed)
    log = log or (lambda line: None)
    log(f"simulating {train} + {test} episodes of {source.name} into {path}")
    begin = time.perf_counter()
    write_episodes(path, source.spec, source.splits, source.name, source.metadata)
    log(f"wrote {train + test} episodes of at most {length} steps to {path} in {time.perf_counter() - begin:.1f} s")
