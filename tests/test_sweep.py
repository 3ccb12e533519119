"""Sweeps: the grid, what is run and not run again, what is stopped and goes on, and the figures over seeds."""

import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import sys
import threading
import time

import numpy as np
import pytest
import yaml
from toy_family import toy_values

from jaxwm import sweep as sweeping
from jaxwm.config import ConfigError

TRAINER = (sys.executable, str(pathlib.Path(__file__).parent / "toy_trainer.py"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_values(tmp_path / "episodes")))
    return path


def planned(config, *grid):
    return sweeping.plan(config, grid, config.parent / "out")


def test_the_grid(config):
    sweep = planned(config, "seeds=0..2", "model.fade=0.5,0.25", "stages.train.steps=4")
    assert [run.folder.name for run in sweep.runs][:3] == [
        "seed=0,model.fade=0.5",
        "seed=0,model.fade=0.25",
        "seed=1,model.fade=0.5",
    ]
    assert len(sweep.runs) == 6
    assert [(run.seed, run.config.model.fade) for run in sweep.runs][2:4] == [(1, 0.5), (1, 0.25)]
    assert sweep.runs[1].settings == {"model.fade": "0.25"}
    assert sweep.runs[1].overrides == ("seed=0", "model.fade=0.25", "stages.train.steps=4")
    assert {run.steps for run in sweep.runs} == {4}
    assert sweeping.plan(config, ["seed=3"]).runs[0].folder == pathlib.Path("sweeps/toy/run")
    lists = planned(config, "stages.train.trainable=[fade,a],[fade]").runs
    assert [run.config.stages["train"].trainable for run in lists] == [("fade", "a"), ("fade",)]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["model.fad=1,2"], "model.fad=1 is an unknown key; did you mean 'fade'?"),
        (["model.fade=0.5,none"], "model.fade='none'"),
        (["seeds"], "'seeds': expected KEY=VALUE, KEY=VALUE,VALUE or KEY=FIRST..LAST"),
        (["seeds=3..1"], "3 is above 1"),
        (["seeds=1,1"], "'seeds=1,1': a value is empty or stands twice"),
        (["seeds=1,"], "a value is empty"),
        (["seed=1", "seeds=2"], "seed is given twice"),
        (["data.path=a/b,a|b"], "two runs would have the folder 'data.path=a-b'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(config, grid, message):
    with pytest.raises(ConfigError) as error:
        planned(config, *grid)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def fake(config, body):
    """A trainer that does what ``body`` says with ``folder``, without importing anything heavy."""
    script = config.parent / "fake.py"
    script.write_text(
        f"import json, pathlib, sys, time\nfolder = pathlib.Path(sys.argv[sys.argv.index('--run') + 1])\n{body}"
    )
    return (sys.executable, str(script))


def test_a_failed_run_stops_no_other_and_says_why(config):
    said = []
    command = fake(config, "print('no luck')\nsys.exit(3 if 'seed=1' in sys.argv else 0)")
    failed = sweeping.run(planned(config, "seeds=0..2"), 2, said.append, command)
    assert [run.seed for run in failed] == [1]
    assert "seed=1: failed with status 3: no luck" in said
    assert len([line for line in said if "done in" in line]) == 2


def test_no_more_runs_at_a_time_than_asked_for(config):
    note = "(folder.parent / f'{time.time():.3f} %s').touch()\n"
    body = note % "in" + "time.sleep(0.3)\n" + note % "out"
    sweep = planned(config, "seeds=0..3")
    sweeping.run(sweep, 2, lambda line: None, fake(config, body))
    events = sorted((p.name for p in sweep.out.iterdir() if p.is_file()), key=lambda name: float(name.split()[0]))
    active = np.cumsum([1 if name.endswith("in") else -1 for name in events])
    assert active.max() == 2


def test_a_run_that_another_process_is_busy_with_is_left_alone(config):
    sweep, said = planned(config, "seed=0"), []
    sweep.runs[0].folder.mkdir(parents=True)
    with (sweep.runs[0].folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweeping.run(sweep, 1, said.append, fake(config, "")) == [sweep.runs[0]]
    assert said == ["run: another process is busy with this run"]
    assert sweeping.run(sweep, 1, said.append, fake(config, "")) == []


def test_a_request_to_stop_reaches_the_runs(config):
    body = (
        "import os, signal\n(folder / 'session').write_text(str(os.getsid(0)))\n"
        "def stop(*_):\n    (folder / 'stopped').touch()\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n(folder / 'begun').touch()\ntime.sleep(60)\n"
    )
    sweep = planned(config, "seeds=0..2")
    first = sweep.runs[0].folder

    def interrupt():
        while not (first / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(sweeping.SweepStoppedError, match="stopped by SIGINT; the same command goes on") as stop:
        sweeping.run(sweep, 1, lambda line: None, fake(config, body))
    assert stop.value.code == 130
    assert (first / "stopped").exists()
    assert int((first / "session").read_text()) != os.getsid(0)  # Ctrl-C in a terminal reaches this process alone
    assert not sweep.runs[1].folder.exists()


def test_a_sweep_of_trainings(config):
    """One that was cut short goes on from its checkpoint; what is finished is not run again."""
    said = []

    def first(*grid):
        sweep = planned(config, "seeds=0,1", *grid)
        return dataclasses.replace(sweep, runs=sweep.runs[:1])

    assert sweeping.run(first("stages.train.steps=3"), 1, said.append, TRAINER) == []
    longer = first("stages.train.steps=6")
    assert longer.runs[0].done() == 3
    assert sweeping.run(longer, 1, said.append, TRAINER) == []
    assert sweeping.run(longer, 1, said.append, ("no such program",)) == []
    assert said[::2] == ["seed=0: begins at 0 steps", "seed=0: goes on at 3 steps", "seed=0: finished, 6 steps"]
    (curve,) = sweeping.summarise(longer, ["train/loss"]).curves["train/loss"]
    assert (curve.seeds, curve.steps.tolist()) == ((0,), [2, 3, 4, 6])
    with pytest.raises(ConfigError, match=r"was begun with another configuration: model.fade: .*Take another --out"):
        planned(config, "seeds=0,1", "stages.train.steps=6", "model.fade=0.8").runs[0].done()


def write(run, losses, is_finished=True):
    """What a training of 6 steps leaves: a figure every 2 of them, and a checkpoint."""
    from jaxwm.training.run import write_definition
    from jaxwm.worlds import Bounce

    write_definition(run.folder, run.config, Bounce(size=16).spec)
    lines = [{"step": 2 * i, "time": 0.0, "test/loss": loss} for i, loss in enumerate(losses, 1)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "checkpoints" / str(6 if is_finished else 2)).mkdir(parents=True)


def test_figures_over_seeds(config, monkeypatch, tmp_path):
    monkeypatch.setattr(sweeping, "list_steps", lambda folder: [int(p.name) for p in folder.glob("*")])
    sweep = planned(config, "model.fade=0.5,0.25", "seeds=0..4")
    for run, offset in zip(sweep.runs[:5], (0, 1, 2, 3, 10), strict=True):
        write(run, [offset + 5.0, None if offset == 3 else 7.0, offset + 1.0])
    write(sweep.runs[5], [4.0, 2.0, 1.0])
    write(sweep.runs[6], [9.0], is_finished=False)
    summary = sweeping.summarise(sweep)
    half, quarter = json.loads(summary.to_json())["test/loss"]
    assert (half["settings"], half["runs"], half["steps"]) == ({"model.fade": "0.5"}, 5, [2, 6])
    np.testing.assert_allclose(half["mean"], [5 + 3.2, 1 + 3.2])
    assert (half["q25"], half["q75"]) == ([6, 2], [8, 4])
    assert half["last"] == {
        "step": 6, "mean": pytest.approx(4.2), "q25": 2, "q75": 4,
        "values": {"0": 1, "1": 2, "2": 3, "3": 4, "4": 11},
    }  # fmt: skip
    assert (quarter["runs"], quarter["steps"], quarter["last"]["mean"]) == (1, [2, 4, 6], 1)  # the finished one alone
    assert summary.table().row_count == 2
    summary.plot(tmp_path / "summary.png")
    assert (tmp_path / "summary.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="metric 'test/los' is in no run; did you mean 'test/loss'"):
        sweeping.summarise(sweep, ["test/los"])
    with pytest.raises(ValueError, match="no run has figures yet"):
        sweeping.summarise(planned(config, "seed=17"))


def test_an_agent_is_judged_by_its_episodes(config, monkeypatch):
    """The rest is in the JSON, and what is asked for is shown first."""
    monkeypatch.setattr(sweeping, "list_steps", lambda folder: [int(p.name) for p in folder.glob("*")])
    sweep = planned(config, "seeds=0,1")
    for run in sweep.runs:
        write(run, [3.0, 2.0, 1.0])
    assert sweeping.summarise(sweep).shown == ("test/loss",)
    for run in sweep.runs:
        line = {"step": 6, "evaluation/score": 10.0 * run.seed, "evaluation/score_std": 1.0, "loss": 7.0}
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    summary = sweeping.summarise(sweep)
    assert summary.shown == ("evaluation/score",) and summary.table().row_count == 1
    figures = json.loads(summary.to_json())
    assert list(figures) == ["evaluation/score", "evaluation/score_std", "loss", "test/loss"]
    assert figures["evaluation/score"][0]["mean"] == [5.0] and figures["evaluation/score"][0]["q75"] == [7.5]
    assert sweeping.summarise(sweep, ["loss", "test/loss"]).shown == ("loss", "test/loss")
    assert next(iter(sweeping.summarise(sweep, ["loss"]).curves)) == "loss"


def test_the_command_line(config, capsys, monkeypatch):
    from jaxwm import cli

    monkeypatch.chdir(config.parent)
    assert cli.main(["sweep", str(config), "seeds=0..1", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sweeps/toy/seed=0: 0 of 6 steps done",
        "sweeps/toy/seed=1: 0 of 6 steps done",
    ]
    assert cli.main(["sweep", str(config), "seeds=0..x", "--dry-run"]) == 2
    assert "seed='0..x'" in capsys.readouterr().err
