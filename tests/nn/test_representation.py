"""Terms against collapse, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.nn.representation import covariance_penalty, sketched_gaussianity, variance_hinge, watch_collapse


@pytest.fixture(scope="module")
def given():
    """Correlated samples ``[4, 8, 3]`` and a mask with gaps; what is masked must not matter."""
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 8, 3)) @ np.array([[0.5, 0.3, 0.0], [0.0, 0.7, 0.0], [0.2, 0.0, 2.0]]) + 3.0
    valid = random.random((4, 8)) < 0.7
    return np.where(valid[..., None], x, 1e3), valid


def test_variance_and_covariance_are_those_of_the_entries_that_count(given):
    x, valid = given
    covariance = np.cov(x[valid].T)
    hinge = np.maximum(0.0, 1.0 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
    assert 0.1 < hinge < 0.9
    np.testing.assert_allclose(variance_hinge(x, valid), hinge, rtol=1e-3)
    penalty = (np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / 3
    np.testing.assert_allclose(covariance_penalty(x, valid), penalty, rtol=1e-3)


def test_gaussianity_is_the_integral_over_the_characteristic_function(given):
    x, valid = given
    key = jax.random.key(3)
    drawn = np.asarray(jax.random.normal(key, (3, 5)), np.float64)
    directions = drawn / np.linalg.norm(drawn, axis=0)
    knots = np.linspace(-3, 3, 33)
    samples = x[valid] @ directions
    empirical = np.exp(1j * knots[:, None, None] * samples).mean(axis=1)
    normal = np.exp(-(knots**2) / 2)[:, None]
    statistic = np.trapezoid(np.abs(empirical - normal) ** 2 * normal, knots, axis=0) * valid.sum()
    found = sketched_gaussianity(key, jnp.asarray(np.where(valid[..., None], x, 0.5)), valid, 5)
    np.testing.assert_allclose(found, statistic.mean(), rtol=2e-3)


def test_gaussianity_knows_normal_samples_from_others():
    normal, valid = jax.random.normal(jax.random.key(0), (2000, 16)), jnp.ones(2000, bool)
    score = lambda x: float(sketched_gaussianity(jax.random.key(1), x, valid, 64))  # noqa: E731
    assert 0.7 < score(normal) < 1.5, "1.05 is expected"
    assert score(0.5 * normal) > 50
    assert score(normal.at[:, 0].multiply(6.0)) > 10
    assert score(jnp.zeros_like(normal)) > 500


def test_collapse_is_seen():
    valid = jnp.ones((16, 8), bool)
    healthy = jax.random.normal(jax.random.key(0), (16, 8, 12))
    watched = watch_collapse(healthy, valid)
    assert watched["alarm/collapse"] == 0 and 9 < watched["representation/rank"] <= 12
    assert 0.8 < watched["representation/std_min"] < watched["representation/std"] < 1.1
    assert watch_collapse(0.01 * healthy + 5.0, valid)["alarm/collapse"] == 1
    line = healthy[..., :1] * jnp.arange(1.0, 13.0)
    on_a_line = watch_collapse(line, valid)
    assert on_a_line["alarm/collapse"] == 1 and abs(on_a_line["representation/rank"] - 1) < 1e-3
    assert watch_collapse(healthy[..., :1], valid)["alarm/collapse"] == 0, "one dimension is a line by nature"
