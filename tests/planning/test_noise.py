import jax
import numpy as np
import pytest

from jaxwm.planning.noise import coloured, coloured_basis


def draw(length, exponent, count=20000):
    return np.asarray(coloured(jax.random.split(jax.random.key(0), 1), count, length, 1, exponent))[0, :, :, 0]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_every_step_has_unit_variance_and_mean_zero(length, exponent):
    noise = draw(length, exponent)
    assert noise.shape == (20000, length)
    np.testing.assert_allclose(noise.std(0), 1.0, atol=0.03)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.03)


def test_the_spectrum_falls_as_the_exponent_says():
    power = (np.abs(np.fft.rfft(draw(16, 2.0), axis=1)) ** 2).mean(0)[1:8]
    slope = np.polyfit(np.log(np.arange(1, 8)), np.log(power), 1)[0]
    assert slope == pytest.approx(-2.0, abs=0.1)


def test_redder_noise_goes_further():
    reach = [np.abs(draw(16, exponent, 2000).sum(1)).mean() for exponent in (0.0, 1.0, 2.0)]
    assert reach[0] < 0.7 * reach[1] < 0.7 * reach[2] * 1.2


def test_dimensions_and_keys_are_independent():
    noise = np.asarray(coloured(jax.random.split(jax.random.key(0), 2), 4000, 4, 2, 1.0))
    assert noise.shape == (2, 4000, 4, 2)
    flat = np.moveaxis(noise, 1, 0)[:, :, 0].reshape(4000, -1)
    np.testing.assert_allclose(np.corrcoef(flat.T), np.eye(4), atol=0.06)


def test_the_basis_is_real_fourier():
    basis = coloured_basis(4, 2.0)
    size = np.array([1, 1, 1, 0.5])
    raw = size[:, None] * np.array([[1, 1, 1, 1], [1, 0, -1, 0], [0, 1, 0, -1], [1, -1, 1, -1]])
    np.testing.assert_allclose(basis, raw / np.sqrt(1 + 1 + 0.25), atol=1e-6)
