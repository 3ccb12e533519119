"""Variables to test with."""

import jax
import numpy as np


def draw_variables(model, batch):
    """None of the parameters is zero, so that what should matter does."""
    fresh, random = jax.eval_shape(model.init, jax.random.key(0), batch), np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.3 * random.normal(size=x.shape)).astype(x.dtype), fresh)
