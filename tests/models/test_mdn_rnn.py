"""The family `mdn_rnn`, beyond the laws that `tests/contract` checks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.models.mdn_rnn import MDNRNN, MDNRNNState
from jaxwm.nn import Normal, NormalMixture
from jaxwm.testing import moving_clips
from jaxwm.types import ActionSpec, Field, Spec

SPEC = Spec((Field("vector", (4,), "float32"),), ActionSpec(3, discrete=True))
MODEL = MDNRNN(SPEC, latent=5, hidden=12, mixtures=3, embed=8, units=8, layers=1)
DATA = np.random.default_rng(0)


def mixture(choices, size=4, components=3, batch=()):
    draw = lambda *shape: DATA.normal(size=(*batch, *shape)).astype(np.float32)  # noqa: E731
    return NormalMixture(
        jnp.asarray(draw(choices, components)),
        jnp.asarray(draw(size, components)),
        jnp.asarray(np.exp(0.3 * draw(size, components))),
    )


def density(m, x):
    """The density of a mixture at ``x``, by summing over all choices of components, in double precision."""
    logits, location, std = (np.asarray(value, np.float64) for value in (m.logits, m.location, m.std))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    groups, components = probs.shape
    total = 0.0
    for choice in itertools.product(range(components), repeat=groups):
        chosen = [choice[d % groups] for d in range(len(x))]
        weight = np.prod([probs[g, k] for g, k in enumerate(choice)])
        parts = [
            np.exp(-0.5 * ((x[d] - location[d, k]) / std[d, k]) ** 2) / (std[d, k] * np.sqrt(2 * np.pi))
            for d, k in enumerate(chosen)
        ]
        total += weight * np.prod(parts)
    return total


@pytest.mark.parametrize("choices", [4, 1])
def test_the_density_of_a_mixture_is_that_of_the_sum_over_its_components(choices):
    m = mixture(choices)
    for x in DATA.normal(size=(5, 4)):
        assert float(m.log_prob(jnp.asarray(x, jnp.float32))) == pytest.approx(np.log(density(m, x)), abs=1e-4)


def test_a_joint_mixture_is_not_one_for_each_dimension():
    joint = mixture(1)
    apart = NormalMixture(jnp.repeat(joint.logits, 4, axis=0), joint.location, joint.std)
    x = jnp.ones(4)
    assert abs(float(joint.log_prob(x) - apart.log_prob(x))) > 0.01
    one = lambda m: NormalMixture(m.logits[..., :1], m.location[..., :1], m.std[..., :1])  # noqa: E731
    np.testing.assert_allclose(one(joint).log_prob(x), one(apart).log_prob(x), rtol=1e-5)
    single = Normal(joint.location[:, 0], joint.std[:, 0])
    np.testing.assert_allclose(one(joint).log_prob(x), single.log_prob(x), rtol=1e-5)


def rows(m, count):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), m)


@pytest.mark.parametrize("temperature", [None, 0.5, 2.0])
def test_the_temperature_divides_the_logits_and_multiplies_the_variance(temperature):
    count, t = 200_000, 1.0 if temperature is None else temperature
    m = NormalMixture(
        jnp.array([[0.0, 1.0]]), jnp.array([[-10.0, 10.0], [0.0, 60.0]]), jnp.array([[0.5, 1.0], [2.0, 1.0]])
    )
    keys = jax.random.split(jax.random.key(0), count)
    control = None if temperature is None else jnp.full(count, temperature)
    x = np.asarray(jax.jit(lambda keys: rows(m, count).sample(keys, control))(keys))
    second = x[:, 0] > 0
    np.testing.assert_array_equal(x[:, 1] > 30, second)  # one choice for both entries
    assert second.mean() == pytest.approx(1 / (1 + np.exp(-1.0 / t)), abs=0.005)
    deviations = [[x[second == k, d].std() for k in (False, True)] for d in range(2)]
    np.testing.assert_allclose(deviations, np.asarray(m.std) * np.sqrt(t), rtol=0.02)
    np.testing.assert_allclose(x[second].mean(0), [10, 60], atol=0.05)


def test_entries_with_a_choice_each_choose_apart():
    m = NormalMixture(jnp.zeros((2, 2)), jnp.array([[-9.0, 9.0]] * 2), jnp.ones((2, 2)))
    x = np.asarray(rows(m, 4000).sample(jax.random.split(jax.random.key(0), 4000))) > 0
    assert np.mean(x[:, 0] == x[:, 1]) == pytest.approx(0.5, abs=0.03)


def test_temperature_is_a_control_of_each_row_and_zero_is_the_mode():
    m = rows(mixture(4), 4)
    keys = jax.random.split(jax.random.key(1), 4)
    x = jax.jit(lambda temperature: m.sample(keys, temperature))(jnp.array([0.0, 1.0, 0.0, 1.3]))
    np.testing.assert_allclose(x[jnp.array([0, 2])], m.mode()[:2], atol=1e-6)
    np.testing.assert_allclose(x[1], m.sample(keys)[1], atol=1e-6)
    assert np.all(np.abs(x[3] - m.mode()[3]) > 1e-6)
    np.testing.assert_allclose(m.mean()[0], np.sum(jax.nn.softmax(m.logits[0]) * m.location[0], axis=-1), rtol=1e-5)


@pytest.fixture(scope="module")
def given():
    batch = moving_clips(SPEC, 3, 6)
    terminal = batch.is_terminal.at[:, -1].set(jnp.array([True, False, True]))
    batch = batch.replace(is_terminal=terminal, is_last=batch.is_last.at[:, -1].set(True))
    return batch, jax.jit(MODEL.init)(jax.random.key(0), batch), jax.random.split(jax.random.key(1), 3)


def test_free_bits_are_counted_for_each_dimension_of_the_batch(given):
    batch, variables, keys = given
    posterior = MODEL._apply(variables, "encode", batch.observation)
    location, std = (np.asarray(value, np.float64).reshape(-1, 5) for value in (posterior.location, posterior.std))
    kl = (0.5 * (std**2 + location**2 - 1) - np.log(std)).mean(0)
    free = float(np.sort(kl)[2]) + 1e-3  # two dimensions cost something, three do not
    model = dataclasses.replace(MODEL, free_nats=free, kl_scale=0.3)
    loss, aux = model.loss(variables, keys, batch, "vae")
    assert float(aux.metrics["loss/kl"]) == pytest.approx(np.maximum(kl, free).sum(), rel=1e-4)
    assert float(aux.metrics["kl"]) == pytest.approx(kl.sum(), rel=1e-4)
    assert int(aux.metrics["used_dimensions"]) == 2
    assert float(loss) == pytest.approx(float(aux.metrics["loss/vector"] + 0.3 * aux.metrics["loss/kl"]), rel=1e-5)


def test_the_standard_deviation_begins_narrow(given):
    batch, variables, _ = given
    std = MODEL._apply(variables, "encode", batch.observation).std
    assert 0.05 < float(std.mean()) < 0.4


def narrow(variables):
    """Variables whose encoder has no noise to speak of, so that losses can be computed by hand."""
    posterior = variables["params"]["posterior"]
    bias, kernel = posterior["bias"].at[5:].set(-30.0), posterior["kernel"].at[:, 5:].set(0.0)
    return {**variables, "params": {**variables["params"], "posterior": {"bias": bias, "kernel": kernel}}}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def memory_by_hand(params, latent, hidden, cell, action):
    """An LSTM in numpy."""
    p = {name: np.asarray(value, np.float64) for name, value in params["memory"].items()}
    gates = np.concatenate([latent, action], -1) @ p["input_kernel"] + hidden @ p["hidden_kernel"] + p["bias"]
    write, keep, value, show = np.split(gates, 4, -1)
    cell = sigmoid(keep) * cell + sigmoid(write) * np.tanh(value)
    return sigmoid(show) * np.tanh(cell), cell


def test_the_dynamics_loss_is_that_of_a_loop_by_hand(given):
    batch, variables, keys = given
    begins = batch.is_first.at[1, 3].set(True)
    batch = batch.replace(is_first=begins, valid=batch.valid.at[2, 4:].set(False))
    params = narrow(variables)["params"]
    random = np.random.default_rng(1)  # heads that start at zero would hide which entries they see
    params |= {
        name: jax.tree.map(lambda x: x + jnp.asarray(random.normal(size=x.shape), jnp.float32), params[name])
        for name in ("reward", "done")
    }
    variables = {"params": params, "targets": {}}
    _, aux = jax.jit(lambda v: MODEL.loss(v, keys, batch, "dynamics"))(variables)
    z = np.asarray(MODEL._apply(variables, "encode", batch.observation).location, np.float64)
    linear = lambda name, x: x @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])  # noqa: E731
    latent, reward, done = [], [], []
    for row in range(3):
        hidden = cell = np.zeros(12)
        for t in range(5):
            if batch.is_first[row, t]:
                hidden = cell = np.zeros(12)
            hidden, cell = memory_by_hand(params, z[row, t], hidden, cell, np.asarray(batch.action[row, t]))
            if batch.is_first[row, t + 1] or not batch.valid[row, t + 1]:
                continue
            location, raw_std, logits = np.split(linear("mixture", hidden), [15, 30])
            std = np.log1p(np.exp(raw_std)) + MODEL.min_std
            shaped = NormalMixture(*(value.reshape(5, 3) for value in (logits, location, std)))
            latent.append(-np.log(density(shaped, z[row, t + 1])) / 5)
            reward.append((linear("reward", hidden)[0] - float(batch.reward[row, t])) ** 2)
            ends = bool(batch.is_terminal[row, t + 1])
            likelihood = sigmoid(linear("done", hidden)[0])
            done.append(-10.0 * np.log(likelihood) if ends else -np.log(1 - likelihood))
    assert len(latent) == 12
    for name, values in (("latent", latent), ("reward", reward), ("done", done)):
        assert float(aux.metrics[f"loss/{name}"]) == pytest.approx(np.mean(values), rel=1e-3)


def test_frames_actions_and_memory_are_aligned(given):
    """`hidden` at t has taken in frames and actions up to t - 1; the latent at t is the frame at t."""
    batch, variables, keys = given
    variables = narrow(variables)
    z = np.asarray(MODEL._apply(variables, "encode", batch.observation).location)
    state = MODEL.init_state(3)
    hidden = cell = np.zeros((3, 12))
    for t, previous in enumerate(np.swapaxes(np.asarray(batch.previous_actions()), 0, 1)):
        first = jax.tree.map(lambda x, t=t: x[:, t], batch.observation)
        state = MODEL.observe(variables, keys, state, jnp.asarray(previous), first, batch.is_first[:, t])
        if t:
            hidden, cell = memory_by_hand(variables["params"], z[:, t - 1], hidden, cell, previous)
        np.testing.assert_allclose(state.latent, z[:, t], atol=1e-5)
        np.testing.assert_allclose(state.hidden, hidden, atol=1e-5)
        np.testing.assert_allclose(state.cell, cell, atol=1e-5)


def test_a_window_in_mid_episode_goes_on_from_the_state_before_it(given):
    batch, variables, keys = given
    variables = narrow(variables)
    first = jax.tree.map(lambda x: x[:, 0], batch.observation)
    state = MODEL.observe(variables, keys, MODEL.init_state(3), batch.action[:, 0], first, batch.is_first[:, 0])
    cut = lambda x: x[:, 1:] if x.ndim > 1 and x.shape[1] == 6 else x  # noqa: E731
    window = jax.tree.map(cut, batch).replace(previous_action=batch.action[:, 0], initial_state=state)
    losses = [MODEL.loss(variables, keys, b, "dynamics")[1].metrics["loss/latent"] for b in (batch, window)]
    without = MODEL.loss(variables, keys, window.replace(initial_state=None), "dynamics")[1].metrics["loss/latent"]
    masked = batch.replace(is_first=batch.is_first, valid=batch.valid)
    whole = MODEL.loss(variables, keys, masked, "dynamics")[1].metrics["loss/latent"]
    assert float(losses[0]) == float(whole)
    first_step = (6 - 1) * float(losses[0]) - (5 - 1) * float(losses[1])  # what entry 1 of each row adds
    state_1 = MODEL._remember(variables, state, batch.action[:, 0])[0]
    z = MODEL._apply(variables, "encode", batch.observation).location
    expected = -MODEL._apply(variables, "expect", state_1).log_prob(z[:, 1]).mean() / 5
    assert first_step == pytest.approx(float(expected), rel=1e-3)
    assert abs(float(without) - float(losses[1])) > 1e-4


def test_the_end_is_a_probability_whatever_its_weight_in_the_loss():
    """The weighted loss is least at odds that are ``done_weight`` times too large; decode corrects for that."""
    share, weight = 0.03, MODEL.done_weight
    logits = np.linspace(-8, 8, 3201)
    loss = -weight * share * np.log(sigmoid(logits)) - (1 - share) * np.log(1 - sigmoid(logits))
    best = logits[loss.argmin()]
    params = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), moving_clips(SPEC, 1, 2)))["params"]
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    params = {**params, "done": {**params["done"], "bias": jnp.array([best], jnp.float32)}}
    prediction = MODEL.decode({"params": params, "targets": {}}, MODEL.init_state(2))
    np.testing.assert_allclose(prediction.continuation, 1 - share, atol=1e-3)


def test_predict_follows_the_temperature_of_each_row(given):
    batch, variables, keys = given
    state = MDNRNNState(*(jax.random.normal(jax.random.key(3), (3, size)) for size in (5, 12, 12)))
    predict = jax.jit(lambda temperature: MODEL.predict(variables, keys, state, batch.action[:, 0], temperature))
    cold = predict({"temperature": jnp.array([0.0, 0.0, 1.0])})
    hidden, cell = MODEL._remember(variables, state, batch.action[:, 0])
    expected = MODEL._apply(variables, "expect", hidden)
    np.testing.assert_allclose(cold.hidden, hidden, atol=1e-6)
    np.testing.assert_allclose(cold.cell, cell, atol=1e-6)
    np.testing.assert_allclose(cold.latent[:2], expected.mode()[:2], atol=1e-5)
    assert np.abs(cold.latent[2] - expected.mode()[2]).max() > 0.1


def test_features_hold_the_cell_only_where_that_is_asked_for(given):
    _, variables, _ = given
    state = MDNRNNState(jnp.full((2, 5), 1.0), jnp.full((2, 12), 2.0), jnp.full((2, 12), 3.0))
    np.testing.assert_array_equal(MODEL.features(variables, state)[0], [1.0] * 5 + [2.0] * 12)
    full = dataclasses.replace(MODEL, cell_features=True)
    np.testing.assert_array_equal(full.features(variables, state)[0], [1.0] * 5 + [3.0] * 12 + [2.0] * 12)


def test_surprise_is_the_density_of_the_frame_that_came(given):
    batch, variables, keys = given
    state = MDNRNNState(*(jax.random.normal(jax.random.key(3), (3, size)) for size in (5, 12, 12)))
    first = jax.tree.map(lambda x: x[:, 0], batch.observation)
    surprise = MODEL.surprise(variables, keys, state, batch.action[:, 0], first)
    hidden, _ = MODEL._remember(variables, state, batch.action[:, 0])
    expected = MODEL._apply(variables, "expect", hidden)
    z = MODEL._apply(variables, "encode", first).location
    for row in range(3):
        by_hand = -np.log(density(jax.tree.map(lambda x, row=row: x[row], expected), np.asarray(z[row], np.float64)))
        assert float(surprise[row]) == pytest.approx(by_hand, rel=1e-3)
