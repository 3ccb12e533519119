"""Every registered family keeps the laws; a new family is tested by an entry in `families.TINY`."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxwm import models
from jaxwm.testing import check_world_model
from jaxwm.types import Field, example_batch, unread_conditions
from tests.contract.families import TINY


def test_every_registered_family_has_a_tiny_instance():
    shipped = {family for family in models.FAMILIES.values() if family.__module__.startswith("jaxwm.")}
    assert {type(model) for model in TINY.values()} == shipped


@pytest.mark.parametrize("name", TINY)
def test_laws(name):
    check_world_model(TINY[name], TINY[name].spec)


@pytest.mark.parametrize("name", TINY)
def test_conditions_have_an_effect_on_those_who_say_so_and_on_no_others(name):
    model = TINY[name]
    spec = dataclasses.replace(model.spec, condition=(Field("weather", (3,), "float32"),))
    member = {"member": dataclasses.replace(model.member, spec=spec)} if name == "ensemble" else {}
    model = dataclasses.replace(model, spec=spec, **member)
    variables = jax.eval_shape(model.init, jax.random.key(0), example_batch(spec, 1, 2))

    def predict(variables, weather):
        keys, action = jax.random.split(jax.random.key(1), 1), jnp.zeros((1, spec.action.dim))
        after = model.predict(variables, keys, model.init_state(1), action, {"weather": weather})
        return model.features(variables, after)

    traced = jax.make_jaxpr(predict)(variables, jax.ShapeDtypeStruct((1, 3), jnp.float32)).jaxpr
    weather = traced.invars[-1]
    is_used = any(weather is read for equation in traced.eqns for read in equation.invars)
    assert unread_conditions(model) == (() if is_used else ("weather",))
    assert is_used == (name == "diffusion")
