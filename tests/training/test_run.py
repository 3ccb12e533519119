import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SPEC, TinyModel, assert_same, saved_arrays, tiny_config

from jaxwm.training import CheckpointError, Run, RunError, load_run, save_weights
from jaxwm.training.run import FORMAT, check_resume, compare_configs, take_over, write_definition
from jaxwm.types import ActionSpec, Field, Spec


def variables_of(width):
    """Hand-made variables of the tiny model."""
    kernel = lambda *shape: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)  # noqa: E731
    return jax.tree.map(
        jnp.asarray,
        {
            "params": {
                "encoder": {"kernel": kernel(3, width), "bias": kernel(width)},
                "decoder": {"kernel": kernel(width, 3), "bias": kernel(3)},
            },
            "targets": {"mean": kernel(3)},
        },
    )


def run_of(tiny_data, width=4):
    return Run(tiny_config(tiny_data), SPEC, TinyModel(SPEC, width), variables_of(width), 11)


def test_load_run(whole_run):
    path, result, _ = whole_run
    run = load_run(path)
    assert (run.step, run.spec, run.model) == (20, SPEC, TinyModel(SPEC))
    assert run.config.to_yaml() == result.config.to_yaml()
    assert_same(run.variables, result.variables)
    saved = saved_arrays(path, 20)
    assert_same(run.variables["params"], jax.tree.map(jnp.asarray, saved["average"]))
    assert not np.array_equal(saved["average"]["decoder"]["kernel"], saved["params"]["decoder"]["kernel"])
    assert load_run(path, 16).step == 16


def test_loaded_variables_mix_with_arrays_anywhere(whole_run):
    # They are not committed to a device, so that they follow what they are used with.
    variables = load_run(whole_run[0]).variables
    assert not any(leaf.committed for leaf in jax.tree.leaves(variables))


def test_save_weights(tiny_data, tmp_path):
    run = run_of(tiny_data)
    save_weights(run, tmp_path / "small")
    again = load_run(tmp_path / "small")
    assert_same(again.variables, run.variables)
    assert (again.step, again.model, again.spec) == (11, run.model, run.spec)
    assert load_run(tmp_path / "small", "best").step == 11
    with pytest.raises(RunError, match="this folder is not empty"):
        save_weights(run, tmp_path / "small")


def test_rounded_weights_come_back_as_float32(tiny_data, tmp_path):
    run = run_of(tiny_data)
    save_weights(run, tmp_path / "rounded", dtype="float16")
    again = load_run(tmp_path / "rounded").variables
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again)} == {"float32"}
    expected = jax.tree.map(lambda x: x.astype("float16").astype("float32"), run.variables)
    assert_same(again, expected)


def test_a_damaged_last_checkpoint_is_skipped_with_a_warning(whole_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole_run[0], path)
    shutil.rmtree(path / "checkpoints" / "20" / "average")
    shutil.rmtree(path / "checkpoints" / "20" / "params")
    with pytest.warns(UserWarning, match="checkpoint 20 cannot be read.*taking the one before"):
        assert load_run(path).step == 16
    with pytest.raises(RunError, match="checkpoint 20 cannot be read"):
        load_run(path, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_run(path, 16).step == 16


def edit(path, **values):
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "step", "message"),
    [
        (
            lambda path: edit(path / "format.json", format=FORMAT + 6),
            None,
            "format 7, this version of jaxwm reads format 1",
        ),
        (lambda path: edit(path / "format.json"), None, "format None"),
        (lambda path: (path / "format.json").write_text("{"), None, "format.json: not valid JSON"),
        (lambda path: (path / "format.json").unlink(), None, "there is no run in this folder"),
        (lambda path: shutil.rmtree(path), None, "there is no run in this folder"),
        (lambda path: edit(path / "spec.json", observation=[]), None, "spec.json: not a specification"),
        (lambda path: (path / "config.yaml").unlink(), None, "config.yaml: cannot read"),
        (lambda path: shutil.rmtree(path / "checkpoints"), None, "this run has no checkpoint yet"),
        (lambda path: None, 7, "there is no checkpoint 7; there are 11 and 'best'"),
        (lambda path: None, "last", "there is no checkpoint 'last'; there are 11 and 'best'"),
    ],
)
def test_folders_that_cannot_be_opened(tiny_data, tmp_path, spoil, step, message):
    save_weights(run_of(tiny_data), tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        load_run(tmp_path / "run", step)


def test_what_may_change_when_a_run_goes_on(tiny_data):
    before = tiny_config(tiny_data)
    free = tiny_config(
        "elsewhere",
        "data.threads=7",
        "data.prefetch=3",
        "training.log_every=2",
        "training.checkpoint_every=2",
        "training.keep=7",
        "training.evaluate_every=3",
        "training.video_every=3",
        "training.tensorboard=true",
        "training.wandb=project",
        "evaluation.horizon=2",
        "stages.joint.steps=300",
        "planning={solver: {name: icem}, objective: {reward: {kind: reward}}}",
    )
    assert compare_configs(before, free) == []
    assert compare_configs(free, tiny_config(tiny_data, "stages.joint.steps=300")) == []
    other = tiny_config(tiny_data, "model.width=8", "stages.joint.optimizer.agc=0.3", "training.init_from=runs/x")
    assert compare_configs(before, other) == [
        "model.width: checkpoint 4, now 8",
        "stages.joint.optimizer.agc: checkpoint null, now 0.3",
        'training.init_from: checkpoint null, now "runs/x"',
    ]


def test_stages_that_came_or_went_are_named(tiny_data):
    before = tiny_config(tiny_data)
    after = tiny_config(tiny_data, stages={"dynamics": {"steps": 3}})
    lines = compare_configs(before, after)
    assert 'stages.joint.optimizer.name: checkpoint "adam", now none' in lines
    assert 'stages.dynamics.optimizer.name: checkpoint none, now "adam"' in lines


def test_resuming_in_another_world(tiny_data, tmp_path):
    save_weights(run_of(tiny_data), tmp_path / "run")
    config = tiny_config(tiny_data)
    check_resume(tmp_path / "run", config, SPEC)
    check_resume(tmp_path / "new", config, SPEC)
    wider = Spec((Field("vector", (5,), "float32"),), ActionSpec(2))
    with pytest.raises(RunError, match=r'spec.observation: checkpoint \[\["vector", \[3\], "float32"\]\], now'):
        check_resume(tmp_path / "run", config, wider)


def test_a_folder_of_another_version_is_refused_even_without_checkpoints(tiny_data, tmp_path):
    write_definition(tmp_path, tiny_config(tiny_data), SPEC)
    check_resume(tmp_path, tiny_config(tiny_data, "model.width=8"), SPEC)  # nothing to lose yet
    edit(tmp_path / "format.json", format=9)
    with pytest.raises(RunError, match="format 9"):
        check_resume(tmp_path, tiny_config(tiny_data), SPEC)


def test_a_folder_of_episodes_is_no_run_folder(tiny_data):
    with pytest.raises(RunError, match="holds episodes, whose spec"):
        check_resume(tiny_data, tiny_config(tiny_data), SPEC)


def test_take_over_all(tiny_data):
    fresh = jax.tree.map(jnp.zeros_like, variables_of(4))
    taken, report = take_over(run_of(tiny_data), "runs/x", fresh, strict=True)
    assert_same(taken, variables_of(4))
    assert report == ["taken from runs/x (step 11): 5 of 5 arrays"]


def test_take_over_what_fits(tiny_data):
    fresh = jax.tree.map(jnp.zeros_like, variables_of(5))
    fresh["params"]["reward"] = {"bias": jnp.ones(1)}
    source = dataclasses.replace(run_of(tiny_data), variables=variables_of(4) | {"extra": jnp.ones(2)})
    taken, report = take_over(source, "runs/x", fresh, strict=False)
    np.testing.assert_array_equal(taken["params"]["decoder"]["bias"], [0, 1, 2])
    np.testing.assert_array_equal(taken["targets"]["mean"], [0, 1, 2])
    np.testing.assert_array_equal(taken["params"]["encoder"]["kernel"], np.zeros((3, 5)))
    np.testing.assert_array_equal(taken["params"]["reward"]["bias"], [1])
    assert report == [
        "taken from runs/x (step 11): 2 of 6 arrays",
        "not taken: extra: there [2], here none",
        "not taken: params/decoder/kernel: there [4, 3], here [5, 3]",
        "not taken: params/encoder/bias: there [4], here [5]",
        "not taken: params/encoder/kernel: there [3, 4], here [3, 5]",
        "not taken: params/reward/bias: there none, here [1]",
    ]
    with pytest.raises(CheckpointError, match=r"init_from=runs/x does not fit: extra: there \[2\].*\(and 1 more\)"):
        take_over(source, "runs/x", fresh, strict=True)
    with pytest.raises(CheckpointError, match="not one of its 6 arrays fits"):
        take_over(source, "runs/x", {"params": {"other": jnp.ones(1)}}, strict=False)
