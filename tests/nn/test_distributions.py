from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm.nn import Bernoulli, Normal, OneHot, PixelSquaredError, SymlogSquaredError, TwoHot

GOLDEN = Path(__file__).parent / "golden"
KEY = jax.random.key(0)


def _examples(rows):
    """One distribution of each kind that can be sampled, with batch shape [rows]."""
    random = lambda *shape: jnp.asarray(np.random.default_rng(1).normal(size=(8, *shape))[:rows], jnp.float32)  # noqa: E731
    return [
        Normal(random(3), jnp.exp(random(3))),
        OneHot(random(4, 5)),
        OneHot(random(5), event_axes=1),
        Bernoulli(random()),
        TwoHot(5 * random(255)),
    ]


KINDS = range(len(_examples(1)))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("normal", lambda g: [Normal(m, s) for m, s in zip(g["means"], g["stds"], strict=True)]),
        ("one_hot", lambda g: [OneHot(jnp.asarray(logits)) for logits in g["logits"]]),
        ("bernoulli", lambda g: [Bernoulli(jnp.asarray(logits)) for logits in g["logits"]]),
    ],
)
def test_equals_torch(name, build):
    golden = np.load(GOLDEN / f"{name}.npz")
    p, q = build(golden)
    log_prob, kl, entropy = jax.jit(lambda p, q, x: (p.log_prob(x), p.kl(q), p.entropy()))(p, q, golden["x"])
    np.testing.assert_allclose(log_prob, golden["log_prob"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kl, golden["kl"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropy, golden["entropy"], rtol=1e-4, atol=1e-5)


def test_one_event_axis_keeps_the_variables_apart():
    golden = np.load(GOLDEN / "one_hot.npz")
    p, q = (OneHot(jnp.asarray(logits), event_axes=1) for logits in golden["logits"])
    assert p.kl(q).shape == (3, 4)
    np.testing.assert_allclose(p.kl(q).sum(-1), golden["kl"], rtol=1e-4, atol=1e-5)  # the golden ones are joint


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_draws_from_its_own_key_alone(kind):
    keys = jax.random.split(KEY, 8)
    eight, three = _examples(8)[kind], _examples(3)[kind]
    sample = jax.jit(lambda distribution, keys: distribution.sample(keys))
    np.testing.assert_allclose(sample(eight, keys)[:3], sample(three, keys[:3]), rtol=1e-5)


def test_rows_draw_different_noise():
    assert len(np.unique(Normal(jnp.zeros((8, 3)), jnp.ones((8, 3))).sample(jax.random.split(KEY, 8)))) == 24


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_0_is_the_mode_and_1_the_sample(kind):
    distribution, keys = _examples(3)[kind], jax.random.split(KEY, 3)
    sample = jax.jit(lambda temperature: distribution.sample(keys, temperature))
    np.testing.assert_array_equal(sample(0.0), distribution.mode())
    np.testing.assert_allclose(sample(1.0), distribution.sample(keys), rtol=1e-5)
    mixed = sample(jnp.array([0.0, 1.0, 1e-30]))
    np.testing.assert_array_equal(mixed[0], distribution.mode()[0])
    np.testing.assert_allclose(mixed[1], distribution.sample(keys)[1], rtol=1e-5)
    assert np.isfinite(mixed).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sample_and_scores_keep_the_batch_shape(kind):
    distribution = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), _examples(6)[kind])
    shape = lambda function, *inputs: jax.eval_shape(function, distribution, *inputs).shape  # noqa: E731
    event = shape(lambda d: d.mean())
    assert event[:2] == (2, 3)
    for keys in (KEY, jax.random.split(KEY, 2), jax.random.split(KEY, (2, 3))):
        assert shape(lambda d, keys: d.sample(keys), keys) == event
    assert shape(lambda d: d.mode()) == event
    assert shape(lambda d: d.log_prob(d.mode())) == shape(lambda d: d.entropy()) == (2, 3)


def test_keys_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"keys have shape \(4,\), expected \(\) or the first axes of \(3, 2\)"):
        Normal(jnp.zeros((3, 2)), jnp.ones((3, 2))).sample(jax.random.split(KEY, 4))


def test_samples_follow_their_distributions():
    n = 20_000
    broadcast = lambda values: jnp.broadcast_to(jnp.asarray(values, jnp.float32), (n, len(values)))  # noqa: E731
    draw = jax.jit(lambda distribution, temperature=None: distribution.sample(KEY, temperature))
    normal = draw(Normal(broadcast([1.0, -2.0]), broadcast([0.5, 2.0])))
    np.testing.assert_allclose(normal.mean(0), [1.0, -2.0], atol=0.05)
    np.testing.assert_allclose(normal.std(0), [0.5, 2.0], rtol=0.03)
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    logits = broadcast(np.log(probs))[:, None]
    np.testing.assert_allclose(draw(OneHot(logits, unimix=0.0))[:, 0].mean(0), probs, atol=0.012)
    hot = probs**2 / (probs**2).sum()
    np.testing.assert_allclose(draw(OneHot(logits, unimix=0.0), 0.5)[:, 0].mean(0), hot, atol=0.012)
    assert draw(Bernoulli(jnp.full(n, np.log(3.0)))).mean() == pytest.approx(0.75, abs=0.012)


def test_normal_noise_scales_with_temperature():
    normal = Normal(jnp.full((2, 3), 5.0), jnp.full((2, 3), 2.0))
    noise = normal.sample(KEY) - 5.0
    expected = 5.0 + noise * np.array([[0.5], [3.0]])
    np.testing.assert_allclose(normal.sample(KEY, jnp.array([0.5, 3.0])), expected, rtol=1e-5)


def test_one_hot_mixes_in_the_uniform_distribution():
    distribution = OneHot(jnp.array([[[100.0, 0.0, 0.0, 0.0]]]), unimix=0.04)
    np.testing.assert_allclose(distribution.probs, [[[0.97, 0.01, 0.01, 0.01]]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(distribution.log_probs), distribution.probs, rtol=1e-5)


def test_one_hot_samples_are_one_hot_even_where_the_sum_of_probabilities_rounds():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(500, 32, 31)), jnp.float32)
    sample = OneHot(logits, unimix=0.0).sample(KEY)
    assert set(np.unique(sample)) == {0.0, 1.0}
    np.testing.assert_array_equal(sample.sum(-1), 1.0)


def test_mode_of_a_tie_is_its_first_class():
    np.testing.assert_array_equal(OneHot(jnp.zeros((1, 1, 3))).mode(), [[[1.0, 0.0, 0.0]]])


@pytest.mark.parametrize("draw", [lambda d: d.sample(KEY), lambda d: d.sample(KEY, 0.0), lambda d: d.mode()])
def test_gradients_pass_straight_through_one_hot(draw):
    logits, weights = jax.random.normal(KEY, (2, 3, 4)), jax.random.normal(jax.random.key(1), (2, 3, 4))
    through = jax.jit(jax.grad(lambda logits: jnp.sum(draw(OneHot(logits)) * weights)))(logits)
    expected = jax.jit(jax.grad(lambda logits: jnp.sum(OneHot(logits).probs * weights)))(logits)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(through, expected, atol=1e-6)


def test_two_hot_bins():
    bins = TwoHot.bins()
    assert bins.shape == (255,)
    assert bins[127] == 0.0
    np.testing.assert_array_equal(bins, -bins[::-1])
    assert (np.diff(bins) > 0).all()
    # Neighbours of 0 lie one step of the symlog scale away: exp(20 / 127) - 1.
    np.testing.assert_allclose(
        bins[[0, 126, 128]], [1 - np.exp(20), 1 - np.exp(20 / 127), np.exp(20 / 127) - 1], rtol=1e-6
    )


def test_two_hot_mean_is_exactly_zero_at_first_and_the_bin_where_it_is_certain():
    assert TwoHot(jnp.zeros((2, 255))).mean().tolist() == [0.0, 0.0]
    certain = 1000.0 * jax.nn.one_hot(jnp.array([0, 100, 127, 200, 254]), 255)
    np.testing.assert_allclose(TwoHot(certain).mean(), TwoHot.bins()[[0, 100, 127, 200, 254]], rtol=1e-6)


def _two_hot_code(x):
    """The target of `TwoHot.log_prob`: its gradient at the logits is the target minus the probabilities."""
    logits = jnp.zeros((1, 255))
    return np.asarray(jax.grad(lambda logits: TwoHot(logits).log_prob(jnp.array([x])).sum())(logits)[0]) + 1 / 255


def test_two_hot_targets_by_hand():
    step = np.exp(20 / 127) - 1  # the bin after 0
    quarter = _two_hot_code(0.25 * step)
    np.testing.assert_allclose(quarter[[127, 128]], [0.75, 0.25], atol=1e-5)
    np.testing.assert_allclose(_two_hot_code(0.0)[127], 1.0, atol=1e-6)
    np.testing.assert_allclose(_two_hot_code(-step)[126], 1.0, atol=1e-5)
    np.testing.assert_allclose([_two_hot_code(1e12)[254], _two_hot_code(-1e12)[0]], 1.0, atol=1e-6)
    # With uniform logits the cross entropy is ln 255 whatever the target.
    np.testing.assert_allclose(TwoHot(jnp.zeros((2, 255))).log_prob(jnp.array([3.3, -1e6])), -np.log(255), rtol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(-4e8, 4e8, width=32))
def test_two_hot_targets_have_the_mean_of_what_they_code(x):
    code = _two_hot_code(x)
    above_rounding = code > 1e-4
    assert 1 <= above_rounding.sum() <= 2
    assert code.sum() == pytest.approx(1.0, abs=1e-3)
    weights = np.where(above_rounding, code, 0.0).astype(np.float64)
    assert weights @ TwoHot.bins().astype(np.float64) == pytest.approx(x, rel=1e-3, abs=1e-3)


def test_two_hot_gives_its_target_no_gradient():
    assert jax.grad(lambda x: TwoHot(jnp.arange(255.0)[None]).log_prob(x[None]).sum())(1.5) == 0.0


def test_symlog_squared_error_by_hand():
    e = np.e
    distribution = SymlogSquaredError(jnp.array([[1.0, 0.0], [-2.0, 3.0]]))
    np.testing.assert_allclose(distribution.mode(), [[e - 1, 0.0], [1 - e**2, e**3 - 1]], rtol=1e-5)
    # In symlog space the targets are (1, 1) and (0, 1).
    target = jnp.array([[e - 1, e - 1], [0.0, e - 1]])
    np.testing.assert_allclose(distribution.log_prob(target), [-1.0, -8.0], rtol=1e-5)


def test_pixel_squared_error_by_hand():
    distribution = PixelSquaredError(jnp.array([0.0, 0.5, 1.2]).reshape(1, 1, 1, 3))
    np.testing.assert_allclose(distribution.mode().ravel(), [0.0, 0.5, 1.0])
    target = jnp.array([0, 255, 255], jnp.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(distribution.log_prob(target), [-(0.25 + 0.04)], rtol=1e-5)
    with pytest.raises(ValueError, match="image has dtype float32, expected uint8"):
        distribution.log_prob(target / 255)


def test_scores_are_float32_for_half_precision_parameters():
    for function in (
        lambda x: OneHot(x[..., :3]).sample(KEY),
        lambda x: TwoHot(x).mean(),
        lambda x: TwoHot(x).log_prob(x[..., 0]),
        lambda x: Bernoulli(x).log_prob(x),
    ):
        assert jax.eval_shape(function, jnp.zeros((2, 1, 255), jnp.bfloat16)).dtype == jnp.float32
