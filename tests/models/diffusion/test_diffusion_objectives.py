"""What networks learn: the parametrisations agree with each other, levels are what they are called, steps agree."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from jaxwm.models.diffusion import EDM, AnyObjective, Flow, Forcing, Shortcut, mix

OBJECTIVES = {"flow": Flow(), "edm": EDM(), "forcing": Forcing(), "shortcut": Shortcut()}


def pieces(seed, shape=(4, 6, 3)):
    clean, noise = jax.random.normal(jax.random.key(seed), (2, *shape))
    return clean, noise


def right_output(objective, clean, noise, level):
    """What a network that knows the data would put out; from the definitions in the papers."""
    noisy = np.asarray(mix(objective, clean, noise, level))
    clean, noise, level = (np.asarray(x) for x in (clean, noise, level))
    if isinstance(objective, EDM):
        sigma = (objective.largest * (1 - level) ** objective.rho)[..., None]
        total = sigma**2 + objective.data**2
        return (clean - objective.data**2 / total * noisy) / (sigma * objective.data / np.sqrt(total))
    return clean if isinstance(objective, Shortcut) else clean - noise


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_right_output_gives_back_the_data_and_costs_nothing(name):
    objective = OBJECTIVES[name]
    clean, noise = pieces(0)
    level = jax.random.uniform(jax.random.key(1), (4, 6), minval=0.0, maxval=0.9)
    output = right_output(objective, clean, noise, level)
    noisy = mix(objective, clean, noise, level)
    np.testing.assert_allclose(objective.denoised(output, noisy, level), clean, atol=2e-4)
    step = jnp.full((4, 6), 1 / 64)
    error, also = objective.loss(lambda *_: (jnp.asarray(output)[: len(_[0])], "kept"), clean, noise, level, step)
    assert also == "kept"
    assert error.shape == (4, 6)
    assert float(error.max()) < 1e-5
    worse, _ = objective.loss(lambda x, *_: (jnp.asarray(output)[: len(x)] + 1.0, None), clean, noise, level, step)
    assert float(worse[1:].min()) > 0.05  # a row of the shortcut that learns from its own steps finds them consistent


@pytest.mark.parametrize("name", OBJECTIVES)
def test_level_one_is_the_data_exactly_and_counts_for_nothing(name):
    objective = OBJECTIVES[name]
    clean, noise = pieces(2)
    level = jnp.ones((4, 6)).at[:, 3:].set(0.25)
    np.testing.assert_array_equal(mix(objective, clean, noise, level)[:, :3], clean[:, :3])
    network = lambda noisy, *_: (7.0 + noisy, None)  # noqa: E731
    error, _ = objective.loss(network, clean, noise, level, jnp.full((4, 6), 0.25))
    chex.assert_tree_all_finite(error)
    np.testing.assert_array_equal(error[:, :3], 0)
    assert float(error[:, 3:].min()) > 0
    slope = jax.grad(
        lambda shift: objective.loss(lambda x, *_: (x + shift, None), clean, noise, level, level)[0].sum()
    )
    chex.assert_tree_all_finite(slope(0.1))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_frames_have_one_level_or_each_its_own(name):
    objective = OBJECTIVES[name]
    level, step = (np.asarray(x) for x in objective.draw(jax.random.split(jax.random.key(3), 400), 5))
    assert level.shape == step.shape == (400, 5)
    assert 0 <= level.min() < level.max() - 0.3
    assert level.max() < 1
    each_frame = isinstance(objective, Forcing | Shortcut)
    assert (level == level[:, :1]).all() == (not each_frame)
    assert step.any() == (objective.smallest > 0)
    if each_frame:
        assert abs(np.corrcoef(level[:, 0], level[:, 1])[0, 1]) < 0.2


def test_edm_draws_the_logarithm_of_sigma_from_a_normal_distribution():
    objective = EDM(mean=-0.4, spread=1.2)
    level = objective.draw(jax.random.split(jax.random.key(4), 4000), 1)[0][:, 0]
    logs = np.log(np.asarray(objective.clock(level)))
    np.testing.assert_allclose([logs.mean(), logs.std()], [-0.4, 1.2], atol=0.08)


def test_shortcut_draws_levels_of_large_steps_on_their_grid_and_others_anywhere():
    objective = Shortcut(halvings=4, bootstrapped=0.5)
    level, step = (np.asarray(x) for x in objective.draw(jax.random.split(jax.random.key(6), 400), 3))
    assert set(np.unique(step[:200])) == {1.0, 0.5, 0.25, 0.125}
    assert set(np.unique(step[200:])) == {0.0625}
    np.testing.assert_array_equal(level[:200] % step[:200], 0)
    assert (level + step)[:200].max() == 1
    assert 0.2 < np.mean(level[200:] % 0.0625) / 0.0625 < 0.8


def test_shortcut_draws_more_levels_near_noise_the_higher_the_power():
    keys = jax.random.split(jax.random.key(9), 400)
    for power, median in ((1.0, 0.5), (3.0, 0.125)):
        level, _ = Shortcut(halvings=8, bootstrapped=0.1, power=power).draw(keys, 10)
        assert abs(float(jnp.median(level[40:])) - median) < 0.03


def test_shortcut_stands_on_all_levels_of_a_large_step_alike():
    level, step = Shortcut(halvings=3, bootstrapped=0.5).draw(jax.random.split(jax.random.key(5), 800), 10)
    shares = [float(jnp.mean(level[:400][step[:400] == 0.25] == 0.25 * k)) for k in range(4)]
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


def test_shortcut_learns_the_place_where_two_half_steps_lead():
    objective = Shortcut(halvings=3, bootstrapped=0.5)
    clean, noise = pieces(7, (2, 1, 1))
    level, step = jnp.full((2, 1), 0.25), jnp.array([[0.5], [0.125]])
    network = lambda x, level, step: (0.3 * x + level[..., None] + step[..., None], None)  # noqa: E731
    error, _ = objective.loss(network, clean, noise, level, step)
    z = 0.25 * float(clean[0, 0, 0]) + 0.75 * float(noise[0, 0, 0])
    b1 = (0.3 * z + 0.25 + 0.25 - z) / 0.75
    half = z + 0.25 * b1
    b2 = (0.3 * half + 0.5 + 0.25 - half) / 0.5
    said = 0.3 * z + 0.25 + 0.5
    # (1 - t)^2 times the squared error of the velocity (equation 7 of the paper).
    expected = 0.75**2 * ((said - z) / 0.75 - (b1 + b2) / 2) ** 2
    np.testing.assert_allclose(error[0, 0], expected, rtol=1e-4)
    other = 0.25 * float(clean[1, 0, 0]) + 0.75 * float(noise[1, 0, 0])
    np.testing.assert_allclose(error[1, 0], (0.3 * other + 0.375 - float(clean[1, 0, 0])) ** 2, rtol=1e-4)


def test_shortcut_keeps_what_is_known_as_it_is_in_both_half_steps():
    """What the network says of a known token is never learned: moved by it, it would mislead the second half."""
    clean, noise = pieces(7, (2, 1, 3, 1))
    level, step = jnp.array([[[0.0, 0.95, 1.0]]] * 2), jnp.array([[[1.0, 0.0, 0.0]]] * 2)
    asked = []

    def network(x, level, step):
        asked.append((x, level))
        return jnp.full_like(x, 7.0), None

    objective = Shortcut(halvings=3, bootstrapped=0.5)
    error, _ = objective.loss(network, clean, noise, level, step)
    (noisy, _), *halves = asked
    for x, told in halves:
        np.testing.assert_array_equal(x[:, :, 1:], noisy[:1, :, 1:])
        np.testing.assert_array_equal(told[:, :, 1:], level[:1, :, 1:])
    assert [float(told[0, 0, 0]) for _, told in halves] == [0.0, 0.5]
    assert float(halves[1][0][0, 0, 0, 0]) == pytest.approx((float(noisy[0, 0, 0, 0]) + 7.0) / 2)
    chex.assert_tree_all_finite(error)


def test_shortcut_sends_no_gradient_through_the_half_steps():
    objective = Shortcut(bootstrapped=0.5)
    clean, noise = pieces(8, (2, 1, 1))
    level, step = jnp.zeros((2, 1)), jnp.array([[1.0], [1 / 64]])

    def loss(large, small):
        network = lambda x, level, step: (jnp.where(step[..., None] == 1.0, large, small) * x, None)  # noqa: E731
        return objective.loss(network, clean, noise, level, step)[0][0, 0]

    large, small = jax.grad(loss, (0, 1))(0.3, 0.6)
    assert abs(float(large)) > 1e-4
    assert float(small) == 0


def test_a_configuration_names_its_objective():
    adapter = pydantic.TypeAdapter(AnyObjective)
    assert adapter.validate_python({"name": "edm", "largest": 5.0}) == EDM(largest=5.0)
    assert adapter.validate_python({"name": "shortcut"}) == Shortcut()
    with pytest.raises(pydantic.ValidationError, match="largest"):
        adapter.validate_python({"name": "edm", "largest": -1.0})
