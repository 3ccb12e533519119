"""An ensemble is its members side by side; the laws are in `tests/contract`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.config import ConfigError, build_model, parse_config
from jaxwm.models.ensemble import Ensemble
from jaxwm.testing import moving_clips
from jaxwm.types import Prediction
from tests.contract.families import PICTURES, TINY, VECTOR_MODEL, VECTORS

MEMBER = dataclasses.replace(VECTOR_MODEL, latent=6, hidden=8)
MODEL = Ensemble(VECTORS, MEMBER, members=3)
B, T = 2, 4


@pytest.fixture(scope="module")
def given():
    batch = moving_clips(VECTORS, B, T)
    return jax.jit(MODEL.init)(jax.random.key(0), batch), batch


def member(variables, number):
    return jax.tree.map(lambda x: x[number], variables)


def test_each_member_is_a_model_of_its_own(given):
    variables, batch = given
    keys = jax.random.split(jax.random.key(1), B)
    observation = {"vector": batch.observation["vector"][:, 0]}
    begins, nothing = jnp.ones(B, bool), jnp.zeros((B, 3))
    state = MODEL.observe(variables, keys, MODEL.init_state(B), nothing, observation, begins)
    following = MODEL.predict(variables, keys, state, batch.action[:, 0])
    assert following.shape == (B, 3, 6)
    features = MODEL.features(variables, following).reshape(B, 3, 6)
    prediction = MODEL.decode(variables, following)
    decoded = []
    for number in range(3):
        own = member(variables, number)
        alone = MEMBER.observe(own, keys, MEMBER.init_state(B), nothing, observation, begins)
        alone = MEMBER.predict(own, keys, alone, batch.action[:, 0])
        np.testing.assert_allclose(following[:, number], alone, rtol=1e-5)
        np.testing.assert_allclose(features[:, number], MEMBER.features(own, alone), rtol=1e-5)
        decoded.append(MEMBER.decode(own, alone))
    assert not np.allclose(following[:, 0], following[:, 1])
    vectors = np.stack([d.observation["vector"] for d in decoded])
    rewards = np.stack([d.reward for d in decoded])
    np.testing.assert_allclose(prediction.observation["vector"], vectors.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(prediction.reward, rewards.mean(0), rtol=1e-5, atol=1e-6)
    symlog = lambda x: np.sign(x) * np.log1p(np.abs(x))  # noqa: E731
    apart = symlog(vectors).var(0).mean(-1) + symlog(rewards).var(0)
    np.testing.assert_allclose(prediction.uncertainty, apart, rtol=1e-4)


def test_members_that_agree_are_certain(given):
    variables, _ = given
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), variables)
    state = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (B, 1, 6)), (B, 3, 6))
    np.testing.assert_allclose(MODEL.decode(same, state).uncertainty, 0.0, atol=1e-10)
    assert (MODEL.decode(variables, state).uncertainty > 1e-4).all()


def test_pictures_disagree_on_their_own_scale():
    pictures = Ensemble(PICTURES, TINY["simple"], members=2)
    image = jnp.zeros((1, 2, 16, 16, 3)).at[:, 1].set(1.0)
    prediction = Prediction({"image": image, "vector": jnp.zeros((1, 2, 3))})
    np.testing.assert_allclose(pictures.disagreement(prediction), [0.25])


def test_the_loss_is_the_mean_of_the_members_on_the_same_batch(given):
    variables, batch = given
    keys = jax.random.split(jax.random.key(1), B)
    loss, aux = MODEL.loss(variables, keys, batch, "train")
    alone = [MEMBER.loss(member(variables, number), keys, batch, "train")[0] for number in range(3)]
    np.testing.assert_allclose(loss, np.mean(alone), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["loss/vector"] + 0.1 * aux.metrics["loss/reward"], loss, rtol=1e-5)


def test_what_follows_an_update_follows_it_in_each_member():
    """With states in `Aux` and with counters in the targets."""
    rssm = Ensemble(VECTORS, dataclasses.replace(TINY["rssm-gaussian"], deter=8, hidden=8, units=8), members=2)
    batch = moving_clips(VECTORS, B, T)

    @jax.jit
    def run(key):
        variables = rssm.init(key, batch)
        _, aux = rssm.loss(variables, jax.random.split(key, B), batch, "train")
        return aux, rssm.after_update(variables, aux, "train")["targets"]

    aux, targets = run(jax.random.key(0))
    np.testing.assert_array_equal(targets["updates"], [1, 1])
    assert aux.states.deter.shape == (B, T, 2, 8)
    assert not np.allclose(aux.states.deter[:, :, 0], aux.states.deter[:, :, 1])


VALUES = {
    "model": {"family": "ensemble", "members": 2, "member": {"family": "rssm", "size": "12m", "deter": 64}},
    "data": {"path": "x"},
    "stages": {"train": {"steps": 1}},
}


def test_a_member_is_configured_inside_the_ensemble():
    model = build_model(parse_config(VALUES, ["model.member.hidden=32"]).model, VECTORS)
    assert isinstance(model, Ensemble) and model.members == 2
    assert (model.member.deter, model.member.hidden, model.member.units) == (64, 32, 256)
    assert parse_config(VALUES, ["model.member.size=25m"]).model.member.deter == 3072


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.member.detr=3", "model.member.detr=3 is an unknown key; did you mean 'deter'"),
        ("model.member.family=rsm", "model.member.family: 'rsm' is unknown; did you mean 'rssm'"),
        ("model.member.size=13m", "model.member.size: '13m' is not a size; did you mean '1m'"),
        ("model.member=null", "model.member.family is missing"),
        ("model.members=1", "model.members=1"),
        ("stages.trian.steps=3", "ensemble has no such stage; did you mean 'train'"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(VALUES, [override])


def test_members_of_another_world_are_refused():
    with pytest.raises(ValueError, match="another spec"):
        Ensemble(PICTURES, MEMBER)
