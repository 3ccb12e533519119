import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwm.worlds import Dodge, DodgeState, World, dodge, make_policy, make_world, rollout, step_aside

WORLD = Dodge(size=16)
LENGTH = 120


@pytest.fixture(scope="module")
def episodes():
    """256 episodes of random play and of the scripted policy, without their pictures."""
    bare = lambda policy: lambda key: rollout(WORLD, key, LENGTH, policy).replace(observation={})  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 256)
    run = jax.jit(lambda keys: [jax.vmap(bare(make_policy("dodge", name)))(keys) for name in ("random", "step_aside")])
    return jax.device_get(run(keys))


def test_an_episode_fulfils_the_spec():
    assert isinstance(WORLD, World)
    assert hash(WORLD) == hash(make_world("dodge", size=16))
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda key: rollout(WORLD, key, 8), n=1)))
    trajectory = run(jax.random.split(jax.random.key(0), 5))
    WORLD.spec.check_trajectory(trajectory)
    shapes = {name: value.shape[2:] for name, value in trajectory.info.items()}
    assert shapes == {"player": (), "step": (), "position": (2, 2), "velocity": (2, 2), "gap": ()}


def test_random_play_dies_early_and_a_good_player_does_not(episodes):
    random, scripted = (episode.reward.sum(1) for episode in episodes)
    assert random.mean() < scripted.mean() / 3
    assert 5 < random.mean() < 40
    assert np.mean(scripted == LENGTH - 1) > 0.6


def test_the_score_counts_the_frames_survived(episodes):
    for episode in episodes:
        died = episode.is_terminal.any(1)
        frames = episode.valid.sum(1)
        np.testing.assert_array_equal(episode.reward.sum(1), frames - 1 - died)
        np.testing.assert_array_equal(frames[~died], LENGTH)
    assert episodes[0].is_terminal.any(1).mean() > 0.9


def test_the_walls_hold_the_player_and_a_step_has_its_length(episodes):
    episode = episodes[0]
    player = episode.info["player"]
    low = WORLD.player_radius
    assert player.min() >= low - 1e-6
    assert player.max() <= 1 - low + 1e-6
    wanted = (episode.action[:, :-1, 2] - episode.action[:, :-1, 0]) * WORLD.speed * WORLD.dt
    goes_on = episode.valid[:, 1:]
    expected = np.clip(player[:, :-1] + wanted, low, 1 - low)
    np.testing.assert_allclose(player[:, 1:][goes_on], expected[goes_on], atol=1e-6)
    np.testing.assert_array_equal(np.unique(episode.info["step"]), [-1, 0, 1])


def test_fireballs_fly_straight_and_start_again_above_the_box(episodes):
    episode = episodes[1]
    position, velocity, goes_on = episode.info["position"], episode.info["velocity"], episode.valid[:, 1:]
    flown = position[:, :-1] + WORLD.dt * velocity[:, :-1]
    gone = flown[..., 1] > 1 + WORLD.radius
    stays = goes_on[..., None] & ~gone
    np.testing.assert_allclose(position[:, 1:][stays], flown[stays], atol=1e-6)
    np.testing.assert_allclose(velocity[:, 1:][stays], velocity[:, :-1][stays])
    started = goes_on[..., None] & gone
    assert started.sum() > 1000
    height = position[:, 1:][started][:, 1]
    assert height.max() <= -WORLD.radius
    assert height.min() >= -WORLD.radius - WORLD.pause
    speed = np.linalg.norm(velocity[:, 1:][started], axis=-1)
    np.testing.assert_allclose([speed.min(), speed.max()], WORLD.fall, atol=0.01)


def test_fireballs_are_aimed_at_the_player(episodes):
    info = jax.tree.map(lambda x: x[:, 0], episodes[0].info)
    time = (dodge.HEIGHT - info["position"][..., 1]) / info["velocity"][..., 1]
    aim = info["position"][..., 0] + time * info["velocity"][..., 0]
    off = aim - info["player"][:, None]
    assert np.abs(off).max() <= WORLD.spread + 1e-5
    assert off.std() == pytest.approx(WORLD.spread / np.sqrt(3), rel=0.15)
    low = WORLD.player_radius
    assert aim.min() >= low - 1e-5
    assert aim.max() <= 1 - low + 1e-5


def _state(player, balls, velocity):
    return DodgeState(jnp.float32(player), jnp.zeros(()), jnp.asarray(balls, jnp.float32), jnp.asarray(velocity))


@jax.jit
def _step(state, action):
    return Dodge(balls=1).step(jax.random.key(0), state, action)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.floats(0.1, 0.9),
    st.floats(0.0, 1.0),
    st.floats(0.6, 1.0),
    st.floats(-4, 4),
    st.floats(0.1, 8),
    st.integers(0, 2),
)
def test_a_touch_between_two_frames_counts(player, x, y, velocity_x, velocity_y, choice):
    """Against a fine sampling of the way, in double precision."""
    after = _step(_state(player, [[x, y]], jnp.array([[velocity_x, velocity_y]])), jax.nn.one_hot(choice, 3))
    world, share = Dodge(balls=1), np.linspace(0, 1, 4001)
    moved = np.clip(player + world.speed * world.dt * (choice - 1), world.player_radius, 1 - world.player_radius)
    ball_x, ball_y = x + share * world.dt * velocity_x, y + share * world.dt * velocity_y
    distance = np.hypot(ball_x - (player + share * (moved - player)), ball_y - dodge.HEIGHT).min()
    gap = distance - world.radius - world.player_radius
    if abs(gap) > 1e-4:
        assert bool(after.is_terminal) == (gap < 0)
        assert float(after.reward) == (gap > 0)


@pytest.fixture(scope="module")
def pictures():
    """A player left of the middle and a fireball above; all pictures of it through one compilation."""
    state = _state(0.25, [[0.25, 0.3]], [[0.0, 1.0]])
    world = Dodge(balls=1)

    def draw(state):
        faster = dataclasses.replace(state, velocity=3 * state.velocity)
        follows, fixed = (Dodge(balls=1, size=40, camera=name).render(state) for name in ("player", "fixed"))
        return follows, fixed, world.render(state), world.render(state, 20), world.render(faster)

    return jax.device_get(jax.jit(draw)(state))


def test_the_picture_shows_the_player_in_the_middle_or_the_whole_box(pictures):
    follows, fixed, plain, small, _ = pictures
    bottom, height = int(dodge.HEIGHT * 40), 12
    np.testing.assert_array_equal(follows[bottom, 20], dodge.PLAYER)
    np.testing.assert_array_equal(follows[height, 20], dodge.FIREBALL)
    np.testing.assert_array_equal(follows[height, 4], dodge.WALL)
    np.testing.assert_array_equal(fixed[bottom, 10], dodge.PLAYER)
    np.testing.assert_array_equal(fixed[height, 10], dodge.FIREBALL)
    np.testing.assert_array_equal(fixed[height, 4], dodge.BACKGROUND)
    assert plain.shape == (32, 32, 3)
    assert small.shape == (20, 20, 3)


def test_a_picture_does_not_tell_velocities(pictures):
    np.testing.assert_array_equal(pictures[2], pictures[4])


def test_the_scripted_policy_steps_out_of_the_way():
    world = Dodge(balls=1)
    above = lambda x: _state(0.5, [[x, 0.5]], [[0.0, 0.8]])  # noqa: E731
    act = jax.jit(lambda state: step_aside(world, jax.random.key(0), state))
    assert int(jnp.argmax(act(above(0.45)))) == dodge.RIGHT
    assert int(jnp.argmax(act(above(0.55)))) == dodge.LEFT
    assert int(jnp.argmax(act(above(0.95)))) == dodge.STAY


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"balls": 0}, "dodge.balls is 0"),
        ({"camera": "plyer"}, "dodge.camera is 'plyer'"),
        ({"player_radius": 0.5}, "dodge.player_radius is 0.5, expected less than half"),
        ({"fall": (1.0, 0.5)}, "dodge.fall is .*: the lower end 1.0 is above"),
        ({"spred": 0.1}, "dodge.spred is no parameter of this world; did you mean 'spread'"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_world("dodge", **parameters)
