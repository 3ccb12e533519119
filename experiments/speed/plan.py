"""Time of a plan in the space of a representation, against stable-worldmodel; writes `plan.json` beside itself.

    python experiments/speed/plan.py [--peer PYTHON] [--rounds 5]

A plan is the cross-entropy method with 300 candidates, 30 iterations and a horizon of 5, for one environment, from a
latent to a latent. PYTHON is an interpreter with the package stable-worldmodel; both sides are timed in turn.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import types

from run import MEMORY

HERE = pathlib.Path(__file__).parent
SAMPLES, ITERATIONS, ELITES, HORIZON, ACTIONS = 300, 30, 30, 5, 10
LEWM = dict(latent=192, history=2, blocks=6, heads=16, head_size=64, hidden=2048)
"""The predictor of LeWorldModel: two frames before the last one, six blocks steered by the actions, 10.8M numbers."""
ROOMS = dict(latent=32, hidden=256)
"""What plans in `rooms`."""
TARGET = 2.0


def jaxwm_side(size):
    """A call that plans, the parameters of the dynamics, and the operations of the products of a plan."""
    import jax
    import jax.numpy as jnp

    import jaxwm
    from jaxwm.bench import product_flops
    from jaxwm.models.jepa import JEPA
    from jaxwm.planning import CEM, Goal, GoalDistance, plan

    spec = jaxwm.Spec(
        (jaxwm.Field("image", (64, 64, 3), "uint8"),),
        jaxwm.ActionSpec(ACTIONS, low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS),
    )
    model = JEPA(spec, **size)
    variables = jax.jit(model.init)(jax.random.key(0), jaxwm.example_batch(spec, 1, 2))
    parts = ("trunk", "steering", "next_latent", "hidden")
    parameters = sum(x.size for name in parts for x in jax.tree.leaves(variables["params"].get(name, ())))
    start, goal = jax.random.normal(jax.random.key(1), (2, 1, model.latent))
    state = model.init_state(1).replace(latent=start, known=jnp.ones(1, bool))
    solver = CEM(HORIZON, samples=SAMPLES, elites=ELITES, iterations=ITERATIONS)
    objective = GoalDistance("features", over="last")

    def solve(variables, key, state, goal):
        return plan(model, variables, key, state, objective, solver, goal=Goal(goal, {}))[0].actions

    traced = jax.jit(solve).trace(variables, jax.random.key(2), state, goal)
    begin = time.perf_counter()
    compiled = traced.lower().compile()
    taken = time.perf_counter() - begin
    facts = {"parameters": parameters, "gflop": product_flops(traced.jaxpr) / 1e9, "compilation_s": round(taken, 1)}
    return lambda: jax.block_until_ready(compiled(variables, jax.random.key(3), state, goal)), facts


def peer_side():
    """The same with the package's own classes, as they are; the latents are given, so that no encoder runs."""
    import torch

    torch.set_num_threads(2)
    # Only the files that plan: the packages around them import data formats, environments and torchvision.
    root = pathlib.Path(importlib.util.find_spec("stable_worldmodel").origin).parent
    for name in ("", "wm", "wm/lewm", "solver"):
        package = types.ModuleType(".".join(["stable_worldmodel", *filter(None, name.split("/"))]))
        package.__path__ = [str(root / name)]
        sys.modules[package.__name__] = package
    import gymnasium
    from stable_worldmodel.solver.cem import CEMSolver
    from stable_worldmodel.wm.lewm.lewm import LeWM
    from stable_worldmodel.wm.lewm.module import Embedder, Predictor

    width = LEWM["latent"]
    predictor = Predictor(
        num_frames=LEWM["history"] + 1, depth=LEWM["blocks"], heads=LEWM["heads"], mlp_dim=LEWM["hidden"],
        input_dim=width, hidden_dim=width, dim_head=LEWM["head_size"],
    )  # fmt: skip
    model = LeWM(torch.nn.Identity(), predictor, Embedder(ACTIONS, ACTIONS, width)).eval()
    solver = CEMSolver(model, num_samples=SAMPLES, n_steps=ITERATIONS, topk=ELITES)
    space = gymnasium.spaces.Box(-1.0, 1.0, (1, ACTIONS))
    solver.configure(action_space=space, n_envs=1, config=types.SimpleNamespace(horizon=HORIZON, action_block=1))
    shapes = {"pixels": (1, 1, 3, 8, 8), "goal": (1, 1), "emb": (1, 1, width), "goal_emb": (1, 1, width)}
    info = {name: torch.randn(shape) for name, shape in shapes.items()}
    facts = {"parameters": sum(x.numel() for x in predictor.parameters()), "torch": torch.__version__}
    return lambda: solver.solve(dict(info)), facts


def serve(side):
    """Prepares a side, then times a call for each line that comes in."""
    call, facts = {"lewm": lambda: jaxwm_side(LEWM), "rooms": lambda: jaxwm_side(ROOMS), "peer": peer_side}[side]()
    # The package logs to standard output: the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call()
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        call()
        print(json.dumps(time.perf_counter() - begin), file=answers, flush=True)


class Side:
    """A process that times plans on request."""

    def __init__(self, python, side):
        environment = {**os.environ, "GLIBC_TUNABLES": MEMORY, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "2"}
        command = [python, str(HERE / "plan.py"), "--serve", side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.facts = self._read()

    def measure(self):
        """Seconds of a plan."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="an interpreter with stable-worldmodel; without it only this library is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=["lewm", "rooms", "peer"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    from experiments.record import head, write
    from jaxwm.bench import matrix_peak

    sides = {"lewm": Side(sys.executable, "lewm"), "rooms": Side(sys.executable, "rooms")}
    if arguments.peer:
        sides["peer"] = Side(arguments.peer, "peer")
    times, peaks = {name: [] for name in sides}, []
    for _ in range(arguments.rounds):
        peaks.append(matrix_peak(0.5))
        for name, side in sides.items():
            times[name].append(side.measure())
    gemm = statistics.median(peaks)
    plan = {"samples": SAMPLES, "iterations": ITERATIONS, "horizon": HORIZON, "environments": 1}
    record = head("python experiments/speed/plan.py --peer PYTHON", plan=plan)
    record |= {"rounds": arguments.rounds, "gemm_gflops": round(gemm, 1)}
    for name, side in sides.items():
        seconds = statistics.median(times[name])
        record[name] = side.facts | {"seconds": round(seconds, 4), "range": [min(times[name]), max(times[name])]}
        if "gflop" in side.facts:
            record[name]["share_of_peak"] = round(side.facts["gflop"] / seconds / gemm, 3)
    if arguments.peer:
        ratios = sorted(theirs / ours for ours, theirs in zip(times["lewm"], times["peer"], strict=True))
        ratio = statistics.median(ratios)
        record["ratio"] = {"median": round(ratio, 2), "range": [round(ratios[0], 2), round(ratios[-1], 2)]}
        record["target"] = {"ratio": TARGET, "met": ratio >= TARGET}
    write(HERE / "plan.json", record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
