"""World models in JAX: predict, simulate, plan and understand, every paradigm behind one contract.

>>> run = jaxwm.load_run("runs/demo")
>>> dream = jaxwm.imagine(run.model, run.variables, key, state, actions, decode=True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxwm.config import Config, ConfigError, build_model, build_world, load_config
    from jaxwm.data import load_spec
    from jaxwm.imagination import Dream, Observed, counterfactuals, imagine, imagine_pmap, observe_sequence
    from jaxwm.models import register
    from jaxwm.planning import PlanningAgent, plan
    from jaxwm.training import Run, load_run, train
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

__version__ = "0.1.0"

# Names are imported when they are first used, so that `jaxwm --help` and the lightest scripts do not wait for all.
_HOMES = {
    "jaxwm.config": ("Config", "ConfigError", "build_model", "build_world", "load_config"),
    "jaxwm.data": ("load_spec",),
    "jaxwm.imagination": ("Dream", "Observed", "counterfactuals", "imagine", "imagine_pmap", "observe_sequence"),
    "jaxwm.models": ("register",),
    "jaxwm.planning": ("PlanningAgent", "plan"),
    "jaxwm.training": ("Run", "load_run", "train"),
    "jaxwm.types": (
        "ActionSpec",
        "Aux",
        "Field",
        "Prediction",
        "Spec",
        "Stage",
        "Trajectory",
        "WorldModel",
        "example_batch",
    ),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ActionSpec",
    "Aux",
    "Config",
    "ConfigError",
    "Dream",
    "Field",
    "Observed",
    "PlanningAgent",
    "Prediction",
    "Run",
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
    "plan",
    "register",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'jaxwm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
