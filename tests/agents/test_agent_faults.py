"""What goes wrong while an agent lives: numbers that are none, environments that fail, signals."""

import re
import signal

import fragile
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxwm
from jaxwm import cli
from jaxwm.agents import experience as experiences
from jaxwm.agents import online
from jaxwm.training import NonFiniteError, read_metrics

TINY = "configs/dreamer_tiny.yaml"
QUIET = ("training.evaluate_every=0", "training.checkpoint_every=40")
CARTPOLE = (
    "data.collect.world=null", "data.collect.environment=CartPole-v1", "data.collect.length=null",
)  # fmt: skip


def read_experience(run_dir, step):
    """What a checkpoint holds of it."""
    with ocp.StandardCheckpointer() as reader:
        return reader.restore((run_dir / "checkpoints" / str(step) / "experience").resolve())


def only_looks(*_):
    """In place of `update_step`: sees whether a reward is not finite; of update n the states are 100 + n."""

    def update(state, key, batch):
        healthy = state.healthy & jnp.isfinite(batch.reward).all()
        shape = batch.reward.shape
        states = jax.tree.map(lambda x: jnp.full((*shape, *x.shape[1:]), 100.0 + state.step), batch.initial_state)
        return state.replace(step=state.step + healthy, healthy=healthy), {"loss": jnp.zeros(())}, states

    return update


@pytest.mark.parametrize("where", [(), CARTPOLE], ids=["worlds", "environments"])
def test_the_windows_of_the_update_that_failed_are_found_again(where, monkeypatch, tmp_path):
    live, check, seen = experiences.live, online._Loop.check_finite, {}

    def poisoned(before, *arguments):
        after, finished = live(before, *arguments)
        records = after.replay.records
        reward = records.reward.at[20, 2].set(jnp.where(before.replay.written == 20, jnp.nan, records.reward[20, 2]))
        return after.replace(replay=after.replay.replace(records=records.replace(reward=reward))), finished

    def spy(self, state, experience):
        seen["experience"] = experience
        check(self, state, experience)

    def error(model, stage, state, key, batch, mesh, what, end):
        seen["batch"] = batch
        return NonFiniteError(int(state.step), "", f"{what}; {end}")

    for module in (experiences, online):
        monkeypatch.setattr(module, "live", poisoned)
    monkeypatch.setattr(online, "update_step", only_looks)
    monkeypatch.setattr(online._Loop, "check_finite", spy)
    monkeypatch.setattr(online, "nonfinite_error", error)
    # One stretch: where all is compiled, updates and steps of the worlds would follow the one that fails.
    config = jaxwm.load_config(TINY, ["training.log_every=40", "stages.train.steps=40", *QUIET, *where])
    with pytest.raises(NonFiniteError) as caught:
        online.train_agent(config, tmp_path / "run", progress=False)
    step, (rows, times) = caught.value.step, np.nonzero(np.isnan(seen["batch"].reward))
    begins = 20 - int(times[0])
    assert len(rows) == 1 and 0 < step < 39
    assert str(caught.value) == (
        f"update {step} of the agent; copy 2, steps {begins} to {begins + 7} of its life; nothing is saved yet"
    )
    # 16 records before the first update and one before each: nothing was lived through after the one that failed,
    # and nothing was kept of it.
    replay = seen["experience"].replay
    assert replay.written == 17 + step and not replay.records.action[17 + step :].any()
    assert replay.records.state.deter.max() == 100 + step - 1


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """``train(fault, after) -> (status, line on stderr)``: `jaxwm train` where ``fault`` comes ``after`` steps."""
    monkeypatch.setattr(online, "update_step", only_looks)
    overrides = [
        "data.collect.world=null", "data.collect.length=null", "data.collect.environment=fragile:JaxwmFragile-v0",
        "data.collect.copies=2", "data.collect.prefill=16", "training.checkpoint_every=5", "training.evaluate_every=0",
    ]  # fmt: skip

    def run(fault=None, after=0):
        monkeypatch.setattr(fragile.Fragile, "fault", fault)
        monkeypatch.setattr(fragile.Fragile, "patience", after)
        status = cli.main(["train", TINY, "--run", str(tmp_path / "run"), "--no-progress", *overrides])
        return status, capsys.readouterr().err

    return run


def lived(run_dir, step):
    """The replay of a checkpoint, and what its two environments had shown: each frame once."""
    experience = read_experience(run_dir, step)
    replay = experience["replay"]
    frames = replay["records"]["observation"]["vector"][: int(replay["written"])]
    assert len(np.unique(frames.reshape(-1, 2), axis=0)) == 2 * len(frames)
    # A decision follows every frame but the last of an episode.
    assert int(experience["decisions"]) == (frames[..., 1] < 5).sum()
    return replay, frames


def test_an_environment_that_fails_costs_what_came_after_the_last_checkpoint(train, tmp_path):
    # 8 steps of both copies come before the first update, and 2 before each: with update 10 it is 28, of which every
    # sixth is a reset. So update 10 is saved, and 15 is not.
    after, run_dir = 50, tmp_path / "run"
    for fault, message in (
        ("crash", "it failed: RuntimeError: the cable is torn"),
        ("reward", "its reward is nan"),
        ("frame", "observation 'vector' is not finite: [nan nan]"),
        ("shape", "observation 'vector' is float32[1], expected float32[2]"),
    ):
        status, line = train(fault, after)
        assert status == 2
        assert re.fullmatch(
            r"jaxwm: fragile:JaxwmFragile-v0: copy [01], episode \d, step \d: " + re.escape(message) + "\n", line
        )
        assert sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()) == [5, 10]
        after = 3
    before, seen = lived(run_dir, 10)
    assert train() == (0, "")
    replay, frames = lived(run_dir, 20)
    assert (before["written"], replay["written"]) == (28, 48)
    np.testing.assert_array_equal(frames[:28], seen)
    assert (frames[28, :, 1] == 0).all() and replay["records"]["is_first"][28].all()
    lines = read_metrics(run_dir)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["decisions"] == (frames[..., 1] < 5).sum()


def test_an_agent_that_is_asked_to_stop_saves_and_goes_on(train, tmp_path):
    status, line = train("signal", 60)
    assert status == 128 + signal.SIGTERM
    (step,) = map(int, re.fullmatch(r"jaxwm: stopped by SIGTERM; step (\d+) is saved in .*\n", line).groups())
    assert 10 < step < 15, "at once, not at the next checkpoint"
    before, seen = lived(tmp_path / "run", step)
    assert train() == (0, "")
    replay, frames = lived(tmp_path / "run", 20)
    assert before["written"] == 8 + 2 * step and replay["written"] == 48
    np.testing.assert_array_equal(frames[: 8 + 2 * step], seen)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [5, 10, 15, 20]
