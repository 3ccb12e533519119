"""What the families share."""

import types

import jax.numpy as jnp

from jaxwm.models.base import make_coders, masked_mean, temperature_of
from jaxwm.types import ActionSpec, Field, Spec


def test_a_mean_over_a_mask_is_0_where_nothing_counts():
    x = jnp.array([[1.0, 2.0, jnp.nan], [4.0, jnp.inf, 6.0]])
    assert masked_mean(x, jnp.array([[True, True, False], [False, False, True]])) == 3.0
    assert masked_mean(x, jnp.zeros((2, 3), bool)) == 0.0


def test_a_temperature_may_be_missing():
    assert temperature_of(None) is None
    assert temperature_of({"guidance": jnp.ones(2)}) is None
    assert temperature_of({"temperature": jnp.ones(2)}).shape == (2,)


def test_both_coders_have_the_fields_of_the_family():
    fields = dict(depth=3, layers=1, norm="none", activation="relu")
    config = types.SimpleNamespace(
        **fields, spec=Spec((Field("vector", (2,), "float32"),), ActionSpec(1)), coder="stride", pixels="linear",
        background=True, compute_dtype=jnp.dtype("bfloat16"),
    )  # fmt: skip
    encoder, decoder = make_coders(config, embed=7, units=5)
    for coder in (encoder, decoder):
        assert {name: getattr(coder, name) for name in fields} == fields
        assert (coder.spec, coder.kind, coder.units, coder.dtype) == (config.spec, "stride", 5, jnp.bfloat16)
    assert (encoder.embed, decoder.pixels, decoder.background) == (7, "linear", True)
