"""The mechanics against conservation laws and closed forms, with random balls drawn by numpy."""

import functools

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxwm.worlds import contact

ROWS = 32
"""Independent boxes in each call, so that everything below runs on three compilations."""

few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def move():
    """``advance`` over rows of boxes, compiled once for one ball and once for three."""

    @jax.jit
    def advance(state, dt, gravity, restitution, max_events):
        run = functools.partial(
            contact.advance, dt=dt, gravity=gravity, restitution=restitution, max_events=max_events
        )
        return jax.vmap(run)(*state)

    def move(position, velocity, radius, mass, dt=0.1, gravity=0.0, restitution=1.0, max_events=20000):
        state = tuple(np.asarray(array, np.float32) for array in (position, velocity, radius, mass))
        numbers = (np.float32(dt), np.float32(gravity), np.float32(restitution), np.int32(max_events))
        return contact.Advance(*(np.asarray(array) for array in advance(state, *numbers)))

    return move


def random_balls(seed, n, speed):
    """Position, velocity, radius and mass of ``n`` balls in each of `ROWS` boxes."""
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.02, 0.15, (ROWS, n))
    position = np.zeros((ROWS, n, 2))
    for row in range(ROWS):
        placed = 0
        while placed < n:
            place = rng.uniform(radius[row, placed], 1 - radius[row, placed], 2)
            gaps = np.linalg.norm(position[row, :placed] - place, axis=-1) - radius[row, :placed]
            if (gaps > radius[row, placed]).all():
                position[row, placed] = place
                placed += 1
    velocity = speed * rng.normal(size=(ROWS, n, 2))
    return position, velocity, radius, 10 ** rng.uniform(-1, 1, (ROWS, n))


def one_box(*balls):
    """All `ROWS` boxes alike; each ball is (x, y, v_x, v_y, radius, mass)."""
    rows = np.broadcast_to(np.asarray(balls, float), (ROWS, len(balls), 6))
    return rows[..., :2], rows[..., 2:4], rows[..., 4], rows[..., 5]


def energy(position, velocity, mass, gravity):
    kinetic = (np.asarray(velocity, float) ** 2).sum(-1) / 2
    return (mass * (kinetic + gravity * (1 - np.asarray(position, float)[..., 1]))).sum(-1)


def overlap(position, radius):
    """The deepest that balls reach into each other or through a wall, in sides."""
    walls = np.maximum(radius[..., None] - position, position - 1 + radius[..., None]).max()
    i, j = np.triu_indices(radius.shape[-1], 1)
    distance = np.linalg.norm(position[..., i, :] - position[..., j, :], axis=-1)
    return max(walls, (radius[..., i] + radius[..., j] - distance).max(initial=-1))


@few
@hypothesis.given(seed=st.integers(0, 2**31), exponent=st.floats(-6, 3), gravity=st.sampled_from([0.0, 0.3, 5.0]))
def test_elastic_balls_keep_their_energy_and_their_places_at_any_speed(move, seed, exponent, gravity):
    position, velocity, radius, mass = random_balls(seed, 3, 10**exponent)
    before = energy(position, velocity, mass, gravity)
    for _ in range(3):
        after = move(position, velocity, radius, mass, gravity=gravity)
        position, velocity = after.position, after.velocity
        assert overlap(position, radius) < 1e-6
        assert not after.unspent.any()
    # float32 at up to thousands of contacts in a row
    np.testing.assert_allclose(energy(position, velocity, mass, gravity), before, rtol=1e-4)
    if exponent > 1.5:
        assert after.wall_contacts.min() > 0
        assert after.ball_contacts.sum() > ROWS


@few
@hypothesis.given(seed=st.integers(0, 2**31), restitution=st.floats(0, 0.95), gravity=st.sampled_from([0.0, 2.0]))
def test_energy_only_falls_with_restitution_below_one(move, seed, restitution, gravity):
    position, velocity, radius, mass = random_balls(seed, 3, 2.0)
    first = before = energy(position, velocity, mass, gravity)
    for _ in range(8):
        after = move(position, velocity, radius, mass, gravity=gravity, restitution=restitution)
        position, velocity = after.position, after.velocity
        now = energy(position, velocity, mass, gravity)
        assert (now <= before * (1 + 1e-5)).all()
        assert overlap(position, radius) < 1e-6
        before = now
    assert (before < first * 0.999).all()
    assert not after.unspent.any()


@few
@hypothesis.given(seed=st.integers(0, 2**31))
def test_momentum_is_conserved_where_only_balls_meet(move, seed):
    position, velocity, radius, mass = random_balls(seed, 3, 3.0)
    after = move(position, velocity, radius, mass, dt=0.04)
    rows = (after.wall_contacts.sum(-1) == 0) & (after.ball_contacts.sum(-1) > 0)
    assert rows.any()
    momentum = lambda v: (mass[..., None] * v).sum(1)[rows]  # noqa: E731
    scale = (mass[..., None] * np.abs(velocity)).sum((1, 2))[rows, None]
    assert (np.abs(momentum(after.velocity) - momentum(velocity)) < 1e-6 * scale).all()
    assert np.abs(after.velocity - velocity).sum((1, 2))[rows].min() > 1e-3


@few
@hypothesis.given(seed=st.integers(0, 2**31), exponent=st.floats(-2, 2.5))
def test_one_ball_without_gravity_follows_a_triangle_wave(move, seed, exponent):
    position, velocity, radius, mass = random_balls(seed, 1, 10**exponent)
    after = move(position, velocity, radius, mass)
    position, velocity, radius = (np.float64(np.float32(array)) for array in (position, velocity, radius))
    room = 1 - 2 * radius[..., None]
    way = 0.1 * np.abs(velocity)
    unfolded = np.mod(position - radius[..., None] + 0.1 * velocity, 2 * room)
    expected = radius[..., None] + room - np.abs(unfolded - room)
    assert (np.abs(after.position - expected) < 1e-6 + 1e-6 * way).all()
    assert (np.abs(after.wall_contacts - (way / room).sum((1, 2))[:, None]) <= 2).all()


def test_a_thrown_ball_follows_its_parabola(move):
    start, speed, radius, mass = one_box((0.3, 0.7, 0.8, -1.5, 0.1, 2.0))
    after = move(start, speed, radius, mass, dt=0.25, gravity=3.0)
    np.testing.assert_allclose(after.position[0, 0], [0.3 + 0.8 * 0.25, 0.7 - 1.5 * 0.25 + 1.5 * 0.25**2], rtol=1e-6)
    np.testing.assert_allclose(after.velocity[0, 0], [0.8, -1.5 + 3 * 0.25], rtol=1e-6)


def test_a_dropped_ball_comes_back_to_its_height_after_each_period(move):
    gravity, height = 2.0, 0.5
    period = 2 * np.sqrt(2 * height / gravity)
    state = one_box((0.5, 0.9 - height, 0.0, 0.0, 0.1, 1.0))
    after = move(*state, dt=3 * period, gravity=gravity)
    np.testing.assert_allclose(after.position[0, 0], [0.5, 0.9 - height], atol=2e-6)
    np.testing.assert_allclose(after.velocity[0, 0], 0, atol=1e-5)
    assert after.wall_contacts[0, 0] == 3
    after = move(*state, dt=period / 2 + 0.1, gravity=gravity)
    impact = np.sqrt(2 * gravity * height)
    np.testing.assert_allclose(after.velocity[0, 0, 1], -impact + gravity * 0.1, atol=2e-6)
    np.testing.assert_allclose(after.position[0, 0, 1], 0.9 - impact * 0.1 + gravity * 0.1**2 / 2, atol=2e-6)


def test_each_bounce_keeps_restitution_squared_of_the_height(move):
    gravity, height, restitution = 2.0, 0.6, 0.7
    fall = np.sqrt(2 * height / gravity)
    state = one_box((0.5, 0.9 - height, 0.0, 0.0, 0.1, 1.0))
    after = move(*state, dt=fall * (1 + restitution), gravity=gravity, restitution=restitution)
    np.testing.assert_allclose(after.position[0, 0, 1], 0.9 - restitution**2 * height, atol=2e-6)
    np.testing.assert_allclose(after.velocity[0, 0, 1], 0, atol=1e-5)


def test_a_bouncing_ball_comes_to_rest_without_hanging(move):
    position, velocity, radius, mass = one_box((0.5, 0.3, 0.0, 0.0, 0.1, 1.0))
    for _ in range(60):
        after = move(position, velocity, radius, mass, gravity=2.0, restitution=0.3)
        position, velocity = after.position, after.velocity
        assert not after.unspent.any()
        assert after.wall_contacts.max() < 20
    slow = contact.slow_speed(2.0, 0.1)
    assert np.abs(velocity).max() <= slow * 1.01
    assert 0.9 - position[0, 0, 1] < slow**2 / 4 * 1.01
    assert slow**2 / 4 < 2.0 * 0.1**2 / 2 / 60


def test_a_pile_of_plastic_balls_does_not_hang(move):
    position, velocity, radius, mass = random_balls(1, 3, 1.0)
    for _ in range(40):
        after = move(position, velocity, radius, mass, gravity=2.0, restitution=0.0, max_events=1000)
        position, velocity = after.position, after.velocity
        assert not after.unspent.any()
    assert overlap(position, radius) < 1e-6
    assert np.abs(velocity[..., 1]).max() < 0.5


def test_two_balls_of_different_mass_meet_head_on(move):
    far = (0.5, 0.9, 0.0, 0.0, 0.05, 1.0)
    state = one_box((0.3, 0.5, 2.0, 0.0, 0.1, 3.0), (0.6, 0.5, 0.0, 0.0, 0.05, 1.0), far)
    after = move(*state, dt=0.1)
    # contact after 0.15 / 2 seconds; (m1 - m2) / (m1 + m2) v = 1 and 2 m1 / (m1 + m2) v = 3
    np.testing.assert_allclose(after.velocity[0], [[1, 0], [3, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(after.position[0, :2], [[0.45 + 0.025, 0.5], [0.6 + 0.075, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(after.ball_contacts[0], [1, 1, 0])
    after = move(*state, dt=0.1, restitution=0.5)
    np.testing.assert_allclose(after.velocity[0, :2, 0], [(6 - 0.5 * 2) / 4, (6 + 0.5 * 6) / 4], atol=1e-6)


def test_only_the_speed_along_the_line_of_centres_is_exchanged(move):
    # the centres meet at 45 degrees: the ball that came leaves along the tangent, the other along the normal
    offset = 0.2 / np.sqrt(2)
    state = one_box(
        (0.4 - 0.1, 0.4, 1.0, 0.0, 0.1, 1.0),
        (0.4 + offset, 0.4 + offset, 0.0, 0.0, 0.1, 1.0),
        (0.9, 0.1, 0.0, 0.0, 0.05, 1.0),
    )
    after = move(*state, dt=0.2)
    np.testing.assert_allclose(after.velocity[0, :2], [[0.5, -0.5], [0.5, 0.5]], atol=1e-5)


def test_fast_balls_that_meet_slowly_part_as_slowly(move):
    far = (0.9, 0.1, 0.0, 0.0, 0.05, 1.0)
    state = one_box((0.2, 0.5, 1.001, 0.5, 0.1, 1.0), (0.40001, 0.5, 1.0, 0.5, 0.1, 1.0), far)
    after = move(*state, dt=0.1)
    np.testing.assert_array_equal(after.ball_contacts[0], [1, 1, 0])
    np.testing.assert_allclose(after.velocity[0, :2], [[1.0, 0.5], [1.001, 0.5]], atol=2e-6)


def test_a_row_of_touching_balls_passes_the_push_on(move):
    state = one_box((0.2, 0.5, 1.0, 0.0, 0.1, 1.0), (0.5, 0.5, 0.0, 0.0, 0.1, 1.0), (0.7, 0.5, 0.0, 0.0, 0.1, 1.0))
    after = move(*state, dt=0.2)
    np.testing.assert_allclose(after.velocity[0], [[0, 0], [0, 0], [1, 0]], atol=1e-5)


def test_grazing_and_resting_contacts_change_nothing(move):
    along_wall = (0.2, 0.1, 1.0, 0.0, 0.1, 1.0)
    together = [(0.4, 0.6, 0.5, 0.2, 0.1, 1.0), (0.6, 0.6, 0.5, 0.2, 0.1, 5.0)]
    after = move(*one_box(along_wall, *together), dt=0.2)
    np.testing.assert_allclose(after.position[0], [[0.4, 0.1], [0.5, 0.64], [0.7, 0.64]], atol=1e-6)
    np.testing.assert_array_equal(after.velocity[0], np.float32([[1, 0], [0.5, 0.2], [0.5, 0.2]]))
    assert not after.wall_contacts.any()
    assert not after.unspent.any()
    on_floor = move(*one_box((0.3, 0.9, 1.0, 0.0, 0.1, 1.0)), dt=0.2, gravity=1.0)
    np.testing.assert_allclose(on_floor.position[0, 0], [0.5, 0.9], atol=1e-5)


@pytest.mark.parametrize("gravity", [0.0, 1.0])
def test_time_can_be_reversed(move, gravity):
    position, velocity, radius, mass = random_balls(5, 3, 0.7)
    there = move(position, velocity, radius, mass, dt=0.5, gravity=gravity)
    back = move(there.position, -there.velocity, radius, mass, dt=0.5, gravity=gravity)
    assert there.ball_contacts.sum() > 5
    assert there.wall_contacts.sum() > 20
    np.testing.assert_allclose(back.position, position, atol=1e-3)
    np.testing.assert_allclose(back.velocity, -velocity, atol=5e-3)


def test_too_many_contacts_lose_time_and_nothing_else(move):
    position, velocity, radius, mass = random_balls(2, 3, 100.0)
    after = move(position, velocity, radius, mass, max_events=5)
    assert ((after.unspent > 0) & (after.unspent < 0.1)).all()
    assert (after.wall_contacts.sum(-1) + after.ball_contacts.sum(-1) / 2 == 5).all()
    assert overlap(after.position, radius) < 1e-6
    np.testing.assert_allclose(
        energy(after.position, after.velocity, mass, 0), energy(position, velocity, mass, 0), rtol=1e-5
    )
