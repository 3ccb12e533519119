"""What the families share."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.models.base import make_decoder, make_encoder, masked_mean, scan_time, temperature_of
from jaxwm.types import ActionSpec, Field, Spec, example_batch

SPEC = Spec((Field("vector", (2,), "float32"),), ActionSpec(1))


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
        **fields, spec=SPEC, coder="stride", pixels="linear",
        compute_dtype=jnp.dtype("bfloat16"),
    )  # fmt: skip
    encoder, decoder = make_encoder(config, embed=7, units=5), make_decoder(config, units=5, background=True)
    for coder in (encoder, decoder):
        assert {name: getattr(coder, name) for name in fields} == fields
        assert (coder.spec, coder.kind, coder.units, coder.dtype) == (config.spec, "stride", 5, jnp.bfloat16)
    assert (encoder.embed, decoder.pixels, decoder.background) == (7, "linear", True)


def test_time_is_the_second_axis_of_what_is_scanned_and_of_what_comes_out():
    x = jnp.arange(12.0).reshape(2, 3, 2)
    last, sums = scan_time(lambda total, x: (total + x, {"sum": total + x}), jnp.zeros((2, 2)), x)
    np.testing.assert_array_equal(sums["sum"], np.cumsum(x, axis=1))
    np.testing.assert_array_equal(last, x.sum(axis=1))


def test_a_transition_lies_within_an_episode_and_its_action_is_known():
    batch = example_batch(SPEC, 1, 6)
    batch = batch.replace(
        is_first=jnp.array([[True, False, False, True, False, False]]),
        valid=jnp.array([[True, True, True, True, True, False]]),
        action_valid=jnp.array([[True, False, True, True, True, True]]),
    )
    # 0 to 1; 1 to 2 by an unknown action; 2 to 3 into another episode; 3 to 4; 4 to 5 beyond the end.
    np.testing.assert_array_equal(batch.transitions(), [[True, False, False, True, False]])


def test_a_step_has_a_row_of_each():
    action, frame = jnp.zeros((2, 1)), {"vector": jnp.zeros((2, 2))}
    SPEC.check_step(action, frame, 2)
    with pytest.raises(ValueError, match=r"previous_action has shape \(2, 1\), expected \(3, 1\)"):
        SPEC.check_step(action, {"vector": jnp.zeros((3, 2))}, 3)
    with pytest.raises(ValueError, match=r"observation\['vector'\] has shape \(2, 2\), expected \(3, 2\)"):
        SPEC.check_step(jnp.zeros((3, 1)), frame, 3)
