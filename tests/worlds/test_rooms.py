import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import Rooms, World, make_world, random_policy, rollout, rush, walk_to_goal
from jaxwm.worlds.base import GoalWorld
from jaxwm.worlds.rooms import BACKGROUND, DOT, GOAL, WALL, RoomsState

FAST = Rooms(speed=50.0)
"""Up to five sides of the box in a frame."""


@pytest.fixture(scope="module")
def step():
    """``(positions [b, 2], ways [b, 2], doors [b]) -> positions [b, 2]`` in the world `FAST`."""

    @jax.jit
    @jax.vmap
    def step(position, way, door):
        state = RoomsState(position=position, velocity=jnp.zeros(2), goal=jnp.zeros(2), door=door)
        return FAST.step(jax.random.key(0), state, way / (FAST.speed * FAST.dt)).state.position

    return lambda position, way, door: np.asarray(step(*(jnp.asarray(a, jnp.float32) for a in (position, way, door))))


def clearance(position, door, world=FAST):
    """How far the dot's edge is from the wall between the rooms; below 0 inside it. ``position`` is ``[..., 2]``."""
    aside = np.abs(position[..., 0] - 0.5) - world.wall / 2
    along = world.door / 2 - np.abs(position[..., 1] - door)
    outside = np.hypot(np.maximum(aside, 0), np.maximum(along, 0))
    return np.where((aside < 0) & (along < 0), np.maximum(aside, along), outside) - world.radius


def random_places(seed, count=4000):
    """Places that are free, doors, and ways of all lengths, many of them towards the door."""
    rng = np.random.default_rng(seed)
    door = rng.uniform(*FAST.door_centre, 4 * count)
    position = rng.uniform(FAST.radius, 1 - FAST.radius, (4 * count, 2))
    near = rng.random(4 * count) < 0.5
    position[near] = np.stack([rng.uniform(0.4, 0.6, 4 * count), door + rng.uniform(-0.15, 0.15, 4 * count)], 1)[near]
    inside = (np.abs(position - 0.5) <= 0.5 - FAST.radius).all(1)
    free = inside & (clearance(position, door) > 0)
    assert free.sum() > count
    way = rng.normal(size=(4 * count, 2)) * 10 ** rng.uniform(-3, 0.5, (4 * count, 1))
    return position[free][:count], way[free][:count], door[free][:count]


def test_the_dot_is_never_in_a_wall_however_fast_it_is(step):
    position, _, door = random_places(0)
    rng = np.random.default_rng(1)
    for _ in range(10):
        way = rng.normal(size=position.shape) * 10 ** rng.uniform(-3, 0.5, (len(position), 1))
        after = step(position, way, door)
        assert np.isfinite(after).all()
        assert clearance(after, door).min() > -2e-6
        assert np.abs(after - 0.5).max() <= 0.5 - FAST.radius + 1e-6
        moved = np.linalg.norm(after - position, axis=-1)
        assert (moved <= np.linalg.norm(way, axis=-1) + 1e-5).all()
        position = after


def test_a_free_way_is_gone_in_full_and_a_blocked_one_to_the_first_contact(step):
    position, way, door = random_places(2, count=1000)
    way = np.clip(way, -5, 5)
    after = step(position, way, door)
    # the same way in 2000 pieces, in float64, without the closed forms
    shares = np.linspace(0, 1, 2001)[:, None, None]
    path = position + shares * way
    blocked = (clearance(path, door) < 0) | (np.abs(path - 0.5) > 0.5 - FAST.radius).any(-1)
    free = ~blocked.any(0)
    assert free.sum() > 150
    assert (~free).sum() > 150
    np.testing.assert_allclose(after[free], (position + way)[free], atol=2e-6)
    contact = np.take_along_axis(path, blocked.argmax(0)[None, :, None], 0)[0]
    way_on = np.linalg.norm(after - contact, axis=-1)[~free]
    rest = ((1 - shares[blocked.argmax(0), 0]) * np.linalg.norm(way, axis=-1, keepdims=True))[~free, 0]
    piece = np.linalg.norm(way, axis=-1)[~free] / 2000
    assert (way_on <= rest + 2 * piece + 1e-5).all()
    # who runs into the wall itself keeps only the way along it, and that does not lead to the other side
    at_face = ~free & (clearance(contact, door) < 0) & (np.abs(contact[:, 1] - door) > FAST.door / 2 + piece.max())
    assert at_face.sum() > 50
    assert ((after[:, 0] - 0.5) * (position[:, 0] - 0.5) > 0)[at_face].all()
    stopped = FAST.wall / 2 + FAST.radius
    np.testing.assert_allclose(np.abs(after[at_face, 0] - 0.5), stopped, atol=2e-6)


@pytest.mark.parametrize(
    ("start", "way", "end"),
    [
        ((0.2, 0.2), (0.9, 0.0), (0.43, 0.2)),  # straight into the wall
        ((0.2, 0.2), (0.46, 0.2), (0.43, 0.4)),  # along the wall, as far as the way reaches
        ((0.2, 0.6), (0.5, 0.0), (0.7, 0.6)),  # through the door
        ((0.5, 0.6), (0.0, 0.5), (0.5, 0.66)),  # against the jamb
        ((0.5, 0.6), (0.1, -0.4), (0.6, 0.54)),  # along the jamb and out
        ((0.2, 0.2), (-0.9, -0.9), (0.04, 0.04)),  # into a corner of the box
        ((0.43, 0.2), (0.1, 0.0), (0.43, 0.2)),  # pushed where it touches
        ((0.43, 0.2), (-0.1, 0.0), (0.33, 0.2)),  # and away from there
    ],
)
def test_contacts_by_hand(step, start, way, end):
    """The door is at 0.6: 0.5..0.7 is open, 0.54..0.66 for the dot's centre; the wall is 0.47..0.53 in x."""
    np.testing.assert_allclose(step([start], [way], [0.6])[0], end, atol=2e-6)


def test_the_edge_of_the_door_is_met_as_a_circle(step):
    # 45 degrees beside the edge (0.47, 0.5): the dot's centre stops 0.04 away and goes on along the tangent
    offset = 0.04 / np.sqrt(2)
    after = step([(0.47 - offset - 0.1, 0.5 + offset)], [(0.1 + 0.02, 0.0)], [0.6])[0]
    np.testing.assert_allclose(after, (0.47 - offset + 0.01, 0.5 + offset + 0.01), atol=2e-6)


@pytest.fixture(scope="module")
def walks():
    """300 episodes of the scripted policy at 12 pixels, through one trace."""
    world = Rooms(size=12)
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda key: rollout(world, key, 64, walk_to_goal), n=1)))
    run(jax.random.split(jax.random.key(1), 300))
    return world, jax.device_get(run(jax.random.split(jax.random.key(0), 300)))


def test_the_scripted_policy_always_walks_through_the_door_to_the_goal(walks):
    world, trajectory = walks
    world.spec.check_trajectory(trajectory)
    assert isinstance(world, World)
    assert trajectory.is_terminal.any(1).all()
    position, door = trajectory.info["position"], trajectory.info["door"]
    assert clearance(position, door, world).min() > -1e-6
    assert ((position[:, 0, 0] - 0.5) * (trajectory.info["goal"][:, 0, 0] - 0.5) < 0).all()
    assert len(np.unique(door)) == 300
    assert (door == door[:, :1]).all()
    np.testing.assert_allclose(np.percentile(door, [0, 100]), world.door_centre, atol=0.02)


def test_reward_and_end_come_with_the_goal(walks):
    world, trajectory = walks
    distance = np.linalg.norm(trajectory.info["position"] - trajectory.info["goal"], axis=-1)
    np.testing.assert_allclose(trajectory.info["distance"], distance, atol=1e-6)
    reached = distance <= world.goal_radius
    np.testing.assert_array_equal(trajectory.is_terminal, reached & trajectory.valid)
    np.testing.assert_array_equal(trajectory.reward[:, :-1] == 1, trajectory.is_terminal[:, 1:])
    assert set(np.unique(trajectory.reward)) == {0, 1}
    assert (trajectory.valid.sum(1) == reached.argmax(1) + 1).all()


def test_the_truth_says_how_the_dot_moves(walks):
    world, trajectory = walks
    position, velocity = trajectory.info["position"], trajectory.info["velocity"]
    going = trajectory.valid[:, 1:]
    np.testing.assert_allclose((np.diff(position, axis=1) / world.dt)[going], velocity[:, 1:][going], atol=2e-5)
    free = going & (np.abs(velocity[:, 1:] - world.speed * trajectory.action[:, :-1]).max(-1) < 1e-4)
    assert free.sum() > 0.8 * going.sum()


def test_a_random_dot_gets_about_and_rewards_may_be_distances():
    world = Rooms(size=8, reward="distance", terminal=False)
    run = jax.jit(jax.vmap(lambda key: rollout(world, key, 120, random_policy)))
    trajectory = jax.device_get(run(jax.random.split(jax.random.key(0), 32)))
    assert trajectory.valid.all()
    assert not trajectory.is_terminal.any()
    np.testing.assert_allclose(trajectory.reward[:, :-1], -trajectory.info["distance"][:, 1:], atol=1e-6)
    side = trajectory.info["position"][..., 0] > 0.5
    assert 0.1 < (side != side[:, :1]).any(1).mean() < 1


def test_the_picture_shows_walls_door_dot_and_goal():
    state = RoomsState(
        position=jnp.array([0.2, 0.7]), velocity=jnp.zeros(2), goal=jnp.array([0.8, 0.2]), door=jnp.array(0.4)
    )
    world = Rooms(goal_radius=0.1)
    other = dataclasses.replace(world, show_goal=False, background=(90, 30, 60))
    draw = jax.jit(lambda s: (world.render(s, 100), other.render(s, 100)))
    image, without = (np.asarray(picture) for picture in draw(state))
    at = lambda picture, x, y: tuple(picture[int(y * 100), int(x * 100)].tolist())  # noqa: E731
    for y, expected in ((0.1, WALL), (0.29, WALL), (0.31, BACKGROUND), (0.49, BACKGROUND), (0.51, WALL), (0.99, WALL)):
        assert at(image, 0.5, y) == expected
    assert at(image, 0.2, 0.7) == DOT
    assert at(image, 0.885, 0.2) == GOAL
    assert at(image, 0.8, 0.2) == BACKGROUND
    assert at(without, 0.885, 0.2) == (90, 30, 60)
    elsewhere = (image != BACKGROUND).any(-1) & (without != (90, 30, 60)).any(-1)
    assert (without[elsewhere][:, 0] >= image[elsewhere][:, 0]).all() and at(without, 0.5, 0.1) == WALL
    assert at(without, 0.2, 0.7) == DOT


def test_the_state_can_be_seen_in_place_of_the_picture():
    state = RoomsState(
        position=jnp.array([0.2, 0.7]), velocity=jnp.ones(2), goal=jnp.array([0.8, 0.3]), door=jnp.array(0.4)
    )
    vectors = {"position": [0.2, 0.7], "door": [0.4], "goal": [0.8, 0.3]}
    shapes = lambda world: [(f.name, f.shape, f.dtype) for f in world.spec.observation]  # noqa: E731
    assert shapes(Rooms(size=8)) == [("image", (8, 8, 3), "uint8")]
    for observe, show_goal, names in [
        ("state", True, ["position", "door", "goal"]),
        ("state", False, ["position", "door"]),
        ("both", True, ["image", "position", "door", "goal"]),
        ("pixels", True, ["image"]),
    ]:
        world = Rooms(size=8, observe=observe, show_goal=show_goal)
        seen = world.observation(state)
        assert list(seen) == names == [name for name, _, _ in shapes(world)]
        world.spec.check_observation(jax.tree.map(lambda x: x[None], seen), (1,))
        for name in names:
            np.testing.assert_allclose(seen[name], world.render(state) if name == "image" else vectors[name])


def test_a_goal_state_is_solved_and_looks_like_its_episode():
    world = Rooms(size=8, observe="state")
    assert isinstance(world, GoalWorld) and not isinstance(make_world("bounce"), GoalWorld)
    state = world.reset(jax.random.key(0))
    there = world.goal_state(state)
    assert world.is_solved(there) and not world.is_solved(state)
    np.testing.assert_array_equal(there.position, state.goal)
    assert float(there.door) == float(state.door)
    edge = dataclasses.replace(there, position=state.goal + jnp.array([0.0, 0.059]))
    beyond = dataclasses.replace(there, position=state.goal + jnp.array([0.0, 0.061]))
    assert world.is_solved(edge) and not world.is_solved(beyond)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"door": 0.05}, "rooms.door is 0.05, expected more than the dot's diameter 0.08"),
        ({"door_centre": (0.05, 0.5)}, r"rooms.door_centre is \(0.05, 0.5\), expected within 0.1..0.9"),
        ({"radius": 0.3, "door": 0.7, "door_centre": (0.5, 0.5)}, "rooms.radius is 0.3: the dot does not fit"),
        ({"observe": "vectors"}, "rooms.observe is 'vectors': input should be 'pixels', 'state' or 'both'"),
        ({"reward": "dense"}, "rooms.reward is 'dense': input should be 'sparse' or 'distance'"),
        ({"rewards": "sparse"}, "rooms.rewards is no parameter of this world; did you mean 'reward'"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_world("rooms", **parameters)


def test_who_rushes_ends_up_pushing_against_the_wall():
    world = Rooms(size=12, observe="state")
    run = jax.jit(jax.vmap(lambda key: rollout(world, key, 32, rush)))
    made = jax.device_get(run(jax.random.split(jax.random.key(0), 100)))
    position, goal = made.observation["position"], made.info["goal"]
    face = np.where(goal[..., 0] > 0.5, 0.43, 0.57)
    touches = np.abs(position[..., 0] - face) < 1e-5
    pushes = made.action[..., 0] * np.sign(goal[..., 0] - 0.5) > 0
    late = made.valid & (np.arange(32) >= 20) & ~made.is_last
    assert (touches & pushes)[late].mean() > 0.4
    assert np.abs(made.action).max() <= 1.0
