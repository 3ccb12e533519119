"""The mesh of devices, and where each array of training lies on it.

The mesh has two axes. ``data`` splits the batch. ``fsdp`` is there so that parameters can be split as well; its
size is 1, hence parameters and optimiser state are whole on every device. Whoever raises it changes `state_sharding`
and nothing else: all other code asks the functions here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxwm.types import PyTree, Trajectory

AXES = ("data", "fsdp")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh ``(data, fsdp)`` over ``devices`` (all devices of all processes unless given)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices), 1), AXES, (AxisType.Auto, AxisType.Auto), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: PyTree) -> PyTree:
    """For each array of ``state`` (variables, optimiser state, averages; or their shapes) where it lies."""
    return jax.tree.map(lambda _: replicated(mesh), state)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """``tree``, of which every process holds the same copy, laid out as ``shardings`` (one for all or a tree)."""
    return jax.jit(lambda tree: tree, out_shardings=shardings)(tree)


def put_batch(mesh: Mesh, batch: Trajectory) -> Trajectory:
    """The global batch from this process's rows ``[B / processes, ...]``, without ``info``: no loss takes that."""
    sharding = batch_sharding(mesh)
    place = lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows))  # noqa: E731
    return jax.tree.map(place, dataclasses.replace(batch, info={}))


def check_batch(batch: int, mesh: Mesh) -> None:
    """Raises ValueError unless ``batch`` rows can be split evenly over the devices."""
    if batch % mesh.size:
        raise ValueError(f"data.batch is {batch}, expected a multiple of the {mesh.size} devices")
