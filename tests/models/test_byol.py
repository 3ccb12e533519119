"""Latent self-prediction, against its definition; the laws are in `tests/contract`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.imagination import observe_sequence
from jaxwm.models.byol import BYOL, BYOLState
from jaxwm.nn.layers import symlog
from jaxwm.testing import moving_clips
from tests.contract.families import VECTORS

MODEL = BYOL(VECTORS, latent=5, belief=7, hidden=8, units=8, layers=1, unroll=3, target_rate=0.25)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def given():
    """Variables, and two windows of six frames: an episode begins in the second, the first ends before its end."""
    batch = moving_clips(VECTORS, 2, 6)
    batch = batch.replace(is_first=batch.is_first.at[1, 3].set(True), valid=batch.valid.at[0, 5].set(False))
    variables = jax.jit(MODEL.init)(jax.random.key(0), batch)
    # A target that is not the encoder itself: which of them is used where shows.
    slow = jax.tree.map(lambda x: 1.3 * x + 0.05, variables["targets"]["encoder"])
    return {**variables, "targets": {"encoder": slow, "error": jnp.float32(0.5)}}, batch


@pytest.fixture(scope="module")
def by_hand(given):
    """``{(row, frame foretold, actions before): squared distance}`` by single steps of `observe` and `predict`."""
    variables, batch = given
    seen = observe_sequence(MODEL, variables, jax.random.key(0), batch, return_states=True).states
    slow = {**variables, "params": {**variables["params"], "encoder": variables["targets"]["encoder"]}}
    targets = MODEL._apply(slow, "encode", batch.observation)
    targets = targets / jnp.linalg.norm(targets, axis=-1, keepdims=True)
    distances = {}
    for row in range(2):
        for start in range(6):
            if not batch.valid[row, start]:
                continue
            state = jax.tree.map(lambda x: x[row : row + 1, start], seen)  # noqa: B023
            for t in range(start, min(start + 4, 6)):
                if t > start:
                    if batch.is_first[row, t] or not batch.valid[row, t]:
                        break
                    state = MODEL.predict(variables, KEYS[:1], state, batch.action[row : row + 1, t - 1])
                expected = MODEL.features(variables, state)[0, : MODEL.latent]
                distances[row, t, t - start] = float(np.sum(np.square(expected - targets[row, t])))
    return distances


def test_every_frame_foretells_itself_and_the_next_ones(given, by_hand):
    variables, batch = given
    assert len(by_hand) == (4 + 4 + 3 + 2 + 1 - 0) + (3 + 2 + 1) + (3 + 2 + 1)
    total, aux = MODEL.loss(variables, KEYS, batch, "train")
    np.testing.assert_allclose(aux.metrics["loss/self_prediction"], np.mean(list(by_hand.values())), rtol=1e-4)
    parts = ("self_prediction", "vector", "reward", "continue")
    np.testing.assert_allclose(total, sum(aux.metrics[f"loss/{name}"] for name in parts), rtol=1e-5)


def test_curiosity_rewards_the_action_that_led_to_what_was_not_foretold(given, by_hand):
    variables, batch = given
    reward = MODEL.curiosity(variables, batch)
    for row in range(2):
        for t in range(6):
            errors = [error for (r, frame, ahead), error in by_hand.items() if (r, frame) == (row, t + 1) and ahead]
            expected = np.mean(errors) / 0.5 if errors else 0.0
            np.testing.assert_allclose(reward[row, t], expected, rtol=1e-4, atol=1e-6)
    assert reward[1, 2] == 0, "no action leads into another episode"


def test_surprise_is_the_error_one_action_ahead(given, by_hand):
    variables, batch = given
    seen = observe_sequence(MODEL, variables, jax.random.key(0), batch, return_states=True).states
    state = jax.tree.map(lambda x: x[:, 0], seen)
    frame = {"vector": batch.observation["vector"][:, 1]}
    surprise = MODEL.surprise(variables, KEYS, state, batch.action[:, 0], frame)
    np.testing.assert_allclose(surprise, [by_hand[0, 1, 1], by_hand[1, 1, 1]], rtol=1e-4)


def test_the_target_follows_slowly_and_gets_no_gradient(given):
    variables, batch = given

    def loss(variables):
        return MODEL.loss(variables, KEYS, batch, "train")[1].metrics["loss/self_prediction"]

    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["targets"]))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient["params"]["heads"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["params"]["encoder"]))
    _, aux = MODEL.loss(variables, KEYS, batch, "train")
    after = MODEL.after_update(variables, aux, "train")["targets"]
    for slow, fast, moved in zip(
        *map(jax.tree.leaves, (variables["targets"]["encoder"], variables["params"]["encoder"], after["encoder"])),
        strict=True,
    ):
        np.testing.assert_allclose(moved, 0.75 * slow + 0.25 * fast, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(after["error"], 0.375 + 0.25 * aux.metrics["loss/self_prediction"], rtol=1e-5)


def test_the_heads_learn_of_seen_and_of_imagined_beliefs(given):
    """By how they would score if half of the windows, by the keys, were seen and the others one action ahead."""
    variables, batch = given
    seen = observe_sequence(MODEL, variables, jax.random.key(0), batch, return_states=True).states
    imagined, predict = seen.belief, jax.jit(MODEL.predict)
    for row in range(2):
        for t in range(1, 6):
            if batch.valid[row, t] and not batch.is_first[row, t]:
                before = jax.tree.map(lambda x: x[row : row + 1, t - 1], seen)  # noqa: B023
                after = predict(variables, KEYS[:1], before, batch.action[row : row + 1, t - 1])
                imagined = imagined.at[row, t].set(after.belief[0])
    for keys in (jax.random.split(jax.random.key(seed), 2) for seed in range(64)):
        coins = [bool(jax.random.bernoulli(key)) for key in keys]
        if coins == [True, False]:
            break
    assert coins == [True, False]
    mixed = jnp.stack([imagined[0], seen.belief[1]])
    errors = []
    for row in range(2):
        for t in range(6):
            if batch.valid[row, t]:
                seen_there = MODEL.decode(variables, BYOLState(mixed[row : row + 1, t])).observation["vector"][0]
                errors.append(np.sum(np.square(symlog(seen_there) - symlog(batch.observation["vector"][row, t]))))
    metrics = MODEL.loss(variables, keys, batch, "train")[1].metrics
    np.testing.assert_allclose(metrics["loss/vector"], np.mean(errors), rtol=1e-4)


def test_a_window_goes_on_with_the_belief_that_it_is_given(given):
    variables, batch = given
    going = batch.replace(is_first=jnp.zeros_like(batch.is_first))
    beliefs = [
        MODEL.loss(variables, KEYS, going.replace(initial_state=BYOLState(jnp.full((2, 7), x))), "train")[1].states
        for x in (0.0, 0.5)
    ]
    assert np.abs(beliefs[0].belief[:, 0] - beliefs[1].belief[:, 0]).max() > 1e-3
