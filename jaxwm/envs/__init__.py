"""Environments: Gymnasium's, Atari, dm_control and simulated worlds, N in step; episodes recorded in them."""

from jaxwm.envs.base import Environments, Step
from jaxwm.envs.gymnasium import GymnasiumEnvironments
from jaxwm.envs.policies import EnvError, Policy, load_policy, random_policy
from jaxwm.envs.recorder import Recorder

__all__ = [
    "EnvError",
    "Environments",
    "GymnasiumEnvironments",
    "Policy",
    "Recorder",
    "Step",
    "load_policy",
    "random_policy",
]
