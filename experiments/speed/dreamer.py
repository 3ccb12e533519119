"""Update time of DreamerV3 at batch 16 x 64 and horizon 15, and of its imagination; writes `dreamer.json`.

    python experiments/speed/dreamer.py [--only 1m_vectors] [--rounds 7]

Peers ran on other days, so that times are compared as time x GEMM: seconds times the GFLOP/s of a 2048 x 2048 product
in the same run. Ratios above 1 say that this library is faster.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

from run import MEMORY

from experiments.record import machine, read, write

HERE = pathlib.Path(__file__).parent
BATCH, LENGTH, HORIZON, ACTIONS = 16, 64, 15, 6
CASES = {
    "1m_vectors": {"official_jax": (0.716, 189.0), "pytorch_port": (1.245, 168.0), "target": ("official_jax", 1.3)},
    "1m_images": {"official_jax": (6.29, 181.5), "pytorch_port": (3.761, 181.5), "target": ("official_jax", 2.0)},
    "12m_vectors": {"official_jax": (5.145, 163.0), "pytorch_port": (6.755, 163.0), "target": ("official_jax", 1.2)},
}
"""Seconds of an update and the GFLOP/s of a product beside it, by peer: the middle of what was seen."""
IMAGINATION = {"1m": (52_450.0, 182.5, 2.0), "12m": (7_200.0, 182.5, None)}
"""Steps a second of the official code, the product beside it, and the ratio that is aimed at."""


def build(size, kind):
    """An untrained agent with 24 numbers or a 64 x 64 picture to see, and a batch."""
    import jaxwm
    from jaxwm.agents import Dreamer
    from jaxwm.bench import random_batch
    from jaxwm.models.rssm import RSSM

    seen = {"vectors": jaxwm.Field("vector", (24,), "float32"), "images": jaxwm.Field("image", (64, 64, 3), "uint8")}
    spec = jaxwm.Spec((seen[kind],), jaxwm.ActionSpec(ACTIONS, low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS))
    sizes = RSSM.SIZES[size]
    # As wide as what the encoders of the peers put out.
    embed = sizes["units"] * (1 if kind == "vectors" else 4)
    return Dreamer(spec, **{**sizes, "embed": embed}), random_batch(spec, BATCH, LENGTH)


def timed(call):
    """Seconds of one call."""
    import jax

    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def prepare_update(model, batch, stage, key):
    """A call that updates once, the operations of its products, and the seconds of its compilation."""
    from jaxwm.bench import product_flops
    from jaxwm.config import OptimizerConfig
    from jaxwm.training import init_state, make_optimizer, make_update

    settings = OptimizerConfig(name="laprop", learning_rate=4e-5, warmup=1000, epsilon=1e-20, agc=0.3)
    optimizer = make_optimizer(settings, 10_000)
    states = [init_state(model, stage, optimizer, key, batch)]
    begin = time.perf_counter()
    traced = make_update(model, stage, optimizer).trace(states[0], key, batch)
    compiled = traced.lower().compile()
    taken = time.perf_counter() - begin

    def call():
        states[0], metrics = compiled(states[0], key, batch)
        return metrics

    return call, product_flops(traced.jaxpr), taken


def prepare_dream(model, batch, rows, key):
    """A call that imagines ``rows`` futures with the actor choosing, and the operations of its products."""
    import jax

    from jaxwm.agents.actor_critic import ActorPolicy
    from jaxwm.bench import product_flops
    from jaxwm.imagination import rollout

    variables = jax.jit(model.init)(key, batch)
    state, keys = model.init_state(rows), jax.random.split(key, rows)

    def dream(variables, keys, state):
        policy, actor = ActorPolicy(model.actor_critic), variables["params"]["actor"]
        made = rollout(model, policy, HORIZON, False, False, variables, keys, state, None, actor, None, None)
        return made.features, made.action

    traced = jax.jit(dream).trace(variables, keys, state)
    compiled = traced.lower().compile()
    return lambda: compiled(variables, keys, state), product_flops(traced.jaxpr)


def measure_update(name, rounds):
    """The whole update, the world model's alone, and the dreams of an update, in turn with matrix products."""
    import jax

    from jaxwm.bench import matrix_peak

    model, batch = build(*name.split("_"))
    key = jax.random.key(0)
    stages = {stage.name: stage for stage in model.stages}
    whole, flops, compilation = prepare_update(model, batch, stages["train"], key)
    world, world_flops, _ = prepare_update(model, batch, stages["world_model"], key)
    dream, dream_flops = prepare_dream(model, batch, BATCH * LENGTH, key)
    calls = {"update": whole, "world_model": world, "imagination": dream}
    times, peaks = {part: [] for part in calls}, []
    for call in calls.values():
        timed(call)
    for _ in range(rounds):
        peaks.append(matrix_peak(0.3))
        for part, call in calls.items():
            times[part].append(timed(call))
    taken = {part: statistics.median(values) for part, values in times.items()}
    gemm = statistics.median(peaks)
    share = lambda part, operations: round(operations / taken[part] / gemm / 1e9, 3)  # noqa: E731
    peers = {peer: value for peer, value in CASES[name].items() if peer != "target"}
    ratios = {
        peer: round(seconds * product / (taken["update"] * gemm), 2) for peer, (seconds, product) in peers.items()
    }
    against, target = CASES[name]["target"]
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, key, batch)["params"])),
        "update_ms": round(1e3 * taken["update"], 1),
        "update_ms_range": [round(1e3 * min(times["update"]), 1), round(1e3 * max(times["update"]), 1)],
        "world_model_ms": round(1e3 * taken["world_model"], 1),
        "imagination_ms": round(1e3 * taken["imagination"], 1),
        "actor_and_critic_ms": round(1e3 * (taken["update"] - taken["world_model"] - taken["imagination"]), 1),
        "gemm_gflops": round(gemm, 1),
        "product_gflop": round(flops / 1e9, 2),
        "share_of_peak": share("update", flops),
        "share_of_peak_world_model": share("world_model", world_flops),
        "share_of_peak_imagination": share("imagination", dream_flops),
        "compilation_s": round(compilation, 1),
        "ratio": ratios,
        "target": {"peer": against, "ratio": target, "met": ratios[against] >= target},
    }


def measure_imagination(size, rows, rounds):
    """Steps a second of ``rows`` dreams at once, the actor choosing."""
    import jax

    from jaxwm.bench import matrix_peak

    model, batch = build(size, "vectors")
    dream, flops = prepare_dream(model, batch, rows, jax.random.key(0))
    timed(dream)
    times, peaks = [], []
    for _ in range(rounds):
        peaks.append(matrix_peak(0.3))
        times.append(statistics.median(timed(dream) for _ in range(5)))
    taken, gemm = statistics.median(times), statistics.median(peaks)
    official, product, target = IMAGINATION[size]
    ratio = rows * HORIZON / taken / gemm / (official / product)
    return {
        "steps_per_second": round(rows * HORIZON / taken),
        "gemm_gflops": round(gemm, 1),
        "share_of_peak": round(flops / taken / gemm / 1e9, 3),
        "ratio": {"official_jax": round(ratio, 2)},
        "target": {"peer": "official_jax", "ratio": target, "met": None if target is None else ratio >= target},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the cases that begin so")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cases = {name: lambda name=name: measure_update(name, arguments.rounds) for name in CASES}
    for size in IMAGINATION:
        for rows in (256, 1024):
            cases[f"imagination_{size}_{rows}"] = lambda size=size, rows=rows: measure_imagination(
                size, rows, arguments.rounds
            )
    path = HERE / "dreamer.json"
    record = read(path) or {"cases": {}}
    for name, measure in cases.items():
        if name.startswith(arguments.only):
            record["cases"][name] = measure() | {"rounds": arguments.rounds, "date": time.strftime("%Y-%m-%d")}
            record |= {"command": "python experiments/speed/dreamer.py", "machine": machine()}
            write(path, record)
            print(name, json.dumps(record["cases"][name]), flush=True)


if __name__ == "__main__":
    # The allocator reads its settings when a process starts.
    if "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": MEMORY, "JAX_PLATFORMS": "cpu"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    main()
