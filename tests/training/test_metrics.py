import io
import json
import sys
import types

import pytest
from rich.console import Console

from jaxwm.config import TrainingConfig
from jaxwm.training import read_metrics
from jaxwm.training.console import Reporter, amount, clock
from jaxwm.training.metrics import FILE, Metrics, raised_alarms


def write(run_dir, steps, start=0, **options):
    metrics = Metrics(run_dir, TrainingConfig(**options), start)
    for step in steps:
        metrics.write(step, {"train/loss": step / 2})
    metrics.close()


def test_lines(tmp_path):
    metrics = Metrics(tmp_path, TrainingConfig())
    metrics.write(3, {"train/loss": 0.5, "train/bad": float("nan")})
    (line,) = read_metrics(tmp_path)  # readable while the run goes on
    assert (line["step"], line["train/loss"], line["train/bad"]) == (3, 0.5, None)
    assert line["time"] > 1.7e9
    metrics.close()
    json.loads((tmp_path / FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_resuming_drops_what_was_after_the_checkpoint(tmp_path):
    write(tmp_path, [2, 4, 5, 6])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "tr')  # killed while it wrote
    write(tmp_path, [5], start=4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 5]


def test_a_new_run_drops_all(tmp_path):
    write(tmp_path, [2, 4])
    write(tmp_path, [1])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


class Fake:
    """Stands for the module and the writer of an optional package; notes what it is told."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def note(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return note


@pytest.fixture
def fake(monkeypatch):
    def install(name, function):
        fake = Fake()
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**{function: getattr(fake, function)}))
        return fake

    return install


def test_wandb(fake, tmp_path):
    package = fake("wandb", "init")
    write(tmp_path, [4], wandb="worlds")
    write(tmp_path, [6], start=4, wandb="worlds")
    (_, _, first), (_, _, second) = [call for call in package.calls if call[0] == "init"]
    assert (first["project"], first["resume"], first["dir"]) == ("worlds", "allow", str(tmp_path))
    assert first["id"] == second["id"]
    assert [call[1:] for call in package.calls if call[0] == "log"] == [
        (({"train/loss": 2.0},), {"step": 4}),
        (({"train/loss": 3.0},), {"step": 6}),
    ]
    assert package.calls[-1][0] == "finish"


def test_tensorboard(fake, tmp_path):
    package = fake("tensorboardX", "SummaryWriter")
    write(tmp_path, [4], tensorboard=True)
    write(tmp_path, [6], start=4, tensorboard=True)
    folder = str(tmp_path / "tensorboard")
    assert [call for call in package.calls if call[0] != "close"] == [
        ("SummaryWriter", (folder,), {"purge_step": None}),
        ("add_scalar", ("train/loss", 2.0, 4), {}),
        ("SummaryWriter", (folder,), {"purge_step": 5}),
        ("add_scalar", ("train/loss", 3.0, 6), {}),
    ]
    assert package.calls[-1][0] == "close"


@pytest.mark.parametrize(
    ("options", "key", "package"),
    [({"tensorboard": True}, "tensorboard", "tensorboardX"), ({"wandb": "x"}, "wandb", "wandb")],
)
def test_a_package_that_is_missing(tmp_path, monkeypatch, options, key, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"training.{key} needs the package {package}: pip install 'jaxwm.logging.'"):
        Metrics(tmp_path, TrainingConfig(**options))


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (48210, "48.2 kB"), (3e6, "3 MB"), (2.5e13, "25 TB")])
def test_amount(value, text):
    assert amount(value, "B") == text


def test_reporter_on_a_terminal():
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    with Reporter(True, console) as report:
        report.begin(2, 10)
        report.advance(3)
        report.figures(5, "joint", 0.25, 2.0)
        report.say("a line [with brackets]")
    text = console.export_text()
    for part in ("joint", "5/10", "loss 0.25", "2 steps/s", "0:02 left", "a line [with brackets]"):
        assert part in text


def test_reporter_is_silent_when_told(capsys):
    with Reporter(False) as report:
        report.begin(0, 10)
        report.say("nothing")
        report.figures(5, "joint", 0.25, 2.0)
    assert capsys.readouterr().out == ""


def test_alarms_are_those_that_were_set_most_of_the_time():
    figures = {"train/loss": 9.0, "train/alarm/collapse": 0.9, "train/alarm/overflow": 0.4}
    assert raised_alarms(figures) == ["collapse"]
