"""The loss of the simple model, against its definition; the laws are in `tests/contract`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.models.simple import SimpleWorldModel
from jaxwm.testing import moving_clips
from tests.contract.families import PICTURES, VECTORS

MODEL = SimpleWorldModel(VECTORS, latent=6, hidden=8, layers=1, reward_scale=0.5)


@pytest.fixture(scope="module")
def given():
    batch = moving_clips(VECTORS, 2, 5)
    batch = batch.replace(is_first=batch.is_first.at[1, 3].set(True), valid=batch.valid.at[0, 4].set(False))
    return jax.jit(MODEL.init)(jax.random.key(0), batch), batch


@pytest.mark.parametrize("unroll", [1, 2, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_every_frame_predicts_the_next_ones_of_its_episode(given, unroll, residual):
    variables, batch = given
    model = dataclasses.replace(MODEL, unroll=unroll, residual=residual)
    loss, aux = model.loss(variables, jax.random.split(jax.random.key(0), 2), batch, "train")
    frames, rewards = [], []
    for row in range(2):
        for start in range(5 - unroll):
            latent = model.encode(variables, {"vector": batch.observation["vector"][row, start]})
            for t in range(start, start + unroll):
                if batch.is_first[row, t + 1] or not batch.valid[row, t + 1]:
                    break
                latent = model.predict_next(variables, latent, batch.action[row, t])
                prediction = model.decode(variables, latent)
                symlog = lambda x: np.sign(x) * np.log1p(np.abs(x))  # noqa: E731
                error = symlog(prediction.observation["vector"]) - symlog(batch.observation["vector"][row, t + 1])
                frames.append(np.mean(np.square(error)))
                rewards.append(np.square(prediction.reward - batch.reward[row, t]))
    assert len(frames) == {1: 6, 2: 8, 3: 8}[unroll]
    np.testing.assert_allclose(aux.metrics["loss/vector"], np.mean(frames), rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(frames) + 0.5 * np.mean(rewards), rtol=1e-5)


def test_a_residual_step_of_nothing_stays_where_it_is(given):
    variables, batch = given
    silent = jax.tree.map(jnp.zeros_like, variables["params"]["next_latent"])
    variables = {**variables, "params": {**variables["params"], "next_latent": silent}}
    latent = jnp.ones((2, 6))
    stays = dataclasses.replace(MODEL, residual=True).predict_next(variables, latent, batch.action[:, 0])
    np.testing.assert_array_equal(stays, latent)


def test_windows_that_are_too_short_are_refused(given):
    variables, batch = given
    with pytest.raises(ValueError, match="reward has 5 steps, expected more than unroll=5"):
        dataclasses.replace(MODEL, unroll=5).loss(variables, jax.random.split(jax.random.key(0), 2), batch, "train")


def test_without_a_coder_the_latent_is_what_is_seen(given):
    _, batch = given
    model = dataclasses.replace(MODEL, coder="identity", residual=True)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    assert set(variables["params"]) == {"hidden", "next_latent", "reward"}
    vector = 3.0 * batch.observation["vector"][:, 0]
    latent = model.encode(variables, {"vector": vector})
    assert latent.shape == model.init_state(2).shape == (2, 4)
    np.testing.assert_allclose(latent, np.sign(vector) * np.log1p(np.abs(vector)), rtol=1e-6)
    np.testing.assert_allclose(model.decode(variables, latent).observation["vector"], vector, rtol=1e-5)


def test_waves_are_what_the_dynamics_sees_besides(given):
    _, batch = given
    model = dataclasses.replace(MODEL, coder="identity", frequencies=3)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    kernels = [x for x in jax.tree.leaves(variables["params"]["hidden"]) if x.ndim == 2]
    assert (4 * (1 + 2 * 3) + 3, 8) in [kernel.shape for kernel in kernels]


def test_pictures_need_a_coder():
    with pytest.raises(ValueError, match="coder=identity takes vectors only, but 'image' is an image"):
        SimpleWorldModel(PICTURES, coder="identity")
