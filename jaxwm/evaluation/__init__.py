"""How good a world model is: open-loop prediction against simple baselines, and what it looks like.

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ClipError": "clips",
    "OpenLoop": "video",
    "PlanningScores": "control",
    "Probes": "probes",
    "Scores": "scores",
    "ProbeCallback": "callbacks",
    "VideoCallback": "callbacks",
    "contact_sheet": "clips",
    "evaluate": "video",
    "evaluate_planning": "control",
    "evaluate_run": "runs",
    "film": "clips",
    "mean_observation": "video",
    "open_loop": "video",
    "plan_run": "planners",
    "probe_run": "probes",
    "run_report": "run_page",
    "score": "video",
    "side_by_side": "clips",
    "wilson_interval": "control",
    "write_image": "clips",
    "write_report": "report",
    "write_video": "clips",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxwm.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
