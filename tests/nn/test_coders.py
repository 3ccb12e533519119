from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

from jaxwm.nn import Decoder, Encoder, ImageDecoder, ImageEncoder, VectorEncoder, patchify, symlog, unpatchify
from jaxwm.nn.coders import start_from_mean_frame
from jaxwm.types import ActionSpec, Field, Spec, example_batch

GOLDEN = Path(__file__).parent / "golden"
KEY = jax.random.key(0)
BOTH = Spec(
    (Field("image", (16, 16, 3), "uint8"), Field("arm", (2,), "float32"), Field("leg", (3,), "float32")), ActionSpec(2)
)
PICTURES = Spec((Field("image", (16, 16, 3), "uint8"),), ActionSpec(2))
VECTORS = Spec(BOTH.vectors, ActionSpec(2))
SMALL = {"depth": 2, "units": 8, "layers": 2}


def _observation(*leading, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(random.integers(0, 256, (*leading, 16, 16, 3)), jnp.uint8),
        "arm": jnp.asarray(random.normal(size=(*leading, 2)), jnp.float32),
        "leg": jnp.asarray(random.normal(size=(*leading, 3)), jnp.float32),
    }


@pytest.fixture(scope="module", params=["patch", "stride"])
def coders(request):
    """Encoder and decoder of images and vectors with their variables, both jitted."""
    encoder, decoder = Encoder(BOTH, 6, kind=request.param, **SMALL), Decoder(BOTH, kind=request.param, **SMALL)
    encoder_variables = random_variables(encoder, _observation(1))
    decoder_variables = random_variables(decoder, jnp.zeros((1, 5)))
    encode, decode = jax.jit(encoder.apply), jax.jit(decoder.apply)
    return lambda x: encode(encoder_variables, x), lambda x: decode(decoder_variables, x)


def test_patches_by_hand():
    image = jnp.arange(2 * 4 * 1).reshape(2, 4, 1)
    np.testing.assert_array_equal(patchify(image, 2), [[[0, 1, 4, 5], [2, 3, 6, 7]]])
    batch = jax.random.normal(KEY, (2, 3, 8, 12, 3))
    np.testing.assert_array_equal(unpatchify(patchify(batch, 4), 4), batch)


def _convolution(golden, name):
    return {"kernel": golden[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": golden[f"{name}.bias"]}


def test_stride_coders_equal_torch_with_its_weights():
    golden = np.load(GOLDEN / "autoencoder.npz")
    params = {f"conv_{i}": _convolution(golden, f"encoder.{2 * i}") for i in range(3)}
    # The documented conversions of dense layers from the order channels, height, width.
    dense = golden["encoder.7.weight"].reshape(6, 8, 2, 2).transpose(2, 3, 1, 0).reshape(32, 6)
    params["embed_layer"] = {"kernel": dense, "bias": golden["encoder.7.bias"]}
    style = {"depth": 2, "kind": "stride", "norm": "none", "activation": "relu"}
    image = jnp.asarray(golden["image"].transpose(0, 2, 3, 1))
    latent = ImageEncoder(6, **style).apply({"params": params}, image)
    np.testing.assert_allclose(latent, golden["latent"], atol=1e-5)

    params = {f"conv_{2 - i}": _convolution(golden, f"decoder.{3 + 2 * i}") for i in range(3)}
    order = lambda x: x.reshape(8, 2, 2, -1).transpose(3, 1, 2, 0).reshape(-1, 32)  # noqa: E731
    dense, bias = order(golden["decoder.0.weight"]), order(golden["decoder.0.bias"])[0]
    params["features_layer"] = {"kernel": dense, "bias": bias}
    decoded = ImageDecoder((16, 16, 3), **style).apply({"params": params}, latent)
    np.testing.assert_allclose(decoded, golden["decoded"].transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "stride"])
@pytest.mark.parametrize("size", [(8, 8, 1), (32, 32, 3), (24, 40, 3), (64, 64, 3), (128, 256, 3)])
def test_any_multiple_of_eight_is_coded(kind, size):
    encoder, decoder = ImageEncoder(7, 2, kind), ImageDecoder(size, 2, kind)
    embedding, _ = jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((2, *size)))
    image, _ = jax.eval_shape(decoder.init_with_output, KEY, embedding)
    assert (embedding.shape, image.shape) == ((2, 7), (2, *size))


def _count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_stride_coders_have_the_parameters_of_the_listing():
    style = {"kind": "stride", "norm": "none"}
    encoder = jax.eval_shape(ImageEncoder(128, **style).init, KEY, jnp.zeros((1, 64, 64, 3)))
    decoder = jax.eval_shape(ImageDecoder((64, 64, 3), **style).init, KEY, jnp.zeros((1, 128)))
    convolutions = 16 * (3 * 32 + 32 * 64 + 64 * 128)
    assert _count(encoder) == convolutions + (32 + 64 + 128) + 8192 * 128 + 128
    assert _count(decoder) == convolutions + (64 + 32 + 3) + 128 * 8192 + 8192


@pytest.mark.parametrize("size", [(12, 16), (16, 20), (0, 8)])
def test_other_sizes_are_refused(size):
    message = f"the image is {size[0]}x{size[1]}, expected sides that are multiples of 8"
    with pytest.raises(ValueError, match=message):
        ImageEncoder(4).init(KEY, jnp.zeros((1, *size, 3)))
    with pytest.raises(ValueError, match=message):
        ImageDecoder((*size, 3)).init(KEY, jnp.zeros((1, 4)))


def test_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="kind is 'patches'; did you mean 'patch'"):
        ImageEncoder(4, kind="patches").init(KEY, jnp.zeros((1, 8, 8, 3)))


def test_leading_axes_are_rows(coders):
    encode, decode = coders
    observation = _observation(2, 3)
    flat = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), observation)
    embedding = encode(observation)
    assert embedding.shape == (2, 3, 6)
    np.testing.assert_allclose(embedding.reshape(6, 6), encode(flat), atol=1e-5)
    features = jax.random.normal(KEY, (2, 3, 5))
    np.testing.assert_allclose(
        decode(features)["image"].mode().reshape(6, 16, 16, 3),
        decode(features.reshape(6, 5))["image"].mode(),
        atol=1e-5,
    )


def test_rows_do_not_see_each_other(coders):
    encode, _ = coders
    observation = _observation(3)
    changed = jax.tree.map(lambda x, y: x.at[1].set(y[0]), observation, _observation(1, seed=1))
    moved = np.abs(encode(observation) - encode(changed)).max(-1)
    assert moved[1] > 1e-3
    np.testing.assert_allclose(moved[[0, 2]], 0.0, atol=1e-6)


def test_every_part_of_the_observation_is_seen(coders):
    encode, _ = coders
    observation, other = _observation(2), _observation(2, seed=1)
    for name in observation:
        assert np.abs(encode(observation) - encode(observation | {name: other[name]})).max() > 1e-3


def test_decoded_parts_are_in_raw_units_and_are_scored_against_raw_observations(coders):
    _, decode = coders
    parts = decode(10 * jax.random.normal(KEY, (2, 3, 5)))
    assert {name: part.mode().shape for name, part in parts.items()} == {
        "image": (2, 3, 16, 16, 3),
        "arm": (2, 3, 2),
        "leg": (2, 3, 3),
    }
    image = parts["image"].mode()
    assert image.dtype == jnp.float32
    assert 0.0 <= image.min() <= image.max() <= 1.0
    for name, values in _observation(2, 3).items():
        assert parts[name].log_prob(values).shape == (2, 3)


def test_images_are_normalised_here():
    encoder = Encoder(PICTURES, 6, **SMALL)
    bytes_ = {"image": _observation(2)["image"]}
    variables = random_variables(encoder, bytes_)
    inner = {"params": variables["params"]["image_image"]}
    expected = ImageEncoder(6, 2).apply(inner, bytes_["image"] / 255.0 - 0.5)
    np.testing.assert_allclose(encoder.apply(variables, bytes_), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"observation\['image'\] has dtype float32, expected uint8"):
        encoder.apply(variables, {"image": bytes_["image"] / 255.0})


def test_vectors_are_squeezed_by_symlog():
    encoder = VectorEncoder(4, units=8, layers=1, norm="none", activation="relu")
    huge = jnp.array([[np.e**9 - 1, 1 - np.e**5]])
    variables = random_variables(encoder, huge)
    layer = variables["params"]["last"]["linear_0"]
    expected = np.maximum(np.array([[9.0, -5.0]]) @ layer["kernel"] + layer["bias"], 0)
    np.testing.assert_allclose(encoder.apply(variables, huge), expected, atol=1e-4)


def test_vectors_alone_need_no_joining_layer():
    assert list(random_variables(Encoder(VECTORS, 8, **SMALL), _observation(1))["params"]) == ["vectors"]


def test_a_linear_encoder_can_say_anything_of_vectors_too():
    observation = {name: 1e3 * value for name, value in _observation(64).items()}
    for linear in (False, True):
        encoder = Encoder(VECTORS, 8, linear=linear, **SMALL)
        out = encoder.apply(random_variables(encoder, observation), observation)
        assert (float(out.min()) < -0.5) == linear, "an activation has a floor"
    encoder = Encoder(PICTURES, 8, linear=True, **SMALL)
    assert list(random_variables(encoder, _observation(1))["params"]) == ["image_image"]


def test_pixels_may_be_linear():
    variables = random_variables(Decoder(PICTURES, **SMALL), jnp.zeros((1, 5)))
    features = jax.random.normal(KEY, (1, 5))
    squashed = Decoder(PICTURES, **SMALL).apply(variables, features)["image"].location
    linear = Decoder(PICTURES, pixels="linear", **SMALL).apply(variables, features)["image"].location
    np.testing.assert_allclose(jax.nn.sigmoid(linear - 0.5), squashed, atol=1e-6)


@pytest.mark.parametrize("pixels", ["sigmoid", "linear"])
def test_a_decoder_can_start_from_the_mean_frame(pixels):
    decoder = Decoder(PICTURES, pixels=pixels, background=True, **SMALL)
    params = jax.tree.map(jnp.zeros_like, random_variables(decoder, jnp.zeros((1, 5)))["params"])
    batch = example_batch(PICTURES, 1, 3)
    frames = batch.observation["image"].at[0, 0].set(51).at[0, 1].set(153).at[0, 2].set(255)
    batch = batch.replace(observation={"image": frames}, valid=batch.valid.at[0, 2].set(False))
    params = start_from_mean_frame(params, PICTURES, batch, pixels)
    # Of the values 0.2, 0.6 and 1, the last is padding.
    np.testing.assert_allclose(decoder.apply({"params": params}, jnp.ones((1, 5)))["image"].mode(), 0.4, atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "stride"])
def test_features_begin_by_adding_little_to_the_mean_frame(kind):
    decoder = Decoder(PICTURES, kind=kind, pixels="linear", background=True, **SMALL)
    params = random_variables(decoder, jnp.zeros((1, 5)))["params"]
    features = jax.random.normal(KEY, (64, 5))
    spread = lambda params: decoder.apply({"params": params}, features)["image"].location.std(0)  # noqa: E731
    started = start_from_mean_frame(params, PICTURES, example_batch(PICTURES, 1, 3), "linear")
    np.testing.assert_allclose(spread(started), 0.1 * spread(params), rtol=1e-2, atol=1e-5)


def test_half_precision_compute_keeps_float32_parameters():
    encoder = Encoder(BOTH, 6, dtype=jnp.bfloat16, **SMALL)
    embedding, variables = jax.eval_shape(encoder.init_with_output, KEY, _observation(2))
    assert embedding.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_coders_learn_to_tell_observations_apart():
    encoder, decoder = Encoder(BOTH, 16, depth=4, units=16, layers=1), Decoder(BOTH, depth=4, units=16, layers=1)
    halves = jnp.zeros((2, 16, 16, 3), jnp.uint8).at[0, :8].set(200).at[1, :, 8:].set(200)
    observation = _observation(2) | {"image": halves}
    variables = random_variables(encoder, observation), random_variables(decoder, jnp.zeros((1, 16)))

    def loss(variables):
        parts = decoder.apply(variables[1], encoder.apply(variables[0], observation))
        return -sum(part.log_prob(observation[name]).mean() for name, part in parts.items())

    optimizer = optax.adam(0.01)

    @jax.jit
    def descend(variables):
        def step(carry, _):
            variables, moments = carry
            value, gradients = jax.value_and_grad(loss)(variables)
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(variables, updates), moments), value

        return jax.lax.scan(step, (variables, optimizer.init(variables)), None, length=80)[1]

    losses = descend(variables)
    # What a decoder could reach that does not look at its features: the variance between the two observations.
    scaled = [observation["image"] / 255.0, symlog(observation["arm"]), symlog(observation["leg"])]
    blind = sum(float(jnp.sum(jnp.var(part, axis=0))) for part in scaled)
    assert losses[-1] < 0.1 * blind
