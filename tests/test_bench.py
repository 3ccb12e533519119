"""Measurements: what is counted, not how fast it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxwm import bench
from jaxwm.config import load_config
from jaxwm.types import ActionSpec, Field, Spec


def test_every_figure_is_measured(toy_config, monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (2, 3))
    monkeypatch.setattr(bench, "PEAK_SIZE", 64)
    lines = []
    result = bench.measure(load_config(toy_config), horizon=4, seconds=0.01, log=lines.append)
    names = [m.name for m in result.measurements]
    assert names == [
        "imagine, batch 2, horizon 4",
        "imagine, batch 3, horizon 4",
        "update (train), batch 4 x 6",
        "input, batch 4 x 6",
    ]
    for rows, m in zip((2, 3), result.measurements, strict=False):
        assert m.rate == pytest.approx(rows * 4 / (m.milliseconds / 1e3))
        assert m.unit == "steps/s" and m.peak_share is None, "the toy multiplies no matrices"
    assert result.peak > 0 and result.title == "toy, 1 parameters" and len(lines) == 4
    assert result.measurements[3].note.startswith("no episodes in")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    assert "updates/s" in console.export_text()


def test_the_first_call_is_not_counted(monkeypatch):
    now = [0.0]
    durations = iter([100.0, 1.0, 2.0, 9.0, 3.0, 3.0, 3.0])

    def call():
        now[0] += next(durations)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    assert bench.median_seconds(call, seconds=12.5) == 2.5, "the median of 1, 2, 9, 3"


def test_random_batches_fit_their_spec():
    spec = Spec((Field("image", (8, 8, 3), "uint8"), Field("v", (2,), "float32")), ActionSpec(3, discrete=True))
    batch = bench.random_batch(spec, 2, 3)
    spec.check_trajectory(batch)
    assert (batch.action.sum(-1) == 1).all()


def test_products_are_counted_as_often_as_they_run():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 4))

    def flops(function, *arguments):
        return bench.product_flops(jax.jit(function).trace(*arguments).jaxpr)

    once = 2 * 3 * 4 * 4
    assert flops(jnp.dot, x, w) == once
    assert flops(lambda x: jnp.tanh(x) + 1.0, x) == 0
    loop = lambda x, w: jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.dot)(x, w), None), x, length=5)[0]  # noqa: E731
    assert flops(loop, x, w) == 5 * once
    loss = lambda x, w: jnp.sum(jnp.square(loop(x, w)))  # noqa: E731
    # Forward once, and a product for each of the two gradients; what the checkpoint repeats is not needed by either.
    assert flops(jax.grad(loss, argnums=(0, 1)), x, w) == 3 * 5 * once
    batched = jnp.ones((7, 3, 4))
    assert flops(jax.vmap(jnp.dot, in_axes=(0, None)), batched, w) == 7 * once
    either = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)  # noqa: E731
    assert flops(either, x, w) == 2 * once, "the dearer branch"


def test_convolutions_are_counted_without_the_zeros_between_inputs():
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((5, 5, 3, 4))
    layout = ("NHWC", "HWIO", "NHWC")

    def down(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=layout)

    forward = 2 * (2 * 4 * 4 * 4) * (5 * 5 * 3)
    assert bench.product_flops(jax.jit(down).trace(image, kernel).jaxpr) == forward
    backward = jax.jit(jax.grad(lambda image: jnp.sum(down(image, kernel)))).trace(image).jaxpr
    # Both passes are traced, and every multiplication of the one has its counterpart in the other.
    assert bench.product_flops(backward) == 2 * forward
