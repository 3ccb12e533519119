"""Agents that learn in a model's imagination: an actor-critic (`dreamer`) and evolution (`evolution`)."""

from jaxwm.agents.dreamer import Dreamer, DreamerAgent

__all__ = ["Dreamer", "DreamerAgent"]
