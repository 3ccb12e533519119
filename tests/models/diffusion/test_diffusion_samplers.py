"""Samplers on a mixture of Gaussians, whose denoiser is known exactly."""

from statistics import NormalDist

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.models.diffusion import EDM, Flow, Forcing, Shortcut, mix, sample

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.5, 0.5], [1.0, -0.5]])
SPREADS = np.array([0.4, 0.6])
OBJECTIVES = {"flow": Flow(), "edm": EDM(), "forcing": Forcing(), "shortcut": Shortcut()}


def oracle(objective):
    """E[data | noisy] by Bayes: each component's posterior mean, weighted by how likely it is."""

    def denoise(noisy, level, step):
        alpha, sigma = (x[..., None] for x in objective.scales(objective.clock(level)))
        variance = alpha**2 * SPREADS**2 + sigma**2
        offset = noisy[..., None, :] - alpha[..., None] * MEANS
        logits = jnp.log(WEIGHTS) - jnp.sum(offset**2, -1) / (2 * variance) - jnp.log(variance)
        share = jax.nn.softmax(logits, axis=-1)
        each = MEANS + (alpha * SPREADS**2 / variance)[..., None] * offset
        return jnp.sum(share[..., None] * each, axis=-2)

    return denoise


def from_noise(objective, noise, steps, method):
    level = jnp.zeros(noise.shape[:-1])
    start = mix(objective, jnp.zeros_like(noise), noise, level)
    return sample(objective, oracle(objective), start, level, steps, method)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_samples_have_the_moments_of_the_mixture(name):
    count = 40_000
    noise = jax.random.normal(jax.random.key(0), (count, 2))
    found = np.asarray(jax.jit(lambda x: from_noise(OBJECTIVES[name], x, 128, "heun"))(noise))
    mean = WEIGHTS @ MEANS
    second = np.einsum(
        "k,kij->ij", WEIGHTS, MEANS[:, :, None] * MEANS[:, None] + SPREADS[:, None, None] ** 2 * np.eye(2)
    )
    products = found[:, :, None] * found[:, None]
    for values, expected in ((found, mean), (products, second)):
        error = np.abs(values.mean(0) - expected) / (values.std(0) / np.sqrt(count))
        assert error.max() < 3, error
    left = (found[:, 0] < -0.4).mean()
    # The share of each component, by where its own mass lies.
    expected = sum(w * NormalDist(m[0], s).cdf(-0.4) for w, m, s in zip(WEIGHTS, MEANS, SPREADS, strict=True))
    assert abs(left - expected) < 3 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("name", ["flow", "edm"])
@pytest.mark.parametrize(("method", "order", "slack"), [("euler", 1, 0.2), ("ddim", 1, 0.2), ("heun", 2, 0.3)])
def test_errors_fall_with_the_order_of_the_method(name, method, order, slack):
    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(1), (200, 2), jnp.float64)
        run = jax.jit(lambda steps, method: from_noise(OBJECTIVES[name], noise, steps, method), static_argnums=1)
        exact = run(4096, "heun")
        counts = np.array([32, 64, 128, 256])
        errors = [float(jnp.sqrt(jnp.mean((run(int(n), method) - exact) ** 2))) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) <= slack, (slope, errors)


def test_the_number_of_steps_is_traced_and_may_differ_between_tokens():
    objective = Flow()
    noise = jax.random.normal(jax.random.key(2), (6, 2))
    run = jax.jit(chex.assert_max_traces(lambda steps: from_noise(objective, noise, steps, "euler"), n=1))
    together = run(jnp.array([1, 2, 3, 4, 8, 8]))
    for row, steps in enumerate([1, 2, 3, 4, 8, 8]):
        alone = from_noise(objective, noise, steps, "euler")
        np.testing.assert_allclose(together[row], alone[row], atol=1e-5)
    assert not np.allclose(together[0], from_noise(objective, noise, 8, "euler")[0], atol=1e-2)
    run(jnp.array([5, 5, 5, 5, 5, 5]))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("method", ["euler", "heun", "ddim"])
def test_known_tokens_stay_as_they_are_to_the_last_bit(name, method):
    objective = OBJECTIVES[name]
    clean, noise = jax.random.normal(jax.random.key(3), (2, 5, 2))
    level = jnp.array([1.0, 0.0, 1.0, 0.5, 0.0])
    start = mix(objective, clean, noise, level)
    found = sample(objective, oracle(objective), start, level, 7, method)
    chex.assert_tree_all_finite(found)
    np.testing.assert_array_equal(found[level == 1], clean[level == 1])
    assert (np.abs(found - clean)[level < 1] > 1e-3).any(-1).all()


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_a_little_noise_changes_a_little(name):
    """What is made anew from a level between 0 and 1 is nearer to what it was the higher the level."""
    objective = OBJECTIVES[name]
    clean = jnp.broadcast_to(jnp.asarray(MEANS[0]), (500, 2))
    noise = jax.random.normal(jax.random.key(6), (500, 2))

    def distance(number):
        level = jnp.full(500, number)
        start = mix(objective, clean, noise, level)
        return float(jnp.abs(sample(objective, oracle(objective), start, level, 16) - clean).mean())

    assert 0 < distance(0.95) < distance(0.6) < distance(0.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_noise_begins_at_the_scale_of_level_zero(name):
    objective = OBJECTIVES[name]
    noise = jax.random.normal(jax.random.key(4), (4000, 1))
    start = mix(objective, jnp.zeros_like(noise), noise, jnp.zeros(4000))
    expected = 20.0 if name == "edm" else 1.0
    np.testing.assert_allclose(start.std(), expected * noise.std(), rtol=1e-5)


def test_each_step_tells_the_level_that_its_tokens_have():
    """Tokens of the level of one step must not be called those of the next, and data are noised again in between."""
    objective, seen = Flow(), []

    def denoise(noisy, level, step):
        jax.debug.callback(lambda *found: seen.append([np.asarray(x) for x in found]), noisy, level, step)
        return jnp.zeros_like(noisy)

    noise = jnp.ones((1, 1))
    sample(objective, denoise, noise, jnp.zeros(1), 4).block_until_ready()
    jax.effects_barrier()
    seen.sort(key=lambda found: found[1][0])
    assert [float(level[0]) for _, level, _ in seen] == [0.0, 0.25, 0.5, 0.75]
    # With expected data of zero, what is left at level t is 1 - t of the noise.
    np.testing.assert_allclose([noisy[0, 0] for noisy, _, _ in seen], [1.0, 0.75, 0.5, 0.25], rtol=1e-6)
    assert all(step == 0.25 for _, _, step in seen)


def test_a_sample_can_be_differentiated():
    objective = Flow()
    noise = jax.random.normal(jax.random.key(5), (3, 2))

    def end(shift):
        return sample(objective, lambda x, level, step: 0.5 * x + shift, noise, jnp.zeros(3), 4).sum()

    slope = jax.grad(end)(0.3)
    chex.assert_trees_all_close(slope, (end(0.31) - end(0.29)) / 0.02, rtol=1e-2)
