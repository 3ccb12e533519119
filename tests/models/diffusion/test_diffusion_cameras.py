"""Several cameras: each picture is coded for itself; the network sees all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import draw_variables

import jaxwm
from jaxwm.models.diffusion import DiffusionModel, Shortcut
from jaxwm.models.tokenizer import Tokenizer
from jaxwm.testing import moving_clips

SPEC = jaxwm.Spec(
    tuple(jaxwm.Field(name, (16, 16, 3), "uint8") for name in ("front", "left")),
    jaxwm.ActionSpec(2, low=(-4.0, -0.1), high=(2.0, 0.1)),
    (jaxwm.Field("depth", (16, 16, 2), "uint8"),),
)
MODEL = DiffusionModel(
    SPEC, Tokenizer(patch=8, width=16, blocks=1, heads=2, channels=4, window=2), Shortcut(halvings=2),
    width=24, blocks=1, heads=2, window=2, units=8, steps=2, context_noise=0.0, squash=(1.0, 1000.0),
)  # fmt: skip
ROWS, LENGTH = 3, 4
CAMERAS, FRAMES = MODEL.coder, MODEL.frames


@pytest.fixture(scope="module")
def batch():
    return moving_clips(SPEC, ROWS, LENGTH)


@pytest.fixture(scope="module")
def variables(batch):
    return draw_variables(MODEL, batch)


@pytest.fixture(scope="module")
def encode(variables):
    segments = jnp.zeros((ROWS, LENGTH), int)
    return jax.jit(lambda observation: CAMERAS.encode(variables["params"]["tokenizer"], observation, segments))


def test_each_camera_is_coded_for_itself(encode, batch):
    latents = encode(batch.observation)
    assert latents.shape == (ROWS, LENGTH, 8, 4)
    swapped = encode({"front": batch.observation["left"], "left": batch.observation["front"]})
    assert float(jnp.abs(latents - swapped).max()) > 0.1
    np.testing.assert_allclose(swapped, jnp.roll(latents, 4, axis=2), atol=1e-5)


def test_frame_by_frame_is_as_all_at_once(variables, encode, batch):
    params = variables["params"]["tokenizer"]
    segments = jnp.zeros((ROWS, LENGTH), int)
    latents = encode(batch.observation)
    whole = jax.jit(lambda latents: CAMERAS.decode(params, latents, segments))(latents)

    @jax.jit
    def step(seen, painted, frame):
        found, seen = CAMERAS.encode_step(params, seen, frame)
        images, painted = CAMERAS.decode_step(params, painted, found)
        return found, images, seen, painted

    seen, painted = CAMERAS.init_cache(ROWS), CAMERAS.init_cache(ROWS)
    assert {x.shape[0] for x in jax.tree.leaves(seen)} == {ROWS}, "a state has its rows first"
    for t in range(LENGTH):
        found, images, seen, painted = step(seen, painted, {name: x[:, t] for name, x in batch.observation.items()})
        np.testing.assert_allclose(found, latents[:, t], atol=1e-5)
        for name, image in images.items():
            np.testing.assert_allclose(image, whole[name][:, t], atol=1e-5)


def test_a_map_is_told_to_the_camera_that_it_speaks_of(variables, batch):
    read = jax.jit(lambda depth: MODEL._read(variables, {"depth": depth}, ROWS, LENGTH).places)
    depth = batch.condition["depth"]
    gap = jnp.abs(read(depth) - read(depth.at[..., 1].set(255 - depth[..., 1]))).max(-1)
    assert not gap[..., :4].any()
    assert (gap[..., 4:] > 1e-4).all()


def test_one_camera_is_known_and_the_other_is_made_in_view_of_it(variables, batch):
    known = {"front": jnp.ones((ROWS, LENGTH)), "action": jnp.ones((ROWS, LENGTH))}
    make = jax.jit(lambda trajectory: MODEL.sample(variables, jax.random.key(1), trajectory, known))
    made = make(batch).observation
    np.testing.assert_array_equal(made["front"], batch.observation["front"])
    other = batch.observation["left"][::-1]
    np.testing.assert_array_equal(
        make(batch.replace(observation={**batch.observation, "left": other})).observation["left"], made["left"]
    )
    turned = make(batch.replace(observation={**batch.observation, "front": 255 - batch.observation["front"]}))
    assert (turned.observation["left"] != made["left"]).any()


def test_small_actions_are_given_room():
    """The formula of GAIA-2."""
    action = jnp.array([[-4.0, 0.1], [2.0, 0.001], [-1.0, -0.01]])
    scaled = FRAMES.join(action, jnp.zeros((3, 8, 4)), None)[:, 0]
    expected = [1.0, np.log(2.0) / np.log(101.0), -np.log(11.0) / np.log(101.0)]
    np.testing.assert_allclose(scaled[:, 0], np.array([-np.log(5), np.log(3), -np.log(2)]) / np.log(5), rtol=1e-5)
    np.testing.assert_allclose(scaled[:, 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(scaled[:, 2:], 0.0)
    np.testing.assert_allclose(FRAMES.action(scaled[:, None]), action, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"squash": (1.0,)}, "squash is (1.0,), expected 2 numbers"),
        ({"squash": (1.0, -1.0)}, "expected 2 numbers above 0"),
        ({"spec": dataclasses.replace(SPEC, action=jaxwm.ActionSpec(2))}, "no bounds"),
        ({"spec": dataclasses.replace(SPEC, observation=(jaxwm.Field("v", (3,), "float32"),))}, "none"),
        (
            {"spec": dataclasses.replace(SPEC, observation=(SPEC.images[0], jaxwm.Field("far", (8, 8, 3), "uint8")))},
            "far [8, 8, 3]",
        ),
        (
            {"spec": dataclasses.replace(SPEC, condition=(jaxwm.Field("depth", (16, 16, 1), "uint8"),))},
            "condition['depth'] is a map [16, 16, 1]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(MODEL, **change)
    assert said in str(error.value)
