from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxwm.nn import BlockGRU, GRUCell, LSTMCell

GOLDEN = Path(__file__).parent / "golden"


def test_gru_equals_torch():
    golden = np.load(GOLDEN / "gru.npz")
    params = {
        "input_kernel": golden["weight_ih"].T,
        "hidden_kernel": golden["weight_hh"].T,
        "input_bias": golden["bias_ih"],
        "hidden_bias": golden["bias_hh"],
    }
    result = GRUCell(7).apply({"params": params}, jnp.asarray(golden["hidden"]), jnp.asarray(golden["inputs"]))
    np.testing.assert_allclose(result, golden["result"], atol=1e-6)


def test_gru_initialises_the_shapes_that_torch_has():
    variables = jax.eval_shape(GRUCell(7).init, jax.random.key(0), jnp.zeros((3, 7)), jnp.zeros((3, 5)))
    shapes = {"input_kernel": (5, 21), "hidden_kernel": (7, 21), "input_bias": (21,), "hidden_bias": (21,)}
    assert jax.tree.map(jnp.shape, variables["params"]) == shapes


def test_gru_refuses_another_width():
    with pytest.raises(ValueError, match="hidden has 6 features, expected 7"):
        GRUCell(7).init(jax.random.key(0), jnp.zeros((3, 6)), jnp.zeros((3, 5)))


def test_cells_carry_their_state_through_a_scan_in_its_dtype():
    cell = GRUCell(4, dtype=jnp.bfloat16)
    inputs = jax.random.normal(jax.random.key(1), (6, 2, 3))
    variables = random_variables(cell, jnp.zeros((2, 4)), inputs[0])
    last, _ = jax.lax.scan(lambda h, x: (cell.apply(variables, h, x), None), jnp.zeros((2, 4)), inputs)
    assert last.dtype == jnp.float32


def test_lstm_equals_its_equations():
    hidden, cell, inputs = (jax.random.normal(jax.random.key(i), (2, size)) for i, size in enumerate((4, 4, 3)))
    variables = random_variables(LSTMCell(4), hidden, cell, inputs)
    p = {name: np.asarray(value, np.float64) for name, value in variables["params"].items()}

    def gate(k):
        part = slice(4 * k, 4 * k + 4)
        return inputs @ p["input_kernel"][:, part] + hidden @ p["hidden_kernel"][:, part] + p["bias"][part]

    expected_cell = _sigmoid(gate(1)) * cell + _sigmoid(gate(0)) * np.tanh(gate(2))
    result = LSTMCell(4).apply(variables, hidden, cell, inputs)
    np.testing.assert_allclose(result[1], expected_cell, atol=1e-5)
    np.testing.assert_allclose(result[0], _sigmoid(gate(3)) * np.tanh(expected_cell), atol=1e-5)


def test_lstm_starts_by_remembering_and_refuses_another_width():
    params = LSTMCell(4).init(jax.random.key(0), jnp.zeros((2, 4)), jnp.zeros((2, 4)), jnp.zeros((2, 3)))["params"]
    np.testing.assert_array_equal(params["bias"], [0] * 4 + [1] * 4 + [0] * 8)
    with pytest.raises(ValueError, match="cell has 5 features, expected 4"):
        LSTMCell(4).init(jax.random.key(0), jnp.zeros((2, 4)), jnp.zeros((2, 5)), jnp.zeros((2, 3)))


def _silu(x):
    return x / (1 + np.exp(-x))


def _norm(x, scale):
    return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _blocks(kernel):
    """The dense matrix of a block-diagonal kernel [blocks, in, out]."""
    blocks, inputs, outputs = kernel.shape
    matrix = np.zeros((blocks * inputs, blocks * outputs))
    for i in range(blocks):
        matrix[i * inputs : (i + 1) * inputs, i * outputs : (i + 1) * outputs] = kernel[i]
    return matrix


def _reference(p, deter, stoch, action, blocks, layers):
    """DreamerV3's core in numpy, with one joined input and one dense kernel for each block, as it is published."""
    action = action / np.maximum(1, np.abs(action))
    joined = []
    for name, value in (("deter", deter), ("stoch", stoch), ("action", action)):
        projection = p[f"{name}_projection"]
        value = value @ projection["kernel"] + projection["bias"]
        joined.append(_silu(_norm(value, p[f"{name}_norm"]["scale"])))
    size = deter.shape[-1] // blocks
    x = []
    for i in range(blocks):
        part = slice(i * size, (i + 1) * size)
        block_input = np.concatenate([deter[:, part], *joined], -1)
        block_kernel = np.concatenate([p["block_kernel"][i], p["shared_kernel"][:, part]], 0)
        x.append(block_input @ block_kernel + p["bias"][part])
    x = _silu(_norm(np.concatenate(x, -1), p["norm_0"]["scale"]))
    for layer in range(1, layers):
        x = x @ _blocks(p[f"linear_{layer}"]["kernel"]) + p[f"linear_{layer}"]["bias"]
        x = _silu(_norm(x, p[f"norm_{layer}"]["scale"]))
    gates = (x @ _blocks(p["gates_kernel"])).reshape(-1, blocks, 3, size) + p["gates_bias"].reshape(blocks, 3, size)
    reset, candidate, update = (gates[:, :, i].reshape(deter.shape) for i in range(3))
    candidate, update = np.tanh(_sigmoid(reset) * candidate), _sigmoid(update - 1)
    return update * candidate + (1 - update) * deter


@pytest.fixture(scope="module")
def block_gru():
    """A cell with two dynamics layers, random parameters everywhere, and inputs with actions beyond 1."""
    cell = BlockGRU(12, 5, blocks=3, dynamics_layers=2)
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(4, size)).astype(np.float32) * scale for size, scale in ((12, 1), (6, 1), (2, 3))]
    return cell, random_variables(cell, *inputs)["params"], inputs


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_block_gru_equals_its_reference(monkeypatch, block_gru, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    cell, params, inputs = block_gru
    result = cell.apply({"params": params}, *inputs)
    np.testing.assert_allclose(result, _reference(params, *inputs, blocks=3, layers=2), atol=2e-5)


def test_block_gru_forgets_slowly_at_first(block_gru):
    cell, params, inputs = block_gru
    zeros = jax.tree.map(jnp.zeros_like, params)
    # With all gates at 0 the candidate is 0, and the update is sigmoid(-1) = 0.2689.
    np.testing.assert_allclose(cell.apply({"params": zeros}, *inputs), 0.7310586 * inputs[0], rtol=1e-5)


def test_block_gru_squashes_actions_but_passes_their_gradient(block_gru):
    cell, params, (deter, stoch, action) = block_gru
    apply = jax.jit(lambda action: cell.apply({"params": params}, deter, stoch, action))
    sign = jnp.sign(action)
    np.testing.assert_allclose(apply(5 * sign), apply(sign), atol=1e-6)
    assert np.abs(jax.jit(jax.grad(lambda a: apply(a).sum()))(5 * sign)).min() > 0


def test_block_gru_has_the_parameters_of_the_published_core():
    # Size 1m of the table: 512 units in 8 blocks, hidden 64, latent 32 x 4, 6 actions.
    shapes = jax.eval_shape(
        BlockGRU(512, 64).init, jax.random.key(0), *(jnp.zeros((1, size)) for size in (512, 128, 6))
    )
    projections = (512 + 128 + 6) * 64 + 3 * (64 + 64)
    hidden = 8 * (64 + 3 * 64) * 64 + 512 + 512
    gates = 8 * 64 * 192 + 1536
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == projections + hidden + gates


@pytest.mark.parametrize(
    ("cell", "width", "message"),
    [
        (BlockGRU(12, 4, blocks=5), 12, "expected 12 in 5 equal blocks"),
        (BlockGRU(12, 4, blocks=3), 9, "the state has 9 entries, expected 12"),
        (BlockGRU(12, 4, blocks=3, dynamics_layers=0), 12, "dynamics_layers is 0, expected at least 1"),
    ],
)
def test_block_gru_refuses_impossible_sizes(cell, width, message):
    with pytest.raises(ValueError, match=message):
        cell.init(jax.random.key(0), jnp.zeros((1, width)), jnp.zeros((1, 2)), jnp.zeros((1, 2)))
