"""The loss of the small joint-embedding model, against its definition; the laws are in `tests/contract`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.imagination import observe_sequence
from jaxwm.models.jepa import JEPA, JEPAState
from jaxwm.testing import moving_clips
from tests.contract.families import PICTURES, VECTORS

MODEL = JEPA(VECTORS, latent=5, memory=4, hidden=8, units=8, layers=1, unroll=2)
KEYS = jax.random.split(jax.random.key(0), 2)


def broken_clips(spec):
    """Two windows: a new episode begins in the second, the first ends before its end."""
    batch = moving_clips(spec, 2, 6)
    valid = batch.valid.at[0, 5].set(False)
    unknown = batch.action_valid.at[1, 0].set(False)
    return batch.replace(is_first=batch.is_first.at[1, 3].set(True), valid=valid, action_valid=unknown)


@pytest.fixture(scope="module")
def given():
    batch = broken_clips(VECTORS)
    return jax.jit(MODEL.init)(jax.random.key(0), batch), batch


def losses(model, variables, batch):
    total, aux = jax.jit(lambda variables: model.loss(variables, KEYS, batch, "train"))(variables)
    return total, aux.metrics


def test_every_frame_predicts_the_representations_of_the_next_ones(given):
    variables, batch = given
    _, metrics = losses(MODEL, variables, batch)
    latent = MODEL.encode(variables, batch.observation)
    seen = observe_sequence(MODEL, variables, jax.random.key(0), batch, return_states=True).states
    errors = []
    for row in range(2):
        for start in range(4):
            state = jax.tree.map(lambda x: x[row : row + 1, start], seen)  # noqa: B023
            for t in range(start, start + 2):
                if batch.is_first[row, t + 1] or not batch.valid[row, t + 1] or not batch.action_valid[row, t]:
                    break
                state = MODEL.predict(variables, KEYS[:1], state, batch.action[row : row + 1, t])
                errors.append(np.mean(np.square(state.latent[0] - latent[row, t + 1])))
    assert len(errors) == 7 + 3
    np.testing.assert_allclose(metrics["loss/prediction"], np.mean(errors), rtol=1e-5)


@pytest.fixture(scope="module")
def attentive(given):
    """A model that attends to two frames before the last one, none of whose parameters is zero."""
    model = JEPA(
        VECTORS, latent=6, history=2, blocks=2, heads=1, head_size=4, hidden=8, units=8, layers=1, unroll=3
    )  # fmt: skip
    variables = jax.jit(model.init)(jax.random.key(0), given[1])
    shaken = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), variables)
    return model, shaken


def test_attention_predicts_every_frame_from_its_history_and_the_first_ones_further(given, attentive):
    """By single steps of `observe` and `predict`, through the ring of keys and values."""
    (model, variables), (_, batch) = attentive, given
    _, metrics = losses(model, variables, batch)
    latent = model.encode(variables, batch.observation)
    seen = observe_sequence(model, variables, jax.random.key(0), batch, return_states=True).states
    predict = jax.jit(model.predict)
    errors = []
    for row in range(2):
        for start in range(5):
            state = jax.tree.map(lambda x: x[row : row + 1, start], seen)  # noqa: B023
            for t in range(start, start + 3 if start == 0 else start + 1):
                if batch.is_first[row, t + 1] or not batch.valid[row, t + 1] or not batch.action_valid[row, t]:
                    break
                state = predict(variables, KEYS[:1], state, batch.action[row : row + 1, t])
                errors.append(np.mean(np.square(state.latent[0] - latent[row, t + 1])))
    assert len(errors) == (3 + 3) + (0 + 3)
    np.testing.assert_allclose(metrics["loss/prediction"], np.mean(errors), rtol=1e-4)


def test_each_block_of_attention_sees_so_many_frames_and_no_more(given, attentive):
    (model, variables), (_, batch) = attentive, given
    batch = batch.replace(is_first=jnp.zeros_like(batch.is_first).at[:, 0].set(True))
    action = batch.action[:, 5]

    def foretold(change):
        vector = batch.observation["vector"] + jnp.array(change)[:, None]
        seen = observe_sequence(model, variables, KEYS[0], batch.replace(observation={"vector": vector})).final_state
        return model.predict(variables, KEYS, seen, action).latent[1]

    as_it_is = foretold([0.0] * 6)
    np.testing.assert_array_equal(foretold([1.0, 0, 0, 0, 0, 0]), as_it_is)
    assert np.abs(foretold([0, 1.0, 0, 0, 0, 0]) - as_it_is).max() > 1e-5, "two blocks with two frames each"


def test_memory_and_history_exclude_each_other():
    with pytest.raises(ValueError, match="memory=4 and history=2 exclude each other"):
        dataclasses.replace(MODEL, history=2)
    with pytest.raises(ValueError, match="width 5 is not divisible by twice the 4 heads"):
        dataclasses.replace(MODEL, memory=0, history=2)


def test_the_terms_are_weighted_and_the_heads_added(given):
    variables, batch = given
    weights = dict(
        prediction_scale=2.0, variance_scale=3.0, covariance_scale=4.0, similarity_scale=5.0, inverse_scale=6.0,
        gaussian_scale=7.0,
    )  # fmt: skip
    total, metrics = losses(dataclasses.replace(MODEL, **weights), variables, batch)
    expected = sum(weight * metrics[f"loss/{name.removesuffix('_scale')}"] for name, weight in weights.items())
    expected += sum(metrics[f"loss/{name}"] for name in ("vector", "reward", "continue"))
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_slowness_and_inverse_dynamics_look_at_neighbours_of_one_episode(given):
    variables, batch = given
    _, metrics = losses(MODEL, variables, batch)
    latent = np.asarray(MODEL.encode(variables, batch.observation))
    pairs = [(row, t) for row in range(2) for t in range(5) if (row, t) not in {(0, 4), (1, 2)}]
    steps = [np.mean(np.square(latent[row, t + 1] - latent[row, t])) for row, t in pairs]
    np.testing.assert_allclose(metrics["loss/similarity"], np.mean(steps), rtol=1e-5)
    read = MODEL._apply(variables, "act_between", jnp.asarray(latent[:, :-1]), jnp.asarray(latent[:, 1:]))
    log_probs = np.asarray(jax.nn.log_softmax(read))
    cross = [-np.sum(batch.action[row, t] * log_probs[row, t]) for row, t in pairs if (row, t) != (1, 0)]
    np.testing.assert_allclose(metrics["loss/inverse"], np.mean(cross), rtol=1e-5)


def test_the_decoder_does_not_touch_the_representation():
    model = dataclasses.replace(MODEL, spec=PICTURES, depth=4)
    batch = broken_clips(PICTURES)
    # Heads that begin at zero would pass nothing on.
    variables = jax.tree.map(lambda x: x + 0.1, jax.jit(model.init)(jax.random.key(0), batch))

    def gradient(of):
        total = lambda params: of(*model.loss({**variables, "params": params}, KEYS, batch, "train"))  # noqa: E731
        return jax.jit(jax.grad(total))(variables["params"])

    heads = gradient(lambda total, aux: aux.metrics["loss/image"] + aux.metrics["loss/reward"])
    for name, part in heads.items():
        size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part))
        assert (size > 0) == (name == "heads"), f"the heads' error reaches {name}" if size else "nothing is learned"
    whole = gradient(lambda total, aux: total)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(whole["encoder"]))


def test_a_window_goes_on_with_the_state_that_it_is_given(given):
    variables, batch = given
    going = batch.replace(is_first=jnp.zeros_like(batch.is_first))
    states = []
    for memory in (0.0, 0.5):
        start = JEPAState(jnp.zeros((2, 5)), jnp.full((2, 4), memory), jnp.ones(2, bool))
        states.append(MODEL.loss(variables, KEYS, going.replace(initial_state=start), "train")[1].states)
    assert np.abs(states[0].memory[:, 0] - states[1].memory[:, 0]).max() > 1e-3
    np.testing.assert_array_equal(states[0].latent, states[1].latent)


def test_without_terms_that_keep_it_apart_the_representation_collapses_and_says_so(given):
    variables, batch = given
    alone = dataclasses.replace(
        MODEL, variance_scale=0.0, covariance_scale=0.0, similarity_scale=1.0, inverse_scale=0.0
    )

    def descend(model, variables):
        loss = lambda params: model.loss({**variables, "params": params}, KEYS, batch, "train")  # noqa: E731

        @jax.jit
        def step(params):
            gradient, aux = jax.grad(loss, has_aux=True)(params)
            return jax.tree.map(lambda p, g: p - 0.05 * g / (1e-6 + jnp.linalg.norm(g)), params, gradient), aux.metrics

        params = variables["params"]
        for _ in range(150):
            params, metrics = step(params)
        return metrics

    assert descend(alone, variables)["alarm/collapse"] == 1
    kept = descend(MODEL, variables)
    assert kept["alarm/collapse"] == 0 and kept["representation/std"] > 0.2
