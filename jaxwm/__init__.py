"""World models in JAX: predict, simulate, plan and understand, every paradigm behind one contract.

    >>> run = jaxwm.load_run("runs/demo")
    >>> dream = jaxwm.imagine(run.model, run.variables, key, state, actions, decode=True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxwm.config import Config, ConfigError, build_model, build_world, load_config
from jaxwm.imagination import Dream, Observed, counterfactuals, imagine, imagine_pmap, observe_sequence
from jaxwm.models import register
from jaxwm.types import (
    ActionSpec,
    Aux,
    Field,
    Prediction,
    Spec,
    Stage,
    Trajectory,
    WorldModel,
    example_batch,
)

if TYPE_CHECKING:
    from jaxwm.data import load_spec
    from jaxwm.training import load_run, train

__version__ = "0.1.0"

__all__ = [
    "ActionSpec",
    "Aux",
    "Config",
    "ConfigError",
    "Dream",
    "Field",
    "Observed",
    "Prediction",
    "Spec",
    "Stage",
    "Trajectory",
    "WorldModel",
    "build_model",
    "build_world",
    "counterfactuals",
    "example_batch",
    "imagine",
    "imagine_pmap",
    "load_config",
    "load_run",
    "load_spec",
    "observe_sequence",
    "register",
    "train",
]

# These bring in libraries that take seconds to import, so they wait until someone asks for them.
_LAZY = {"load_run": "jaxwm.training", "train": "jaxwm.training", "load_spec": "jaxwm.data"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxwm' has no attribute {name!r}")
