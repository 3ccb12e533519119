"""Optimisers as Optax chains: clip, precondition, decay, schedule; and training a part of the parameters only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxwm.config import OptimizerConfig
from jaxwm.types import PyTree, nearest


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The chain that ``config`` describes, for a stage of ``steps`` updates.

    In order: global norm clipping, `adaptive_clip`, preconditioner, decoupled weight decay (of matrices and kernels,
    not of biases and scales), learning rate. LaProp (Ziyin et al. 2020) normalises the gradient by its RMS first and
    takes the momentum of that, both with bias correction: the order of DreamerV3 (Hafner et al. 2023, appendix).

    Raises:
      ValueError: options that exclude each other.
    """
    if config.name == "adam" and config.weight_decay:
        raise ValueError(f"optimizer.weight_decay is {config.weight_decay}, but adam has none: use adamw")
    chain = []
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.agc is not None:
        chain.append(adaptive_clip(config.agc))
    if config.name == "laprop":
        chain.append(optax.scale_by_rms(config.b2, config.epsilon, eps_in_sqrt=False, bias_correction=True))
        chain.append(optax.ema(config.b1, debias=True))
    else:
        chain.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=_is_matrix))
    chain.append(optax.scale_by_learning_rate(make_schedule(config, steps)))
    return optax.chain(*chain)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of update 0, 1, ... of a stage of ``steps``: linear from 0 over ``warmup``, then the schedule.

    Raises:
      ValueError: a falling schedule that has no steps left after the warm-up.
    """
    falling = steps - config.warmup
    if config.schedule != "constant" and falling < 1:
        raise ValueError(
            f"optimizer.warmup is {config.warmup}, expected less than the {steps} steps of the stage, because "
            f"schedule {config.schedule!r} falls after it"
        )
    schedules = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, falling),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, falling),
    }
    schedule = schedules[config.schedule]()
    if not config.warmup:
        return schedule
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup)
    return optax.join_schedules([warmup, schedule], [config.warmup])


def adaptive_clip(clipping: float, minimum: float = 1e-3) -> optax.GradientTransformation:
    """Scales each tensor's gradient to a norm of at most ``clipping * max(minimum, norm of its parameter)``.

    DreamerV3's form of adaptive gradient clipping (Brock et al. 2021, equation 3): norms are of whole tensors, where
    `optax.adaptive_grad_clip` takes those of rows.
    """

    def clip(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        limit = clipping * jnp.maximum(minimum, jnp.linalg.norm(parameter.ravel()))
        return gradient / jnp.maximum(1.0, jnp.linalg.norm(gradient.ravel()) / limit)

    def update(updates: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        if params is None:
            raise ValueError("adaptive_clip needs the parameters: call update(gradients, state, params)")
        return jax.tree.map(clip, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def train_only(optimizer: optax.GradientTransformation, trainable: Sequence[str]) -> optax.GradientTransformation:
    """``optimizer`` for the parameters at or below the paths ``trainable``; the others stay and have no state."""
    transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
    label = lambda trained: "trained" if trained else "frozen"  # noqa: E731
    return optax.partition(transforms, lambda params: jax.tree.map(label, trainable_mask(params, trainable)))


def trainable_mask(params: PyTree, trainable: Sequence[str]) -> PyTree:
    """A tree of bools like ``params``: True at or below one of the paths ``trainable`` ("a/b"; "" is all)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(is_below(parameter_path(path), prefix) for prefix in trainable), params
    )


def check_trainable(params: PyTree, trainable: Sequence[str]) -> None:
    """Raises ValueError, with the nearest known path, if one of the paths ``trainable`` names no parameter."""
    paths = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    known = sorted({"/".join(path.split("/")[:depth]) for path in paths for depth in (1, 2)})
    for prefix in trainable:
        if not any(is_below(path, prefix) for path in paths):
            raise ValueError(f"trainable: no parameter lies at {prefix!r}; {nearest(prefix, known)}")


def parameter_path(path: Sequence[Any]) -> str:
    """A key path of jax.tree_util as ``encoder/layer_0/kernel``."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def is_below(path: str, prefix: str) -> bool:
    """Whether the parameters at ``path`` are among those at or below ``prefix``; "" is above all."""
    return prefix in ("", path) or path.startswith(prefix + "/")


def _is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)
