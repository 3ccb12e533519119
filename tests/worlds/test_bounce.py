import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import Bounce, World, bounce, hold_centre, make_policy, make_world, rollout


@pytest.fixture(scope="module")
def first_states():
    """1000 first states of a usual box and of one so full that a grid has to help."""
    keys = jax.random.split(jax.random.key(0), 1000)
    worlds = (Bounce(balls=3, mass=(2.0, 5.0)), Bounce(balls=8, radius=(0.13, 0.1666)))
    return [(world, jax.device_get(jax.jit(jax.vmap(world.reset))(keys))) for world in worlds]


def test_first_states_are_within_the_ranges_and_do_not_overlap(first_states):
    for world, state in first_states:
        assert (state.radius >= world.radius[0]).all()
        assert (state.radius <= world.radius[1]).all()
        assert (state.position >= state.radius[..., None]).all()
        assert (state.position <= 1 - state.radius[..., None]).all()
        i, j = np.triu_indices(world.balls, 1)
        distance = np.linalg.norm(state.position[:, i] - state.position[:, j], axis=-1)
        assert (distance - state.radius[:, i] - state.radius[:, j]).min() > -1e-6
        speed = np.linalg.norm(state.velocity, axis=-1)
        assert speed.min() > world.speed[0] - 1e-6
        assert speed.max() < world.speed[1] + 1e-6
        assert len(np.unique(state.position[:, 0, 0])) > 900


def test_first_states_fill_their_ranges(first_states):
    state = first_states[0][1]
    np.testing.assert_allclose(np.percentile(state.mass, [0, 50, 100]), [2, 3.5, 5], atol=0.1)
    np.testing.assert_allclose(np.percentile(state.radius, [0, 50, 100]), [0.08, 0.1, 0.12], atol=0.002)
    np.testing.assert_allclose(state.position.mean((0, 1)), 0.5, atol=0.02)
    np.testing.assert_allclose(state.velocity.mean((0, 1)), 0.0, atol=0.03)
    full = first_states[1][1]
    np.testing.assert_allclose(full.mass, (full.radius / ((0.13 + 0.1666) / 2)) ** 2, rtol=1e-5)


WORLD = Bounce(balls=2, size=16, force=3.0, gravity=1.0, radius=(0.05, 0.1))


@pytest.fixture(scope="module")
def episodes():
    """20 episodes of 12 frames of `WORLD`, made twice through one trace."""
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda key: rollout(WORLD, key, 12), n=1)))
    run(jax.random.split(jax.random.key(1), 20))
    return run(jax.random.split(jax.random.key(0), 20))


def test_an_episode_fulfils_the_spec(episodes):
    assert isinstance(WORLD, World)
    assert hash(WORLD) == hash(make_world("bounce", balls=2, size=16, force=3.0, gravity=1.0, radius=[0.05, 0.1]))
    WORLD.spec.check_trajectory(episodes)
    assert episodes.observation["image"].shape == (20, 12, 16, 16, 3)
    assert not episodes.is_terminal.any()
    assert not episodes.reward.any()
    shapes = {name: value.shape[2:] for name, value in episodes.info.items()}
    assert shapes == {
        "position": (2, 2),
        "velocity": (2, 2),
        "radius": (2,),
        "mass": (2,),
        "wall_contacts": (2,),
        "ball_contacts": (2,),
        "unspent": (),
    }


def test_the_action_is_a_push_on_the_first_ball_alone(episodes):
    info = jax.device_get(episodes.info)
    change = np.diff(info["velocity"], axis=1)
    gravity = np.array([0.0, WORLD.gravity * WORLD.dt])
    push = WORLD.force * WORLD.dt * episodes.action[:, :-1] / info["mass"][:, :-1, :1]
    free = (info["wall_contacts"] + info["ball_contacts"])[:, 1:] == 0
    assert free.sum() > 100
    np.testing.assert_allclose(change[:, :, 0][free[..., 0]], (push + gravity)[free[..., 0]], atol=2e-6)
    np.testing.assert_allclose(change[:, :, 1][free[..., 1]] - gravity, 0, atol=2e-6)


def test_vmap_equals_a_loop(episodes):
    state = {name: value[:4, 0] for name, value in episodes.info.items()}
    state = bounce.BounceState(**state)
    actions = np.linspace(-3, 3, 8, dtype=np.float32).reshape(4, 2)
    key = jax.random.key(0)
    step = lambda state, action: WORLD.step(key, state, action).state  # noqa: E731
    together = jax.device_get(jax.jit(jax.vmap(step))(state, actions))
    alone = jax.jit(step)
    for row in range(4):
        one = jax.device_get(alone(jax.tree.map(lambda array, row=row: array[row], state), actions[row]))
        chex.assert_trees_all_close(one, jax.tree.map(lambda array, row=row: array[row], together), atol=1e-6)


def test_energy_and_momentum_are_those_of_the_textbook():
    world = Bounce(balls=2, gravity=2.0)
    state = world.state(
        position=[[0.2, 0.5], [0.7, 0.8]], velocity=[[1, 2], [-3, 0]], radius=[0.1, 0.2], mass=[4, 0.5]
    )
    assert float(world.energy(state)) == pytest.approx(4 * (5 / 2 + 2 * 0.4) + 0.5 * (9 / 2 + 0))
    np.testing.assert_allclose(world.momentum(state), [4 - 1.5, 8], rtol=1e-6)


def test_a_world_without_force_ignores_its_action_and_draws_none():
    world = Bounce(size=8)

    @jax.jit
    def both(key):
        state = world.reset(key)
        return rollout(world, key, 3).action, state, world.step(key, state, jnp.ones(2)).state

    action, state, pushed = both(jax.random.key(0))
    assert not action.any()
    np.testing.assert_array_equal(pushed.velocity, state.velocity)
    assert world.spec.action.low == (-1.0, -1.0)
    assert not hold_centre(world, jax.random.key(0), state).any()


def test_the_picture_shows_every_ball_in_its_colour_at_any_size():
    world = Bounce(balls=2)
    state = world.state([[0.25, 0.5], [0.75, 0.25]], np.zeros((2, 2)), [0.2, 0.1], [1, 1])
    for size in (20, 64):
        image = np.asarray(jax.jit(lambda s, size=size: world.render(s, size))(state))
        assert image.shape == (size, size, 3)
        np.testing.assert_array_equal(image[size // 2, size // 4], world.colours[0])
        np.testing.assert_array_equal(image[size // 4, 3 * size // 4], world.colours[1])
        np.testing.assert_array_equal(image[-1, -1], world.background)
    assert world.render(state).shape == (64, 64, 3)


def test_the_scripted_policy_holds_the_ball_in_the_middle():
    world = Bounce(size=8, force=8.0, gravity=2.0)
    run = jax.jit(jax.vmap(lambda key: rollout(world, key, 60, make_policy("bounce", "hold_centre"))))
    position = run(jax.random.split(jax.random.key(0), 8)).info["position"][:, 40:, 0]
    assert np.abs(position - 0.5).max() < 0.02


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"balls": 0}, "bounce.balls is 0: input should be greater"),
        ({"balls": 9}, "bounce.balls is 9: input should be less than or equal to 8"),
        ({"balls": True}, "bounce.balls is True"),
        ({"radius": (0.2, 0.1)}, "bounce.radius is .*: the lower end 0.2 is above the upper end 0.1"),
        ({"balls": 5, "radius": (0.1, 0.2)}, "bounce.radius is .*, expected at most 0.1667"),
        ({"restitution": 1.5}, "bounce.restitution is 1.5"),
        ({"gravity": float("inf")}, "bounce.gravity is inf"),
        ({"dt": 0.0}, "bounce.dt is 0.0"),
        ({"bals": 2}, "bounce.bals is no parameter of this world; did you mean 'balls'"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_world("bounce", **parameters)
    assert "\n" not in str(caught.value)


def test_wrong_names_and_shapes_are_named():
    with pytest.raises(ValueError, match="there is no world 'bonce'; did you mean 'bounce'"):
        make_world("bonce")
    with pytest.raises(ValueError, match="there is no policy of bounce 'randon'; did you mean 'random'"):
        make_policy("bounce", "randon")
    with pytest.raises(ValueError, match=r"mass has shape \(1,\), expected \(2,\)"):
        Bounce(balls=2).state(np.zeros((2, 2)), np.zeros((2, 2)), np.ones(2), np.ones(1))


def test_every_ball_has_a_colour_of_its_own():
    assert len(set(bounce.COLOURS)) == 8
    assert len(Bounce(balls=8, radius=(0.1, 0.1)).colours) == 8
