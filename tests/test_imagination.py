"""Rollouts beyond the laws (which `tests/contract` checks): policies, controls, counterfactuals, padding, mistakes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm
from jaxwm.exporting import export_imagination, load_exported
from jaxwm.testing import moving_clips, random_actions
from tests.contract.families import TINY

MODEL = TINY["rssm-gaussian"]
B, T = 3, 4


@dataclasses.dataclass(frozen=True)
class Counting:
    """Chooses action 0, 1, 2, 0 ... and counts in its own state."""

    def __call__(self, params, keys, features, policy_state):
        chex.assert_shape(features, (keys.shape[0], MODEL.deter + MODEL.stoch))
        return jax.nn.one_hot((policy_state + params) % 3, 3), policy_state + 1


@pytest.fixture(scope="module")
def given():
    key = jax.random.key(0)
    batch = moving_clips(MODEL.spec, B, T)
    variables = jax.jit(MODEL.init)(key, batch)
    return variables, key, batch, jaxwm.observe_sequence(MODEL, variables, key, batch).final_state


def test_a_policy_acts_on_each_entry_and_carries_its_state(given):
    variables, key, _, state = given
    options = {"policy": Counting(), "policy_state": jnp.zeros(B, jnp.int32), "horizon": T}
    dream = jaxwm.imagine(MODEL, variables, key, state, policy_params=jnp.array(1), **options)
    chosen = np.argmax(dream.action[:, :T], axis=-1)
    np.testing.assert_array_equal(chosen, np.broadcast_to([1, 2, 0, 1], (B, T)))
    np.testing.assert_array_equal(dream.action[:, T], 0.0)
    other = jaxwm.imagine(MODEL, variables, key, state, policy_params=jnp.array(0), **options)
    assert not np.allclose(dream.features[:, 1:], other.features[:, 1:])


def test_a_shorter_horizon_is_the_beginning_of_the_dream(given):
    variables, key, batch, state = given
    long = jaxwm.imagine(MODEL, variables, key, state, batch.action)
    short = jaxwm.imagine(MODEL, variables, key, state, batch.action, horizon=2)
    chex.assert_shape(short.features, (B, 3, None))
    chex.assert_trees_all_close(short.features, long.features[:, :3], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(long.features[:, 0], MODEL.features(variables, state))


def test_temperature_zero_is_the_mode_and_does_not_depend_on_the_key(given):
    variables, _, batch, state = given

    def dream(seed, temperature):
        condition = {"temperature": jnp.full(B, temperature)}
        return jaxwm.imagine(MODEL, variables, jax.random.key(seed), state, batch.action, condition=condition).features

    chex.assert_trees_all_equal(dream(1, 0.0), dream(2, 0.0))
    assert not np.allclose(dream(1, 1.0), dream(2, 1.0))
    plain = jaxwm.imagine(MODEL, variables, jax.random.key(1), state, batch.action).features
    chex.assert_trees_all_close(dream(1, 1.0), plain, rtol=1e-5, atol=1e-6)


def test_counterfactuals_share_the_noise_and_differ_by_the_action(given):
    variables, key, batch, state = given
    same = jnp.broadcast_to(batch.action[:1], (2, T, 3))
    twins = jaxwm.counterfactuals(MODEL, variables, key, state, same)
    chex.assert_shape(twins.features, (B, 2, T + 1, None))
    chex.assert_trees_all_close(twins.features[:, 0], twins.features[:, 1], rtol=1e-5, atol=1e-6)
    branches = jnp.stack([batch.action, jnp.roll(batch.action, 1, axis=-1)], axis=1)
    split = jaxwm.counterfactuals(MODEL, variables, key, state, branches)
    alone = jaxwm.imagine(MODEL, variables, key, state, batch.action)
    chex.assert_trees_all_close(split.features[:, 0], alone.features, rtol=1e-5, atol=1e-6)
    assert not np.allclose(split.features[:, 0, 1:], split.features[:, 1, 1:])


def test_padding_leaves_the_state_as_it_was(given):
    variables, key, batch, _ = given
    padded = batch.replace(valid=batch.valid.at[0, 2:].set(False))
    seen = jaxwm.observe_sequence(MODEL, variables, key, padded, return_states=True)
    at_two = jax.tree.map(lambda x: x[0, 1], seen.states)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], seen.final_state), at_two)
    whole = jaxwm.observe_sequence(MODEL, variables, key, batch)
    chex.assert_trees_all_close(seen.features[1:], whole.features[1:], rtol=1e-5, atol=1e-6)


def test_surprise_is_zero_only_where_an_episode_begins(given):
    variables, key, batch, _ = given
    surprise = jaxwm.observe_sequence(MODEL, variables, key, batch, surprise=True).surprise
    assert np.all(surprise[:, 0] == 0) and np.all(surprise[:, 1:] > 0)


def test_the_loss_and_the_step_by_step_posterior_agree(given):
    variables, key, batch, _ = given
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
    _, aux = jax.jit(MODEL.loss, static_argnums=3)(variables, keys, batch, "train")
    seen = jaxwm.observe_sequence(MODEL, variables, key, batch, return_states=True)
    chex.assert_trees_all_close(aux.states, seen.states, rtol=1e-5, atol=1e-5)


def test_an_exported_rollout_dreams_as_the_model_does(given, tmp_path):
    variables, key, batch, _ = given
    path = export_imagination(MODEL, variables, tmp_path / "dream.jaxwm", horizon=T)
    run = load_exported(path)
    first = {name: x[:, 0] for name, x in batch.observation.items()}
    result = run(jax.random.key_data(key), first, batch.action)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))
    alone = MODEL.observe(variables, keys, MODEL.init_state(B), batch.previous_action, first, jnp.ones(B, bool))
    expected = jaxwm.imagine(MODEL, variables, key, alone, batch.action, decode=True)
    chex.assert_trees_all_close(result["features"], expected.features, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(result["reward"], expected.prediction.reward, rtol=1e-5, atol=1e-5)
    smaller = run(jax.random.key_data(key), {name: x[:2] for name, x in first.items()}, batch.action[:2])
    chex.assert_trees_all_close(smaller["features"], result["features"][:2], rtol=1e-5, atol=1e-5)


def test_what_is_not_an_exported_rollout_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jaxwm: cannot read"):
        load_exported(tmp_path / "none.jaxwm")
    (tmp_path / "bad.jaxwm").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.jaxwm: not an exported rollout"):
        load_exported(tmp_path / "bad.jaxwm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": jnp.zeros((B, T))}, r"actions has shape \(3, 4\), expected \[B, T, A\]"),
        ({"actions": jnp.zeros((B, T, 2))}, "actions has shape"),
        ({"actions": jnp.zeros((B + 1, T, 3))}, "actions has shape"),
        ({"actions": jnp.zeros((B, T, 3), jnp.int32)}, "actions has dtype int32"),
        ({"horizon": 9}, "horizon is 9, but actions has only 4 steps"),
        ({"horizon": 0}, "horizon is 0"),
        ({"actions": None}, "either actions or a policy"),
        ({"policy": Counting()}, "either actions or a policy"),
        ({"actions": None, "policy": Counting()}, "needs a horizon"),
        ({"condition": {"temperature": jnp.ones(2)}}, r"condition\['temperature'\] has shape \(2,\)"),
        ({"condition": {"wether": jnp.ones((B, T))}}, r"condition\['wether'\] is not part of the spec"),
        ({"state": {"a": jnp.zeros((B, 2))}}, "state is PyTreeDef"),
        ({"state": ()}, "no array with a leading batch axis"),
    ],
)
def test_a_mistake_names_the_argument(given, changes, message):
    variables, key, _, state = given
    arguments = {"state": state, "actions": random_actions(MODEL.spec, B, T), **changes}
    with pytest.raises(ValueError, match=message):
        jaxwm.imagine(MODEL, variables, key, arguments.pop("state"), arguments.pop("actions"), **arguments)


def test_a_state_of_another_size_names_the_part(given):
    variables, key, batch, state = given
    with pytest.raises(ValueError, match=r"state.*stoch.* is float32\[3, 5\], expected float32\[3, 4\]"):
        jaxwm.imagine(MODEL, variables, key, state.replace(stoch=jnp.zeros((B, 5))), batch.action)
