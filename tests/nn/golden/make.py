"""Computes the golden values of tests/nn with PyTorch.

`python tests/nn/golden/make.py` writes the .npz files beside it. The tests read them and need no PyTorch. All
values come from `torch.nn` and `torch.distributions` (in float64 where there are no weights), stored as float32.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import distributions, nn

FOLDER = Path(__file__).parent


def save(name: str, **arrays: torch.Tensor) -> None:
    values = {key: value.detach().numpy().astype(np.float32) for key, value in arrays.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", **values)


def gru() -> None:
    cell = nn.GRUCell(5, 7)
    inputs, hidden = torch.randn(3, 5), torch.randn(3, 7)
    save("gru", inputs=inputs, hidden=hidden, result=cell(inputs, hidden), **dict(cell.named_parameters()))


def convolutions() -> None:
    for name, layer, size in (
        ("conv", nn.Conv2d(3, 5, 4, stride=2, padding=1, bias=False), (2, 3, 8, 12)),
        ("conv_transpose", nn.ConvTranspose2d(5, 3, 4, stride=2, padding=1, bias=False), (2, 5, 4, 6)),
    ):
        image = torch.randn(size, requires_grad=True)
        result = layer(image)
        cotangent = torch.randn_like(result)
        (result * cotangent).sum().backward()
        save(
            name, image=image, weight=layer.weight, result=result, cotangent=cotangent,
            image_gradient=image.grad, weight_gradient=layer.weight.grad,
        )  # fmt: skip


def autoencoder() -> None:
    """Layers of the "stride" coders at a small size: 16x16 images, 2, 4 and 8 channels, 6 latent units."""
    channels, latent = (3, 2, 4, 8), 6
    down, up = [], []
    for fine, coarse in itertools.pairwise(channels):
        down += [nn.Conv2d(fine, coarse, 4, stride=2, padding=1), nn.ReLU()]
    for fine, coarse in reversed(list(itertools.pairwise(channels))):
        up += [nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1), nn.ReLU()]
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(8 * 2 * 2, latent))
    decoder = nn.Sequential(nn.Linear(latent, 8 * 2 * 2), nn.ReLU(), nn.Unflatten(1, (8, 2, 2)), *up[:-1])
    image = torch.randn(2, 3, 16, 16)
    code = encoder(image)
    parameters = {f"encoder.{k}": v for k, v in encoder.named_parameters()}
    parameters |= {f"decoder.{k}": v for k, v in decoder.named_parameters()}
    save("autoencoder", image=image, latent=code, decoded=decoder(code), **parameters)


def probabilities() -> None:
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    event = lambda base: distributions.Independent(base, 1)  # noqa: E731
    means, stds, x = draw(2, 3, 4), draw(2, 3, 4).exp(), draw(3, 4)
    p, q = (event(distributions.Normal(m, s)) for m, s in zip(means, stds, strict=True))
    save(
        "normal", means=means, stds=stds, x=x, log_prob=p.log_prob(x), entropy=p.entropy(),
        kl=distributions.kl_divergence(p, q),
    )  # fmt: skip

    logits = 3 * draw(2, 3, 4, 5)
    mixed = 0.99 * torch.softmax(logits, -1) + 0.01 / 5
    p, q = (event(distributions.OneHotCategorical(probs=probs)) for probs in mixed)
    x = nn.functional.one_hot(torch.randint(5, (3, 4)), 5).double()
    save(
        "one_hot", logits=logits, x=x, log_prob=p.log_prob(x), entropy=p.entropy(),
        kl=distributions.kl_divergence(p, q),
    )  # fmt: skip

    logits, x = 4 * draw(2, 6), torch.randint(2, (6,)).double()
    p, q = (distributions.Bernoulli(logits=rows) for rows in logits)
    save(
        "bernoulli", logits=logits, x=x, mean=p.mean, log_prob=p.log_prob(x), entropy=p.entropy(),
        kl=distributions.kl_divergence(p, q),
    )  # fmt: skip


if __name__ == "__main__":
    torch.manual_seed(0)
    gru()
    convolutions()
    autoencoder()
    probabilities()
