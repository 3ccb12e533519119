import json
import math
import shutil

import jax
import numpy as np
import pytest
from tiny_model import SPEC, TinyModel, assert_same, saved_arrays, tiny_config

from jaxwm import data
from jaxwm.config import ConfigError
from jaxwm.training import (
    CheckpointError,
    NonFiniteError,
    RunError,
    load_run,
    make_evaluate,
    make_mesh,
    put_batch,
    read_metrics,
    train,
)
from jaxwm.training.stages import Progress, find_phase, plan_phases

STAGES = {
    "joint": {"steps": 2},
    "dynamics": {"steps": 4, "optimizer": {"learning_rate": 0.01}},
    "autoencode": {"steps": 3, "optimizer": {"name": "laprop", "learning_rate": 0.01}, "trainable": ["decoder"]},
}


def test_ten_and_ten_steps_are_twenty(tiny_data, whole_run, half_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(half_run, run_dir)
    result = train(tiny_config(tiny_data), run_dir, progress=False)
    assert_same(saved_arrays(run_dir, 20), saved_arrays(whole_run[0], 20))
    assert_same(result.variables, whole_run[1].variables)


def test_what_a_run_leaves(whole_run):
    path, result, _ = whole_run
    assert result.step == 20
    assert sorted(file.name for file in path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "format.json",
        "metrics.jsonl",
        "spec.json",
    ]
    assert json.loads((path / "format.json").read_text()) == {"format": 1}
    lines = [line for line in read_metrics(path) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 21))
    names = {"loss", "reconstruction", "gradient_norm", "update_norm", "parameter_norm", "steps_per_second"}
    assert {f"train/{name}" for name in names} <= set(lines[0])


def test_callbacks(whole_run):
    path, result, events = whole_run
    evaluations = [("evaluate", step) for step in (4, 8, 12, 16)]
    videos = [("video", step) for step in (6, 12, 18)]
    assert sorted((event.name, event.step) for event in events) == sorted([*evaluations, *videos, ("end", 20)])
    assert [event.name for event in events if event.step == 12] == ["evaluate", "video"]
    logged = [line for line in read_metrics(path) if "test/end" in line]
    assert [(line["step"], line["test/end"]) for line in logged] == [(20, 20.0)]
    assert events[-1].run_dir == path
    # A callback may keep what it got, and gets the average.
    assert not any(leaf.is_deleted() for event in events for leaf in jax.tree.leaves(event.variables))
    assert_same(events[-1].variables, result.variables)


def test_held_out_loss_and_best(whole_run, tiny_data):
    path, result, _ = whole_run
    tested = {line["step"]: line["test/loss"] for line in read_metrics(path) if "test/loss" in line}
    assert sorted(tested) == [4, 8, 12, 16, 20]
    best = min(tested, key=tested.__getitem__)
    assert load_run(path, "best").step == best
    # Measured on the averaged parameters, on the same rows and keys at every step.
    windows = data.windows(data.open_episodes(tiny_data, "test"), batch=8, length=6, seed=0)
    key = jax.random.fold_in(jax.random.split(jax.random.key(0), 3)[2], 0)
    metrics = make_evaluate(result.model, result.model.stages[2])(
        result.variables, key, put_batch(make_mesh(), next(windows))
    )
    np.testing.assert_allclose(tested[20], metrics["loss"], rtol=1e-6)


@pytest.fixture(scope="session")
def staged_run(tiny_data, whole_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("stages") / "run"
    config = tiny_config(tiny_data, f"training.init_from={whole_run[0]}", "training.keep=9", stages=STAGES)
    return path, train(config, path, progress=False), config


def test_stages_follow_the_model_and_hand_over(whole_run, staged_run):
    path, result, _ = staged_run
    assert result.step == 9
    start = load_run(whole_run[0]).variables["params"]
    ends = {step: saved_arrays(path, step) for step in (3, 7, 9)}
    params = {step: ends[step]["params"] for step in ends}
    # First autoencode, of which the decoder alone is trained; then dynamics, then all.
    assert_same(params[3]["encoder"], jax.device_get(start["encoder"]))
    assert_same(params[3]["dynamics"], jax.device_get(start["dynamics"]))
    assert not np.array_equal(params[3]["decoder"]["kernel"], start["decoder"]["kernel"])
    assert_same((params[7]["encoder"], params[7]["decoder"]), (params[3]["encoder"], params[3]["decoder"]))
    assert not np.array_equal(params[7]["dynamics"]["kernel"], params[3]["dynamics"]["kernel"])
    assert all(not np.array_equal(params[9][name]["kernel"], params[7][name]["kernel"]) for name in params[9])
    # Targets follow in every stage, from where the other run had them.
    assert [int(ends[step]["targets"]["count"]) for step in ends] == [23, 27, 29]


@pytest.mark.parametrize("last", [3, 5])
def test_going_on_between_and_within_stages(staged_run, tmp_path, last):
    # The checkpoints are those of steps 3, 5, 7 and 9; the stages end at 3, 7 and 9.
    path, _, config = staged_run
    run_dir = tmp_path / "run"
    shutil.copytree(path, run_dir)
    for folder in (run_dir / "checkpoints").iterdir():
        if int(folder.name) > last:
            shutil.rmtree(folder)
    train(config, run_dir, progress=False)
    assert_same(saved_arrays(run_dir, 9), saved_arrays(path, 9))


def test_a_finished_run_stays_as_it_is(staged_run):
    path, result, config = staged_run
    before = sorted(str(file) for file in path.rglob("*"))
    events = []
    again = train(config, path, [events.append], progress=False)
    assert_same(again.variables, result.variables)
    assert [(event.name, event.step) for event in events] == [("end", 9)]
    assert sorted(str(file) for file in path.rglob("*")) == before


def test_not_finite(tiny_data, tmp_path):
    config = tiny_config(tiny_data, "model.fails_at=4", "training.log_every=6", "training.checkpoint_every=3")
    with pytest.raises(NonFiniteError) as caught:
        train(config, tmp_path / "run", progress=False)
    assert (caught.value.step, caught.value.tensor) == (4, "gradients/dynamics/bias")
    message = str(caught.value)
    assert "update 4 of stage 'joint' is not finite, first in gradients/dynamics/bias (1 value)" in message
    assert "data position (seed 0, step 4)" in message
    assert "keeps the good checkpoint of step 3" in message
    kept = load_run(tmp_path / "run")
    assert kept.step == 3
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(kept.variables))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["model.width=5"], RunError, "model.width: checkpoint 4, now 5"),
        (["seed=1", "data.batch=16"], RunError, "seed: checkpoint 0, now 1; data.batch: checkpoint 8, now 16"),
        (["training.ema=null"], RunError, "training.ema: checkpoint 0.9, now null"),
        (["stages.joint.steps=7"], CheckpointError, "stages.joint.steps is 7, expected at least the 10 that are done"),
    ],
)
def test_resuming_with_another_configuration(tiny_data, half_run, overrides, error, message):
    with pytest.raises(error, match=message):
        train(tiny_config(tiny_data, *overrides), half_run, progress=False)


@pytest.mark.parametrize(
    ("overrides", "stages", "error", "message"),
    [
        ([], {"dynamics": {"steps": 1, "trainable": ["encoder"]}}, ConfigError, "'encoder' is not part of what"),
        ([], {"joint": {"steps": 1, "trainable": ["encodr"]}}, ValueError, "did you mean 'encoder'"),
        (
            [],
            {"joint": {"steps": 5, "optimizer": {"schedule": "cosine", "warmup": 5}}},
            ConfigError,
            "stages.joint.optimizer.warmup is 5",
        ),
        (["training.init_from=/nowhere"], None, RunError, "/nowhere: there is no run in this folder"),
    ],
)
def test_wrong_configurations(tiny_data, tmp_path, overrides, stages, error, message):
    with pytest.raises(error, match=message):
        train(tiny_config(tiny_data, *overrides, stages=stages), tmp_path / "run", progress=False)


def test_places_of_checkpoints_among_changed_stages(tiny_data):
    phases = plan_phases(TinyModel(SPEC), tiny_config(tiny_data, stages=STAGES))
    assert [(phase.stage.name, phase.start, phase.stop) for phase in phases] == [
        ("autoencode", 0, 3),
        ("dynamics", 3, 7),
        ("joint", 7, 9),
    ]
    assert phases[0].stage.trainable == ("decoder",)
    assert find_phase(phases, Progress(7, "dynamics", 1, 3)) is phases[1]
    with pytest.raises(CheckpointError, match="began at step 5, but now the stages before it have 3 steps"):
        find_phase(phases, Progress(6, "dynamics", 1, 5))
    with pytest.raises(CheckpointError, match="'planning', which is gone"):
        find_phase(phases, Progress(6, "planning", 1, 5))


def test_progress_is_printed(tiny_data, tmp_path, capsys):
    train(tiny_config(tiny_data, "stages.joint.steps=2", "training.evaluate_every=1"), tmp_path / "run")
    printed = capsys.readouterr().out
    for text in (
        "compiling the update of stage 'joint'",
        "compiled in",
        "step 2/2",
        "steps/s",
        "left",
        "held-out loss",
    ):
        assert text in printed
    assert math.isfinite(read_metrics(tmp_path / "run")[-1]["test/loss"])
