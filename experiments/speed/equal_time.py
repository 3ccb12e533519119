"""What the simple world model learns in equal training time, against the seed's PyTorch listing.

    python experiments/speed/equal_time.py --document SEED_DOCUMENT [--seconds 300] [--batch 64]

Both learn the next frame of `bounce` at 64x64 from the same transitions, in turns of a few seconds each, so that
whatever else the machine does slows both; preparing batches, compilation and scoring are not in the time. After each
turn both are scored on held-out transitions (PSNR of the mean squared error). Adds what it measured to
`equal_time.json` beside itself. Needs the extra ``peers`` (PyTorch).
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from listings import read_listings

import jaxwm
from experiments.record import head, read, write
from jaxwm.training import init_state, make_optimizer, make_update
from jaxwm.types import Trajectory
from jaxwm.worlds import rollout

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "simple_bounce.yaml"
TRAIN, TEST, LENGTH = 400, 32, 64
"""Episodes and their frames."""


def simulate(world, episodes: int, seed: int) -> Trajectory:
    """Episodes ``[N, LENGTH, ...]`` in memory."""
    record = jax.jit(jax.vmap(functools.partial(rollout, world, length=LENGTH)))
    parts = np.array_split(np.arange(episodes), -(-episodes // 16))
    key = jax.random.key(seed)
    clips = [jax.device_get(record(jax.vmap(functools.partial(jax.random.fold_in, key))(part))) for part in parts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *clips).replace(info={})


def transitions(clips: Trajectory, episode: np.ndarray, step: np.ndarray) -> Trajectory:
    """Windows of two frames, ``[B, 2, ...]``."""
    cut = lambda x: np.stack([x[episode, step], x[episode, step + 1]], axis=1)  # noqa: E731
    previous = clips.action[episode, np.maximum(step - 1, 0)] * (step > 0)[:, None]
    return jax.tree.map(cut, clips.replace(previous_action=clips.action)).replace(previous_action=previous)


class Library:
    """This library's model and update as `CONFIG` says."""

    def __init__(self, config: jaxwm.Config, spec: jaxwm.Spec, first: Trajectory):
        stage = config.stages["train"]
        self.model = jaxwm.build_model(config.model, spec)
        optimizer = make_optimizer(stage.optimizer, stage.steps)
        self.state = init_state(self.model, self.model.stages[0], optimizer, jax.random.key(config.seed), first)
        self.update = make_update(self.model, self.model.stages[0], optimizer)
        self.key = jax.random.key(1)
        self._predict = jax.jit(self._next_frame)

    def step(self, batch: Trajectory) -> Callable[[], None]:
        """One update, to be timed."""

        def run() -> None:
            self.state, metrics = self.update(self.state, self.key, batch)
            jax.block_until_ready(metrics)

        return run

    def _next_frame(self, variables, frames, action):
        latent = self.model.predict_next(variables, self.model.encode(variables, {"image": frames}), action)
        return self.model.decode(variables, latent).observation["image"]

    def predict(self, batch: Trajectory) -> np.ndarray:
        """Next frames ``[B, H, W, 3]`` in 0..1."""
        variables = self.state.variables
        return np.asarray(self._predict(variables, batch.observation["image"][:, 0], batch.action[:, 0]))


class Listing:
    """The listing and its trainer, read out of the document."""

    def __init__(self, document: str, action_dim: int):
        listings = read_listings(document)
        self.model = listings["SimpleWorldModel"](action_dim=action_dim)
        self.trainer = listings["WorldModelTrainer"](self.model)

    @staticmethod
    def _frames(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()

    def step(self, batch: Trajectory) -> Callable[[], None]:
        """One update, to be timed."""
        image = batch.observation["image"]
        now, after = self._frames(image[:, 0]), self._frames(image[:, 1])
        action, reward = torch.from_numpy(batch.action[:, 0]), torch.from_numpy(batch.reward[:, 0])
        return lambda: self.trainer.train_step(now, action, after, reward)

    def predict(self, batch: Trajectory) -> np.ndarray:
        """Next frames ``[B, H, W, 3]`` in 0..1."""
        with torch.no_grad():
            outputs = self.model(self._frames(batch.observation["image"][:, 0]), torch.from_numpy(batch.action[:, 0]))
        return outputs["next_obs"].permute(0, 2, 3, 1).numpy()


def psnr(predicted: np.ndarray, batch: Trajectory) -> float:
    """Of the mean squared error over all pixels of the next frames, dB."""
    return float(-10 * np.log10(np.mean((predicted - batch.observation["image"][:, 1] / 255.0) ** 2)))


def schedule_steps(config: jaxwm.Config, spec: jaxwm.Spec, batch: Trajectory, seconds: float) -> int:
    """How many updates of this library fit into ``seconds``: the length of its learning-rate schedule."""
    call, times = Library(config, spec, batch).step(batch), []
    for _ in range(20):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return int(seconds / np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", required=True, help="the seed document that holds the listings")
    parser.add_argument("--seconds", type=float, default=300, help="training time of each side")
    parser.add_argument("--turn", type=float, default=10, help="seconds until the other side goes on")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    config = jaxwm.load_config(CONFIG)
    world = jaxwm.build_world(config.data.generate.world)
    train, test = simulate(world, TRAIN, seed=0), simulate(world, TEST, seed=1)
    draw = np.random.default_rng(0)

    def batch(clips: Trajectory = train, rows: int = arguments.batch) -> Trajectory:
        return transitions(clips, draw.integers(0, len(clips.reward), rows), draw.integers(0, LENGTH - 1, rows))

    held_out = batch(test, 1024)
    fitting = schedule_steps(config, world.spec, batch(), arguments.seconds)
    config = jaxwm.load_config(CONFIG, [f"stages.train.steps={fitting}"])
    sides = {
        "jaxwm": Library(config, world.spec, batch()),
        "listing": Listing(arguments.document, world.spec.action.dim),
    }
    spent, steps = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0)
    curve: list[dict[str, float]] = []
    turn = 0
    while min(spent.values()) < arguments.seconds:
        turn += 1
        for name, side in sides.items():
            while spent[name] < min(turn * arguments.turn, arguments.seconds):
                call = side.step(batch())
                begin = time.perf_counter()
                call()
                if steps[name]:  # the first call compiles
                    spent[name] += time.perf_counter() - begin
                steps[name] += 1
        scores = {name: round(psnr(side.predict(held_out), held_out), 3) for name, side in sides.items()}
        curve.append({"seconds": round(spent["jaxwm"], 1), **scores})
        print(curve[-1], "steps", steps, flush=True)
    before, after = held_out.observation["image"][:, 0] / 255.0, held_out.observation["image"][:, 1]
    result = head(
        f"python experiments/speed/equal_time.py --seconds {arguments.seconds:g} --batch {arguments.batch}",
        "torch",
        steps=steps,
        copy=psnr(before, held_out),
        mean_frame=psnr(np.broadcast_to(train.observation["image"].mean((0, 1)) / 255.0, after.shape), held_out),
        curve_psnr=curve,
    )
    path = HERE / "equal_time.json"
    write(path, {**read(path), str(arguments.batch): result})


if __name__ == "__main__":
    main()
