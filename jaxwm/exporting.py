"""A compiled rollout as a file: saved without its Python, loaded and called where jaxwm is not installed.

The file is what `jax.export` serialises (StableHLO), with the variables inside; any process with jax can run it:

    >>> dream = jax.export.deserialize(bytearray(open("dream.jaxwm", "rb").read())).call
    >>> arrays = dream(key_data, frames, actions)
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jaxwm.imagination import imagine, row_keys
from jaxwm.types import Array, Variables, WorldModel


def export_imagination(
    model: WorldModel,
    variables: Variables,
    path: str | pathlib.Path,
    *,
    horizon: int,
    batch: int | None = None,
    platforms: Sequence[str] | None = None,
) -> pathlib.Path:
    """Saves the rollout "one frame and actions in, what follows out" as one file.

    The exported function takes ``key_data`` uint32 ``[2]`` (of `jax.random.key_data`), the observation, a dict
    of ``[B, ...]``, and ``actions`` ``[B, horizon, A]``; it returns a dict with ``features`` ``[B, horizon+1, F]``,
    ``observation/NAME`` ``[B, horizon+1, ...]`` and, where the model has them, ``reward`` and ``continuation``.

    Args:
      model: the world model.
      variables: its variables, which become constants of the file.
      path: the file to write.
      horizon: T.
      batch: B; None leaves it open, so that one file serves every batch size.
      platforms: what the file shall run on, of ``cpu``, ``cuda``, ``rocm``, ``tpu``; by default this process's.

    Raises:
      ValueError: ``horizon`` or ``batch`` below 1.
    """
    if horizon < 1 or (batch is not None and batch < 1):
        raise ValueError(f"horizon is {horizon} and batch {batch}, expected at least 1")
    rows = batch if batch is not None else export.symbolic_shape("B")[0]

    def dream(key_data: Array, observation: dict[str, Array], actions: Array) -> dict[str, Array]:
        count = actions.shape[0]
        key = jax.random.wrap_key_data(key_data)
        state = model.observe(
            variables, row_keys(key, count), model.init_state(count), jnp.zeros((count, model.spec.action.dim)),
            observation, jnp.ones(count, bool),
        )  # fmt: skip
        result = imagine(model, variables, key, state, actions, decode=True)
        assert result.prediction is not None
        outputs = {f"observation/{name}": value for name, value in result.prediction.observation.items()}
        heads = {"reward": result.prediction.reward, "continuation": result.prediction.continuation}
        outputs |= {name: value for name, value in heads.items() if value is not None}
        return {"features": result.features, **outputs}

    observation = {f.name: jax.ShapeDtypeStruct((rows, *f.shape), f.dtype) for f in model.spec.observation}
    actions = jax.ShapeDtypeStruct((rows, horizon, model.spec.action.dim), jnp.float32)
    exported = export.export(jax.jit(dream), platforms=platforms)(
        jax.ShapeDtypeStruct((2,), jnp.uint32), observation, actions
    )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(exported.serialize())
    return path


def load_exported(path: str | pathlib.Path) -> Callable[..., dict[str, Any]]:
    """The function that `export_imagination` saved, ready to be called (and jitted).

    Raises:
      ValueError: the file is missing or not an exported rollout.
    """
    path = pathlib.Path(path)
    try:
        data = bytearray(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot read this exported rollout ({error.strerror})") from None
    try:
        return export.deserialize(data).call
    except Exception as error:  # the parser of the format raises errors of many kinds
        raise ValueError(f"{path}: not an exported rollout ({type(error).__name__})") from None
