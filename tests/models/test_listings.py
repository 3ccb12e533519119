"""With the listings' sizes and the same weights, both models answer what the PyTorch listings answer."""

import functools
import importlib.util
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwm

GOLDEN = pathlib.Path(__file__).parent / "golden"
_module_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
make = importlib.util.module_from_spec(_module_spec)
_module_spec.loader.exec_module(make)

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SPEC = jaxwm.Spec((jaxwm.Field("image", (64, 64, 3), "uint8"),), jaxwm.ActionSpec(4))
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "listings.npz") as values:
        return dict(values)


@pytest.fixture(scope="module")
def given():
    return jax.tree.map(jnp.asarray, make.inputs())


def dense(made, name):
    return {"kernel": made[f"{name}.weight"].T, "bias": made[f"{name}.bias"]}


def convolution(made, name):
    return {"kernel": made[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": made[f"{name}.bias"]}


@pytest.fixture(scope="module")
def simple():
    """The model of configs/simple_seed.yaml with the listing's weights."""
    made = make.weights({
        "encoder.0.weight": (32, 3, 4, 4), "encoder.0.bias": (32,),
        "encoder.2.weight": (64, 32, 4, 4), "encoder.2.bias": (64,),
        "encoder.4.weight": (128, 64, 4, 4), "encoder.4.bias": (128,),
        "encoder.7.weight": (128, 8192), "encoder.7.bias": (128,),
        "dynamics.0.weight": (256, 132), "dynamics.0.bias": (256,),
        "dynamics.2.weight": (256, 256), "dynamics.2.bias": (256,),
        "dynamics.4.weight": (128, 256), "dynamics.4.bias": (128,),
        "decoder.0.weight": (8192, 128), "decoder.0.bias": (8192,),
        "decoder.3.weight": (128, 64, 4, 4), "decoder.3.bias": (64,),
        "decoder.5.weight": (64, 32, 4, 4), "decoder.5.bias": (32,),
        "decoder.7.weight": (32, 3, 4, 4), "decoder.7.bias": (3,),
        "reward_head.weight": (1, 128), "reward_head.bias": (1,),
    })  # fmt: skip
    by_rows = lambda x: x.reshape(-1, 128, 8, 8).transpose(0, 2, 3, 1).reshape(-1, 8192)  # noqa: E731
    params = {
        "encoder": {"image_image": {f"conv_{i}": convolution(made, f"encoder.{2 * i}") for i in range(3)}},
        "hidden": {f"linear_{i}": dense(made, f"dynamics.{2 * i}") for i in range(2)},
        "next_latent": dense(made, "dynamics.4"),
        "reward": dense(made, "reward_head"),
        "decoder": {"image_image": {f"conv_{2 - i}": convolution(made, f"decoder.{3 + 2 * i}") for i in range(3)}},
    }
    params["encoder"]["image_image"]["embed_layer"] = {
        "kernel": by_rows(made["encoder.7.weight"]).T, "bias": made["encoder.7.bias"],
    }  # fmt: skip
    params["decoder"]["image_image"]["features_layer"] = {
        "kernel": by_rows(made["decoder.0.weight"].T), "bias": by_rows(made["decoder.0.bias"][None])[0],
    }  # fmt: skip
    config = jaxwm.load_config(CONFIGS / "simple_seed.yaml")
    return checked(jaxwm.build_model(config.model, SPEC), params)


@pytest.fixture(scope="module")
def rssm():
    """The model of configs/rssm_seed.yaml with the listing's weights; what the listing lacks is initialised."""
    made = make.weights({
        "gru.weight_ih": (768, 36), "gru.weight_hh": (768, 256), "gru.bias_ih": (768,), "gru.bias_hh": (768,),
        "prior_net.0.weight": (256, 256), "prior_net.0.bias": (256,),
        "prior_net.2.weight": (64, 256), "prior_net.2.bias": (64,),
        "posterior_net.0.weight": (256, 512), "posterior_net.0.bias": (256,),
        "posterior_net.2.weight": (64, 256), "posterior_net.2.bias": (64,),
    })  # fmt: skip
    config = jaxwm.load_config(CONFIGS / "rssm_seed.yaml")
    model = jaxwm.build_model(config.model, SPEC)
    params = dict(model.init(jax.random.key(0), jaxwm.example_batch(SPEC, 1, 2))["params"])
    first = dense(made, "posterior_net.0")
    params |= {
        "cell": {
            "input_kernel": made["gru.weight_ih"].T, "hidden_kernel": made["gru.weight_hh"].T,
            "input_bias": made["gru.bias_ih"], "hidden_bias": made["gru.bias_hh"],
        },
        "prior_hidden": {"linear_0": dense(made, "prior_net.0")},
        "prior_output": dense(made, "prior_net.2"),
        "posterior_deter": {"kernel": first["kernel"][:256], "bias": first["bias"]},
        "posterior_embed": {"kernel": first["kernel"][256:]},
        "posterior_output": dense(made, "posterior_net.2"),
    }  # fmt: skip
    return checked(model, params)


def checked(model, params):
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jaxwm.example_batch(SPEC, 1, 2)))["params"]
    params = jax.tree.map(jnp.asarray, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)
    return model, {"params": params, "targets": {}}


def test_simple_has_the_listings_parameters(simple, golden):
    assert sum(x.size for x in jax.tree.leaves(simple[1]["params"])) == golden["parameters"] == 2_569_412


def test_simple_predicts_as_the_listing(simple, given, golden):
    model, variables = simple
    latent = model.encode(variables, {"image": given["frames"][:, 0]})
    close(latent, golden["latent"])
    following = model.predict_next(variables, latent, given["action"])
    close(following, golden["next_latent"])
    close(model.decode(variables, following).reward, golden["predicted_reward"])


def test_simple_imagines_as_the_listing(simple, given, golden):
    model, variables = simple
    imagined = model.imagine(variables, {"image": given["frames"][:, 0]}, given["actions"])
    close(imagined.observation["image"][:, :, 3::8, 5::8], golden["imagined"])


def test_simple_loss_is_the_trainers(simple, given, golden):
    model, variables = simple
    batch = jaxwm.example_batch(SPEC, 2, 2).replace(
        observation={"image": given["frames"]},
        action=jnp.stack([given["action"], jnp.zeros_like(given["action"])], axis=1),
        reward=jnp.stack([given["reward"], jnp.zeros(2)], axis=1),
    )
    loss, aux = model.loss(variables, jax.random.split(jax.random.key(0), 2), batch, "train")
    close(loss, golden["loss"])
    close(aux.metrics["loss/image"], golden["reconstruction_loss"])


def test_rssm_steps_as_the_listing(rssm, given, golden):
    model, variables = rssm
    state = model.initial_state(2).replace(deter=given["deter"], stoch=given["stoch"])
    keys = jax.random.split(jax.random.key(0), 2)
    prior = model.prior(variables, keys, state, given["action"])
    posterior = model.posterior(variables, keys, state, given["action"], given["embed"])
    for name, reached in (("prior", prior), ("posterior", posterior)):
        close(reached.deter, golden[f"{name}_deter"])
        close(reached.belief.location, golden[f"{name}_mean"])
        close(reached.belief.std, golden[f"{name}_std"])
    close(model.kl(prior, posterior), golden["kl"])


def test_rssm_imagines_as_the_listing(rssm, given, golden):
    model, variables = rssm
    state = model.initial_state(2).replace(deter=given["deter"], stoch=given["stoch"])
    mean_path = {"temperature": jnp.zeros(2)}  # the golden run draws no noise
    dream = jaxwm.imagine(
        model, variables, jax.random.key(0), state, given["actions"], condition=mean_path, return_states=True
    )
    close(dream.states.deter[:, :, ::8], golden["trajectory_deter"])
    close(dream.states.stoch, golden["trajectory_stoch"])


def test_rssm_trajectory_starts_at_the_state_and_is_noisy(rssm, given):
    model, variables = rssm
    state = model.initial_state(2).replace(deter=given["deter"], stoch=given["stoch"])
    first, second = (
        model.imagine_trajectory(variables, jax.random.key(seed), state, given["actions"], 5) for seed in (0, 1)
    )
    chex.assert_shape(first.stoch, (2, 6, 32))
    chex.assert_trees_all_close(first.deter[:, 0], given["deter"])
    noise = (first.stoch - first.belief.location)[:, 1:] / first.belief.std[:, 1:]
    assert 0.7 < float(jnp.std(noise)) < 1.3
    assert not np.allclose(first.stoch[:, 1:], second.stoch[:, 1:])
