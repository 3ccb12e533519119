"""An agent that is killed while it learns, without a warning, and goes on as if nothing had happened."""

import os
import pathlib
import signal
import subprocess
import sys

import chex
import orbax.checkpoint as ocp

import jaxwm
from jaxwm.agents.online import train_agent
from jaxwm.training import read_metrics

TINY = "configs/dreamer_tiny.yaml"
DIES_AT_TWENTY = """
import os, pathlib, signal, sys, time
import jaxwm
from jaxwm.agents.online import train_agent
from jaxwm.training.checkpoints import Checkpoints

save, run_dir = Checkpoints.save, pathlib.Path(sys.argv[2])

def save_or_die(self, state, progress, *rest):
    if progress.step < 20:
        return save(self, state, progress, *rest)
    while not (run_dir / "checkpoints" / "10").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_or_die
train_agent(jaxwm.load_config(sys.argv[1]), run_dir, progress=False)
"""


def everything(run_dir: pathlib.Path, step: int) -> list:
    """All parts of a checkpoint."""
    folder = run_dir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as reader:
        return [reader.restore((folder / part).resolve()) for part in ("params", "targets", "optimizer", "experience")]


def test_a_killed_agent_goes_on_bit_for_bit(tmp_path, compiled_once):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled_once}
    command = [sys.executable, "-c", DIES_AT_TWENTY, TINY, str(killed)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [folder.name for folder in (killed / "checkpoints").iterdir() if folder.name.isdigit()] == ["10"]
    assert max(line["step"] for line in read_metrics(killed)) == 20, "it had come further than what was saved"

    for path in (killed, whole):
        train_agent(jaxwm.load_config(TINY), path, progress=False)
    chex.assert_trees_all_equal(everything(killed, 20), everything(whole, 20))
    steps = [[line["step"] for line in read_metrics(path)] for path in (killed, whole)]
    assert steps[0] == steps[1], "a line of what was done twice is there once"
