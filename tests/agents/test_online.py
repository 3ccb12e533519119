"""Living and learning: the order of things, the ratio, stopping and going on."""

import dataclasses
import pathlib

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxwm
from jaxwm import cli
from jaxwm.agents import Dreamer, online
from jaxwm.agents.dreamer import DreamerAgent
from jaxwm.agents.experience import Cycle, plan_cycle
from jaxwm.agents.online import train_agent
from jaxwm.config import CollectConfig, ConfigError
from jaxwm.data import DataError
from jaxwm.envs import load_dream
from jaxwm.evaluation.runs import open_split
from jaxwm.training import read_metrics, save_weights

TINY = "configs/dreamer_tiny.yaml"


def config(*overrides):
    return jaxwm.load_config(TINY, overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path, events = tmp_path_factory.mktemp("whole") / "run", []

    def callback(event):
        events.append(event)
        if event.name == "video":
            event.log({"seen": event.step})

    return path, train_agent(config("training.video_every=15"), path, [callback], progress=False), events


def arrays(path, step, part="experience"):
    folder = path / "checkpoints" / str(step) / part
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder.resolve())


def test_the_cycle_keeps_the_train_ratio():
    assert plan_cycle(1024, 1, 16, 64) == Cycle(1, 1)
    assert plan_cycle(512, 1, 16, 64) == Cycle(2, 1)
    assert plan_cycle(32, 8, 16, 64) == Cycle(4, 1)
    assert plan_cycle(512, 16, 16, 64) == Cycle(1, 8)
    assert plan_cycle(384, 1, 16, 64) == Cycle(8, 3)
    with pytest.raises(ConfigError, match=r"train_ratio is 0\.001.*choose a simpler ratio"):
        plan_cycle(0.001, 1, 16, 64)


def test_an_agent_lives_learns_and_reports(whole):
    path, run, _ = whole
    assert run.step == 20
    lines = read_metrics(path)
    last = lines[-1]
    # 64 steps before the first update: 16 of each of 4 worlds. A cycle is 1 step of 4 worlds and 1 update of 4 x 8.
    experience = arrays(path, 20)
    assert int(experience["replay"]["written"]) == 16 + 20
    assert plan_cycle(8, 4, 4, 8) == Cycle(1, 1)
    # Every 20th frame is the last of an episode, at which nothing is decided.
    assert int(experience["decisions"]) == 4 * (36 - 1) == last["decisions"] == last["frames"]
    assert np.isfinite([line["train/loss"] for line in lines if "train/loss" in line]).all()
    scores = [line for line in lines if "evaluation/score" in line]
    assert [line["step"] for line in scores] == [10, 20]
    ended = [line for line in lines if "episode/length" in line]
    assert ended and all(line["episode/length"] == 19 for line in ended)


def test_callbacks_get_what_those_of_other_training_get(whole):
    path, run, events = whole
    assert [(event.name, event.step) for event in events] == [("evaluate", 10), ("video", 15), ("end", 20)]
    # The steps of the worlds so far, but for one beginning of an episode in each of them.
    (seen,) = (line for line in read_metrics(path) if "seen" in line)
    assert (seen["step"], seen["seen"], seen["decisions"]) == (15, 15.0, 4 * (16 + 15 - 1))
    assert all(event.model == run.model and event.run_dir == path for event in events)
    # A callback may keep what it got.
    chex.assert_trees_all_equal(events[-1].variables, run.variables)
    assert not any(leaf.is_deleted() for event in events for leaf in jax.tree.leaves(event.variables))


def test_what_is_in_the_replay_is_what_happened(whole):
    path, _, _ = whole
    records = arrays(path, 20)["replay"]["records"]
    first, last = records["is_first"][:36], records["is_last"][:36]
    np.testing.assert_array_equal(np.flatnonzero(first[:, 0]), [0, 20])
    np.testing.assert_array_equal(np.flatnonzero(last[:, 0]), [19])
    assert not records["is_terminal"].any()
    np.testing.assert_array_equal(records["reward"][19], 0.0)
    assert (records["reward"][:19] < 0).all()
    np.testing.assert_array_equal(records["action"][19], 0.0)
    assert (np.abs(records["action"][:19]).max(axis=(1, 2)) > 0).all() and np.abs(records["action"]).max() <= 1.0
    # The reward of a record is the distance that its action led to, as the next record shows it.
    seen = records["observation"]
    distance = np.linalg.norm(seen["position"] - seen["goal"], axis=-1)
    np.testing.assert_allclose(records["reward"][:19], -distance[1:20], atol=1e-5)
    # Nothing was written beyond the counter, and every record that was written has a state of the model.
    assert not records["action"][36:].any() and not records["state"]["deter"][36:].any()
    assert (np.abs(records["state"]["deter"][:36]).max(axis=(1, 2)) > 0).all()


def count_calls(monkeypatch, owner, name):
    """A list with an entry for each call of a method; of one that runs under jit, for each time it is traced."""
    method, calls = getattr(owner, name), []
    monkeypatch.setattr(owner, name, lambda *arguments: calls.append(name) or method(*arguments))
    return calls


def test_stopping_and_going_on_is_the_same_bit_for_bit(whole, tmp_path, monkeypatch):
    path, run, _ = whole
    half = tmp_path / "half"
    updates, acts = count_calls(monkeypatch, Dreamer, "loss"), count_calls(monkeypatch, DreamerAgent, "act")
    train_agent(config("stages.train.steps=10"), half, progress=False)
    # Traced once each: the update; acting in the steps before the first update and in those between updates. The
    # evaluation is the program of the run before.
    assert (len(updates), len(acts)) == (1, 2)
    again = train_agent(config(), half, progress=False)
    assert (len(updates), len(acts)) == (2, 3)
    chex.assert_trees_all_equal(again.variables, run.variables)
    chex.assert_trees_all_equal(arrays(half, 20), arrays(path, 20))
    lines = [line for line in read_metrics(path) if "seen" not in line]
    assert [line["step"] for line in read_metrics(half)] == [line["step"] for line in lines]
    assert read_metrics(half)[-1]["decisions"] == read_metrics(path)[-1]["decisions"]


def test_three_lines_load_a_run_and_act(whole):
    path, _, _ = whole
    run = jaxwm.load_run(path)
    agent, memory = run.model.agent(), run.model.agent().init(1)
    frame = {field.name: np.zeros((1, *field.shape), field.dtype) for field in run.spec.observation}
    action, memory = agent.act(run.variables, jax.random.split(jax.random.key(0), 1), memory, frame, np.ones(1, bool))
    assert action.shape == (1, 2) and np.isfinite(action).all()


def test_dreams_of_an_agent_begin_with_random_play_in_its_world(whole, tmp_path, capsys):
    path, run, _ = whole
    out = tmp_path / "dream.npz"
    assert cli.main(["imagine", str(path), "--out", str(out), "--horizon", "4"]) == 0, capsys.readouterr().err
    position = np.load(out)["truth/position"]
    episodes = open_split(run.config, "test", 2)
    assert episodes.spec == run.spec and episodes.lengths.tolist() == [20, 20]
    shown = episodes.windows([0], [0], 9).observation["position"]
    np.testing.assert_allclose(position, shown, atol=1e-6)
    dream = load_dream(run, length=5, starts=3, context=2)
    assert jax.tree.leaves(dream.starts)[0].shape[0] == 3 and dream.spec == run.spec


def test_an_agent_from_elsewhere_says_how_to_get_episodes(whole, capsys, monkeypatch, tmp_path):
    _, run, _ = whole
    collect = CollectConfig(environment="CartPole-v1", repeat=2, options={"sutton": True})
    moved = run.config.model_copy(update={"data": run.config.data.model_copy(update={"collect": collect})})
    save_weights(dataclasses.replace(run, config=moved), tmp_path / "run")
    line = (
        "jaxwm: this agent lived in CartPole-v1 and left no episodes on disk: record some, 'jaxwm data record "
        "CartPole-v1 --out FOLDER --observe vectors --size 64 --repeat 2 env.sutton=True', and name them, --data "
        "FOLDER (in Python data=)\n"
    )
    for command in ("imagine", "evaluate", "report", "evolve"):
        assert cli.main([command, str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err == line, command
    with pytest.raises(DataError, match="and name them, --data FOLDER"):
        load_dream(tmp_path / "run")
    with pytest.raises(DataError, match="elsewhere"):
        load_dream(tmp_path / "run", data=tmp_path / "elsewhere")


def test_an_environment_from_outside(tmp_path):
    overrides = (
        "data.collect.world=null", "data.collect.environment=CartPole-v1", "data.collect.copies=2",
        "data.collect.length=null", "data.collect.prefill=16", "stages.train.steps=6", "training.evaluate_every=6",
        "training.checkpoint_every=3", "evaluation.episodes=3", "training.log_every=3",
    )  # fmt: skip
    train_agent(config(*overrides, "stages.train.steps=3"), tmp_path / "run", progress=False)
    before = arrays(tmp_path / "run", 3)["replay"]
    train_agent(config(*overrides), tmp_path / "run", progress=False)
    after = arrays(tmp_path / "run", 6)["replay"]
    # What was lived through before the stop is there once, and goes on with the beginning of an episode.
    count = int(before["written"])
    assert int(after["written"]) == count + 2 * 3
    for name in ("action", "reward", "is_first"):
        np.testing.assert_array_equal(after["records"][name][:count], before["records"][name][:count])
    assert after["records"]["is_first"][count].all()
    np.testing.assert_array_equal(after["records"]["reward"][:count][~after["records"]["is_last"][:count]], 1.0)
    scores = [line["evaluation/score"] for line in read_metrics(tmp_path / "run") if "evaluation/score" in line]
    assert all(8 <= score <= 500 for score in scores) and scores


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.collect.world=null"], "either an environment or a world"),
        (["data.collect.length=null"], "a world needs the length of an episode"),
        (["data.collect.repeat=2"], "repeat is for environments"),
        (["data.collect.options.frameskip=2"], "options are for environments"),
        (["data.collect=null"], "path is missing"),
        (["data.collect.train_ratio=0"], "train_ratio"),
        (["data.collect.worlds=3"], "unknown key"),
        (["data.collect.world.sped=3"], "did you mean 'speed'"),
    ],
)
def test_wrong_configurations(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("family: dreamer", "family: rssm", r"model\.family is 'rssm', which does not act"),
        ("  train:\n", "  behaviour:\n", "stages holds behaviour: an agent that lives"),
    ],
)
def test_families_that_do_not_act_and_other_stages(tmp_path, old, new, message):
    lines = pathlib.Path(TINY).read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(("  actor_", "  critic_", "  horizon")))
    assert old in text
    (tmp_path / "other.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        train_agent(jaxwm.load_config(tmp_path / "other.yaml"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_probes_of_what_nobody_keeps_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.probe_every is 5, expected 0"):
        train_agent(config("training.probe_every=5"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_model_begins_from_what_its_environments_really_show(monkeypatch, tmp_path):
    given = {}

    def init_state(model, stage, optimizer, key, batch, **_):
        given["batch"] = batch
        raise KeyboardInterrupt

    monkeypatch.setattr(online, "init_state", init_state)
    with pytest.raises(KeyboardInterrupt):
        train_agent(config("data.collect.world.observe=pixels"), tmp_path / "run", progress=False)
    batch = given["batch"]
    world = jaxwm.worlds.make_world("rooms", size=16, observe="pixels", reward="distance", terminal=False)
    frames = batch.observation["image"]
    # The four copies stand in different places of the same picture.
    assert frames.shape == (4, 1, *world.spec.images[0].shape) and batch.valid.all()
    assert frames.std() > 10 and (frames[0] != frames[1]).any()
    look = jax.jit(jax.vmap(lambda key: world.observation(world.reset(key))["image"]))
    others = np.asarray(look(jax.random.split(jax.random.key(9), 50)), float)
    assert np.abs(np.asarray(frames, float).mean((0, 1)) - others.mean(0)).mean() < 5


def test_an_agent_lives_in_atari(tmp_path):
    tiny = (
        "model.deter=16", "model.hidden=8", "model.units=8", "model.stoch=4", "model.classes=4", "model.embed=8",
        "model.blocks=2", "model.depth=2", "model.layers=1", "model.prior_layers=1", "model.actor_layers=1",
        "model.critic_layers=1", "model.horizon=2", "data.batch=2", "data.length=4", "data.collect.prefill=8",
        "data.collect.capacity=50", "data.collect.train_ratio=8", "data.collect.options.frameskip=3",
        "stages.train.steps=2", "training.log_every=1", "training.checkpoint_every=2", "training.evaluate_every=0",
    )  # fmt: skip
    loaded = jaxwm.load_config("configs/dreamer_atari.yaml", tiny)
    assert loaded.data.collect.options["repeat_action_probability"] == 0.0
    run = train_agent(loaded, tmp_path / "run", progress=False)
    assert run.spec == jaxwm.Spec((jaxwm.Field("image", (64, 64, 3), "uint8"),), jaxwm.ActionSpec(4, discrete=True))
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["step"], last["decisions"], last["frames"]) == (2, 10, 30) and np.isfinite(last["train/loss"])
    assert arrays(tmp_path / "run", 2)["replay"]["records"]["observation"]["image"][:10].std(0).any()
