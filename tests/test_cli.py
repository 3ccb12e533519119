"""The command line, through its own `main`, typer's runner and a few real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from jaxwm import cli
from jaxwm.evaluation.scores import Scores

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}
"""Of the processes that tests start."""

COMMANDS = ("doctor", "train", "imagine", "plan", "evaluate", "report", "export", "bench")


@pytest.fixture
def call(capsys):
    """``call("train", "x.yaml") -> (status, output, errors)``."""

    def run(*words):
        status = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_in_its_help(command):
    result = CliRunner().invoke(cli.app, [command, "--help"], prog_name="jaxwm")
    assert result.exit_code == 0
    assert f"Usage: jaxwm {command}" in result.output
    lines = result.output.split("Examples")[1].splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("jaxwm ")]
    assert examples and all(line.startswith(f"jaxwm {command}") for line in examples)


def test_examples_are_lines_that_the_parser_takes():
    """Every option named in an example exists."""
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        words = {word for word in (command.help or "").split() if word.startswith("--")}
        assert name == "data" or words <= known, name


def test_help_lists_every_command():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for command in (*COMMANDS, "data"):
        assert f" {command} " in result.output
    assert "--debug" in result.output


def test_training_goes_on_and_the_run_is_used_by_every_command(call, toy_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "toy"
    override = f"data.path={tmp_path}/data"
    assert call("train", toy_config, override, "stages.train.steps=4", "--no-progress")[:2] == (0, "")
    status, output, _ = call("train", toy_config, "--run", run, override, "training.log_every=1")
    assert status == 0 and "going on at step 4" in output and f"Next: jaxwm report {run}" in output
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["log_every"] == 1
    assert (run / "videos" / "step_00000006.gif").exists()

    status, output, _ = call("imagine", run, "--out", "a.gif", "--sheet", "b.png", "--horizon", 4, "--scale", 2)
    assert status == 0 and output == "saw 3 frames, imagined 4 with data actions: a.gif, b.png\n"
    assert Image.open("a.gif").n_frames == 7 and Image.open("b.png").size[0] > 50

    status, output, _ = call("evaluate", run, "--episodes", 2, "--horizon", 3)
    assert status == 0 and "copy last frame" in output and "2 episodes" in output
    scores = Scores.from_json((run / "evaluation" / "scores.json").read_text())
    assert (scores.episodes, scores.horizon) == (2, 3) and Image.open(run / "evaluation" / "scores.png")

    status, output, _ = call("report", run, "--episodes", 2, "--horizon", 3, "--clips", 1)
    assert status == 0 and (run / "report.html").stat().st_size > 10_000

    before = json.loads((run / "evaluation" / "scores.json").read_text())["metrics"]["model"]["image/mse"]
    assert call("evaluate", run, "--episodes", 2, "--horizon", 3, "--step", 4, "--out", "old")[0] == 0
    after = json.loads((tmp_path / "old" / "scores.json").read_text())["metrics"]["model"]["image/mse"]
    assert before != after, "another checkpoint has another score"


def test_evaluate_probes_the_features(call, toy_run_dir, tmp_path, monkeypatch):
    from jaxwm.evaluation import probes

    asked = []

    def probe_run(run, **settings):
        asked.append(settings)
        return probes.Probes({"speed": {"linear": 0.5, "mlp": 0.75}}, {"speed": {"linear": 0.1, "mlp": 0.2}}, 4, 90, 3)

    monkeypatch.setattr(probes, "probe_run", probe_run)
    options = ("--episodes", 2, "--horizon", 3, "--out", tmp_path / "scores", "--seed", 7)
    status, output, _ = call("evaluate", toy_run_dir, *options, "--probes")
    assert status == 0 and "speed" in output and "0.750" in output
    assert json.loads((tmp_path / "scores" / "probes.json").read_text())["trained"]["speed"]["linear"] == 0.5
    assert asked == [{"context": 3, "seed": 7}]
    assert call("evaluate", toy_run_dir, *options)[0] == 0 and len(asked) == 1


@pytest.mark.parametrize("out", ["dream.mp4", "dream.png", "dream.npz"])
def test_the_suffix_decides_what_is_written(call, toy_run_dir, tmp_path, out):
    status, _, errors = call("imagine", toy_run_dir, "--out", tmp_path / out, "--horizon", 2, "--actions", "random")
    assert (status, errors) == (0, "") and (tmp_path / out).stat().st_size > 500


def test_the_same_seed_writes_the_same_file(call, toy_run_dir, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call(
            "imagine",
            toy_run_dir,
            "--out",
            tmp_path / f"{name}.gif",
            "--horizon",
            2,
            "--temperature",
            1,
            "--seed",
            seed,
        )
    a, b, c = ((tmp_path / f"{name}.gif").read_bytes() for name in "abc")
    assert a == b != c


def test_other_episodes_can_be_given(call, toy_run_dir, toy_run, tmp_path):
    from jaxwm import data
    from jaxwm.worlds import Bounce

    data.generate_dataset(tmp_path / "other", Bounce(size=16), train=2, test=1, length=12, seed=5)
    dream = ("imagine", toy_run_dir, "--data", tmp_path / "other", "--out", tmp_path / "d.npz")
    assert call(*dream)[1].startswith("saw 3 frames, imagined 9 ")
    with np.load(tmp_path / "d.npz") as saved:
        episode = data.open_episodes(tmp_path / "other", "test")[0]
        np.testing.assert_array_equal(saved["truth/image"][0], episode.observation["image"])
    assert "no split 'valid'" in call(*dream, "--split", "valid")[2]


def test_without_a_run_the_model_of_the_package_is_used(call, toy_run_dir, tmp_path, monkeypatch):
    import importlib.resources

    package = tmp_path / "package"
    (package / "pretrained").mkdir(parents=True)
    monkeypatch.setattr(importlib.resources, "files", lambda name: package)
    assert "ships no trained model" in call("imagine", "--out", tmp_path / "d.npz")[2]
    (package / "pretrained" / "toy").symlink_to(toy_run_dir)
    assert call("imagine", "--out", tmp_path / "d.npz", "--horizon", 2)[0] == 0


def test_an_exported_rollout_dreams_what_the_run_does(call, toy_run_dir, toy_run, tmp_path):
    import jax

    from jaxwm.exporting import load_exported

    out = tmp_path / "dream.jaxwm"
    status, output, _ = call("export", toy_run_dir, "--horizon", 3, "--batch", 2, "--platform", "cpu", "--out", out)
    assert status == 0 and output.startswith(f"wrote {out} (")
    frames = np.full((2, 16, 16, 3), 100, np.uint8)
    key_data = jax.random.key_data(jax.random.key(0))
    dream = load_exported(out)(key_data, {"image": frames}, np.zeros((2, 3, 2), np.float32))
    assert dream["observation/image"].shape == (2, 4, 16, 16, 3)
    np.testing.assert_allclose(dream["observation/image"][:, 0], 100 / 255, rtol=1e-5)


def test_bench_takes_a_configuration_or_a_run(call, toy_config, toy_run_dir, monkeypatch):
    from jaxwm import bench

    seen = []

    def measure(config, horizon, seconds, log):
        seen.append((config.data.batch, horizon, seconds))
        return bench.Benchmark("toy", 1.0, ())

    monkeypatch.setattr(bench, "measure", measure)
    assert call("bench", toy_config, "data.batch=2", "--seconds", 0.5)[0] == 0
    assert call("bench", toy_run_dir, "--horizon", 3)[0] == 0
    assert seen == [(2, 15, 0.5), (4, 3, 2.0)]


class TestErrors:
    """What a person sees when something goes wrong."""

    @pytest.fixture
    def failing(self, monkeypatch, call):
        from jaxwm import config

        def fail_with(error):
            def fail(*_):
                raise error

            monkeypatch.setattr(config, "load_config", fail)
            return call("train", "x.yaml")

        return fail_with

    def test_a_mistake_is_one_line(self, failing):
        assert failing(ValueError("wrong\n  value")) == (2, "", "jaxwm: wrong value\n")

    def test_a_missing_package_comes_with_the_line_that_installs_it(self, failing):
        error = ModuleNotFoundError("No module named 'gymnasium'", name="gymnasium")
        assert failing(error) == (2, "", "jaxwm: No module named 'gymnasium': pip install 'jaxwm[envs]'\n")

    def test_training_that_diverged_is_no_mistake_of_the_command_line(self, failing):
        assert failing(FloatingPointError("update 7 is not finite"))[::2] == (1, "jaxwm: update 7 is not finite\n")

    def test_a_bug_says_so(self, failing):
        status, _, errors = failing(KeyError("x"))
        assert status == 1 and errors == "jaxwm: KeyError: 'x' (a bug? --debug shows where)\n"

    def test_an_interruption_is_no_error(self, failing):
        assert failing(KeyboardInterrupt())[::2] == (130, "jaxwm: interrupted\n")

    def test_debug_shows_the_traceback(self):
        with pytest.raises(ValueError, match="cannot read this configuration"):
            cli.main(["train", "nowhere.yaml", "--debug"])

    def test_warnings_are_one_line(self, call, monkeypatch):
        import warnings

        from jaxwm import config

        def warn(*_):
            warnings.warn("mind\nthis", stacklevel=1)
            raise ValueError("stop")

        monkeypatch.setattr(config, "load_config", warn)
        assert call("train", "x.yaml")[2] == "jaxwm: warning: mind this\njaxwm: stop\n"


class TestProcesses:
    """The same as a person starts it."""

    def test_a_mistake(self):
        done = subprocess.run(
            [sys.executable, "-m", "jaxwm", "imagine", "runs/none"],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == "jaxwm: runs/none: there is no such run\n"

    def test_the_diagnosis(self):
        done = subprocess.run(
            [sys.executable, "-m", "jaxwm", "doctor"], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == 0 and "Core packages" in done.stdout and done.stderr == ""

    def test_a_reader_that_goes_away(self):
        command = f"{sys.executable} -m jaxwm doctor | head -1"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT)
        assert "Traceback" not in done.stderr and "Error" not in done.stderr

    def test_a_signal_during_training_is_heeded_and_the_same_command_goes_on(self, tmp_path):
        from toy_family import toy_values

        values = toy_values(tmp_path / "data")
        values["stages"]["train"]["steps"] = 1_000_000
        values["training"] |= {"evaluate_every": 0, "video_every": 0, "checkpoint_every": 1_000_000, "log_every": 50}
        (tmp_path / "long.yaml").write_text(yaml.safe_dump(values))
        program = "import toy_family, sys; from jaxwm.cli import main; sys.exit(main())"
        environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
        process = subprocess.Popen(
            [sys.executable, "-c", program, "train", str(tmp_path / "long.yaml"), "--run", str(tmp_path / "run")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + 120
            while "train/loss" not in _text(tmp_path / "run" / "metrics.jsonl"):
                assert process.poll() is None and time.monotonic() < end, process.stderr.read()
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 128 + signal.SIGTERM
        assert errors.startswith("jaxwm: stopped by SIGTERM; step ") and errors.count("\n") == 1


def _text(path):
    return path.read_text() if path.exists() else ""


def test_a_reader_that_goes_away_is_not_told_anything():
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxwm", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
