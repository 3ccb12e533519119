"""What is recorded, cut into parts."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwm.testing import moving_clips
from jaxwm.types import ActionSpec, Field, Spec

SPEC = Spec((Field("image", (4, 4, 3), "uint8"),), ActionSpec(2), (Field("weather", (3,), "float32"),))


def test_a_part_of_a_trajectory_knows_the_action_before_it():
    whole = moving_clips(SPEC, 2, 6).replace(previous_action=jnp.full((2, 2), 0.25), initial_state=jnp.ones((2, 7)))
    first, rest, middle = whole.cut(0, 4), whole.cut(4), whole.cut(2, 5)
    for part, begin, end in ((first, 0, 4), (rest, 4, 6), (middle, 2, 5)):
        SPEC.check_trajectory(part)
        np.testing.assert_array_equal(part.reward, whole.reward[:, begin:end])
        np.testing.assert_array_equal(part.condition["weather"], whole.condition["weather"][:, begin:end])
        np.testing.assert_array_equal(part.previous_actions(), whole.previous_actions()[:, begin:end])
    np.testing.assert_array_equal(first.previous_action, whole.previous_action)
    np.testing.assert_array_equal(rest.previous_action, whole.action[:, 3])
    np.testing.assert_array_equal(first.initial_state, whole.initial_state)
    assert rest.initial_state is None and middle.initial_state is None
    joined = jax.tree.map(
        lambda *x: np.concatenate(x, axis=1),
        *(p.replace(previous_action=p.action, initial_state=None) for p in (first, rest)),
    )
    np.testing.assert_array_equal(joined.observation["image"], whole.observation["image"])
