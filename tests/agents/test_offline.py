"""An agent that learns from recorded episodes alone: first the world, then how to behave in the dream of it."""

import chex
import jax
import numpy as np

import jaxwm
from jaxwm.training import read_metrics

TINY = (
    "model.deter=16", "model.hidden=8", "model.units=8", "model.stoch=4", "model.classes=4", "model.embed=8",
    "model.blocks=2", "model.layers=1", "model.prior_layers=1", "model.actor_layers=1", "model.critic_layers=1",
    "model.horizon=3", "data.batch=4", "data.length=8", "data.generate.train=6", "data.generate.test=2",
    "data.generate.length=12", "stages.world_model.steps=2", "stages.behaviour.steps=2", "training.checkpoint_every=1",
    "training.keep=4", "training.log_every=1", "training.evaluate_every=0", "stages.world_model.optimizer.warmup=0",
    "stages.behaviour.optimizer.warmup=0",
)  # fmt: skip
BEHAVIOUR = ("actor", "critic")


def test_the_world_is_learned_first_and_the_agent_in_its_dream(tmp_path):
    config = jaxwm.load_config("configs/dreamer_reach_offline.yaml", [*TINY, f"data.path={tmp_path / 'episodes'}"])
    jaxwm.train(config, tmp_path / "run", progress=False)
    assert (tmp_path / "episodes").is_dir()
    params = [jaxwm.load_run(tmp_path / "run", step).variables["params"] for step in (1, 2, 3, 4)]
    learnt = lambda at, name: any(  # noqa: E731
        (a != b).any() for a, b in zip(*(jax.tree.leaves(params[i][name]) for i in (at, at + 1)), strict=True)
    )
    world = [name for name in params[0] if name not in BEHAVIOUR]
    # Updates 1 and 2 are of the world, 3 and 4 of actor and critic.
    assert all(learnt(0, name) for name in ("encoder", "decoder", "cell"))
    assert not any(learnt(0, name) for name in BEHAVIOUR)
    assert all(learnt(2, name) for name in BEHAVIOUR)
    for name in world:
        chex.assert_trees_all_equal(params[1][name], params[3][name])
    lines = read_metrics(tmp_path / "run")
    assert [("train/loss/critic" in line) for line in lines] == [False, False, True, True]
    assert np.isfinite([line["train/loss"] for line in lines]).all()
