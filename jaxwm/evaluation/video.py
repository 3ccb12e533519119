"""Open-loop video prediction: show a model some frames, let it imagine the rest, and measure how far off it is.

Frame h of the horizon (h = 1, 2, ...) is h steps after the last frame that the model saw. Three predictors are
scored alike: the ``model``, ``copy`` (the last frame seen, repeated) and ``mean`` (the mean frame of the training
data; where that is not given, of the episode's own context).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxwm.evaluation.scores import Scores
from jaxwm.imagination import imagine, observe_sequence
from jaxwm.types import Array, Arrays, Prediction, Trajectory, Variables, WorldModel

CHANGED_THRESHOLD = 0.05
"""A pixel counts as changed where one of its channels differs by more than this (of 0..1) from the last frame seen."""

SSIM_WINDOW = 11
PREDICTORS = ("model", "copy", "mean")

Estimate = Literal["mode", "sample", "mean"]
Totals = dict[str, dict[str, tuple[Any, Any]]]
"""``{predictor: {metric: (sum [H], weight [H])}}``; adding totals of batches gives the totals of all."""
Extra = Callable[["OpenLoop", Mapping[str, Arrays]], Totals]
"""Further measures of one batch of open-loop predictions, given the observations ``[B, H, ...]`` of each predictor."""


@struct.dataclass
class OpenLoop:
    """What was seen, what was imagined, and what came instead; ``C`` frames of context, then ``H`` of horizon.

    Attributes:
      observation: the truth, ``[B, C+H, ...]`` in raw units (images are uint8), by name.
      prediction: ``[B, C+H, ...]``; in the context what each state decodes to, after it what was imagined.
      reward: the truth of ``prediction.reward``, ``[B, C+H]``.
      continuation: the truth of ``prediction.continuation``, ``[B, C+H]``.
      valid: ``[B, C+H]`` bool; the episode has this frame and every one before it.
      context: C.
      info: physical truth ``[B, C+H, ...]``.
    """

    observation: Arrays
    prediction: Prediction
    reward: Array
    continuation: Array
    valid: Array
    context: int = struct.field(pytree_node=False)
    info: Arrays = struct.field(default_factory=dict)


def open_loop(
    model: WorldModel,
    variables: Variables,
    key: Array,
    trajectory: Trajectory,
    context: int,
    horizon: int,
    temperature: float | Array = 0.0,
) -> OpenLoop:
    """Observes ``context`` frames and imagines ``horizon`` more under the actions that were really done.

    Args:
      model: any world model.
      variables: its variables.
      key: one PRNG key.
      trajectory: ``[B, T, ...]`` with T of at least ``context + horizon``; only these first steps are used.
      context: C, the number of frames seen.
      horizon: H, the number of frames imagined.
      temperature: 0 for the model's mode, 1 for a sample; a scalar or ``[B]``.

    Raises:
      ValueError: a trajectory that is too short or does not fit the model's spec.
    """
    batch, length = np.shape(trajectory.reward)
    if context < 1 or horizon < 1:
        raise ValueError(f"context is {context} and horizon {horizon}, expected at least 1 of each")
    if length < context + horizon:
        raise ValueError(
            f"the trajectory has {length} steps, expected context + horizon = {context} + {horizon} = "
            f"{context + horizon}"
        )
    trajectory = trajectory.cut(0, context + horizon)
    observe_key, imagine_key = jax.random.split(key)
    seen = observe_sequence(
        model, variables, observe_key, trajectory.cut(0, context), decode=True, temperature=temperature
    )
    # Entry t of a rollout's condition steers the step to entry t+1, so it begins with that of the first unseen frame.
    condition = {name: value[:, context:] for name, value in trajectory.condition.items()}
    condition["temperature"] = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), (batch,))
    dream = imagine(
        model,
        variables,
        imagine_key,
        seen.final_state,
        trajectory.action[:, context - 1 : context - 1 + horizon],
        decode=True,
        condition=condition,
    )
    join = lambda seen, imagined: jnp.concatenate([seen, imagined[:, 1:]], axis=1)  # noqa: E731
    reward, _ = trajectory.previous_rewards()
    restarts = trajectory.is_first & (jnp.arange(context + horizon) > 0)
    unbroken = jnp.cumsum(~trajectory.valid | restarts, axis=1) == 0
    return OpenLoop(
        observation=trajectory.observation,
        prediction=jax.tree.map(join, seen.prediction, dream.prediction),
        reward=reward,
        continuation=1.0 - trajectory.is_terminal.astype(jnp.float32),
        valid=unbroken,
        context=context,
        info=trajectory.info,
    )


def totals(rollout: OpenLoop, mean: Arrays | None = None, threshold: float = CHANGED_THRESHOLD) -> Totals:
    """The sums from which `Scores` are made, for one batch; pure, may be called under jit.

    Args:
      rollout: what `open_loop` returned.
      mean: the mean frame or vector of each part of the observation, ``[...]``, and optionally the mean ``reward``
        and ``continuation``; by default those of each episode's context.
      threshold: see `CHANGED_THRESHOLD`.

    Returns:
      For images ``mse`` and ``ssim`` (one unit of weight a frame), ``mse_changed`` and ``ssim_changed`` (one a changed
      pixel); for vectors, rewards and continuations ``mse`` (one a frame), each under ``"name/metric"``.
    """
    valid = rollout.valid[:, rollout.context :].astype(jnp.float32)
    result: Totals = {name: {} for name in PREDICTORS}
    for name, truth in rollout.observation.items():
        predictions = predictions_of(rollout, mean, name)
        is_image = truth.dtype == jnp.uint8
        truth = _to_unit(truth)
        last, truth = truth[:, rollout.context - 1], truth[:, rollout.context :]
        for predictor, prediction in predictions.items():
            if is_image:
                changed = jnp.any(jnp.abs(truth - last[:, None]) > threshold, axis=-1)
                measured = _image_totals(truth, prediction, changed, valid)
            else:
                measured = {"mse": _weighted(jnp.mean(jnp.square(truth - prediction), axis=-1), valid)}
            result[predictor] |= {f"{name}/{metric}": pair for metric, pair in measured.items()}
    for name in ("reward", "continuation"):
        prediction = getattr(rollout.prediction, name)
        if prediction is None:
            continue
        truth = getattr(rollout, name)
        seen, truth = truth[:, : rollout.context], truth[:, rollout.context :]
        own = jnp.mean(seen, axis=1, keepdims=True)
        constant = own if mean is None or name not in mean else jnp.asarray(mean[name])
        guesses = {"model": prediction[:, rollout.context :], "copy": seen[:, -1:], "mean": constant}
        for predictor, guess in guesses.items():
            result[predictor][f"{name}/mse"] = _weighted(jnp.square(truth - guess), valid)
    return result


def predictions_of(rollout: OpenLoop, mean: Arrays | None, name: str) -> dict[str, Array]:
    """What each predictor says of observation ``name``: ``[B, H, ...]`` (images in [0, 1]) by predictor."""
    truth = _to_unit(rollout.observation[name])
    seen, unseen = truth[:, : rollout.context], truth[:, rollout.context :]
    own = jnp.mean(seen, axis=1, keepdims=True)
    constant = own if mean is None or name not in mean else jnp.asarray(mean[name])
    return {
        "model": rollout.prediction.observation[name][:, rollout.context :].astype(jnp.float32),
        "copy": jnp.broadcast_to(seen[:, -1:], unseen.shape),
        "mean": jnp.broadcast_to(constant, unseen.shape),
    }


def score(
    rollout: OpenLoop,
    mean: Arrays | None = None,
    threshold: float = CHANGED_THRESHOLD,
    estimate: Estimate = "mode",
) -> Scores:
    """The scores of one batch; arguments as in `totals`, ``estimate`` is what the prediction was (see `evaluate`)."""
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), _totals(rollout, mean, threshold))
    return Scores.from_totals(
        sums,
        context=rollout.context,
        episodes=int(np.any(rollout.valid[:, rollout.context :], axis=1).sum()),
        estimate=estimate,
        samples=1,
        threshold=threshold,
        mean="context" if mean is None else "training",
    )


def evaluate(
    model: WorldModel,
    variables: Variables,
    batches: Iterable[Trajectory],
    context: int,
    horizon: int,
    *,
    key: Array,
    estimate: Estimate = "mode",
    samples: int = 1,
    mean: Arrays | None = None,
    threshold: float = CHANGED_THRESHOLD,
    extra: Extra | None = None,
) -> Scores:
    """Scores open-loop predictions over a stream of batches; only sums are kept.

    Args:
      model: any world model.
      variables: its variables.
      batches: trajectories ``[B, T, ...]``; T of at least ``context + horizon``. A smaller last batch is padded.
      context: the number of frames seen.
      horizon: the number of frames imagined.
      key: one PRNG key.
      estimate: what is scored: the model's ``mode`` (temperature 0), each of ``samples`` futures for itself
        (``sample``), or their mean picture (``mean``).
      samples: the number of sampled futures for each episode; 1 for the mode.
      mean: the mean frame of the training data, as in `totals`.
      threshold: see `CHANGED_THRESHOLD`.
      extra: further measures of each batch.

    Raises:
      ValueError: no batches, or an impossible estimate.
    """
    if estimate not in ("mode", "sample", "mean"):
        raise ValueError(f"estimate is {estimate!r}, expected mode, sample or mean")
    if samples < 1 or (estimate == "mode" and samples != 1):
        raise ValueError(
            f"samples is {samples}, expected {'1, a mode is one' if estimate == 'mode' else 'at least 1'}"
        )
    sums: Totals = {}
    episodes, size = 0, None
    for index, batch in enumerate(batches):
        count = batch.reward.shape[0]
        size = size or count
        batch = _padded(batch, size)
        keys = jax.random.split(jax.random.fold_in(key, index), samples)
        temperature = 0.0 if estimate == "mode" else 1.0
        futures: Iterator[OpenLoop] = (
            predict(model, variables, k, batch, context, horizon, temperature) for k in keys
        )
        if estimate == "mean":
            futures = iter([_averaged(futures, samples)])
        for rollout in futures:
            parts = _totals(rollout, mean, threshold)
            if extra is not None:
                observed = {name: predictions_of(rollout, mean, name) for name in rollout.observation}
                by_predictor = {p: {name: observed[name][p] for name in observed} for p in PREDICTORS}
                parts = {p: {**parts.get(p, {}), **more} for p, more in _filled(extra(rollout, by_predictor)).items()}
            sums = _added(sums, parts)
            seen = np.any(rollout.valid[:, context:], axis=1).sum()
        episodes += int(seen)
    if not episodes:
        raise ValueError(f"no episode is longer than context = {context} steps: there is nothing to evaluate")
    return Scores.from_totals(
        sums,
        context=context,
        episodes=episodes,
        estimate=estimate,
        samples=samples,
        threshold=threshold,
        mean="context" if mean is None else "training",
    )


def mean_observation(batches: Iterable[Trajectory]) -> dict[str, np.ndarray]:
    """The constant prediction that ``mean`` makes: the mean over all valid steps of each part of the observation.

    Images are in [0, 1]; the means of the ``reward`` and of the ``continuation`` come with them.

    Raises:
      ValueError: no batches.
    """
    sums: dict[str, Any] = {}
    weights: dict[str, float] = {}
    for batch in batches:
        valid = np.asarray(batch.valid)
        reward, known = (np.asarray(x) for x in batch.previous_rewards())
        parts = {name: (np.asarray(_to_unit(value)), valid) for name, value in batch.observation.items()}
        parts["reward"] = (reward, known)
        parts["continuation"] = (1.0 - np.asarray(batch.is_terminal, np.float32), valid)
        for name, (value, mask) in parts.items():
            sums[name] = sums.get(name, 0.0) + value[mask].sum(axis=0, dtype=np.float64)
            weights[name] = weights.get(name, 0.0) + float(mask.sum())
    if not sums:
        raise ValueError("no batches to take the mean of")
    return {name: (total / max(weights[name], 1)).astype(np.float32) for name, total in sums.items()}


def structural_similarity(truth: Array, prediction: Array) -> Array:
    """The SSIM map of images ``[..., H, W, C]`` in [0, 1], averaged over channels: ``[..., H-10, W-10]``.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with their Gaussian
    window of 11 pixels (sigma 1.5) and constants. The window is applied as two matrix products.
    """
    shape = truth.shape
    flat = lambda x: x.reshape(-1, *shape[-3:])  # noqa: E731
    rows, columns = (_window_matrix(size) for size in shape[-3:-1])
    blur = functools.partial(jnp.einsum, "ih,jw,nhwc->nijc", rows, columns, precision=jax.lax.Precision.HIGHEST)
    similarity = dm_pix.ssim(flat(truth), flat(prediction), filter_fn=blur, return_map=True).mean(axis=-1)
    return similarity.reshape(*shape[:-3], *similarity.shape[1:])


def _window_matrix(size: int) -> np.ndarray:
    """``[size-10, size]``: a row of it is the Gaussian window at one place."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / 1.5) ** 2)
    matrix = np.zeros((size - SSIM_WINDOW + 1, size), np.float32)
    for row in range(len(matrix)):
        matrix[row, row : row + SSIM_WINDOW] = window / window.sum()
    return matrix


def _image_totals(truth: Array, prediction: Array, changed: Array, valid: Array) -> dict[str, tuple[Array, Array]]:
    """Sums of one predictor over images ``[B, H, h, w, C]``; ``changed`` is ``[B, H, h, w]``, ``valid`` ``[B, H]``."""
    squared = jnp.mean(jnp.square(truth - prediction), axis=-1)
    weight = changed * valid[..., None, None]
    result = {
        "mse": _weighted(jnp.mean(squared, axis=(-2, -1)), valid),
        "mse_changed": (jnp.sum(squared * weight, axis=(0, -2, -1)), jnp.sum(weight, axis=(0, -2, -1))),
    }
    if min(truth.shape[-3:-1]) >= SSIM_WINDOW:
        similarity = structural_similarity(truth, prediction)
        # The map has a value for each window that lies within the picture; a window belongs to its centre.
        edge = SSIM_WINDOW // 2
        weight = weight[..., edge:-edge, edge:-edge]
        result["ssim"] = _weighted(jnp.mean(similarity, axis=(-2, -1)), valid)
        result["ssim_changed"] = (jnp.sum(similarity * weight, axis=(0, -2, -1)), jnp.sum(weight, axis=(0, -2, -1)))
    return result


def _weighted(values: Array, weight: Array) -> tuple[Array, Array]:
    """The sum over the batch of ``values`` ``[B, H]``, NaN-safe where the weight is zero, and of the weights."""
    return jnp.sum(jnp.where(weight > 0, values, 0.0) * weight, axis=0), jnp.sum(weight, axis=0)


predict = jax.jit(open_loop, static_argnums=(0, 4, 5))
"""`open_loop`, compiled once for each model, shape, context and horizon."""
_totals = jax.jit(totals)


def _averaged(rollouts: Iterable[OpenLoop], samples: int) -> OpenLoop:
    """The rollout whose prediction is the mean of those of ``rollouts``."""
    result: OpenLoop | None = None
    for rollout in rollouts:
        share = jax.tree.map(lambda x: x / samples, rollout.prediction)
        result = (
            dataclasses.replace(rollout, prediction=share)
            if result is None
            else dataclasses.replace(result, prediction=jax.tree.map(jnp.add, result.prediction, share))
        )
    assert result is not None
    return result


def _padded(trajectory: Trajectory, size: int) -> Trajectory:
    """``trajectory`` with copies of its last row, marked invalid, up to ``size`` rows: one shape, one compilation."""
    count = trajectory.reward.shape[0]
    if count == size:
        return trajectory
    rows = np.minimum(np.arange(size), count - 1)
    padded = jax.tree.map(lambda x: np.asarray(x)[rows], trajectory)
    return dataclasses.replace(padded, valid=padded.valid & (np.arange(size) < count)[:, None])


def _filled(parts: Totals) -> Totals:
    return {predictor: parts.get(predictor, {}) for predictor in PREDICTORS}


def _added(sums: Totals, parts: Totals) -> Totals:
    parts = jax.tree.map(lambda x: np.asarray(x, np.float64), parts)
    return jax.tree.map(np.add, sums, parts) if sums else parts


def _to_unit(values: Array) -> Array:
    """Bytes as [0, 1]; vectors as they are."""
    values = jnp.asarray(values)
    return values.astype(jnp.float32) / 255 if values.dtype == jnp.uint8 else values.astype(jnp.float32)
