"""The arm against geometry by hand, Lagrange's equations by differentiation, and conservation laws."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxwm.worlds import arm

few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
ROWS = 64


@pytest.fixture(scope="module")
def pose():
    return jax.jit(arm.pose)


@pytest.mark.parametrize(
    ("joints", "elbow", "tip"),
    [
        ((0.0, math.pi / 2), (0.5, 0.44), (0.8, 0.44)),  # up, then to the right
        ((-math.pi / 2, math.pi / 2), (0.0, 0.94), (0.0, 0.64)),  # to the left, then up
        ((math.pi / 6, 0.0), (0.75, 0.94 - 0.5 * math.sqrt(3) / 2), (0.9, 0.94 - 0.8 * math.sqrt(3) / 2)),  # stretched
        ((-math.pi / 4, math.pi), (0.5 - 0.5 / math.sqrt(2), 0.94 - 0.5 / math.sqrt(2)), None),  # folded
    ],
)
def test_where_elbow_and_tip_are_by_hand(pose, joints, elbow, tip):
    """Links of 0.5 and 0.3; the shoulder is at (0.5, 0.94)."""
    at = pose(jnp.array(joints), jnp.array([0.5, 0.3]))
    np.testing.assert_allclose(at.elbow, elbow, atol=1e-6)
    if tip is None:
        tip = (0.5 - 0.2 / math.sqrt(2), 0.94 - 0.2 / math.sqrt(2))
    np.testing.assert_allclose(at.tip, tip, atol=1e-6)


def random_arms(seed):
    """Joints between their stops, velocities and links, ``[ROWS, 2]`` each."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(arm.LOWEST, arm.HIGHEST, (ROWS, 2))
    arrays = (joints, rng.normal(size=(ROWS, 2)), rng.uniform(0.3, 0.6, (ROWS, 2)))
    return tuple(np.float32(array) for array in arrays)


@pytest.fixture(scope="module")
def back():
    """``(joints, links) -> tip, joints found for it``."""

    @jax.jit
    @jax.vmap
    def back(joints, links):
        tip = arm.pose(joints, links).tip
        found = arm.joints_at(tip, links)
        return tip, found, arm.pose(found, links).tip

    return back


@few
@hypothesis.given(seed=st.integers(0, 2**31))
def test_each_place_in_reach_has_its_one_pose(back, seed):
    joints, _, links = random_arms(seed)
    tip, found, tip_found = (np.asarray(array) for array in back(joints, links))
    # what a turn of the shoulder by 2 pi does is the same pose
    same = (np.abs(found[:, 0] - joints[:, 0]) < 1.0) & (np.abs(joints[:, 0]) < 2.0)
    assert same.sum() > ROWS / 4
    np.testing.assert_allclose(found[same], joints[same], atol=2e-4)
    inside = (found > np.array(arm.LOWEST) + 1e-4).all(1) & (found < np.array(arm.HIGHEST) - 1e-4).all(1)
    np.testing.assert_allclose(tip_found[inside], tip[inside], atol=2e-5)


def test_the_arm_stretches_towards_what_it_cannot_reach():
    links = jnp.array([0.4, 0.3])
    least, largest = arm.ring(0.4, 0.3)
    assert largest == pytest.approx(math.sqrt(0.25 + 0.24 * math.cos(0.1)))
    assert least == pytest.approx(math.sqrt(0.25 + 0.24 * math.cos(2.9)))
    for place, distance in (((0.5, -5.0), largest), ((0.5, 0.93), least)):
        tip = arm.pose(arm.joints_at(jnp.array(place), links), links).tip
        np.testing.assert_allclose(tip, (0.5, 0.94 - distance), atol=1e-5)


@pytest.fixture(scope="module")
def laws():
    """What the module says beside what Lagrange's equations say of its kinetic energy."""

    @jax.jit
    @jax.vmap
    def laws(joints, velocity, links):
        acceleration = velocity[::-1] * jnp.array([2.0, -3.0])
        momentum = lambda q, v: jax.grad(arm.energy, argnums=1)(q, v, links)  # noqa: E731
        _, rate = jax.jvp(momentum, (joints, velocity), (velocity, acceleration))
        lagrange = rate - jax.grad(arm.energy)(joints, velocity, links)
        said = arm.torque_for(joints, velocity, acceleration, links, jnp.zeros(2))
        inertia = arm.inertia(joints, links)
        at = arm.pose(joints, links)
        _, moved = jax.jvp(lambda q: arm.pose(q, links).tip, (joints,), (velocity,))
        return {
            "lagrange": (said, lagrange),
            "solve": (inertia.solve(inertia.times(velocity)), velocity),
            "tip_velocity": (at.tip_velocity(velocity), moved),
            "leverage": (jnp.sum(at.leverage(jnp.array([2.0, -1.0])) * velocity), 2 * moved[0] - moved[1]),
            "joint_velocity": (at.tip_velocity(arm.joint_velocity(at, moved)), moved),
            "energy": arm.energy(joints, velocity, links),
        }

    return laws


@few
@hypothesis.given(seed=st.integers(0, 2**31))
def test_the_equations_of_motion_are_those_of_lagrange(laws, seed):
    joints, velocity, links = random_arms(seed)
    said = jax.device_get(laws(joints, velocity, links))
    for name, tolerance in (("lagrange", 1e-5), ("solve", 2e-4), ("tip_velocity", 1e-5), ("leverage", 1e-5)):
        np.testing.assert_allclose(*said[name], atol=tolerance, err_msg=name)
    bent = np.abs(np.sin(joints[:, 1])) > 0.5
    found, wanted = said["joint_velocity"]
    assert (np.linalg.norm(found - wanted, axis=-1) < 0.1 * np.linalg.norm(wanted, axis=-1) + 1e-3)[bent].all()


@few
@hypothesis.given(seed=st.integers(0, 2**31))
def test_the_energy_is_that_of_two_rods(laws, seed):
    """The sum over 2000 pieces of each rod, of mass 1 a side, by finite differences in double precision."""
    joints, velocity, links = (np.float64(array) for array in random_arms(seed))
    share = (np.arange(2000) + 0.5) / 2000

    def pieces(joints):
        first = np.stack([np.sin(joints[:, 0]), -np.cos(joints[:, 0])], -1) * links[:, :1]
        angle = joints.sum(1)
        second = np.stack([np.sin(angle), -np.cos(angle)], -1) * links[:, 1:]
        along = share[None, :, None]
        return np.stack([along * first[:, None], first[:, None] + along * second[:, None]], 1)

    speed = (pieces(joints + 1e-6 * velocity) - pieces(joints - 1e-6 * velocity)) / 2e-6
    expected = (links * (speed**2).sum(-1).mean(-1)).sum(-1) / 2
    np.testing.assert_allclose(laws(*random_arms(seed))["energy"], expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def swing():
    """``(joints, velocity, torque, links, damping)`` through 2000 steps of 5 ms: all joints and velocities."""

    @jax.jit
    @jax.vmap
    def swing(joints, velocity, torque, links, damping):
        def step(carry, _):
            carry = arm.advance(*carry, torque, links=links, damping=damping, seconds=0.005)
            return carry, carry

        return jax.lax.scan(step, (joints, velocity), length=2000)[1]

    def run(joints, velocity, links, torque=(0.0, 0.0), damping=(0.0, 0.0)):
        rows = [np.broadcast_to(np.float32(array), joints.shape) for array in (torque, damping)]
        return jax.device_get(swing(joints, velocity, rows[0], links, rows[1]))

    return run


def numpy_energy_and_spin(joints, velocity, links):
    """Kinetic energy, and the momentum that belongs to the shoulder's angle, in double precision."""
    joints, velocity, (upper, fore) = np.float64(joints), np.float64(velocity), np.moveaxis(np.float64(links), -1, 0)
    coupling = fore**3 / 3 + upper * fore**2 / 2 * np.cos(joints[..., 1])
    whole = upper**3 / 3 + upper**2 * fore + upper * fore**2 * np.cos(joints[..., 1]) + fore**3 / 3
    spin = whole * velocity[..., 0] + coupling * velocity[..., 1]
    rest = coupling * velocity[..., 0] + fore**3 / 3 * velocity[..., 1]
    return (spin * velocity[..., 0] + rest * velocity[..., 1]) / 2, spin


def test_a_free_arm_keeps_energy_and_angular_momentum(swing):
    """To 1 in 10,000 over ten seconds, at about the speeds that the motors reach."""
    joints, velocity, links = random_arms(0)
    swung = swing(joints, velocity, links)
    before = numpy_energy_and_spin(joints, velocity, links)
    energy, spin = numpy_energy_and_spin(*swung, links[:, None])
    np.testing.assert_allclose(energy, np.broadcast_to(before[0][:, None], energy.shape), rtol=1e-4)
    scale = np.sqrt(before[0])[:, None]
    assert (np.abs(spin - before[1][:, None]) < 1e-4 * scale).all()
    assert np.ptp(swung[1], axis=1).max() > 1


def test_the_motors_work_and_the_damping_are_the_change_of_energy(swing):
    joints, velocity, links = random_arms(1)
    torque, damping = np.array([0.3, -0.1]), np.array([0.2, 0.1])
    swung = swing(joints, velocity, links, torque, damping)
    energy, _ = numpy_energy_and_spin(*swung, links[:, None])
    power = (swung[1].astype(np.float64) * (torque - damping * swung[1])).sum(-1)
    work = 0.005 * np.cumsum((power[:, 1:] + power[:, :-1]) / 2, axis=1)
    assert np.abs(work).max() > 0.05
    np.testing.assert_allclose(energy[:, 1:] - energy[:, :1], work, atol=2e-3)


def test_a_shoulder_that_turns_a_stiff_arm_by_hand():
    # stretched out, torques that keep the elbow still: a rod of one side and mass 1 about its end, 1/3
    links, damping = jnp.array([0.5, 0.5]), jnp.array([0.5, 0.25])
    torque = arm.torque_for(jnp.zeros(2), jnp.array([2.0, 0.0]), jnp.array([3.0, 0.0]), links, damping)
    # of the elbow: m (l/3 + upper/2) l a = 0.5 * (1/6 + 1/4) * 0.5 * 3
    np.testing.assert_allclose(torque, [3 / 3 + 0.5 * 2, 0.3125], atol=1e-6)
