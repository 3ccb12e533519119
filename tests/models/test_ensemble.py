"""An ensemble is its members side by side; the laws are in `tests/contract`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.config import ConfigError, build_model, parse_config
from jaxwm.models import FAMILIES
from jaxwm.models.ensemble import Ensemble
from jaxwm.models.tokenizer import Tokenizer
from jaxwm.testing import moving_clips
from jaxwm.types import Field, Prediction, Spec
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


def small(name, **changes):
    """The tiny instance of the contract, with little to compile: without convolutions."""
    return dataclasses.replace(TINY[name], **({"spec": VECTORS} | changes))


PICTURE = Spec((Field("image", (8, 8, 3), "uint8"),), VECTORS.action)
ANY_FAMILY = {
    "simple": (small("simple-identity"), "train"),
    "rssm": (small("rssm-gaussian"), "train"),
    "dreamer": (small("dreamer", recurrent="gru", latent="gaussian", horizon=2), "train"),
    "ensemble": (MODEL, "train"),
    "byol": (small("byol"), "train"),
    "jepa": (small("jepa"), "train"),
    "vjepa": (small("vjepa", spec=PICTURE, patch=4, rollout=1), "dynamics"),
    "mdn_rnn": (small("mdn_rnn-joint"), "dynamics"),
    "diffusion": (small("diffusion", spec=PICTURE, tokenizer=Tokenizer(patch=4, width=8, blocks=1)), "dynamics"),
}
"""A member of each family, and a stage to train it in."""


def test_every_registered_family_is_tried_as_a_member():
    shipped = {family for family in FAMILIES.values() if family.__module__.startswith("jaxwm.")}
    assert {type(member) for member, _ in ANY_FAMILY.values()} == shipped


@pytest.mark.parametrize("name", ANY_FAMILY)
def test_any_family_may_be_a_member(name):
    """Members that are the same agree, others do not; an update changes each of them in its own way."""
    one, stage = ANY_FAMILY[name]
    model = Ensemble(one.spec, one, members=2)
    batch, keys = moving_clips(one.spec, B, 3), jax.random.split(jax.random.key(0), B)
    # Any parameters will do, and to draw them here spares the compilation of `init`.
    random = np.random.default_rng(0)
    draw = lambda x: (0.3 * random.normal(size=x.shape)).astype(x.dtype)  # noqa: E731
    drawn = jax.tree.map(draw, jax.eval_shape(model.init, keys[0], batch))
    alike = lambda tree: jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), tree)  # noqa: E731
    before = {"params": drawn["params"], "targets": alike(drawn["targets"])}

    def uncertainty(variables):
        mode, frame = {"temperature": jnp.zeros(B)}, {name: x[:, 0] for name, x in batch.observation.items()}
        begins, nothing = jnp.ones(B, bool), jnp.zeros_like(batch.action[:, 0])
        state = model.observe(variables, keys, model.init_state(B), nothing, frame, begins, mode)
        return model.decode(variables, model.predict(variables, keys, state, batch.action[:, 0], mode)).uncertainty

    both = jax.tree.map(lambda *x: np.stack(x), alike(before), before)
    agreed, differed = jax.jit(lambda both: jax.lax.map(uncertainty, both))(both)
    np.testing.assert_allclose(agreed, 0.0, atol=1e-6)
    assert (differed > 1e-4).all()

    @jax.jit
    def update(before):
        differentiate = jax.value_and_grad(
            lambda p: model.loss({**before, "params": p}, keys, batch, stage), has_aux=True
        )
        (loss, aux), gradient = differentiate(before["params"])
        params = jax.tree.map(lambda x, g: x - 0.1 * g, before["params"], gradient)
        return loss, model.after_update({**before, "params": params}, aux, stage)

    loss, after = update(before)
    assert np.isfinite(loss)
    changes = jax.tree.map(lambda x, y: np.asarray(y) - x, before, after)
    for path, change in jax.tree.leaves_with_path(changes):
        assert np.isfinite(change).all(), path
        if change.dtype == np.int32:  # counts updates
            np.testing.assert_array_equal(change, 1)
        elif change.any():
            assert not np.allclose(change[0], change[1], rtol=1e-3, atol=0.0), path
    assert any(change.any() for change in jax.tree.leaves(changes["params"]))


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
