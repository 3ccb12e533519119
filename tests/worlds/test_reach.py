import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import Reach, World, arm, make_policy, make_world, rollout
from jaxwm.worlds.base import GoalWorld
from jaxwm.worlds.reach import ARM, BACKGROUND, GOAL, PUCK

LENGTH = 80
VARIED = Reach(
    size=16,
    upper_arm=(0.42, 0.55),
    forearm=(0.4, 0.55),
    puck_radius=(0.04, 0.08),
    friction=(1.0, 5.0),
    background=((0, 0, 0), (120, 120, 120)),
    arm_colour=((130, 130, 130), (255, 255, 255)),
    puck_colour=((150, 0, 0), (255, 100, 200)),
)
WORLDS = {
    "push": VARIED,
    "torque": Reach(size=16, control="torque"),
    "reach": Reach(size=16, task="reach"),
}


some_state = jax.jit(lambda seed: Reach().reset(jax.random.key(seed)))


@pytest.fixture(scope="module")
def episodes():
    """96 episodes without their pictures by name of world and policy."""
    keys = jax.random.split(jax.random.key(0), 96)

    @functools.cache
    def episodes(name, policy):
        bare = lambda key: rollout(WORLDS[name], key, LENGTH, make_policy("reach", policy)).replace(observation={})  # noqa: E731
        return jax.device_get(jax.jit(jax.vmap(bare))(keys))

    return episodes


@pytest.fixture(scope="module")
def first_states():
    """500 first states of `VARIED`, the states in which they are solved, and both as `is_solved` sees them."""

    def first(key):
        state = VARIED.reset(key)
        there = VARIED.goal_state(state)
        return state, there, VARIED.is_solved(state), VARIED.is_solved(there), VARIED.tip(state), VARIED.tip(there)

    return jax.device_get(jax.jit(jax.vmap(first))(jax.random.split(jax.random.key(1), 500)))


def test_what_is_drawn_fills_its_ranges_anew_in_each_episode(first_states):
    state = first_states[0]
    drawn = {
        "upper_arm": state.links[:, 0],
        "forearm": state.links[:, 1],
        "puck_radius": state.puck_radius,
        "friction": state.friction,
    }
    for name, values in drawn.items():
        low, high = getattr(VARIED, name)
        assert len(np.unique(values)) > 490
        np.testing.assert_allclose(np.percentile(values, [0, 50, 100]), [low, (low + high) / 2, high], rtol=0.1)
    for name in ("background", "arm_colour", "puck_colour"):
        low, high = np.array(getattr(VARIED, name))
        values = getattr(state, name)
        assert (np.abs(values.min(0) - low) < 4).all()
        assert (np.abs(values.max(0) - high) < 4).all()
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.2
    # an arm that reaches all of it lets goals and pucks fill their ranges as well
    long = state.links.sum(1) > 1.02
    for places in (state.goal[long], state.puck[long]):
        np.testing.assert_allclose(places.min(0), [0.2, 0.2], atol=0.03)
        np.testing.assert_allclose(places.max(0), [0.8, 0.7], atol=0.03)


def test_equal_ends_fix_a_value():
    state = some_state(3)
    np.testing.assert_array_equal(state.links, np.float32([0.5, 0.5]))
    np.testing.assert_array_equal(state.background, BACKGROUND)
    assert float(state.friction) == 2
    world = Reach(goal_x=(0.4, 0.4), goal_y=(0.3, 0.3), puck_x=(0.6, 0.6), puck_y=(0.5, 0.5))
    fixed = jax.jit(world.reset)(jax.random.key(3))
    np.testing.assert_allclose(fixed.goal, [0.4, 0.3], atol=1e-6)
    np.testing.assert_allclose(fixed.puck, [0.6, 0.5], atol=1e-6)


def test_goals_and_pucks_are_on_the_table_and_the_tip_comes_to_every_side_of_them(first_states):
    state = first_states[0]
    back = jax.jit(jax.vmap(lambda place, links: arm.pose(arm.joints_at(place, links), links).tip))
    for centre in (state.puck, state.goal):
        assert (np.abs(centre - 0.5) <= 0.5 - VARIED.rim - state.puck_radius[:, None] + 1e-6).all()
        for angle in np.arange(8) * np.pi / 4:
            beside = (VARIED.tip_radius + state.puck_radius)[:, None] * np.array([np.cos(angle), np.sin(angle)])
            place = np.float32(centre + beside)
            np.testing.assert_allclose(back(place, state.links), place, atol=2e-5)
            assert (np.abs(place - 0.5) <= 0.5 - VARIED.tip_radius).all()


def test_nothing_is_solved_or_touched_at_the_start_and_the_goal_state_is_solved(first_states):
    state, there, solved, solved_there, tip, tip_there = first_states
    assert isinstance(VARIED, GoalWorld)
    assert not solved.any()
    assert solved_there.all()
    touch = VARIED.tip_radius + state.puck_radius
    assert (np.linalg.norm(tip - state.puck, axis=1) > touch + 0.01).all()
    assert (np.linalg.norm(state.puck - state.goal, axis=1) >= 2 * VARIED.goal_radius).all()
    for array in (state.joint_velocity, state.puck_velocity, there.joint_velocity, there.puck_velocity):
        assert not array.any()
    # the tip is behind the puck, on the line that it came along
    gap = np.linalg.norm(tip_there - there.puck, axis=1) - touch
    assert gap.min() > 0
    assert gap.max() < 0.01
    back, way = tip_there - there.puck, state.puck - state.goal
    cosine = (back * way).sum(1) / np.linalg.norm(back, axis=1) / np.linalg.norm(way, axis=1)
    np.testing.assert_allclose(cosine, 1, atol=1e-4)
    np.testing.assert_array_equal(there.goal, state.goal)
    np.testing.assert_array_equal(there.links, state.links)


def test_the_goal_state_is_the_same_throughout_an_episode(episodes):
    info = episodes("push", "push_to_goal").info
    assert (info["goal"] == info["goal"][:, :1]).all()
    assert (info["puck_start"] == info["puck"][:, :1]).all()
    assert (info["links"] == info["links"][:, :1]).all()


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("push", "random"),
        ("push", "push_to_goal"),
        ("torque", "random"),
        ("torque", "push_to_goal"),
        ("reach", "push_to_goal"),
    ],
)
def test_the_laws_hold_in_every_episode(episodes, name, policy):
    world, episode = WORLDS[name], episodes(name, policy)
    info, goes_on = episode.info, episode.valid[:, 1:]
    assert (np.abs(info["tip"] - 0.5) <= 0.5 - world.tip_radius + 2e-5).all()
    assert (info["joints"] >= np.float32(arm.LOWEST)).all()
    assert (info["joints"] <= np.float32(arm.HIGHEST)).all()
    place = info["tip"]
    if name != "reach":
        place = info["puck"]
        assert (np.abs(place - 0.5) <= 0.5 - world.rim - info["puck_radius"][..., None] + 1e-6).all()
        touch = info["puck_radius"] + world.tip_radius
        assert (np.linalg.norm(place - info["tip"], axis=-1) > touch - 2e-5).all()
        # a puck that nobody touches goes on for as long as dry friction lets it, if no rim is in its way
        before, after = info["puck_velocity"][:, :-1], info["puck_velocity"][:, 1:]
        friction = info["friction"][:, 1:]
        speed = np.linalg.norm(before, axis=-1)
        free = goes_on & (info["touches"][:, 1:] == 0) & (speed > 0)
        free &= (np.abs(place[:, 1:] - 0.5) < 0.5 - world.rim - info["puck_radius"][:, 1:, None] - 1e-4).all(-1)
        slower = np.maximum(speed - friction * world.dt, 0)
        assert free.sum() > 50
        np.testing.assert_allclose(np.linalg.norm(after, axis=-1)[free], slower[free], atol=1e-5)
        way = np.linalg.norm(np.diff(place, axis=1), axis=-1)[free]
        np.testing.assert_allclose(way, ((speed**2 - slower**2) / (2 * friction))[free], atol=1e-5)
        resting = goes_on & (info["touches"][:, 1:] == 0) & (speed == 0)
        assert not np.diff(place, axis=1)[resting].any()
    distance = np.linalg.norm(place - info["goal"], axis=-1)
    np.testing.assert_allclose(info["distance"], distance, atol=1e-6)
    reached = info["distance"] <= np.float32(world.goal_radius)
    np.testing.assert_array_equal(episode.is_terminal, reached & episode.valid)
    np.testing.assert_array_equal(episode.reward[:, :-1] == 1, episode.is_terminal[:, 1:])


@pytest.mark.parametrize(("name", "least"), [("push", 0.9), ("torque", 0.9), ("reach", 0.98)])
def test_the_scripted_policy_solves_it_and_chance_seldom_does(episodes, name, least):
    solved = episodes(name, "push_to_goal").is_terminal.any(1)
    assert solved.mean() >= least
    if name != "reach":
        assert episodes(name, "random").is_terminal.any(1).mean() < 0.3


@pytest.mark.parametrize("name", ["push", "torque"])
def test_a_random_arm_gets_about_and_moves_the_puck(episodes, name):
    episode = episodes(name, "random")
    moving = np.linalg.norm(episode.info["puck_velocity"], axis=-1) > 0
    assert moving[episode.valid].mean() > 0.1
    assert (episode.info["touches"] > 0).any(1).mean() > 0.7
    tip = episode.info["tip"][episode.valid]
    assert (np.ptp(tip, axis=0) > 0.7).all()
    smooth = np.sum(episode.action[:, 1:-1] * episode.action[:, :-2], axis=-1)
    assert smooth[episode.valid[:, 2:]].mean() > 0.1


def test_velocities_are_held_and_torques_are_torques():
    """From rest, the elbow bent; after some frames a motor is as fast as it was told, or as its damping lets it."""
    start = dataclasses.replace(some_state(0), joints=jnp.array([-0.8, 1.0]))

    def go(world, state, action, frames):
        step = jax.jit(lambda state: world.step(jax.random.key(0), state, jnp.array(action)).state)
        return functools.reduce(lambda state, _: step(state), range(frames), state)

    told = go(Reach(task="reach"), start, (0.3, -0.5), 3)
    np.testing.assert_allclose(told.joint_velocity, [0.45, -0.75], atol=1e-3)
    # the same motion by hand: 5 ms steps of Runge-Kutta, as in the module, or 0.1 ms steps of Euler's method
    world = Reach(task="reach", control="torque", damping=(0.5, 0.1))
    pushed = go(world, start, (0.1, -0.1), 2)
    joints, velocity, links = np.array([-0.8, 1.0]), np.zeros(2), (0.5, 0.5)
    for _ in range(2000):
        cosine, sine = np.cos(joints[1]), np.sin(joints[1])
        turn, swing, elbow = links[0] * links[1] ** 2 * cosine, links[0] * links[1] ** 2 * sine / 2, links[1] ** 3 / 3
        whole = links[0] ** 3 / 3 + links[1] * links[0] ** 2 + elbow + turn
        matrix = np.array([[whole, elbow + turn / 2], [elbow + turn / 2, elbow]])
        bias = np.array([-swing * (2 * velocity[0] + velocity[1]) * velocity[1], swing * velocity[0] ** 2])
        force = np.array([0.1 * 4.0, -0.1 * 1.2]) - bias - np.array([0.5, 0.1]) * velocity
        velocity = velocity + 1e-4 * np.linalg.solve(matrix, force)
        joints = joints + 1e-4 * velocity
    assert np.abs(velocity).max() < 1.5
    np.testing.assert_allclose(pushed.joints, joints, atol=1e-3)
    np.testing.assert_allclose(pushed.joint_velocity, velocity, atol=5e-3)


def test_vmap_equals_a_loop_and_the_same_key_is_the_same_episode():
    """Five frames of pushing, the tip beside the puck."""

    def run(key, action):
        state = VARIED.reset(key)
        state = dataclasses.replace(state, joints=VARIED.goal_state(state).joints, puck=state.goal)
        step = lambda state, _: (VARIED.step(key, state, action).state, None)  # noqa: E731
        return jax.lax.scan(step, state, length=5)[0]

    keys, actions = (
        jax.random.split(jax.random.key(0), 4),
        jnp.array([[1, 0], [-1, 0.5], [1, 1], [0, -1]], jnp.float32),
    )
    together = jax.jit(jax.vmap(run))
    first, again = together(keys, actions), together(keys, actions)
    chex.assert_trees_all_equal(first, again)
    assert np.linalg.norm(first.puck - first.goal, axis=-1).max() > 0.05
    alone = jax.jit(run)
    for row in range(4):
        one = jax.tree.map(lambda x, row=row: x[row], first)
        chex.assert_trees_all_close(alone(keys[row], actions[row]), one, atol=1e-4)


def test_an_episode_fulfils_the_spec_whatever_is_seen():
    vectors = {"joints": 4, "joint_velocity": 2, "tip": 2, "puck": 2, "puck_velocity": 2, "goal": 2}
    state = dataclasses.replace(some_state(0), joints=jnp.array([0.0, np.pi / 2]))
    for parameters, names in [
        ({"observe": "state"}, list(vectors)),
        ({"observe": "state", "show_goal": False}, list(vectors)[:5]),
        ({"observe": "both"}, ["image", *vectors]),
        ({"observe": "proprioception"}, ["image", "joints", "joint_velocity", "tip"]),
        ({"observe": "pixels"}, ["image"]),
        ({"observe": "state", "task": "reach"}, ["joints", "joint_velocity", "tip", "goal"]),
    ]:
        world = Reach(size=8, **parameters)
        assert isinstance(world, World)
        assert [field.name for field in world.spec.observation] == names
        seen = jax.eval_shape(world.observation, state)
        assert set(seen) == set(names)
        for field in world.spec.observation:
            shape = (8, 8, 3) if field.name == "image" else (vectors[field.name],)
            assert seen[field.name].shape == field.shape == shape
            assert seen[field.name].dtype == field.dtype
    seen = Reach(observe="state").observation(state)
    np.testing.assert_allclose(seen["joints"], [1, 0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(seen["tip"], [1.0, 0.44], atol=1e-6)
    np.testing.assert_array_equal(seen["puck"], state.puck)
    np.testing.assert_array_equal(seen["goal"], state.goal)
    trajectory = jax.jit(jax.vmap(lambda key: rollout(VARIED, key, 4)))(jax.random.split(jax.random.key(0), 2))
    VARIED.spec.check_trajectory(trajectory)


def test_without_a_puck_there_is_nothing_about_one():
    world = Reach(task="reach")
    names = set(world.info(some_state(0)))
    assert names >= {"joints", "tip", "elbow", "goal", "links", "distance", "background", "arm_colour"}
    assert not [name for name in names if "puck" in name or name in ("friction", "touches")]


@pytest.fixture(scope="module")
def pictures():
    """An arm that goes up and then to the right, a puck and a goal on the left; with and without each."""
    state = dataclasses.replace(
        some_state(0),
        joints=jnp.array([0.0, np.pi / 2]),
        links=jnp.array([0.5, 0.3]),
        puck=jnp.array([0.3, 0.6]),
        goal=jnp.array([0.25, 0.25]),
    )
    other = dataclasses.replace(
        state,
        background=jnp.array([10.0, 20.0, 30.0]),
        puck_colour=jnp.array([40.0, 50.0, 60.0]),
        arm_colour=jnp.array([70.0, 80.0, 90.0]),
        puck_radius=jnp.array(0.1),
    )

    def draw(state, other):
        first = (Reach(size=100, **parameters).render(state) for parameters in ({}, {"show_goal": False}))
        return *first, Reach(task="reach").render(state, 100), Reach().render(other, 100)

    return jax.device_get(jax.jit(draw)(state, other))


def test_the_picture_shows_everything_where_the_state_says(pictures):
    at = lambda picture, x, y: tuple(picture[int(y * 100), int(x * 100)].tolist())  # noqa: E731
    shaded = lambda colour, share: tuple(int(share * channel + 0.5) for channel in colour)  # noqa: E731
    image, no_goal, no_puck, other = pictures
    for x, y, colour in [
        (0.65, 0.75, BACKGROUND),  # the table
        (0.03, 0.5, shaded(BACKGROUND, 0.55)),  # its rim
        (0.5, 0.04, shaded(BACKGROUND, 0.55)),
        (0.3, 0.6, PUCK),
        (0.345, 0.6, PUCK),
        (0.375, 0.6, BACKGROUND),
        (0.25, 0.25, BACKGROUND),  # the middle of the ring
        (0.305, 0.25, GOAL),
        (0.33, 0.25, BACKGROUND),
        (0.5, 0.7, shaded(ARM, 0.7)),  # the upper arm
        (0.65, 0.44, ARM),  # the forearm
        (0.8, 0.44, tuple(int(c + 0.75 * (255 - c) + 0.5) for c in ARM)),  # the tip
        (0.85, 0.44, BACKGROUND),
    ]:
        assert at(image, x, y) == colour, (x, y)
    assert at(no_goal, 0.305, 0.25) == BACKGROUND
    assert at(no_puck, 0.3, 0.6) == BACKGROUND
    assert at(no_puck, 0.305, 0.25) == GOAL
    assert at(other, 0.65, 0.75) == (10, 20, 30)
    assert at(other, 0.385, 0.6) == (40, 50, 60)
    assert at(other, 0.65, 0.44) == (70, 80, 90)


def test_rewards_may_be_distances_and_an_episode_may_go_on():
    world = Reach(size=8, reward="distance", terminal=False, task="reach")
    bare = lambda key: rollout(world, key, 40, make_policy("reach", "push_to_goal")).replace(observation={})  # noqa: E731
    run = jax.jit(jax.vmap(bare))
    trajectory = jax.device_get(run(jax.random.split(jax.random.key(0), 8)))
    assert trajectory.valid.all()
    assert not trajectory.is_terminal.any()
    np.testing.assert_allclose(trajectory.reward[:, :-1], -trajectory.info["distance"][:, 1:], atol=1e-6)
    assert trajectory.info["distance"][:, -1].max() < 0.01


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"task": "pull"}, "reach.task is 'pull': input should be 'push' or 'reach'"),
        ({"control": "position"}, "reach.control is 'position'"),
        ({"rim": 0.05}, r"reach.rim is 0.05, expected at least two radii of the tip \(0.06\)"),
        ({"goal_x": (0.1, 0.5)}, r"reach.goal_x is \(0.1, 0.5\), expected within 0.14..0.86"),
        ({"puck_y": (0.5, 0.2)}, "reach.puck_y is .*: the lower end 0.5 is above the upper end 0.2"),
        ({"forearm": (0.1, 0.5)}, "reach.upper_arm and reach.forearm allow the lengths .* with which the tip hardly"),
        (
            {"background": ((0, 0, 0), (0, 256, 0))},
            "reach.background is .*: input should be less than",
        ),
        ({"background": ((9, 0, 0), (0, 9, 9))}, "reach.background is .*: a channel of the lower end"),
        ({"torque": (1.0, 0.0)}, "reach.torque is .*: input should be greater than 0"),
        ({"colour": 3}, "reach.colour is no parameter of this world"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_world("reach", **parameters)


def test_lists_are_ranges_as_well():
    world = make_world("reach", friction=[1.0, 2.0], background=[[0, 0, 0], [9, 9, 9]])
    assert hash(world) == hash(Reach(friction=(1.0, 2.0), background=((0, 0, 0), (9, 9, 9))))
