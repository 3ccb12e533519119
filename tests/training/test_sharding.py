import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_model import synthetic_batch, tiny_config

from jaxwm.training import load_run, make_mesh, put_batch, read_metrics, train
from jaxwm.training.sharding import check_batch

HERE = pathlib.Path(__file__).parent

TOLERANCE = 1e-5
"""Relative, of losses over 20 steps: sums over the batch are taken in another order."""


@pytest.fixture(scope="session")
def eight(tiny_data, half_run, tmp_path_factory):
    """Folders of runs on eight devices: a whole one, and one that went on from a run on one device."""
    path = tmp_path_factory.mktemp("eight")
    shutil.copytree(half_run, path / "resumed")
    code = (
        "import sys, jax; from tiny_model import tiny_config; from jaxwm.training import train;"
        "assert jax.device_count() == 8;"
        "[train(tiny_config(sys.argv[1]), folder, progress=False) for folder in sys.argv[2:]]"
    )
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    folders = [str(path / "whole"), str(path / "resumed")]
    subprocess.run([sys.executable, "-c", code, str(tiny_data), *folders], env=environment, check=True, timeout=900)
    return path


def losses(run_dir):
    return [line["train/loss"] for line in read_metrics(run_dir) if "train/loss" in line]


def test_losses_on_eight_devices_equal_those_on_one(whole_run, eight):
    assert len(losses(eight / "whole")) == 20
    np.testing.assert_allclose(losses(eight / "whole"), losses(whole_run[0]), rtol=TOLERANCE)


def test_a_run_on_one_device_goes_on_on_eight(whole_run, eight):
    np.testing.assert_allclose(losses(eight / "resumed"), losses(whole_run[0]), rtol=TOLERANCE)


def test_a_run_on_eight_devices_goes_on_on_one(tiny_data, whole_run, eight, tmp_path):
    opened = load_run(eight / "whole")
    for ours, theirs in zip(jax.tree.leaves(opened.variables), jax.tree.leaves(whole_run[1].variables), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    shutil.copytree(eight / "whole", tmp_path / "run")
    assert train(tiny_config(tiny_data, "stages.joint.steps=22"), tmp_path / "run", progress=False).step == 22
    assert len(losses(tmp_path / "run")) == 22


def test_put_batch_drops_what_no_loss_takes():
    batch = synthetic_batch()
    assert batch.info
    placed = put_batch(make_mesh(), batch)
    assert placed.info == {}
    np.testing.assert_array_equal(placed.observation["vector"], batch.observation["vector"])


def test_rows_that_do_not_divide():
    mesh = make_mesh()
    check_batch(3, mesh)
    with pytest.raises(ValueError, match=r"data.batch is 3, expected a multiple of the 2 devices"):
        check_batch(3, type("Mesh", (), {"size": 2})())
