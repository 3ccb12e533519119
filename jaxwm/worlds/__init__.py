"""Exact simulators in pure JAX, with ground truth and a renderer: what a world model's dream is measured by."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxwm.types import nearest
from jaxwm.worlds.base import Policy, Transition, World, random_policy, rollout
from jaxwm.worlds.bounce import Bounce, BounceState, hold_centre
from jaxwm.worlds.dodge import Dodge, DodgeState, step_aside
from jaxwm.worlds.drive import Drive, DriveState, keep_lane
from jaxwm.worlds.reach import Reach, ReachState, push_to_goal
from jaxwm.worlds.rooms import Rooms, RoomsState, rush, walk_to_goal
from jaxwm.worlds.scene import Scene, SceneState, look_around, stand_still
from jaxwm.worlds.several import Several, SeveralState

__all__ = [
    "POLICIES",
    "WORLDS",
    "Bounce",
    "BounceState",
    "Dodge",
    "DodgeState",
    "Drive",
    "DriveState",
    "Policy",
    "Reach",
    "ReachState",
    "Rooms",
    "RoomsState",
    "Scene",
    "SceneState",
    "Several",
    "SeveralState",
    "Transition",
    "World",
    "hold_centre",
    "keep_lane",
    "look_around",
    "make_policy",
    "make_world",
    "push_to_goal",
    "random_policy",
    "rollout",
    "rush",
    "stand_still",
    "step_aside",
    "walk_to_goal",
]

WORLDS: dict[str, type] = {
    "bounce": Bounce,
    "dodge": Dodge,
    "drive": Drive,
    "reach": Reach,
    "rooms": Rooms,
    "scene": Scene,
    "several": Several,
}
"""Every world by name."""

POLICIES: dict[str, dict[str, Policy]] = {
    "bounce": {"random": random_policy, "hold_centre": hold_centre},
    "dodge": {"random": random_policy, "step_aside": step_aside},
    "drive": {"random": random_policy, "keep_lane": keep_lane},
    "reach": {"random": random_policy, "push_to_goal": push_to_goal},
    "rooms": {"random": random_policy, "walk_to_goal": walk_to_goal, "rush": rush},
    "scene": {"random": random_policy, "look_around": look_around, "stand_still": stand_still},
    "several": {"random": random_policy},
}
"""The policies to record each world with, by the name of the world and of the policy."""


def make_world(name: str, **parameters: Any) -> World:
    """The world called ``name`` with ``parameters``, for example ``make_world("bounce", balls=3)``.

    Raises:
      ValueError: there is no such world or parameter (the nearest known name is given), or a value is wrong.
    """
    world = _find("world", name, WORLDS)
    known = [field.name for field in dataclasses.fields(world)]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"{name}.{parameter} is no parameter of this world; {nearest(parameter, known)}")
    made: World = world(**parameters)
    return made


def make_policy(world: str, name: str) -> Policy:
    """The policy called ``name`` for the world called ``world``, to give to `rollout`.

    Raises:
      ValueError: there is no such world or policy; the nearest known name is given.
    """
    policy: Policy = _find(f"policy of {world}", name, _find("world", world, POLICIES))
    return policy


def _find(what: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}; {nearest(name, list(known))}")
    return known[name]
