"""Quantisers: values by hand, where gradients go, codes and indices both ways, codes that die and come back."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from jaxwm.nn.quantise import (
    DEAD,
    USAGE_RATE,
    code_shares,
    dead_codes,
    draw_candidates,
    follow_usage,
    perplexity,
    quantise_cosine,
    quantise_scalars,
    reseed_codes,
    scalar_indices,
    scalar_vectors,
    to_sphere,
    used_share,
)

few = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
seeds = strategies.integers(0, 2**31)
# Always three, so that every example has the same shapes and nothing is compiled twice.
three_levels = strategies.tuples(*[strategies.integers(2, 9)] * 3)
cosine = jax.jit(quantise_cosine)
CODEBOOK = jnp.array([[3.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])


def test_the_nearest_code_by_angle_whatever_the_lengths():
    x = jnp.array([[4.0, 3.0], [0.3, 0.4], [-9.0, 0.1], [0.0, -2.0]])
    found = cosine(x, CODEBOOK)
    np.testing.assert_array_equal(found.indices, [0, 1, 2, 2])
    assert found.indices.dtype == jnp.int32
    root = np.sqrt(2)
    np.testing.assert_allclose(found.vectors, [[root, 0], [0, root], [-1, -1], [-1, -1]], rtol=1e-6)
    # Unit vectors at an angle of cosine c are 2 - 2c apart, squared; both terms are that, one of them a quarter.
    cosines = np.array([0.8, 0.8, 8.9 / np.hypot(9, 0.1) / root, 1 / root])
    np.testing.assert_allclose(found.losses, 1.25 * (2 - 2 * cosines), rtol=1e-5)


def test_gradients_go_straight_to_the_vectors_and_by_the_losses_to_the_codes():
    x, weights = jnp.array([[4.0, 3.0], [0.3, 0.4]]), jnp.array([[1.0, -2.0], [0.5, 3.0]])
    use = lambda x, codebook: jnp.sum(weights * quantise_cosine(x, codebook).vectors)  # noqa: E731
    losses = lambda x, codebook: jnp.sum(quantise_cosine(x, codebook).losses)  # noqa: E731
    both = jax.jit(lambda *given: (jax.grad(use, (0, 1))(*given), jax.grad(losses, (0, 1))(*given)))
    (straight, to_codes), (commitment, learning) = both(x, CODEBOOK)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(weights * to_sphere(x))))(x)
    np.testing.assert_allclose(straight, expected, rtol=1e-6)
    np.testing.assert_array_equal(to_codes, 0.0)
    # Along the circle: d(2 - 2 cos a)/da = 2 sin a, over the length; the first code is to turn from 0 to 36.87
    # degrees, the second from 90 to 53.13, the third is used by none.
    np.testing.assert_allclose(learning, [[0.0, -2 * 0.6 / 3], [-2 * 0.6 / 0.5, 0.0], [0.0, 0.0]], rtol=1e-5)
    towards = 0.25 * 2 * 0.6 * np.array([[-3.0, 4.0], [4.0, -3.0]]) / 5 / np.array([[5.0], [0.5]])
    np.testing.assert_allclose(commitment, towards, rtol=1e-5)


def test_a_vector_of_zeros_has_a_code_and_finite_gradients():
    losses = lambda x: jnp.sum(quantise_cosine(x, CODEBOOK).losses)  # noqa: E731
    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(losses))(jnp.zeros((1, 2))))


@few
@hypothesis.given(seeds)
def test_what_was_quantised_stays_as_it_is(seed):
    draw, size = np.random.default_rng(seed), 5
    codebook = jnp.asarray(draw.normal(size=(7, size)), jnp.float32)
    once = cosine(jnp.asarray(draw.normal(size=(3, 4, size)), jnp.float32), codebook)
    again = cosine(once.vectors, codebook)
    np.testing.assert_array_equal(again.vectors, once.vectors)
    np.testing.assert_allclose(again.losses, 0.0, atol=1e-6)
    np.testing.assert_allclose(np.mean(np.square(once.vectors), -1), 1.0, rtol=1e-5)


def test_scalars_are_rounded_as_in_the_paper():
    levels = (3, 5, 4)
    x = jnp.array([[0.25, 0.6, -7.0], [-0.8, 0.1, 0.0], [9.0, 9.0, 9.0]])
    vectors, indices = quantise_scalars(x, levels)
    # tanh(0.25) -> 0; 2 tanh(0.6) = 1.07 -> 1; the least. tanh(-0.8) = -0.66 -> -1; 0.2 -> 0; 0 is a value of its own.
    steps = np.array([[1, 3, 0], [0, 2, 2], [2, 4, 3]])
    np.testing.assert_array_equal(indices, steps @ [1, 3, 15])
    centred = (steps - [1, 2, 1.5]) / np.sqrt([2 / 3, 2, 5 / 4])
    np.testing.assert_allclose(vectors, centred, rtol=1e-6)


def test_the_gradient_of_scalars_is_that_of_the_bound():
    x = jnp.array([[0.25, 0.6, -0.3]])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(quantise_scalars(x, (3, 5, 4))[0])))(x)[0]
    shift = np.tan(0.5 / (1.5 * 0.999))
    slopes = (1 - np.tanh([0.25, 0.6, -0.3 + shift]) ** 2) * [0.999, 2 * 0.999, 1.5 * 0.999]
    np.testing.assert_allclose(gradient, slopes / np.sqrt([2 / 3, 2, 5 / 4]), rtol=1e-5)


@few
@hypothesis.given(three_levels)
def test_each_index_has_a_vector_of_its_own_and_equal_use_has_unit_variance(levels):
    count, indices = int(np.prod(levels)), np.arange(9**3)
    vectors = np.asarray(scalar_vectors(jnp.asarray(indices % count), levels))
    np.testing.assert_array_equal(scalar_indices(vectors, levels), indices % count)
    np.testing.assert_array_equal(scalar_indices(vectors + np.float32(0.07), levels), indices % count)
    np.testing.assert_array_equal(scalar_indices(9 * np.ones((1, 3), np.float32), levels), [count - 1])
    assert len({tuple(vector) for vector in vectors}) == count
    np.testing.assert_allclose(vectors[:count].mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose((vectors[:count] ** 2).mean(0), 1.0, rtol=1e-4)


@few
@hypothesis.given(seeds, three_levels)
def test_rounding_finds_the_index_that_it_says_and_is_monotonous(seed, levels):
    x = np.sort(3 * np.random.default_rng(seed).normal(size=(50, 3)), axis=0).astype(np.float32)
    vectors, indices = quantise_scalars(x, levels)
    np.testing.assert_array_equal(vectors, scalar_vectors(indices, levels))
    np.testing.assert_array_equal(indices, scalar_indices(vectors, levels))
    assert (np.diff(vectors, axis=0) >= 0).all()
    assert int(indices.min()) >= 0 and int(indices.max()) < np.prod(levels)


def test_every_value_of_every_count_of_levels_is_reached():
    x = jnp.linspace(-8, 8, 400)[:, None] * jnp.ones(8)
    vectors, _ = quantise_scalars(x, range(2, 10))
    assert [len(np.unique(column)) for column in vectors.T] == list(range(2, 10))


def test_shares_perplexity_and_use_by_hand():
    indices, valid = jnp.array([[0, 0, 3], [1, 1, 2]]), jnp.array([[True, True, True], [True, False, False]])
    shares = code_shares(indices, valid, 5)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.0, 0.25, 0.0])
    assert float(used_share(shares)) == pytest.approx(0.6)
    assert float(perplexity(shares)) == pytest.approx(2**1.5)
    assert float(perplexity(jnp.full(7, 1 / 7))) == pytest.approx(7)
    assert float(perplexity(jax.nn.one_hot(2, 5))) == 1.0
    np.testing.assert_array_equal(code_shares(indices, valid & False, 5), 0.0)


def test_usage_follows_the_batches_and_stays_where_there_is_none():
    usage = follow_usage(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(usage, [0.5 + USAGE_RATE / 2, 0.5 - USAGE_RATE / 2])
    np.testing.assert_array_equal(follow_usage(usage, jnp.zeros(2)), usage)


def test_a_code_is_dead_after_long_and_begins_anew_at_a_candidate():
    usage, shares = jnp.full(4, 0.25), jnp.array([0.7, 0.0, 0.3, 0.0])
    updates = 0
    while not dead_codes(usage).any():
        usage, updates = follow_usage(usage, shares), updates + 1
    assert updates == int(np.ceil(np.log(DEAD) / np.log(1 - USAGE_RATE))) == 90
    np.testing.assert_array_equal(dead_codes(usage), [False, True, False, True])
    codebook, candidates = jnp.arange(8.0).reshape(4, 2), -jnp.arange(1.0, 9.0).reshape(4, 2)
    codebook, after = reseed_codes(codebook, usage, candidates)
    np.testing.assert_array_equal(codebook, [[0, 1], [-1, -2], [4, 5], [-3, -4]])
    np.testing.assert_allclose(after, [usage[0], 0.25, usage[2], 0.25])
    again, same = reseed_codes(codebook, after, candidates)
    np.testing.assert_array_equal(again, codebook)
    np.testing.assert_array_equal(same, after)


def test_candidates_are_the_vectors_far_from_their_codes_each_once_and_only_valid_ones():
    # All lie on their code but for three, one of which does not count.
    x, valid = np.tile(np.float32([1, 0]), (2, 6, 1)), np.ones((2, 6), bool)
    x[0, 2], x[1, 4], x[1, 5], valid[1, 5] = (1, 1), (2, -1), (5, 4), False
    keys = jax.random.split(jax.random.key(0), 2)
    quantised = cosine(x, jnp.array([[1.0, 0.0], [-1.0, 0.0]]))
    # Of eleven that count two are away from their code; then come the nine others, then all again from the first.
    draw = jax.jit(lambda keys: draw_candidates(keys, x, quantised, valid, 14))
    drawn = draw(keys)
    expected = np.array([[1.0, 1.0], [2 * 0.4**0.5, -(0.4**0.5)], [2**0.5, 0.0]])
    np.testing.assert_allclose(np.sort(drawn[:2], axis=0), np.sort(expected[:2], axis=0), rtol=1e-6)
    np.testing.assert_allclose(drawn[2:11], np.tile(expected[2], (9, 1)), rtol=1e-6)
    np.testing.assert_array_equal(drawn[11:], drawn[:3])
    np.testing.assert_array_equal(draw(keys), drawn)
    firsts = {bool(draw(jax.random.split(jax.random.key(i), 2))[0, 1] > 0) for i in range(8)}
    assert firsts == {True, False}, "drawn by chance"
