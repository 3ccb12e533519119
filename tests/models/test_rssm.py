"""The RSSM beyond the laws and the listing: the size table, the loss by hand, balance and free nats, masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm
from jaxwm.models.rssm import RSSM
from jaxwm.testing import moving_clips
from tests.contract.families import TINY

# Millions of parameters of the whole agent on a world of 24-d vectors with 6 actions, as reported for DreamerV3.
REPORTED = {"1m": 0.64, "12m": 9.7, "25m": 21.8, "50m": 38.6, "100m": 86.6, "200m": 153.8, "400m": 345.5}
PROPRIO = jaxwm.Spec((jaxwm.Field("vector", (24,), "float32"),), jaxwm.ActionSpec(6))


@pytest.mark.parametrize("size", REPORTED)
def test_the_size_table_gives_the_reported_parameters(size):
    fields = RSSM.SIZES[size]
    model = RSSM(PROPRIO, **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jaxwm.example_batch(PROPRIO, 1, 2)))
    world_model = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))
    # Actor and critic by the paper: three normalised hidden layers on the features, then mean and deviation of
    # each action, or 255 bins.
    units, features = fields["units"], fields["deter"] + model.stoch * fields["classes"]
    hidden = features * units + 2 * units + 2 * (units * units + 2 * units)
    actor_critic = 2 * hidden + 2 * (units * 6 + 6) + units * 255 + 255
    assert (world_model + actor_critic) / 1e6 == pytest.approx(REPORTED[size], rel=0.01)


@pytest.fixture(scope="module")
def given():
    model = TINY["rssm"]
    batch = moving_clips(model.spec, 2, 4)
    return model, jax.jit(model.init)(jax.random.key(0), batch), jax.random.split(jax.random.key(1), 2), batch


def loss(model, variables, keys, batch):
    value, aux = model.loss(variables, keys, batch, "train")
    return float(value), jax.tree.map(float, aux.metrics), aux.states


def test_the_loss_is_the_sum_of_its_parts_computed_apart(given):
    model, variables, keys, batch = given
    total, metrics, states = loss(model, variables, keys, batch)
    flat = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), states)
    seen = model.decode(variables, flat)
    pixels = np.asarray(batch.observation["image"], np.float64).reshape(8, -1) / 255.0
    networks = dataclasses.replace(model)  # the same configuration: nothing is stored in a model
    heads = networks._apply(variables, "heads", model.features(variables, flat))
    image = np.square(np.asarray(heads[0]["image"].location).reshape(8, -1) - pixels).sum(-1).mean()
    vector = np.asarray(batch.observation["vector"]).reshape(8, -1)
    symlog = lambda x: np.sign(x) * np.log1p(np.abs(x))  # noqa: E731
    vectors = np.square(symlog(np.asarray(seen.observation["vector"])) - symlog(vector)).sum(-1).mean()
    assert metrics["loss/image"] == pytest.approx(image, rel=1e-4)
    assert metrics["loss/vector"] == pytest.approx(vectors, rel=1e-4)
    assert metrics["loss/reward"] == pytest.approx(np.log(255), rel=1e-4)  # the head starts uniform
    post = np.asarray(states.belief.probs, np.float64)
    prior = np.asarray(model._apply(variables, "prior", states.deter).probs, np.float64)
    kl = (post * np.log(post / prior)).sum((-1, -2)).mean()
    assert metrics["kl"] == pytest.approx(kl, rel=1e-3)
    parts = image + vectors + metrics["loss/reward"] + metrics["loss/continue"] + 1.0 * kl + 0.1 * kl
    assert total == pytest.approx(parts, rel=1e-4)


def test_free_nats_are_free(given):
    model, variables, keys, batch = given
    generous = dataclasses.replace(model, free_nats=1e6)
    _, metrics, _ = loss(generous, variables, keys, batch)
    assert metrics["loss/dynamics"] == metrics["loss/representation"] == 1e6

    def prior_gradient(model):
        gradient = jax.grad(lambda params: model.loss({"params": params}, keys, batch, "train")[0])(
            variables["params"]
        )
        return float(jnp.abs(gradient["prior_output"]["kernel"]).max())

    assert prior_gradient(generous) == 0.0 < prior_gradient(model)


def test_the_kl_warms_up_by_the_update(given):
    model, _, keys, batch = given
    model = dataclasses.replace(model, kl_warmup=4)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    evaluate = jax.jit(lambda variables: model.loss(variables, keys, batch, "train"))
    totals = []
    for _ in range(6):
        total, aux = evaluate(variables)
        totals.append(float(total))
        variables = model.after_update(variables, aux, "train")
    kl = 1.1 * float(aux.metrics["kl"])
    np.testing.assert_allclose(np.subtract(totals, totals[0]), kl * np.array([0, 0.25, 0.5, 0.75, 1, 1]), atol=1e-3)


def test_a_gaussian_state_is_heard_from_the_start():
    spec = jaxwm.Spec((jaxwm.Field("image", (16, 16, 3), "uint8"),), jaxwm.ActionSpec(2))
    model = RSSM(spec, recurrent="gru", latent="gaussian", deter=256, stoch=4, hidden=16, units=16, depth=4, embed=16)
    batch = moving_clips(spec, 2, 2)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    kernel = variables["params"]["decoder"]["image_image"]["features_layer"]["kernel"]
    # Unit noise in the four numbers of the state moves the decoder as much as unit noise in all of the memory.
    assert np.square(kernel[256:]).sum() == pytest.approx(np.square(kernel[:256]).sum(), rel=0.1)
    frames = {"image": batch.observation["image"][:, 0]}
    keys = jax.random.split(jax.random.key(1), 2)
    state = model.observe(variables, keys, model.init_state(2), batch.action[:, 0], frames, jnp.ones(2, bool))
    assert 0.1 < float(state.belief.std.mean()) < 0.4


def test_each_kl_trains_its_own_side(given):
    model, variables, keys, batch = given
    # One step: in longer windows the prior also trains the posteriors of earlier steps, through the memory.
    batch = jax.tree.map(lambda x: x[:, :1], batch).replace(previous_action=batch.previous_action)

    def gradients(**scales):
        balanced = dataclasses.replace(model, reward_scale=0.0, continue_scale=0.0, **scales)

        def kl_only(params):
            value, aux = balanced.loss({"params": params}, keys, batch, "train")
            return value - aux.metrics["loss/image"] - aux.metrics["loss/vector"]

        return jax.jit(jax.grad(kl_only))(variables["params"])

    dynamics = gradients(dynamics_scale=1.0, representation_scale=0.0)
    representation = gradients(dynamics_scale=0.0, representation_scale=1.0)
    assert not jnp.any(dynamics["posterior_output"]["kernel"]) and jnp.any(dynamics["prior_output"]["kernel"])
    assert not jnp.any(representation["prior_output"]["kernel"])
    assert jnp.any(representation["posterior_output"]["kernel"])


def test_padding_costs_nothing(given):
    model, variables, keys, batch = given
    valid = batch.valid.at[:, 2:].set(False)
    _, metrics, _ = loss(model, variables, keys, batch.replace(valid=valid))
    noise = {name: x.at[:, 2:].set(0) for name, x in batch.observation.items()}
    _, other, _ = loss(model, variables, keys, batch.replace(valid=valid, observation=noise))
    assert metrics["loss/image"] == pytest.approx(other["loss/image"], rel=1e-6)
    assert metrics["kl"] == pytest.approx(other["kl"], rel=1e-5)


def test_the_reward_head_learns_the_reward_before_not_after(given):
    """``decode(state_t).reward`` estimates ``reward[t-1]``: no other reward of the batch reaches the loss."""
    model, variables, keys, batch = given
    gradient = jax.grad(
        lambda reward: -model.loss(variables, keys, batch.replace(reward=reward), "train")[0]
    )(jnp.full((2, 4), 0.3))  # fmt: skip
    # Two-hot targets carry no gradient, so the effect is measured by changing one reward at a time.
    assert not jnp.any(gradient)
    tilted = jax.tree.map(lambda x: x, variables)
    params = dict(tilted["params"])
    params["reward_output"] = {**params["reward_output"], "bias": jnp.arange(255.0) / 100}
    base = loss(model, {"params": params}, keys, batch)[1]["loss/reward"]
    effects = []
    for t in range(4):
        changed = batch.replace(reward=batch.reward.at[:, t].add(3.0))
        effects.append(abs(loss(model, {"params": params}, keys, changed)[1]["loss/reward"] - base) > 1e-4)
    assert effects == [True, True, True, False]
