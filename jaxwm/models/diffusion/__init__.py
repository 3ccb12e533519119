"""World models that make the next frame out of noise."""

from jaxwm.models.diffusion.model import DiffusionModel, DiffusionState
from jaxwm.models.diffusion.objectives import EDM, AnyObjective, Flow, Forcing, Objective, Shortcut, mix
from jaxwm.models.diffusion.samplers import sample

__all__ = [
    "EDM",
    "AnyObjective",
    "DiffusionModel",
    "DiffusionState",
    "Flow",
    "Forcing",
    "Objective",
    "Shortcut",
    "mix",
    "sample",
]
