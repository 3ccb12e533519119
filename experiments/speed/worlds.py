"""Frames a second of the JAX worlds, simulated and rendered, vmapped and jitted; writes `worlds.json`.

    python experiments/speed/worlds.py [--rows 1024] [--repeats 15]

Each figure is the median over the repeats, compilation and one warm-up excluded. ``render`` draws states that are
already there; ``episodes`` is what a data set costs: reset, policy, steps and pictures of whole episodes.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax

from jaxwm.worlds import Bounce, Reach, Rooms, rollout

LENGTH = 64
"""Frames in an episode."""


def seconds(function, argument, repeats: int) -> float:
    """Median time of a compiled call."""
    times = []
    jax.block_until_ready(function(argument))
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(world, rows: int, repeats: int) -> dict[str, float]:
    """Frames a second of one world, by what is timed."""
    keys = jax.random.split(jax.random.key(0), rows)
    states = jax.jit(jax.vmap(world.reset))(keys)
    render = jax.jit(jax.vmap(world.render))
    record = jax.jit(jax.vmap(functools.partial(rollout, world, length=LENGTH)))
    episodes = keys[: max(rows // LENGTH, 1)]
    return {
        "render": rows / seconds(render, states, repeats),
        "episodes": len(episodes) * LENGTH / seconds(record, episodes, repeats),
    }


def main(rows: int = 1024, repeats: int = 15) -> dict[str, dict[str, float]]:
    """Frames a second by world and size; prints them as a table."""
    worlds = {
        f"{name}, {size} px": world(size=size)
        for name, world in {
            "bounce, 1 ball": functools.partial(Bounce, balls=1),
            "bounce, 3 balls": functools.partial(Bounce, balls=3),
            "reach": Reach,
            "rooms": Rooms,
        }.items()
        for size in (32, 64)
    }
    device = jax.devices()[0]
    print(f"{device.device_kind} ({platform.processor() or platform.machine()}), {os.cpu_count()} cores, {rows} rows")
    results = {}
    for name, world in worlds.items():
        results[name] = measure(world, rows, repeats)
        print(f"{name:24}" + "".join(f"{what} {value:>10,.0f} frames/s   " for what, value in results[name].items()))
    machine = {"device": device.device_kind, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
    record = {"command": f"python experiments/speed/worlds.py --rows {rows} --repeats {repeats}", "machine": machine}
    path = pathlib.Path(__file__).parent / "worlds.json"
    path.write_text(json.dumps({**record, "frames_per_second": results}, indent=1) + "\n")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    main(**vars(parser.parse_args()))
