"""Attention over frames: what is seen, by which angles, and that a cache changes nothing."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.nn.transformer import PERIOD, Attention, FrameTransformer, rotary_angles, rotate, window_mask

ROWS, LENGTH, TOKENS, WIDTH = 2, 7, 3, 24
PLAIN = FrameTransformer(blocks=2, heads=2, window=3, positions=((0, 0), (1, 2), (2, 1)))
KINDS = {
    "joint": PLAIN,
    "joint, no places": dataclasses.replace(PLAIN, positions=None),
    "factorised": dataclasses.replace(PLAIN, factorised=True),
    "factorised, steered": dataclasses.replace(PLAIN, factorised=True, conditioned=True),
    "joint, steered": dataclasses.replace(PLAIN, conditioned=True),
    "joint, recent": dataclasses.replace(PLAIN, recent=2),
}
CAMERAS = tuple((camera, 0, column) for camera in range(2) for column in range(2))
SEGMENTS = jnp.array([[0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 2]])


def draw(number, *shape):
    return jax.random.normal(jax.random.key(number), shape)


@pytest.fixture(scope="module", params=KINDS)
def given(request):
    """A transformer none of whose parameters is zero, tokens, conditions."""
    trunk = KINDS[request.param]
    tokens = draw(0, ROWS, LENGTH, TOKENS, WIDTH)
    condition = draw(1, ROWS, LENGTH, 1, WIDTH) if trunk.conditioned else None
    params = jax.jit(trunk.init)(jax.random.key(2), tokens, condition)
    leaves, structure = jax.tree.flatten(params)
    params = structure.unflatten([x + 0.1 * draw(i, *x.shape) for i, x in enumerate(leaves)])
    return trunk, params, tokens, condition


def steps(trunk, params, tokens, condition, begins, cache):
    """Frame by frame; outputs ``[B, T, N, C]`` and the last cache."""

    traces = []

    @jax.jit
    def step(cache, tokens, condition, begins):
        traces.append(1)
        cache = cache.forget(begins)
        out, entries = trunk.apply(params, tokens, condition, cache)
        return cache.append(entries), out

    outs = []
    for t in range(tokens.shape[1]):
        now = None if condition is None else condition[:, t : t + 1]
        cache, out = step(cache, tokens[:, t : t + 1], now, begins[:, t])
        outs.append(out)
    assert len(traces) == 1
    return jnp.concatenate(outs, axis=1), cache


def seen_in(trunk):
    return window_mask(LENGTH, trunk.window, SEGMENTS)


def begins_of(segments):
    return jnp.concatenate([jnp.ones((ROWS, 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1)


def test_frame_by_frame_with_a_cache_is_the_same_as_all_at_once(given):
    trunk, params, tokens, condition = given
    full, _ = jax.jit(trunk.apply)(params, tokens, condition, mask=seen_in(trunk))
    cache = trunk.init_cache(ROWS, TOKENS, WIDTH)
    stepped, last = steps(trunk, params, tokens, condition, begins_of(SEGMENTS), cache)
    np.testing.assert_allclose(stepped, full, atol=1e-5)
    np.testing.assert_array_equal(last.count, [3, 1])
    chex.assert_trees_all_equal_shapes_and_dtypes(last, cache)


def test_a_cache_that_turns_over_goes_on_as_if_it_were_new(given):
    trunk, params, tokens, condition = given
    cache = trunk.init_cache(ROWS, TOKENS, WIDTH)
    begins = jnp.zeros_like(SEGMENTS, bool)
    fresh, _ = steps(trunk, params, tokens, condition, begins, cache)
    old = cache.replace(position=jnp.array([PERIOD * trunk.window - 3, 5 * PERIOD + 1]) % (PERIOD * trunk.window))
    aged, last = steps(trunk, params, tokens, condition, begins, old)
    np.testing.assert_allclose(aged, fresh, atol=1e-5)
    assert int(last.position[0]) == LENGTH - 3, "it has turned over"


def test_a_frame_sees_its_window_of_the_past_and_no_more(given):
    trunk, params, tokens, condition = given
    apply = jax.jit(lambda tokens: trunk.apply(params, tokens, condition)[0])
    before = apply(tokens)
    # Each of the two blocks reaches a window further back, and tokens begin as those of recent frames.
    reach = 2 * trunk.window + trunk.recent
    for changed in (0, 3):
        after = apply(tokens.at[:, changed, 1].add(1.0))
        differs = np.abs(after - before).max(axis=(0, 2, 3)) > 1e-6
        expected = (np.arange(LENGTH) >= changed) & (np.arange(LENGTH) <= changed + reach)
        np.testing.assert_array_equal(differs, expected)


def test_a_mask_says_who_sees_whom_and_times_say_when(given):
    trunk, params, tokens, condition = given
    apply = jax.jit(lambda tokens, mask, time: trunk.apply(params, tokens, condition, None, mask, time)[0])
    usual = jnp.broadcast_to(window_mask(LENGTH, trunk.window), (ROWS, LENGTH, LENGTH))
    times = jnp.arange(LENGTH)[None]
    plain = jax.jit(lambda: trunk.apply(params, tokens, condition)[0])()
    np.testing.assert_allclose(apply(tokens, usual, times), plain, atol=1e-5)
    np.testing.assert_allclose(apply(tokens, usual, times + 5), plain, atol=1e-5)
    assert np.abs(apply(tokens, usual, 2 * times) - plain).max() > 1e-4
    # The second row sees as far ahead as back.
    mask = usual.at[1].set(usual[1] | usual[1].T)
    differs = apply(tokens.at[:, 6, 1].add(1.0), mask, times) - apply(tokens, mask, times)
    expected = [[False] * 6 + [True], [t >= 6 - 2 * trunk.window for t in range(LENGTH)]]
    np.testing.assert_array_equal(np.abs(differs).max(axis=(2, 3)) > 1e-6, expected)


def test_rows_do_not_see_each_other(given):
    trunk, params, tokens, condition = given
    apply = jax.jit(lambda tokens: trunk.apply(params, tokens, condition, mask=seen_in(trunk))[0])
    np.testing.assert_array_equal(apply(tokens)[0], apply(tokens.at[1].set(0.0))[0])


@pytest.mark.parametrize("factorised", [False, True])
def test_the_places_of_several_cameras_have_an_axis_more(factorised):
    """Cameras see each other within a frame, and are told apart: to swap them is not to swap what they see."""
    trunk = dataclasses.replace(PLAIN, positions=CAMERAS, factorised=factorised, heads=1)
    tokens = draw(5, 1, 2, len(CAMERAS), WIDTH)
    params = jax.jit(trunk.init)(jax.random.key(6), tokens)
    apply = jax.jit(lambda tokens: trunk.apply(params, tokens)[0])
    before, swapped = apply(tokens), apply(jnp.roll(tokens, 2, axis=2))
    assert np.abs(apply(tokens.at[:, 0, 0].add(1.0)) - before)[0, 0, 2:].max() > 1e-4
    assert np.abs(jnp.roll(swapped, 2, axis=2) - before).max() > 1e-4


def test_steering_starts_as_the_identity():
    trunk = KINDS["joint, steered"]
    tokens, condition = draw(0, 1, 2, TOKENS, WIDTH), draw(1, 1, 2, 1, WIDTH)
    params = trunk.init(jax.random.key(0), tokens, condition)
    out, _ = trunk.apply(params, tokens, condition)
    np.testing.assert_allclose(out, tokens / jnp.sqrt(jnp.mean(tokens**2, -1, keepdims=True) + 1e-4), rtol=1e-5)


def test_angles_by_hand():
    angles = rotary_angles(jnp.array([[2, 3]]), 10)
    # Five pairs, two for each axis, one left over; frequencies 1 and 1/100 in whole turns of 65,536 positions.
    one, hundredth = 2 * np.pi * 10430 / PERIOD, 2 * np.pi * 104 / PERIOD
    np.testing.assert_allclose(angles[0], [2 * one, 2 * hundredth, 3 * one, 3 * hundredth, 0.0], rtol=1e-5)
    assert abs(one - 1) < 1e-4 and rotary_angles(jnp.zeros((4, 0), jnp.int32), 8).shape == (4, 4)
    turned = rotate(jnp.array([[[1.0, 0.0, 0.0, 2.0]]]), jnp.array([[np.pi / 2, np.pi]]))
    np.testing.assert_allclose(turned[0, 0], [0.0, 0.0, 1.0, -2.0], atol=1e-6)


def test_only_differences_of_positions_matter_however_late():
    query, key = draw(0, 1, 1, 1, 16), draw(1, 1, 1, 1, 16)

    def product(at, of):
        place = lambda t: rotary_angles(jnp.array([[[t]]]), 16)[0]  # noqa: E731
        return float(jnp.sum(rotate(query, place(at)) * rotate(key, place(of))))

    assert product(7, 4) == pytest.approx(product(3, 0), abs=1e-5)
    assert product(60_007, 60_004) == pytest.approx(product(3, 0), abs=1e-5)
    assert product(1, PERIOD - 2) == pytest.approx(product(3, 0), abs=1e-5)
    assert abs(product(4, 0) - product(3, 0)) > 1e-2


def test_wrong_widths_and_lengths_are_refused():
    tokens = jnp.zeros((1, 2, TOKENS, WIDTH))
    with pytest.raises(ValueError, match="width 24 is not divisible by twice the 5 heads"):
        Attention(5).init(jax.random.key(0), tokens[:, 0], jnp.zeros((1, TOKENS, 2)))
    with pytest.raises(ValueError, match="a head of 4 has fewer pairs than there are axes, 3"):
        rotary_angles(jnp.zeros((2, 3), jnp.int32), 4)
    with pytest.raises(ValueError, match="conditioned=True, but condition is None"):
        KINDS["joint, steered"].init(jax.random.key(0), tokens)
    with pytest.raises(ValueError, match="2 frames, expected 1"):
        PLAIN.init(jax.random.key(0), tokens, None, PLAIN.init_cache(1, TOKENS, WIDTH))
