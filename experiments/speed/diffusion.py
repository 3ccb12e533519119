"""Time of a frame of the diffusion simulator, with its cache and without; writes `diffusion.json` beside itself.

    python experiments/speed/diffusion.py [--rounds 7]

Denoisers of 4.4M and 4.5M parameters make frames of 64x64 in view of the 15 before, from 16 patches each, as in
`configs/diffusion_breakout.yaml`, or from 64. With the cache a frame costs the steps of the sampler and one pass that
takes it in; without, `DiffusionModel.sample` makes it as the end of a clip, and every step goes through all 16 frames
again.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp

import jaxwm
from experiments.record import head, write
from jaxwm.bench import matrix_peak, product_flops
from jaxwm.models.diffusion import DiffusionModel
from jaxwm.models.tokenizer import Tokenizer

HERE = pathlib.Path(__file__).parent
SPEC = jaxwm.Spec((jaxwm.Field("image", (64, 64, 3), "uint8"),), jaxwm.ActionSpec(4))
MODELS = {
    16: DiffusionModel(
        SPEC, Tokenizer(kind="kl", patch=16, width=128, channels=32), width=240, blocks=4, window=15, factorised=False
    ),
    64: DiffusionModel(SPEC, Tokenizer(kind="kl", patch=8, channels=16), width=208, blocks=4, window=15),
}
"""By patches of a frame."""
FRAMES = 16
"""In a dream that is timed; times are those of one."""
DIAMOND = 0.121 * 143.0
"""Seconds a frame of one row (3 steps of Euler, 4.4M parameters, compiled) times GFLOP/s of a product, at least."""
TARGET = 4.0


def dreams(model, variables, rows, position):
    """A call that dreams `FRAMES` frames from frame ``position`` on, with pictures, and its products in GFLOP."""
    state = model.init_state(rows)
    cache = state.cache.replace(
        position=jnp.full(rows, position), count=jnp.full(rows, min(position, model.window), jnp.int32)
    )
    state = state.replace(known=jnp.ones(rows, bool), cache=cache)
    actions = jax.nn.one_hot(jnp.zeros((rows, FRAMES), jnp.int32), 4)

    def run(variables, state, actions):
        return jaxwm.imagine(model, variables, jax.random.key(0), state, actions, decode=True).prediction.observation

    return jax.jit(run), (variables, state, actions)


def without_cache(model, variables, rows):
    """A call that makes one frame from the 15 before it as the end of a clip, all of which goes through each step."""
    clip = jaxwm.example_batch(SPEC, rows, model.window + 1)
    known = {"image": jnp.ones(clip.reward.shape).at[:, -1].set(0.0), "action": jnp.ones(clip.reward.shape)}

    def run(variables, clip):
        return model.sample(variables, jax.random.key(0), clip, known).observation

    return jax.jit(run), (variables, clip)


def cases_of(model, variables):
    """By name: a call, its inputs, how many frames it makes one after the other, and how many at once."""
    cases, short = {}, dataclasses.replace(model, steps=3)
    for given, rows in ((short, 1), (model, 1), (short, 8)):
        cases[f"cache, {given.steps} steps, {rows} rows"] = (*dreams(given, variables, rows, 10), FRAMES, rows)
    late = dreams(model, variables, 1, 1000)[1]
    cases["frame 1000, 4 steps, 1 rows"] = (cases["cache, 4 steps, 1 rows"][0], late, FRAMES, 1)
    cases["no cache, 4 steps, 1 rows"] = (*without_cache(model, variables, 1), 1, 1)
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    cases, parameters = {}, {}
    for patches, model in MODELS.items():
        variables = jax.jit(model.init)(jax.random.key(0), jaxwm.example_batch(SPEC, 1, 2))
        parameters[f"{patches} patches"] = sum(x.size for x in jax.tree.leaves(variables["params"]["denoiser"]))
        for name, case in cases_of(model, variables).items():
            cases[f"{patches} patches, {name}"] = case
    times, peaks = {name: [] for name in cases}, []
    for turn in range(rounds + 1):
        peaks.append(matrix_peak(0.5))
        for name, (call, inputs, frames, _) in cases.items():
            begin = time.perf_counter()
            jax.block_until_ready(call(*inputs))
            if turn:
                times[name].append((time.perf_counter() - begin) / frames)
    peak = statistics.median(peaks)
    record = head("python experiments/speed/diffusion.py", rounds=rounds, gemm_gflops=round(peak, 1))
    record["parameters"] = parameters
    for name, (call, inputs, frames, rows) in cases.items():
        seconds = statistics.median(times[name])
        flops = product_flops(call.trace(*inputs).jaxpr) / 1e9 / frames
        record[name] = {"seconds_a_frame": round(seconds, 5), "frames_a_second": round(rows / seconds, 1)}
        record[name] |= {"range": [round(t, 5) for t in (min(times[name]), max(times[name]))]}
        record[name]["share_of_peak"] = round(flops / seconds / peak, 3)
        record[name]["compilations"] = call._cache_size()
    for patches, steps in itertools.product(MODELS, (3, 4)):
        case = record[f"{patches} patches, cache, {steps} steps, 1 rows"]
        case["faster_than_diamond"] = round(DIAMOND / (case["seconds_a_frame"] * peak), 2)
    record["target"] = {"ratio": TARGET}
    write(HERE / "diffusion.json", record)
    print(record)


if __name__ == "__main__":
    main()
