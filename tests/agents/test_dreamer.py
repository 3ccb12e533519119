"""DreamerV3's agent: how its losses hang together. The laws of every world model are in tests/contract."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm
from jaxwm.agents import Dreamer
from jaxwm.models.rssm import RSSM
from jaxwm.testing import moving_clips

SPEC = jaxwm.Spec((jaxwm.Field("vector", (3,), "float32"),), jaxwm.ActionSpec(2, low=(-1.0, 0.0), high=(1.0, 4.0)))
SMALL = dict(deter=16, hidden=8, units=8, stoch=3, classes=4, embed=8, blocks=2, horizon=3)
MODEL = Dreamer(SPEC, **SMALL)


@pytest.fixture(scope="module")
def given():
    batch = moving_clips(SPEC, 4, 6)
    variables = jax.jit(MODEL.init)(jax.random.key(0), batch)
    return variables, jax.random.split(jax.random.key(1), 4), batch


@pytest.fixture(scope="module")
def gradients(given):
    variables, keys, batch = given

    def loss(params, stage):
        return MODEL.loss({**variables, "params": params}, keys, batch, stage)

    differentiate = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    return {stage: differentiate(variables["params"], stage) for stage in ("world_model", "train")}


def norms(tree):
    return {name: float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(part)))) for name, part in tree.items()}


def test_the_official_size_has_the_parameters_that_are_reported():
    spec = jaxwm.Spec(
        (jaxwm.Field("vector", (24,), "float32"),), jaxwm.ActionSpec(6, low=(-1.0,) * 6, high=(1.0,) * 6)
    )
    model = Dreamer(spec, **RSSM.SIZES["1m"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jaxwm.example_batch(spec, 1, 2))
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    # What is reported of another implementation for this observation and action.
    assert abs(count / 646_819 - 1) < 0.01, count


def test_who_learns_from_whom(gradients):
    world, everything = gradients["world_model"][0], gradients["train"][0]
    assert norms(world)["actor"] == norms(world)["critic"] == 0.0 < norms(world)["encoder"]
    assert norms(everything)["actor"] > 0 and norms(everything)["critic"] > 0
    # Nothing of the dream reaches the world; what the critic learns on real sequences would, but its output is 0 yet.
    for name in ("encoder", "cell", "prior_output"):
        chex.assert_trees_all_close(everything[name], world[name], atol=1e-6)


def test_the_replayed_critic_trains_the_world_model(given):
    variables, _, batch = given
    critic = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), variables["params"]["critic"]
    )
    variables = {**variables, "params": {**variables["params"], "critic": critic}}
    states = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (4, 6, *x.shape[1:])), MODEL.init_state(4))

    def loss(deter, variables):
        return MODEL._replay_value_loss(variables, batch, states.replace(deter=deter), jnp.ones((4, 6)))

    reached = jnp.abs(jax.jit(jax.grad(loss))(states.deter + 0.1, variables)).max(axis=(0, 2))
    assert (reached[:-1] > 1e-4).all() and reached[-1] == 0.0


def test_after_an_update_the_slow_critic_follows_and_the_range_is_kept(given, gradients):
    variables, _, _ = given
    moved = jax.tree.map(lambda x: x + 1.0, variables["params"]["critic"])
    after = MODEL.after_update(
        {**variables, "params": {**variables["params"], "critic": moved}}, gradients["train"][1], "train"
    )
    for slow, before in zip(
        jax.tree.leaves(after["targets"]["slow_critic"]), jax.tree.leaves(variables["params"]["critic"]), strict=True
    ):
        np.testing.assert_allclose(slow, before + 0.02, atol=1e-6)
    metrics = gradients["train"][1].metrics
    assert after["targets"]["return_range"] == {"low": metrics["return_low"], "high": metrics["return_high"]}
    assert MODEL.after_update(variables, gradients["world_model"][1], "world_model") is variables


def test_a_kept_state_is_where_the_window_begins(given):
    variables, keys, batch = given
    whole, aux = MODEL.loss(variables, keys, batch, "world_model")
    tail = jax.tree.map(lambda x: x[:, 3:], batch.replace(previous_action=None, info={}))
    tail = tail.replace(previous_action=batch.action[:, 2], initial_state=jax.tree.map(lambda x: x[:, 2], aux.states))
    fresh = tail.replace(initial_state=None)
    first = lambda batch: MODEL.loss(variables, keys, batch, "world_model")[1].states.deter[:, 0]  # noqa: E731
    # The memory is a function of the state before and the action; the draw of the state before is in it.
    np.testing.assert_allclose(first(tail), aux.states.deter[:, 3], atol=1e-5)
    assert np.abs(first(fresh) - aux.states.deter[:, 3]).max() > 1e-3
    assert np.isfinite(whole)


def test_the_loss_on_real_sequences_by_hand(given):
    variables, _, _ = given
    batch = moving_clips(SPEC, 1, 6)
    flag = lambda *steps: jnp.zeros((1, 6), bool).at[0, list(steps)].set(True)  # noqa: E731
    # An episode ends at 2 by the rules, another begins at 3 and is cut at 5.
    reward = jnp.array([[1.0, 2.0, 99.0, 4.0, 5.0, 99.0]])
    batch = batch.replace(is_first=flag(0, 3), is_last=flag(2, 5), is_terminal=flag(2), reward=reward)
    imagined = jnp.array([[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]])
    states = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (1, 6, *x.shape[1:])), MODEL.init_state(1))
    d, lam = MODEL.discount, MODEL.return_lambda
    expected = np.zeros(6)
    expected[1] = 2.0  # nothing follows the end
    expected[0] = 1.0 + d * ((1 - lam) * 20.0 + lam * expected[1])
    expected[4] = 5.0 + d * 60.0  # beyond the cut only what was imagined
    expected[3] = 4.0 + d * ((1 - lam) * 50.0 + lam * expected[4])
    critic = MODEL.actor_critic
    features = MODEL.features(variables, MODEL.init_state(1))
    value = critic.value(variables["params"]["critic"], features)
    errors = [critic.critic_error(value, jnp.array([expected[t]]), jnp.zeros(1))[0] for t in (0, 1, 3, 4)]
    loss = MODEL._replay_value_loss(variables, batch, states, imagined)
    assert float(loss) == pytest.approx(float(np.mean(errors)), rel=1e-4)

    # The run was stopped at 2, without an end of the episode: nothing of the next one is credited to it.
    expected[1] = 2.0 + d * 30.0
    expected[0] = 1.0 + d * ((1 - lam) * 20.0 + lam * expected[1])
    errors = [critic.critic_error(value, jnp.array([expected[t]]), jnp.zeros(1))[0] for t in (0, 1, 3, 4)]
    loss = MODEL._replay_value_loss(variables, batch.replace(is_last=flag(5), is_terminal=flag()), states, imagined)
    assert float(loss) == pytest.approx(float(np.mean(errors)), rel=1e-4)


def test_the_agent_forgets_where_an_episode_begins_and_keeps_the_bounds(given):
    variables, _, batch = given
    agent = MODEL.agent()
    assert hash(agent) == hash(MODEL.agent()) and agent.spec == SPEC
    keys = jax.random.split(jax.random.key(5), 4)
    frame = {"vector": batch.observation["vector"][:, 0]}
    fresh, started = agent.act(variables, keys, agent.init(4), frame, jnp.ones(4, bool))
    _, later = agent.act(variables, keys, started, frame, jnp.zeros(4, bool))
    again, restarted = agent.act(variables, keys, later, frame, jnp.ones(4, bool))
    np.testing.assert_array_equal(fresh, again)
    chex.assert_trees_all_equal(started, restarted)
    assert np.abs(later.state.deter - started.state.deter).max() > 1e-4
    many = jax.random.split(jax.random.key(6), 2000)
    wide = jax.tree.map(lambda x: jnp.repeat(x[:1], 2000, axis=0), (agent.init(1), frame))
    taken, _ = agent.act(variables, many, *wide, jnp.ones(2000, bool))
    assert taken.min(0).tolist() == [-1.0, 0.0] and taken.max(0).tolist() == [1.0, 4.0]
