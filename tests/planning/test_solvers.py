"""Solvers on costs whose best plans are known, and the traps of public toolkits."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.planning import CEM, ICEM, MPPI, SOLVERS, CategoricalCEM, Gradient, PredictiveSampling, RandomShooting
from jaxwm.planning.sampling import path_weights
from jaxwm.types import ActionSpec

B, H = 3, 4
BOUNDED = ActionSpec(2, low=(-0.4, 1.0), high=(0.3, 5.0))
FREE = ActionSpec(1)
KEYS = jax.random.split(jax.random.key(0), B)
CONTINUOUS = {
    "random_shooting": RandomShooting(H, samples=64),
    "predictive_sampling": PredictiveSampling(H, samples=64, knots=3),
    "cem": CEM(H, samples=64, elites=8, iterations=4),
    "icem": ICEM(H, samples=64, elites=8, iterations=4, parts=2),
    "mppi": MPPI(H, samples=64, elites=16, iterations=4),
    "gradient": Gradient(H, starts=3, iterations=6, learning_rate=0.5),
}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def solve(solver, spec, cost, keys, memory, *arguments):
    return solver.solve(spec, lambda actions: cost(actions, *arguments), keys, memory)


def run(solver, spec, cost, *arguments):
    return solve(solver, spec, cost, KEYS, solver.init(spec, B), *arguments)[0]


def test_every_solver_is_tried_here():
    assert set(SOLVERS) == {*CONTINUOUS, "categorical_cem"}
    assert {name: type(solver) for name, solver in CONTINUOUS.items()}.items() <= SOLVERS.items()


def tempting(actions):
    """Outside of the bounds everything is far too good."""
    low, high = jnp.asarray(BOUNDED.low), jnp.asarray(BOUNDED.high)
    outside = jnp.any((actions < low) | (actions > high), axis=(2, 3))
    return jnp.where(outside, -1e6, jnp.sum(jnp.square(actions - 100.0), axis=(2, 3)))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_no_candidate_ever_leaves_the_bounds(name):
    plan = run(CONTINUOUS[name], BOUNDED, tempting)
    chex.assert_shape(plan.actions, (B, H, 2))
    assert plan.costs.min() > 0
    assert (plan.actions >= np.asarray(BOUNDED.low, np.float32)).all()
    assert (plan.actions <= np.asarray(BOUNDED.high, np.float32)).all()


def broken(actions, where):
    """Breaks down where the first action is above 0; negative elsewhere, so that 0 or a small number would be best."""
    cost = -10.0 - jnp.mean(actions[:, :, :, 1], axis=2)
    bad = jnp.array([jnp.nan, jnp.inf, -jnp.inf])[:, None]
    return jnp.where(actions[:, :, 0, 0] > where, bad, cost)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_is_not_finite_is_worst(name):
    plan = run(CONTINUOUS[name], BOUNDED, broken, jnp.float32(0.0))
    assert (plan.actions[:, 0, 0] <= 1e-6).all()
    assert np.isfinite(plan.costs).all() and (plan.costs < -10).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_where_nothing_is_finite_the_plan_is_still_one(name):
    plan, memory = solve(CONTINUOUS[name], BOUNDED, broken, KEYS, CONTINUOUS[name].init(BOUNDED, B), jnp.float32(-1.0))
    assert np.isinf(plan.costs).all()
    for leaf in jax.tree.leaves((plan.actions, memory)):
        assert np.isfinite(leaf).all()
    assert (plan.actions >= np.asarray(BOUNDED.low, np.float32)).all()
    assert (plan.actions <= np.asarray(BOUNDED.high, np.float32)).all()


SCALE = np.array([0.35, 2.0], np.float32)
"""Half the width of the bounds."""


def squared(actions, target):
    return jnp.sum(jnp.square((actions - target[:, None]) / SCALE), axis=(2, 3))


@pytest.mark.parametrize(
    ("solver", "left"),
    [
        (CEM(H, samples=128, elites=16, iterations=12, min_std=0.01), 0.01),
        (ICEM(H, samples=128, elites=16, iterations=12, min_std=0.01, colour=0.5), 0.02),
        (MPPI(H, samples=128, elites=32, iterations=12, min_std=0.01, temperature=0.3), 0.03),
        (Gradient(H, starts=2, iterations=60), 0.001),
        (PredictiveSampling(H, samples=2000, knots=4), 0.3),
        (RandomShooting(H, samples=4000), 0.4),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_optimum_of_a_quadratic_is_found(solver, left):
    """``left``: what a solver leaves of the cost of the middle of the bounds."""
    target = np.random.default_rng(1).uniform(BOUNDED.low, BOUNDED.high, (B, H, 2)).astype(np.float32)
    plan = run(solver, BOUNDED, squared, target)
    middle = jnp.broadcast_to(jnp.array([-0.05, 3.0]), (B, 1, H, 2))
    assert (squared(plan.actions[:, None], target) < left * squared(middle, target)).all()
    if type(solver) is Gradient:  # where the optimum lies outside, the nearest plan inside is best
        outside = target + np.where(target > np.array([-0.05, 3.0]), 4.0, -4.0).astype(np.float32)
        nearest = np.clip(outside, np.float32(BOUNDED.low), np.float32(BOUNDED.high))
        np.testing.assert_allclose(run(solver, BOUNDED, squared, outside).actions, nearest, atol=0.01)


def regulator(actions, start):
    """Linear-quadratic: a mass that is pushed, x = (position, speed), 8 steps."""

    def step(x, a):
        x = jnp.stack([x[0] + 0.5 * x[1], x[1] + 0.5 * a[0]])
        return x, x[0] ** 2 + 0.1 * x[1] ** 2 + 0.1 * a[0] ** 2

    one = lambda x, plan: jnp.sum(jax.lax.scan(step, x, plan)[1])  # noqa: E731
    return jax.vmap(jax.vmap(one, (None, 0)))(start, actions)


@pytest.mark.parametrize(
    "solver",
    [
        CEM(8, samples=256, elites=24, iterations=20, std=1.0, min_std=0.01),
        MPPI(8, samples=256, elites=32, iterations=20, std=1.0, temperature=0.3),
        Gradient(8, starts=2, iterations=150),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_a_linear_quadratic_problem_is_solved(solver):
    start = jnp.array([[1.0, 0.0], [-1.0, 0.5], [0.3, -1.0]])
    # The cost is quadratic in the plan: one Newton step from anywhere ends at the optimum.
    cost = lambda plan, x: regulator(plan[None, None, :, None], x[None])[0, 0]  # noqa: E731
    zero = jnp.zeros(8)
    best = [-jnp.linalg.solve(jax.hessian(cost)(zero, x), jax.grad(cost)(zero, x)) for x in start]
    optimum = np.array([cost(plan, x) for plan, x in zip(best, start, strict=True)])
    plan = run(solver, FREE, regulator, start)
    reached = regulator(plan.actions[:, None], start)[:, 0]
    np.testing.assert_allclose(reached, optimum, rtol=0.03)
    assert (reached >= optimum - 1e-5).all()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_rows_do_not_see_each_other(name):
    target = jnp.asarray(np.random.default_rng(2).uniform(BOUNDED.low, BOUNDED.high, (B, H, 2)), jnp.float32)
    solver = CONTINUOUS[name]
    plain, memory = solve(solver, BOUNDED, squared, KEYS, solver.init(BOUNDED, B), target)
    other_keys = KEYS.at[-1].set(jax.random.key(9)) if hasattr(KEYS, "at") else KEYS
    other, other_memory = solve(solver, BOUNDED, squared, other_keys, solver.init(BOUNDED, B), target.at[-1].add(3.0))
    first = functools.partial(jax.tree.map, lambda x: x[:-1])
    chex.assert_trees_all_close(first((plain, memory)), first((other, other_memory)), rtol=1e-5, atol=1e-6)
    assert not np.allclose(plain.actions[-1], other.actions[-1])


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "random_shooting"])
def test_a_second_plan_begins_where_the_first_ended(name):
    target = jnp.asarray(np.random.default_rng(3).uniform(BOUNDED.low, BOUNDED.high, (B, H, 2)), jnp.float32)
    solver = CONTINUOUS[name]
    _, memory = solve(solver, BOUNDED, squared, KEYS, solver.init(BOUNDED, B), target)
    later = jnp.concatenate([target[:, 1:], target[:, -1:]], axis=1)
    warm, _ = solve(solver, BOUNDED, squared, KEYS, solver.advance(memory, 1), later)
    cold, _ = solve(solver, BOUNDED, squared, KEYS, solver.init(BOUNDED, B), later)
    assert warm.costs[:, 0].mean() < 0.9 * cold.costs[:, 0].mean()


def test_time_is_shifted_and_the_last_action_repeated():
    solver = ICEM(H, samples=64, elites=8, parts=2)
    memory = solver.init(BOUNDED, 1)
    numbers = jnp.arange(H, dtype=jnp.float32)[None, :, None] * jnp.ones((1, 1, 2))
    memory = memory.replace(mean=numbers, elites=jnp.broadcast_to(numbers[:, None], memory.elites.shape))
    later = solver.advance(memory, 2)
    np.testing.assert_array_equal(later.mean[0, :, 0], [2, 3, 3, 3])
    np.testing.assert_array_equal(later.elites[0, -1, :, 0], [2, 3, 3, 3])
    np.testing.assert_array_equal(solver.advance(memory, 10).mean[0, :, 0], [3, 3, 3, 3])


def test_icem_shrinks_its_population_and_keeps_its_elites():
    solver = ICEM(H, samples=64, elites=10, iterations=5, decay=2.0, parts=4, kept=0.25)
    sizes = []

    def cost(actions):
        sizes.append(actions.shape[1])
        return squared(actions, jnp.full((B, H, 2), 0.2))

    plan, memory = solver.solve(BOUNDED, cost, KEYS, solver.init(BOUNDED, B))
    assert sizes == [16] and solver._extras.parts == (4, 2, 1, 1, 1)
    chex.assert_shape(memory.elites, (B, 3, H, 2))
    chex.assert_shape(plan.costs, (B, 5))
    assert (np.diff(plan.costs, axis=1) <= 0).all()


def test_a_kept_elite_competes_again_in_the_next_plan():
    """With hardly any noise only what was remembered can be good."""
    target = jnp.full((B, H, 2), 0.25)
    solver = ICEM(H, samples=16, elites=4, iterations=1, std=1e-3, kept=0.5, parts=1)
    memory = solver.init(BOUNDED, B)
    good = jnp.broadcast_to(jnp.array([0.25, 1.0]), memory.elites.shape)
    cold, _ = solve(solver, BOUNDED, squared, KEYS, memory.replace(elites=good), target)
    warm, _ = solve(solver, BOUNDED, squared, KEYS, memory.replace(elites=good, is_warm=jnp.ones(B, bool)), target)
    assert (warm.costs < cold.costs - 1).all()
    np.testing.assert_allclose(warm.actions, good[:, 0], atol=1e-6)


def test_mppi_weights_by_hand():
    costs = jnp.array([[1.0, 2.0, 3.0, jnp.inf]])
    e = np.exp(-np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(path_weights(costs, 1.0)[0], [*e / e.sum(), 0.0], rtol=1e-6)
    np.testing.assert_allclose(path_weights(costs + 1e4, 1.0)[0], [*e / e.sum(), 0.0], rtol=1e-3)
    # low temperatures decide, high ones do not
    np.testing.assert_allclose(path_weights(costs, 0.01)[0], [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(path_weights(costs, 1e4)[0], [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-4)
    np.testing.assert_array_equal(path_weights(jnp.full((1, 2), jnp.inf), 1.0), 0.0)


def test_a_cold_mppi_is_greedy_and_a_hot_one_averages():
    target = jnp.full((B, H, 2), jnp.array([0.2, 2.0]))
    plan = lambda temperature: run(MPPI(H, 64, 64, 1, temperature, momentum=0.0), BOUNDED, squared, target)  # noqa: E731
    cold, hot = plan(1e-4), plan(1e4)
    cost = lambda plan: squared(plan.actions[:, None], target)[:, 0]  # noqa: E731
    np.testing.assert_allclose(cost(cold), cold.costs[:, 0], rtol=1e-4)
    np.testing.assert_allclose(hot.actions.mean((0, 1)), [-0.05, 3.0], atol=0.2)


def test_categorical_cem_finds_the_best_of_all_plans():
    spec = ActionSpec(3, discrete=True)
    table = jnp.asarray(np.random.default_rng(4).normal(size=(B, H, 3, 3)), jnp.float32)

    def chain(actions, table):
        """Each pair of neighbouring choices has its price."""
        return jnp.einsum("bnti,bntj,btij->bn", actions, jnp.roll(actions, -1, axis=2), table)

    solver = CategoricalCEM(H, samples=64, elites=8, iterations=8)
    plan, probs = solve(solver, spec, chain, KEYS, solver.init(spec, B), table)
    every = jnp.asarray([np.eye(3)[list(choice)] for choice in itertools.product(range(3), repeat=H)], jnp.float32)
    best = chain(jnp.broadcast_to(every, (B, *every.shape)), table).min(1)
    np.testing.assert_allclose(chain(plan.actions[:, None], table)[:, 0], best, rtol=1e-5)
    np.testing.assert_array_equal(np.sort(plan.actions, axis=-1), np.broadcast_to([0, 0, 1], (B, H, 3)))
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(solver.advance(probs, 1)[:, -2:], probs[:, [-1, -1]])


def test_random_shooting_chooses_among_discrete_actions():
    spec = ActionSpec(3, discrete=True)
    cost = lambda actions: jnp.sum(actions[..., :2], axis=(2, 3))  # noqa: E731
    plan = run(RandomShooting(2, samples=200), spec, cost)
    np.testing.assert_array_equal(plan.actions, np.broadcast_to([0, 0, 1], (B, 2, 3)))


@pytest.mark.parametrize("solver", [s for s in CONTINUOUS.values() if type(s) is not RandomShooting])
def test_discrete_actions_are_refused_by_name(solver):
    with pytest.raises(ValueError, match=f"discrete .* {type(solver).__name__} plans continuous"):
        solver.init(ActionSpec(3, discrete=True), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CEM(samples=10, elites=11), "elites is 11, expected at most samples=10"),
        (lambda: ICEM(samples=10, elites=5, parts=3), "samples=10 does not divide into parts=3"),
        (lambda: ICEM(samples=16, elites=16, kept=0.5, parts=4), "parts=4 of 4 candidates are too small for the 8"),
        (lambda: MPPI(min_std=2.0), "min_std is 2.0, expected at most std=0.5"),
        (lambda: PredictiveSampling(3, knots=4), "knots is 4, expected at most horizon=3"),
        (lambda: CategoricalCEM().init(ActionSpec(2), 1), "continuous .* CategoricalCEM plans discrete"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
