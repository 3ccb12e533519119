"""How fast a model is on this machine, as ratios to what the machine can do: matrix products of 2048 x 2048.

All figures are medians over repetitions after one that is not counted; compilation is timed apart. The peak is
measured anew between the others, so that a machine that changes its clock does not change the ratios.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxwm import data
from jaxwm.config import Config, build_model
from jaxwm.imagination import rollout
from jaxwm.training.sharding import make_mesh, put_batch, replicated
from jaxwm.training.stages import plan_phases
from jaxwm.training.update import init_state, make_update
from jaxwm.types import Array, PyTree, Spec, Trajectory, Variables, WorldModel, example_batch

if TYPE_CHECKING:
    from rich.table import Table

PEAK_SIZE = 2048
BATCHES = (1, 16, 256)
"""Rows of the rollouts that are measured."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
      name: what was measured.
      rate: in ``unit``, the median.
      unit: of the rate.
      milliseconds: of one call, the median.
      peak_share: of a device's matrix-product peak, from the operations of its products and convolutions; None where
        there are none.
      note: compile time and the like.
    """

    name: str
    rate: float
    unit: str
    milliseconds: float
    peak_share: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """All figures of a model; ``peak`` is in GFLOP/s of one device."""

    title: str
    peak: float
    measurements: tuple[Measurement, ...]

    def table(self) -> Table:
        """The figures as a rich table."""
        from rich.table import Table

        device = jax.devices()[0]
        caption = (
            f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores; {self.peak:.0f} GFLOP/s a "
            f"device in matrix products of {PEAK_SIZE}. Medians; compilation is not counted."
        )
        table = Table(title=self.title, caption=caption, caption_justify="left", title_justify="left")
        for name in ("what", "rate", "ms a call", "of peak", "note"):
            table.add_column(name, justify="left" if name in ("what", "note") else "right")
        for m in self.measurements:
            share = "-" if m.peak_share is None else f"{m.peak_share:.0%}"
            table.add_row(m.name, f"{_count(m.rate)} {m.unit}", f"{m.milliseconds:.3g}", share, m.note)
        return table


def measure(
    config: Config, horizon: int = 15, seconds: float = 2.0, log: Callable[[str], Any] | None = None
) -> Benchmark:
    """Measures the model of ``config``, freshly initialised, and its input pipeline where its episodes are there.

    Args:
      config: of a run.
      horizon: of the rollouts.
      seconds: for each measurement.
      log: gets a line before each of them.

    Raises:
      ConfigError, DataError: a configuration that cannot be built.
    """
    say = log or (lambda line: None)
    spec = data.load_spec(config)
    model = build_model(config.model, spec)
    batch = random_batch(spec, config.data.batch, config.data.length)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    peaks = [matrix_peak(seconds / 2)]
    found = []
    for rows in BATCHES:
        say(f"imagination, batch {rows}")
        found.append(_imagination(model, variables, rows, horizon, seconds, peaks))
        peaks.append(matrix_peak(seconds / 4))
    say("training step")
    training = _training(config, model, batch, seconds, peaks)
    found.append(training)
    say("input pipeline")
    found.append(_pipeline(config, seconds, training))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    title = f"{config.model.family}, {parameters:,} parameters"
    return Benchmark(title, statistics.median(peaks), tuple(found))


def matrix_peak(seconds: float = 1.0) -> float:
    """GFLOP/s of float32 products of `PEAK_SIZE` squared on one device, at JAX's default precision."""
    x = jnp.ones((PEAK_SIZE, PEAK_SIZE), jnp.float32)
    product = jax.jit(jnp.dot)
    return 2 * PEAK_SIZE**3 / median_seconds(lambda: product(x, x), seconds) / 1e9


def median_seconds(call: Callable[[], Any], seconds: float) -> float:
    """The median time of ``call`` over about ``seconds``, at least three calls, after one that is not counted."""
    jax.block_until_ready(call())
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def random_batch(spec: Spec, batch: int, length: int) -> Trajectory:
    """A trajectory of the shapes of ``spec`` with random frames and actions: speed can depend on zeros."""
    random = np.random.default_rng(0)
    blank = example_batch(spec, batch, length)
    observation = {
        field.name: random.integers(0, 256, (batch, length, *field.shape), dtype=np.uint8)
        if field.is_image
        else random.normal(size=(batch, length, *field.shape)).astype(np.float32)
        for field in spec.observation
    }
    action = random.uniform(-1, 1, (batch, length, spec.action.dim)).astype(np.float32)
    if spec.action.discrete:
        action = np.eye(spec.action.dim, dtype=np.float32)[action.argmax(-1)]
    return dataclasses.replace(blank, observation=observation, action=jnp.asarray(action))


def _imagination(
    model: WorldModel, variables: Variables, rows: int, horizon: int, seconds: float, peaks: list[float]
) -> Measurement:
    """Steps of all rows in a second, without decoding, on one device."""
    keys = jax.random.split(jax.random.key(1), rows)
    actions = random_batch(model.spec, rows, horizon).action
    state = jax.jit(model.init_state, static_argnums=0)(rows)

    def dream(variables: Variables, keys: Array, state: PyTree, actions: Array) -> Array:
        return rollout(model, None, horizon, False, False, variables, keys, state, actions, None, None, None).features

    traced = jax.jit(dream).trace(variables, keys, state, actions)
    begin = time.perf_counter()
    compiled = traced.lower().compile()
    note = f"compiled in {time.perf_counter() - begin:.1f} s"
    taken = median_seconds(lambda: compiled(variables, keys, state, actions), seconds)
    share = _share(traced.jaxpr, taken, peaks)
    name = f"imagine, batch {rows}, horizon {horizon}"
    return Measurement(name, rows * horizon / taken, "steps/s", taken * 1e3, share, note)


def _training(config: Config, model: WorldModel, batch: Trajectory, seconds: float, peaks: list[float]) -> Measurement:
    """Updates of the first stage in a second, on all devices."""
    mesh = make_mesh()
    phase = plan_phases(model, config)[0]
    key = jax.device_put(jax.random.key(0), replicated(mesh))
    state = init_state(model, phase.stage, phase.optimizer(), key, batch, ema=config.training.ema, mesh=mesh)
    on_devices = put_batch(mesh, batch)
    update = make_update(model, phase.stage, phase.optimizer(), config.training.ema, mesh)
    traced = update.trace(state, key, on_devices)
    begin = time.perf_counter()
    compiled = traced.lower().compile()
    note = f"compiled in {time.perf_counter() - begin:.1f} s"
    states = [state]

    def step() -> Any:
        states[0], metrics = compiled(states[0], key, on_devices)
        return metrics

    taken = median_seconds(step, seconds)
    name = f"update ({phase.stage.name}), batch {config.data.batch} x {config.data.length}"
    return Measurement(name, 1 / taken, "updates/s", taken * 1e3, _share(traced.jaxpr, taken, peaks), note)


def _pipeline(config: Config, seconds: float, training: Measurement) -> Measurement:
    """Batches that the input pipeline delivers in a second, from the episodes on disk."""
    name = f"input, batch {config.data.batch} x {config.data.length}"
    if not os.path.isdir(config.data.path):
        return Measurement(name, 0.0, "batches/s", 0.0, None, f"no episodes in {config.data.path}")
    settings = config.data
    windows = data.windows(
        data.open_data(settings, "train", info=False),
        batch=settings.batch, length=settings.length, seed=0, threads=settings.threads, prefetch=settings.prefetch,
    )  # fmt: skip
    with contextlib.closing(windows):  # type: ignore[type-var]
        # What was prefetched comes at once: let it run out before the clock starts.
        for _ in range(2 * settings.prefetch):
            next(windows)
        count, begin = 0, time.perf_counter()
        while count < 10 or time.perf_counter() - begin < seconds:
            next(windows)
            count += 1
        taken = (time.perf_counter() - begin) / count
    return Measurement(
        name, 1 / taken, "batches/s", taken * 1e3, None, f"{1 / taken / training.rate:.3g} x the updates"
    )


def product_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Operations in the matrix products and convolutions of a traced function, two for each multiply-add.

    Loops of known length count as often as they run (XLA's own cost analysis may count their body once), the body of a
    ``while`` once, and of the branches of a ``cond`` the dearest. What else is computed is not counted: the figure is
    what a share of the matrix-product peak is to be taken from.

    Args:
      jaxpr: such as ``jax.jit(function).trace(*arguments).jaxpr``; inside ``shard_map`` shapes are of one device.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation_flops(equation) for equation in inner.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    params = equation.params
    shape_of = lambda variable: cast("jax.core.ShapedArray", variable.aval).shape  # noqa: E731
    if equation.primitive.name == "dot_general":
        left, (contracted, _) = shape_of(equation.invars[0]), params["dimension_numbers"][0]
        return 2 * math.prod(shape_of(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel, layout = shape_of(equation.invars[1]), params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[axis] for axis in layout[1:])
        # The zeros that are put between the inputs of a transposed convolution are no work.
        return 2 * math.prod(shape_of(equation.outvars[0])) * taps // math.prod(params["lhs_dilation"])
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr))
    parts = [product_flops(leaf) for leaf in leaves if isinstance(leaf, Jaxpr | ClosedJaxpr)]
    if equation.primitive.name == "cond":
        return max(parts, default=0)
    return sum(parts) * (params["length"] if equation.primitive.name == "scan" else 1)


def _share(jaxpr: ClosedJaxpr, seconds: float, peaks: list[float]) -> float | None:
    """Of the peak, for a call that took ``seconds``."""
    flops = product_flops(jaxpr)
    return flops / seconds / 1e9 / statistics.median(peaks) if flops else None


def _count(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e3 else f"{value:.3g}"
