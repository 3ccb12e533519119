"""From a configuration to the environments that an agent lives in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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
        settings.environment, count, observe=settings.observe, size=settings.size, repeat=settings.repeat,
        max_length=settings.length, options=settings.options,
    )  # fmt: skip


@contextlib.contextmanager
def opened(settings: CollectConfig, count: int) -> Iterator[WorldEnvironments | Environments]:
    """`open_environments`, closed at the end."""
    environments = open_environments(settings, count)
    try:
        yield environments
    finally:
        if not isinstance(environments, WorldEnvironments):
            environments.close()


def environment_spec(settings: CollectConfig) -> Spec:
    """What the environments of ``settings`` show and take.

    Raises:
      ConfigError, EnvError: as `open_environments`.
    """
    with opened(settings, 1) as environments:
        return environments.spec
