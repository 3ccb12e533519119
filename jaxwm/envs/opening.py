"""From a configuration to the environments that an agent lives in."""

from __future__ import annotations

from jaxwm.config import CollectConfig, build_world
from jaxwm.envs.base import Environments
from jaxwm.envs.gymnasium import GymnasiumEnvironments
from jaxwm.envs.worlds import WorldEnvironments
from jaxwm.types import Spec


def open_environments(settings: CollectConfig, count: int) -> WorldEnvironments | Environments:
    """``count`` environments that ``settings`` describe: simulated in JAX, or stepped from Python (close these).

    Raises:
      ConfigError, EnvError: parameters that do not fit, or an environment that cannot be made.
    """
    if settings.world is not None and settings.length is not None:
        return WorldEnvironments(build_world(settings.world), settings.length)
    assert settings.environment is not None  # the configuration has checked that there is one of the two
    return GymnasiumEnvironments(
        settings.environment,
        count,
        observe=settings.observe,
        size=settings.size,
        repeat=settings.repeat,
        max_length=settings.length,
    )


def environment_spec(settings: CollectConfig) -> Spec:
    """What the environments of ``settings`` show and take.

    Raises:
      ConfigError, EnvError: as `open_environments`.
    """
    environments = open_environments(settings, 1)
    try:
        return environments.spec
    finally:
        if not isinstance(environments, WorldEnvironments):
            environments.close()
