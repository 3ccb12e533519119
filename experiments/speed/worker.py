"""One side of a comparison: prepares a case once, then times it each time that a line comes in on stdin.

Started by `run.py`, a process for each framework, so that neither's threads or memory get in the other's way.
Prints one JSON object a line: first ``{"ready": ...}``, then ``{"seconds": ...}`` for each measurement.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

HORIZON = 15
IMAGE = 64
SEED_DOCUMENT = "../shared/seed"


def torch_case(case: str, batch: int, document: str) -> Callable[[], None]:
    """The seed's listings, read out of ``document``."""
    import torch
    from listings import read_listings

    listings = read_listings(document)
    if case == "matmul":
        matrix = torch.randn(2048, 2048)
        return lambda: matrix @ matrix
    actions = torch.randn(batch, HORIZON, 4)
    if case == "rssm_imagine":
        rssm = listings["RSSM"]()
        state = rssm.initial_state(batch, "cpu")

        def imagine() -> None:
            with torch.no_grad():
                rssm.imagine_trajectory(state, actions, HORIZON)

        return imagine
    model = listings["SimpleWorldModel"]()
    frames = torch.rand(batch, 3, IMAGE, IMAGE)
    if case == "simple_imagine":

        def dream() -> None:
            with torch.no_grad():
                model.imagine(frames, actions)

        return dream
    trainer = listings["WorldModelTrainer"](model)
    return lambda: trainer.train_step(frames, actions[:, 0], frames, torch.zeros(batch))


def jax_case(case: str, batch: int) -> Callable[[], None]:
    """The same work in this library."""
    import jax
    import jax.numpy as jnp

    import jaxwm
    from jaxwm.testing import moving_clips, random_actions
    from jaxwm.training import init_state, make_optimizer, make_update

    if case == "matmul":
        matrix = jax.random.normal(jax.random.key(0), (2048, 2048))
        product = jax.jit(jnp.matmul)
        return lambda: jax.block_until_ready(product(matrix, matrix))
    spec = jaxwm.Spec((jaxwm.Field("image", (IMAGE, IMAGE, 3), "uint8"),), jaxwm.ActionSpec(4))
    key = jax.random.key(0)
    actions = random_actions(spec, batch, HORIZON)
    if case == "rssm_imagine":
        model = jaxwm.build_model(jaxwm.load_config("configs/rssm_seed.yaml").model, spec)
        variables = jax.jit(model.init)(key, jaxwm.example_batch(spec, 1, 2))
        state = model.init_state(batch)
        return lambda: jax.block_until_ready(jaxwm.imagine(model, variables, key, state, actions))
    config = jaxwm.load_config(f"configs/simple_{'seed' if case.endswith('_exact') else 'bounce'}.yaml")
    model = jaxwm.build_model(config.model, spec)
    clips = moving_clips(spec, batch, 2)
    if case.startswith("simple_imagine"):
        variables = jax.jit(model.init)(key, clips)
        frames = {"image": clips.observation["image"][:, 0]}
        state = model.encode(variables, frames)
        return lambda: jax.block_until_ready(jaxwm.imagine(model, variables, key, state, actions, decode=True))
    optimizer = make_optimizer(config.stages["train"].optimizer, config.stages["train"].steps)
    train_state = init_state(model, model.stages[0], optimizer, key, clips)
    update = make_update(model, model.stages[0], optimizer)

    def step() -> None:
        nonlocal train_state
        train_state, metrics = update(train_state, key, clips)
        jax.block_until_ready(metrics)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=["jax", "torch"])
    parser.add_argument("case")
    parser.add_argument("batch", type=int)
    parser.add_argument("--document", help="the seed document with the listings (for torch)")
    arguments = parser.parse_args()
    if arguments.framework == "torch":
        call = torch_case(arguments.case.removesuffix("_exact"), arguments.batch, arguments.document)
    else:
        call = jax_case(arguments.case, arguments.batch)
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    for _ in range(2):
        call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    calls = max(1, round(0.5 / once))
    print(json.dumps({"ready": True, "first_call": first, "calls": calls}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        print(json.dumps({"seconds": (time.perf_counter() - start) / calls}), flush=True)


if __name__ == "__main__":
    main()
