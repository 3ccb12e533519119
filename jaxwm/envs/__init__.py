"""Environments, N in step: Gymnasium's, Atari, dm_control, simulated worlds, dreams; episodes recorded in them."""

from jaxwm.envs.base import CompiledEnvironments, Environments, Step
from jaxwm.envs.dream import DreamEnvironments, load_dream, starts_of
from jaxwm.envs.gymnasium import GymnasiumEnvironments
from jaxwm.envs.policies import EnvError, Policy, load_policy, random_policy
from jaxwm.envs.recorder import Recorder
from jaxwm.envs.stepped import SteppedEnvironments
from jaxwm.envs.worlds import WorldEnvironments

__all__ = [
    "CompiledEnvironments",
    "DreamEnvironments",
    "EnvError",
    "Environments",
    "GymnasiumEnvironments",
    "Policy",
    "Recorder",
    "Step",
    "SteppedEnvironments",
    "WorldEnvironments",
    "load_dream",
    "load_policy",
    "random_policy",
    "starts_of",
]
