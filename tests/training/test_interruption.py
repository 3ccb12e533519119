"""Processes that are stopped or killed in the middle, and go on as if nothing had happened."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny_model import assert_same, saved_arrays, tiny_config

from jaxwm.training import Interrupted, read_metrics, train
from jaxwm.training.interruption import Interruption

HERE = pathlib.Path(__file__).parent


def begin(*arguments, **more_environment):
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths), **more_environment}
    command = [sys.executable, str(HERE / "train_tiny.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_at(process, run_dir, step, number, saved=()):
    """Sends a signal once ``step`` is logged and the steps ``saved`` are saved; returns what the process printed."""
    deadline = time.monotonic() + 600
    metrics = run_dir / "metrics.jsonl"
    folders = [run_dir / "checkpoints" / str(number) for number in saved]
    while not (
        metrics.exists()
        and len(metrics.read_text().splitlines()) >= step
        and all(folder.exists() for folder in folders)
    ):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=600)


def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(tiny_data, whole_run, tmp_path):
    run_dir = tmp_path / "run"
    process = begin(tiny_data, run_dir, 0.1, "training.checkpoint_every=1000")
    _, errors = stop_at(process, run_dir, 7, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    (step,) = [int(folder.name) for folder in (run_dir / "checkpoints").iterdir()]
    assert 7 <= step < 20
    train(tiny_config(tiny_data), run_dir, progress=False)
    assert_same(saved_arrays(run_dir, 20), saved_arrays(whole_run[0], 20))


def test_kill_loses_no_more_than_the_steps_since_the_checkpoint(tiny_data, whole_run, tmp_path, compiled_once):
    run_dir = tmp_path / "run"
    process = begin(tiny_data, run_dir, 0.2, JAX_COMPILATION_CACHE_DIR=compiled_once)
    stop_at(process, run_dir, 8, signal.SIGKILL, saved=[5])
    assert process.returncode == -signal.SIGKILL
    train(tiny_config(tiny_data), run_dir, progress=False)
    assert_same(saved_arrays(run_dir, 20), saved_arrays(whole_run[0], 20))
    assert [line["step"] for line in read_metrics(run_dir)] == list(range(1, 21))


def test_signal_is_noted_once_and_the_second_one_acts():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore it
    try:
        _interrupt_twice()
    finally:
        signal.signal(signal.SIGINT, inherited)


def _interrupt_twice():
    previous = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert interruption.requested(0) is None
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested(1) == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


def test_other_threads_may_train():
    entered = []

    def enter():
        with Interruption() as interruption:
            entered.append(interruption.requested(0))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]


def test_interrupted_ends_a_program_quietly(tmp_path):
    error = Interrupted(signal.SIGINT, 12, tmp_path)
    assert isinstance(error, SystemExit)
    assert (error.code, error.step) == (130, 12)
    assert str(error) == f"stopped by SIGINT; step 12 is saved in {tmp_path}, the same command goes on"
