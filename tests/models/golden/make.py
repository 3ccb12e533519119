"""Makes `listings.npz`: what the PyTorch listings of the seed document answer, with weights given by a formula.

    python tests/models/golden/make.py SEED_DOCUMENT

The weights are not stored: `weights` makes the same ones for the test from their names and shapes.
"""

import pathlib
import re
import sys
import zlib

import numpy as np


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Float32 weights of a sensible scale that depend on name and shape alone."""

    def make(name: str, shape: tuple[int, ...]) -> np.ndarray:
        count, fan_in = int(np.prod(shape)), max(1, int(np.prod(shape[1:])))
        with np.errstate(over="ignore"):  # an integer hash (splitmix64): the same bits on every machine
            bits = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
                zlib.crc32(name.encode())
            )
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        uniform = (bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0
        return (uniform * np.sqrt(3.0 / fan_in)).astype(np.float32).reshape(shape)

    return {name: make(name, tuple(shape)) for name, shape in shapes.items()}


def inputs() -> dict[str, np.ndarray]:
    """A batch of two: frames as bytes, actions, rewards, an embedding and a state."""
    y, x = np.mgrid[0:64, 0:64]
    frames = np.stack([
        np.stack([np.stack([(x * (1 + c) + y * (2 + t) + 37 * b) % 256 for c in range(3)], -1) for t in range(2)])
        for b in range(2)
    ])  # fmt: skip

    def wave(*shape: int) -> np.ndarray:
        return weights({f"input {shape}": (*shape, 1)})[f"input {shape}"][..., 0]

    return {
        "frames": frames.astype(np.uint8),
        "action": wave(2, 4),
        "actions": wave(2, 5, 4),
        "reward": np.array([0.5, -1.0], np.float32),
        "embed": wave(2, 256),
        "deter": np.tanh(wave(3, 256)[:2]),
        "stoch": wave(3, 32)[:2],
    }


def main(document: str) -> None:
    import torch

    text = pathlib.Path(document).read_text()
    listings = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]
    scope: dict = {"__name__": "listings"}
    for listing in listings:
        exec(listing, scope)

    def load(module: torch.nn.Module) -> torch.nn.Module:
        made = weights({name: tuple(value.shape) for name, value in module.state_dict().items()})
        module.load_state_dict({name: torch.from_numpy(value) for name, value in made.items()})
        return module

    given = {name: torch.from_numpy(value) for name, value in inputs().items()}
    images = given["frames"].permute(0, 1, 4, 2, 3).float() / 255.0
    golden: dict[str, np.ndarray] = {}

    simple = load(scope["SimpleWorldModel"](action_dim=4, latent_dim=128))
    with torch.no_grad():
        outputs = simple(images[:, 0] - 0.5, given["action"])
        imagined = simple.imagine(images[:, 0] - 0.5, given["actions"])
    golden["latent"], golden["next_latent"] = outputs["current_latent"].numpy(), outputs["next_latent"].numpy()
    golden["predicted_reward"] = outputs["reward"].numpy()[:, 0]
    golden["imagined"] = imagined[:, :, :, 3::8, 5::8].permute(0, 1, 3, 4, 2).numpy()
    trainer = scope["WorldModelTrainer"](simple)
    losses = trainer.train_step(images[:, 0] - 0.5, given["action"], images[:, 1], given["reward"])
    golden["loss"], golden["reconstruction_loss"] = np.float32(losses["loss"]), np.float32(losses["recon_loss"])
    golden["parameters"] = np.int64(sum(p.numel() for p in simple.parameters()))

    rssm = load(scope["RSSM"](action_dim=4, embed_dim=256))
    torch.randn_like = torch.zeros_like  # the mean path: noise is compared by its distribution, not by its draw
    state = {"deter": given["deter"], "stoch": given["stoch"]}
    with torch.no_grad():
        prior = rssm.prior(state, given["action"])
        posterior = rssm.posterior(state, given["action"], given["embed"])
        trajectory = rssm.imagine_trajectory(state, given["actions"], 5)
        golden["kl"] = scope["compute_kl_loss"](prior, posterior).numpy()
    for name, values in (("prior", prior), ("posterior", posterior)):
        golden |= {f"{name}_{part}": values[part].numpy() for part in ("deter", "mean", "std")}
    golden["trajectory_deter"] = torch.stack([s["deter"] for s in trajectory], 1).numpy()[:, :, ::8]
    golden["trajectory_stoch"] = torch.stack([s["stoch"] for s in trajectory], 1).numpy()
    np.savez_compressed(pathlib.Path(__file__).parent / "listings.npz", **golden)


if __name__ == "__main__":
    main(sys.argv[1])
