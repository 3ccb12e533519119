"""Real environments: episodes recorded in them."""

from jaxwm.envs.gymnasium import Recorder
from jaxwm.envs.policies import EnvError, Policy, load_policy, random_policy

__all__ = ["EnvError", "Policy", "Recorder", "load_policy", "random_policy"]
