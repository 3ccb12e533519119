"""Conditions: each is followed where it is known and without effect where it is not; a fresh network follows none."""

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

FIELDS = (
    jaxwm.Field("caption", (4,), "int32"),
    jaxwm.Field("weather", (3,), "float32"),
    jaxwm.Field("boxes", (2, 3, 5), "float32"),
    jaxwm.Field("depth", (16, 16, 2), "uint8"),
)
SPEC = jaxwm.Spec((jaxwm.Field("image", (16, 16, 3), "uint8"),), jaxwm.ActionSpec(2), FIELDS)
MODEL = DiffusionModel(
    SPEC, Tokenizer(width=16, blocks=1, heads=2, channels=4), Shortcut(halvings=2),
    width=24, blocks=1, heads=2, window=2, units=8, steps=2, context_noise=0.0,
)  # fmt: skip
ROWS, LENGTH = 3, 4
NAMES = [field.name for field in FIELDS]


@pytest.fixture(scope="module")
def batch():
    return moving_clips(SPEC, ROWS, LENGTH)


@pytest.fixture(scope="module")
def variables(batch):
    return draw_variables(MODEL, batch)


@pytest.fixture(scope="module")
def read(variables):
    """``(condition, heard [B, conditions]) -> Told``."""
    return jax.jit(lambda condition, heard: MODEL._read(variables, condition, ROWS, LENGTH, heard))


@pytest.fixture(scope="module")
def ask(variables, batch):
    """``condition [B, ...] -> `` the next frame's tokens by one draw of noise, from a state that has seen a frame."""

    @jax.jit
    def ask(condition):
        keys = jax.random.split(jax.random.key(1), ROWS)
        state = MODEL.init_state(ROWS)
        frame = {"image": batch.observation["image"][:, 0]}
        state = MODEL.observe(variables, keys, state, batch.action[:, 0], frame, jnp.ones(ROWS, bool))
        return MODEL.predict(variables, keys, state, batch.action[:, 0], condition).tokens

    return ask


def other(value):
    return (1 - value).astype(value.dtype)


def differs(left, right):
    """Whether what is told differs, by frame ``[B, T]``; things that are not there do not count."""
    left, right = (told._replace(things=jnp.where(told.seen[..., None], told.things, 0.0)) for told in (left, right))
    gap = jax.tree.map(lambda a, b: jnp.abs(a * 1.0 - b).reshape(ROWS, LENGTH, -1).max(-1), left, right)
    return np.max(jax.tree.leaves(jax.device_get(gap)), axis=0) > 1e-4


def test_each_frame_is_told_what_is_said_of_it(read, batch):
    heard = jnp.ones((ROWS, len(FIELDS)), bool)
    plain = read(batch.condition, heard)
    for name in NAMES:
        value = batch.condition[name]
        changed = read({**batch.condition, name: value.at[1, 2].set(other(value[1, 2]))}, heard)
        expected = np.zeros((ROWS, LENGTH), bool)
        expected[1, 2] = True
        np.testing.assert_array_equal(differs(plain, changed), expected, err_msg=name)


def test_what_is_not_known_has_no_effect(read, batch):
    for index, name in enumerate(NAMES):
        hidden = jnp.ones((ROWS, len(FIELDS)), bool).at[:, index].set(False)
        changed = {**batch.condition, name: other(batch.condition[name])}
        assert not differs(read(batch.condition, hidden), read(changed, hidden)).any()
        without = {key: value for key, value in batch.condition.items() if key != name}
        assert not differs(read(batch.condition, hidden), read(without, hidden)).any()


def test_a_thing_of_zeros_and_the_empty_word_are_not_there(read, batch):
    boxes = batch.condition["boxes"].at[:, :, 1, 2].set(0.0).at[:, :, 0, 0].set(1.0)
    words = jnp.array([[[3, 1, 0, 0]]] * ROWS).repeat(LENGTH, axis=1).astype(jnp.int32)
    told = read({**batch.condition, "boxes": boxes, "caption": words}, jnp.ones((ROWS, len(FIELDS)), bool))
    seen = np.asarray(told.seen)
    assert seen[..., 0].all(), "what says nothing is always there"
    np.testing.assert_array_equal(seen[..., 1:5], np.broadcast_to([True, True, False, False], (ROWS, LENGTH, 4)))
    assert seen[..., 5].all()
    assert not seen[..., 5 + 3 + 2].any()


def test_a_step_of_a_dream_follows_each_condition(ask, batch):
    now = {name: batch.condition[name][:, 1] for name in NAMES}
    made = ask(now)
    for name in NAMES:
        changed = ask({**now, name: now[name].at[1].set(other(now[name][1]))})
        gap = np.asarray(jnp.abs(changed - made).max((1, 2)))
        assert gap[1] > 1e-4, name
        np.testing.assert_allclose(gap[[0, 2]], 0.0, atol=1e-5)
    gap = jnp.abs(ask({key: value for key, value in now.items() if key != "depth"}) - made)
    assert float(gap.max()) > 1e-4


def test_guidance_leads_away_from_what_comes_without_conditions(ask, batch):
    now = {name: batch.condition[name][:, 1] for name in NAMES}
    one = ask({**now, "guidance": jnp.ones(ROWS)})
    np.testing.assert_allclose(one, ask(now), atol=1e-4)
    nothing = ask({**now, "guidance": jnp.zeros(ROWS)})
    changed = ask({**{name: other(value) for name, value in now.items()}, "guidance": jnp.zeros(ROWS)})
    # All that the conditions still do is in the last pass, which takes the frame in and leaves its tokens alone.
    np.testing.assert_allclose(changed, nothing, atol=1e-5)
    assert float(jnp.abs(nothing - one).max()) > 1e-3


def test_a_fresh_network_follows_no_condition(batch):
    fresh = jax.jit(MODEL.init)(jax.random.key(2), batch)
    denoiser, heard = MODEL._denoiser, jnp.ones((ROWS, len(FIELDS)), bool)
    shape = (ROWS, LENGTH, MODEL.frames.count)
    noisy = jax.random.normal(jax.random.key(3), (*shape, MODEL.frames.channels))
    # Not the zeros of adaLN, of which nothing would come through in any case.
    params = jax.tree.map(lambda x: x, fresh["params"]["denoiser"])
    steering = params["trunk"]["block_0"]["steering"]
    params["trunk"]["block_0"]["steering"] = jax.tree.map(lambda x: x + 0.1, steering)

    @jax.jit
    def output(condition):
        told = MODEL._read({"params": {"denoiser": params}}, condition, ROWS, LENGTH, heard)
        return denoiser.apply({"params": params}, noisy, jnp.full(shape, 0.5), jnp.full(shape[:2], 0.25), told=told)[0]

    assert float(jnp.abs(output(batch.condition)).max()) > 0.1
    np.testing.assert_allclose(output(batch.condition), output({}), atol=1e-6)


def test_a_share_of_the_windows_hides_each_and_all_of_them():
    model = dataclasses.replace(MODEL, drop_condition=0.2)
    heard = np.asarray(model._heard(jax.random.split(jax.random.key(4), 2000)))
    np.testing.assert_allclose(heard.mean(0), 0.8**2, atol=0.05)
    np.testing.assert_allclose((~heard).all(1).mean(), 0.2 + 0.8 * 0.2**4, atol=0.03)
    all_known = dataclasses.replace(MODEL, drop_condition=0.0)._heard(jax.random.split(jax.random.key(4), 8))
    assert np.asarray(all_known).all()


def test_conditions_that_cannot_be_read_are_named():
    for field, message in (
        (
            jaxwm.Field("depth", (8, 8, 1), "uint8"),
            r"condition\['depth'\] is a map \[8, 8, 1\], expected \[16, 16\]",
        ),
        (jaxwm.Field("mood", (), "float32"), r"condition\['mood'\] is float32\[\], expected words"),
        (jaxwm.Field("grid", (3, 3), "int32"), r"condition\['grid'\] is int32\[3, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(MODEL, spec=dataclasses.replace(SPEC, condition=(field,)))
