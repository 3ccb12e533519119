"""Runs that several experiments train when they need them, and what is to be said of them beside figures."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxwm

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


class Runs:
    """The runs in ``folder``, trained to their end when they are asked for, and on where they were stopped.

    Args:
      folder: for the runs and their data, outside the work tree.
      table: by name the configuration, the folder of its data and overrides.
    """

    def __init__(self, folder: pathlib.Path, table: Mapping[str, tuple[str, str, Sequence[str]]]) -> None:
        self.folder, self.table = folder, table
        self.facts: dict[str, dict[str, Any]] = {}

    def config(self, name: str, *overrides: str) -> jaxwm.Config:
        """The configuration of the run ``name``."""
        file, episodes, usual = self.table[name]
        return jaxwm.load_config(CONFIGS / file, [f"data.path={self.folder / episodes}", *usual, *overrides])

    def __call__(self, name: str, *overrides: str, title: str | None = None) -> jaxwm.Run:
        """The run ``name``; ``title`` names its folder where ``overrides`` make it another one."""
        title = title or name
        run = jaxwm.train(self.config(name, *overrides), self.folder / title)
        lines = [json.loads(line) for line in (self.folder / title / "metrics.jsonl").read_text().splitlines()]
        timed = [(line["step"], line["train/steps_per_second"]) for line in lines if "train/steps_per_second" in line]
        steps, speeds = np.diff([0, *(step for step, _ in timed)]), np.array([speed for _, speed in timed])
        # Stretches in which the machine was kept from it count as the others do.
        speeds = np.where(speeds < np.median(speeds) / 2, np.median(speeds), speeds)
        self.facts[title] = {
            "configuration": self.table[name][0],
            "overrides": [*self.table[name][2], *overrides],
            "steps": run.step,
            "parameters": sum(x.size for x in jax.tree.leaves(run.variables["params"])),
            "seconds_in_updates": round(float(np.sum(steps / speeds))),
        }
        return run
