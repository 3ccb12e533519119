"""Pictures of what a run dreams after it has seen the first frames of episodes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import jaxwm


def dream(
    run: jaxwm.Run,
    batch: jaxwm.Trajectory,
    context: int,
    *,
    actions: jax.Array | None = None,
    condition: dict[str, Any] | None = None,
    temperature: float = 1.0,
    guidance: float | None = None,
    seed: int = 0,
) -> dict[str, jax.Array]:
    """Pictures ``[B, T - context, H, W, 3]`` in 0..1, by name, of what follows on ``context`` frames.

    Args:
      run: the model.
      batch: episodes ``[B, T, ...]``.
      context: frames that are seen, and told nothing.
      actions: ``[B, T - context, A]`` from the last seen frame on; by default those of the episodes.
      condition: ``[B, T - context, ...]`` what the imagined frames are told.
      temperature: of the dream; 0 for the mode.
      guidance: of a model that knows it.
      seed: of its noise.
    """
    seen_key, key = jax.random.split(jax.random.key(seed))
    first = batch.replace(info={}, condition={}).cut(0, context)
    state = jaxwm.observe_sequence(run.model, run.variables, seen_key, first, temperature=temperature).final_state
    told = {"temperature": jnp.full(len(batch.reward), temperature), **(condition or {})}
    if guidance is not None:
        told["guidance"] = jnp.full(len(batch.reward), guidance)
    actions = batch.action[:, context - 1 : -1] if actions is None else actions
    dreamt = jaxwm.imagine(run.model, run.variables, key, state, actions, decode=True, condition=told)
    assert dreamt.prediction is not None
    return {name: x[:, 1:] for name, x in dreamt.prediction.observation.items()}
