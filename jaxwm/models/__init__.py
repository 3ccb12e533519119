"""World model families. Adding one: write a frozen dataclass that fulfils `jaxwm.types.WorldModel`, register it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

FAMILIES: dict[str, Any] = {}
"""Every registered family by the name that ``model.family`` gives it."""

Family = TypeVar("Family", bound=type)


def register(name: str) -> Callable[[Family], Family]:
    """Class decorator: makes a family known to configurations as ``name``.

    Raises:
      ValueError: another family has that name.
    """

    def add(family: Family) -> Family:
        known = FAMILIES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (family.__module__, family.__qualname__):
            raise ValueError(f"a family named {name!r} is registered already ({known.__module__})")
        FAMILIES[name] = family
        return family

    return add


from jaxwm.models import byol, diffusion, ensemble, jepa, mdn_rnn, rssm, simple, vjepa  # noqa: E402  (they register themselves with `register`)

__all__ = ["FAMILIES", "byol", "diffusion", "ensemble", "jepa", "mdn_rnn", "register", "rssm", "simple", "vjepa"]
