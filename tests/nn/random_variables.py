import jax
import numpy as np


def random_variables(module, *inputs):
    """Variables of a module with random numbers from numpy: nothing is compiled, and no parameter is left at 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    random = np.random.default_rng(0)

    def draw(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return (random.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)
