"""Masks, masked prediction and causal dynamics of V-JEPA 2, against their definitions; the laws are in
`tests/contract`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.imagination import observe_sequence
from jaxwm.models.vjepa import VJEPA, layer_norm
from jaxwm.nn.masks import draw_blocks
from jaxwm.testing import moving_clips
from jaxwm.types import ActionSpec, Field, Spec

SPEC = Spec((Field("image", (16, 16, 3), "uint8"), Field("vector", (3,), "float32")), ActionSpec(2))
MODEL = VJEPA(
    SPEC, width=12, blocks=1, heads=2, predictor_width=8, predictor_heads=1, predictor_blocks=1, dynamics_width=12,
    dynamics_blocks=2, dynamics_heads=2, window=3, depth=4, units=8, rollout=3, target_rate=0.25,
)  # fmt: skip
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def given():
    """Variables, and two windows of six frames; an episode begins inside the second."""
    batch = moving_clips(SPEC, 2, 6)
    batch = batch.replace(is_first=batch.is_first.at[1, 3].set(True))
    variables = jax.jit(MODEL.init)(jax.random.key(0), batch)
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), variables), batch


@pytest.fixture(scope="module")
def dynamics(given):
    variables, batch = given
    return jax.jit(lambda v: MODEL.loss(v, KEYS, batch, "dynamics"))(variables)


def error(guess, truth):
    return float(np.mean(np.abs(guess - truth)))


def test_the_parallel_loss_is_that_of_single_steps_with_the_ring(given, dynamics):
    variables, batch = given
    seen = observe_sequence(MODEL, variables, jax.random.key(0), batch, return_states=True).states
    latent, vectors = MODEL.encode(variables, batch.observation)
    np.testing.assert_allclose(seen.latent, latent, atol=1e-5)
    patches, proprioception = [], []
    for t in range(5):
        state = jax.tree.map(lambda x, t=t: x[:, t], seen)
        following = MODEL.predict(variables, KEYS, state, batch.action[:, t])
        for row in range(2):
            if not batch.is_first[row, t + 1]:
                patches.append(error(following.latent[row], latent[row, t + 1]))
                proprioception.append(error(following.proprioception[row], vectors[row, t + 1]))
    assert len(patches) == 9
    np.testing.assert_allclose(dynamics[1].metrics["loss/next"], np.mean(patches), rtol=1e-4)
    np.testing.assert_allclose(dynamics[1].metrics["loss/next_vectors"], np.mean(proprioception), rtol=1e-4)


def test_the_rollout_feeds_on_its_own_predictions(given, dynamics):
    variables, batch = given
    latent, vectors = MODEL.encode(variables, batch.observation)
    state = MODEL.init_state(2).replace(latent=latent[:, 0], proprioception=vectors[:, 0], known=jnp.ones(2, bool))
    errors = []
    for t in range(3):
        state = MODEL.predict(variables, KEYS, state, batch.action[:, t])
        errors += [error(state.latent[row], latent[row, t + 1]) for row in range(2) if (row, t) != (1, 2)]
    np.testing.assert_allclose(dynamics[1].metrics["loss/rollout"], np.mean(errors), rtol=1e-4)
    # With the true frames in place of the predicted ones it would be another figure.
    assert abs(dynamics[1].metrics["loss/rollout"] - dynamics[1].metrics["loss/next"]) > 1e-4


def test_a_patch_is_a_tubelet_of_neighbouring_frames(given):
    _, batch = given
    fresh = jax.jit(MODEL.init)(jax.random.key(0), batch)
    pixels = MODEL._tubelets(fresh, batch.observation["image"])
    assert pixels.shape == (2, 3 * 4, 2 * 8 * 8 * 3)
    frames = np.asarray(batch.observation["image"], np.float32)
    # Each colour has mean 0 and variance 1 over the frames that the model started from.
    frames = (frames - frames.mean((0, 1, 2, 3))) / frames.std((0, 1, 2, 3))
    # The second tubelet's third patch: frames 2 and 3, second row, first column.
    np.testing.assert_allclose(pixels[0, 4 + 2], frames[0, 2:4, 8:16, 0:8].reshape(-1), atol=1e-4)
    np.testing.assert_array_equal(MODEL._places(3)[4 + 2], [1, 1, 0])


def test_what_is_cut_out_is_not_seen_by_the_context_encoder(given):
    """With a target that is the same whatever it sees, the loss depends on the visible pixels alone."""
    variables, batch = given
    blind = jax.tree.map(jnp.zeros_like, variables["targets"]["encoder"])
    variables = {**variables, "targets": {**variables["targets"], "encoder": blind}}
    losses = jax.jit(
        lambda images: MODEL._masked_losses(
            variables, KEYS, batch.replace(observation={**batch.observation, "image": images})
        )
    )
    images = batch.observation["image"]
    whole = losses(images)
    for index, (name, count, share) in enumerate((("masked_short", 8, 0.15), ("masked_long", 2, 0.7))):
        hidden = [draw_blocks(jax.random.fold_in(key, index), MODEL.grid, count, share) for key in KEYS]
        hidden = np.kron(np.stack(hidden), np.ones((8, 8), bool))[:, None, :, :, None]
        assert 0 < hidden.mean() < 1
        assert losses(jnp.where(hidden, 255 - images, images))[name] == whole[name]
        assert losses(jnp.where(hidden, images, 255 - images))[name] != whole[name]


def test_the_masked_loss_is_that_of_the_visible_patches_alone(given):
    """Each clip by itself, with what is cut out really gone instead of masked; a tubelet beyond the end is no part."""
    variables, batch = given
    batch = batch.replace(valid=batch.valid.at[0, 5].set(False))
    encoder, predictor = MODEL._encoder, MODEL._predictor
    pixels, places = MODEL._tubelets(variables, batch.observation["image"]), MODEL._places(3)
    found = jax.jit(lambda v: MODEL._masked_losses(v, KEYS, batch))(variables)

    @jax.jit
    def guess_and_targets(clip, seen, there, where):
        params = variables["params"]
        context = encoder.apply({"params": params["encoder"]}, seen, there)
        everywhere = (jnp.ones(there.shape[:2], bool), where, jnp.ones((1, len(where)), bool))
        guess = predictor.apply({"params": params["predictor"]}, context, there, *everywhere)
        return guess[0], layer_norm(encoder.apply({"params": variables["targets"]["encoder"]}, clip, where[None]))[0]

    for index, (name, count, share) in enumerate((("masked_short", 8, 0.15), ("masked_long", 2, 0.7))):
        errors = []
        for row, steps in ((0, 2), (1, 3)):
            clip, where = pixels[row : row + 1, : 4 * steps], places[: 4 * steps]
            hidden = np.asarray(draw_blocks(jax.random.fold_in(KEYS[row], index), MODEL.grid, count, share))
            hidden = np.tile(hidden.reshape(-1), steps)
            if hidden.all():
                continue  # from nothing, nothing is foretold
            guess, targets = guess_and_targets(clip, clip[:, ~hidden], where[~hidden][None], where)
            errors.append(np.mean(np.abs(guess - targets), axis=-1)[hidden])
        np.testing.assert_allclose(found[name], np.mean(np.concatenate(errors)), rtol=1e-4)


def test_targets_follow_only_in_pretraining_and_get_no_gradient(given):
    variables, batch = given
    gradient, aux = jax.jit(jax.grad(lambda v: MODEL.loss(v, KEYS, batch, "pretrain"), has_aux=True))(variables)
    assert all(not np.any(x) for x in jax.tree.leaves(gradient["targets"]))
    assert all(not np.any(x) for x in jax.tree.leaves(gradient["params"]["dynamics"]))
    assert all(np.any(x) for x in jax.tree.leaves(gradient["params"]["predictor"]))
    after = MODEL.after_update(variables, aux, "pretrain")["targets"]["encoder"]
    expected = jax.tree.map(
        lambda slow, fast: 0.75 * slow + 0.25 * fast, variables["targets"]["encoder"], variables["params"]["encoder"]
    )
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert MODEL.after_update(variables, aux, "dynamics") is variables


def test_each_frame_is_encoded_alone_and_normalised(given):
    variables, batch = given
    latent, _ = MODEL.encode(variables, batch.observation)
    np.testing.assert_allclose(np.mean(latent, axis=-1), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.std(latent, axis=-1), 1.0, atol=1e-3)
    images = batch.observation["image"].at[:, 3:].set(0)
    changed, _ = MODEL.encode(variables, {**batch.observation, "image": images})
    np.testing.assert_array_equal(changed[:, :3], latent[:, :3])
    assert np.abs(layer_norm(jnp.array([1.0, 2.0, 3.0])) - np.array([-1.2247, 0.0, 1.2247])).max() < 1e-3


def test_worlds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="exactly one image, but this world shows 0"):
        VJEPA(Spec((Field("vector", (3,), "float32"),), ActionSpec(2)))
    with pytest.raises(ValueError, match="patch is 6, which does not divide"):
        VJEPA(SPEC, patch=6)
