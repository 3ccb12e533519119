"""What goes wrong while an agent lives: numbers that are none, environments that fail, signals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm
from jaxwm.agents import experience as experiences
from jaxwm.agents import online
from jaxwm.training import NonFiniteError

TINY = "configs/dreamer_tiny.yaml"
QUIET = ("training.evaluate_every=0", "training.checkpoint_every=40")
CARTPOLE = (
    "data.collect.world=null", "data.collect.environment=CartPole-v1", "data.collect.length=null",
)  # fmt: skip


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
