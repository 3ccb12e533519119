"""Driving: the plane and the road agree, pictures show what is there, others neither collide nor vanish."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import Drive, World, captions, drive, keep_lane, make_policy, make_world, rollout

WORLD = Drive(size=24, samples=1, cars=3, walkers=2)
EPISODES, LENGTH = 24, 60


@pytest.fixture(scope="module")
def episodes():
    """24 episodes of random driving and of the scripted driver, with their states and without pictures."""

    @dataclasses.dataclass(frozen=True)
    class Bare(Drive):
        def observation(self, state):
            return {}

        def info(self, state):
            return {"state": state}

    bare = Bare(**vars(WORLD))
    record = lambda name: jax.vmap(lambda key: rollout(bare, key, LENGTH, make_policy("drive", name)))  # noqa: E731
    run = jax.jit(lambda keys: {name: record(name)(keys) for name in ("random", "keep_lane")})
    return jax.device_get(run(jax.random.split(jax.random.key(0), EPISODES)))


@pytest.fixture(scope="module")
def looks(episodes):
    """Every tenth state of the scripted driver ``[24, 6]``, what both cameras see there, and the truth about it."""
    states = jax.tree.map(lambda x: x[:, ::10], episodes["keep_lane"].info["state"])

    @jax.jit
    @jax.vmap
    @jax.vmap
    def look(state):
        return {view: WORLD.look(state, view) for view in WORLD.views}, WORLD.info(state), WORLD.agents(state)

    return states, *jax.device_get(look(states))


def test_an_episode_fulfils_the_spec():
    assert isinstance(WORLD, World)
    world = make_world("drive", size=8, samples=1, cars=1, views=("front",))
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda key: rollout(world, key, 3), n=1)))
    trajectory = run(jax.random.split(jax.random.key(0), 2))
    world.spec.check_trajectory(trajectory)
    assert trajectory.observation["front"].std() > 10
    assert trajectory.info["boxes"].shape == (2, 3, 1, 2, 4)


def test_the_plane_and_the_road_tell_the_same_story(looks):
    """A walker who waits stays at one place of the plane, as reckoned from each frame on a road that bends."""
    states, _, _, (centres, _, _) = looks
    pose, ahead = states.pose, centres[:, :, WORLD.cars :, :2]
    cos, sin = np.cos(pose[..., None, 2]), np.sin(pose[..., None, 2])
    x = pose[..., None, 0] + cos * ahead[..., 0] - sin * ahead[..., 1]
    y = pose[..., None, 1] + sin * ahead[..., 0] + cos * ahead[..., 1]
    same = (np.diff(states.walkers, axis=1) == 0).all(-1)
    near = (np.abs(states.walkers[..., 0] - states.along[..., None]) < drive._AHEAD - 5)[:, :-1] & same
    assert near.sum() > 40
    moved = np.hypot(np.diff(x, axis=1), np.diff(y, axis=1))[near]
    assert np.abs(np.diff(pose[..., 2], axis=1)).max() > 0.1, "there are bends"
    assert moved.max() < 0.05


def test_a_steady_wheel_leads_around_a_circle():
    world = Drive(bend=0.0, cars=1)
    state = dataclasses.replace(world.reset(jax.random.key(0)), speed=jnp.float32(8.0), heading=jnp.float32(0.0))
    step = jax.jit(lambda state: world.step(jax.random.key(1), state, jnp.array([0.0, 0.1])).state)
    for _ in range(15):
        state = step(state)
    angle = 15 * 8.0 * world.dt * 0.1
    np.testing.assert_allclose(state.pose, [10 * np.sin(angle), 10 * (1 - np.cos(angle)), angle], atol=1e-4)
    # On a straight road, along and aside are the plane.
    np.testing.assert_allclose(state.along, 10 * np.sin(angle), atol=2e-3)
    np.testing.assert_allclose(state.heading, angle, atol=1e-4)


def test_the_scripted_driver_gets_on_and_a_random_one_does_not(episodes):
    good, random = episodes["keep_lane"], episodes["random"]
    assert good.is_terminal.any(1).mean() <= 0.15
    assert good.is_terminal.any(1).mean() < random.is_terminal.any(1).mean()
    assert good.reward.sum(1).mean() > 0.4 * LENGTH
    ended = random.is_terminal.any(1)
    state = random.info["state"]
    np.testing.assert_array_equal(ended, (state.crashed | state.off_road).any(1))
    assert (random.reward.sum(1)[ended] < random.valid.sum(1)[ended] - 1).all()


def test_other_cars_keep_apart_and_things_happen(episodes):
    state, valid = episodes["keep_lane"].info["state"], episodes["keep_lane"].valid
    gap = np.abs(state.cars[:, :, :, None] - state.cars[:, :, None])
    overlap = (gap < drive.CAR[:2] * 0.98).all(-1) & ~np.eye(WORLD.cars, dtype=bool)
    assert overlap.any((1, 2, 3)).mean() < 0.05
    assert (np.abs(state.cars[..., 1]) <= WORLD.lanes * drive.LANE / 2).all()
    assert (state.car_speed >= 0).all()
    assert (state.cut_in.any(-1) & valid).any(1).sum() >= 1
    assert (state.crossing.any(-1) & valid).any(1).sum() >= 5
    behind = state.cars[..., 0] - state.along[..., None]
    assert behind.min() > -drive._BEHIND - 5


def test_depth_kind_and_boxes_are_those_of_what_is_there(looks):
    _, looked, info, (centres, headings, halves) = looks
    found = 0
    for view, truth in looked.items():
        camera, which = WORLD.camera(view), WORLD.views.index(view)
        directions = np.asarray(camera.rays(WORLD.size))
        for episode, frame in np.ndindex(truth.depth.shape[:2]):
            kind, depth = truth.segmentation[episode, frame], truth.depth[episode, frame]
            np.testing.assert_array_equal(np.isinf(depth), kind == drive.SKY)
            for agent in range(WORLD.cars + WORLD.walkers):
                mine = np.argwhere(kind == drive.AGENT + agent)
                assert info["visible"][episode, frame, which, agent] == (len(mine) > 0)
                if not len(mine):
                    continue
                found += 1
                ray = directions.reshape(3, WORLD.size, WORLD.size)[:, mine[:, 0], mine[:, 1]]
                points = (np.array(camera.position)[:, None] + depth[mine[:, 0], mine[:, 1]] * ray).T
                away = points - centres[episode, frame, agent]
                turned = headings[episode, frame, agent]
                forward = away[:, 0] * np.cos(turned) + away[:, 1] * np.sin(turned)
                left = away[:, 1] * np.cos(turned) - away[:, 0] * np.sin(turned)
                inside = np.abs(np.stack([forward, left, away[:, 2]], -1)) <= halves[episode, frame, agent] + 1e-2
                assert inside.all()
                low, high = np.split(info["boxes"][episode, frame, which, agent], 2)
                at = (mine[:, ::-1] + 0.5) / WORLD.size
                assert (at > low - 1e-4).all()
                assert (at < high + 1e-4).all()
    assert found > 100


def test_two_cameras_see_the_same_things_where_they_overlap(looks):
    _, looked, _, _ = looks
    front, left = WORLD.camera("front"), WORLD.camera("left")
    points = np.array(front.position) + looked["front"].depth[..., None] * np.asarray(
        front.rays(WORLD.size)
    ).T.reshape(WORLD.size, WORLD.size, 3)
    at, _ = (np.asarray(x) for x in left.project(jnp.asarray(np.where(np.isfinite(points), points, 1e3))))
    cell = np.floor(at * WORLD.size).astype(int)
    near = np.isfinite(points).all(-1) & (looked["front"].depth < 25)
    shared = near & ((cell >= 0) & (cell < WORLD.size)).all(-1)
    where = np.nonzero(shared)
    other = looked["left"].depth[where[0], where[1], cell[where][:, 1], cell[where][:, 0]]
    away = np.linalg.norm(points[where] - np.array(left.position), axis=-1)
    mine = (points[where] - np.array(left.position)) @ left.axes[0]
    assert shared.sum() > 300
    assert np.median(np.abs(other - mine) / away) < 0.05


def test_weather_and_hour_change_the_picture_and_nothing_else():
    state = WORLD.reset(jax.random.key(3))
    look = jax.jit(lambda state: WORLD.look(state, "front"))
    seen = {}
    for weather, time in ((0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2)):
        seen[weather, time] = look(dataclasses.replace(state, weather=jnp.int32(weather), time=jnp.int32(time)))
    plain = seen.pop((0, 0))
    for other in seen.values():
        np.testing.assert_array_equal(other.depth, plain.depth)
        np.testing.assert_array_equal(other.segmentation, plain.segmentation)
        assert np.abs(other.image.astype(float) - plain.image).mean() > 8
    assert seen[0, 2].image.mean() < 0.5 * plain.image.mean()


def test_weather_changes_as_often_as_is_asked_for_and_nothing_else_does():
    world = dataclasses.replace(WORLD, changes=1.0)

    @jax.jit
    @jax.vmap
    def steps(key):
        state = world.reset(key)
        return state, *(each.step(key, state, jnp.zeros(2)).state for each in (world, WORLD))

    before, changed, plain = jax.device_get(steps(jax.random.split(jax.random.key(4), 2000)))
    now = (changed.weather != before.weather) | (changed.time != before.time)
    # Of 12 combinations that are drawn from, one is the old one.
    assert abs(now.mean() - 0.2 * 11 / 12) < 0.03
    assert set(np.unique(changed.weather[now])) == set(range(4))
    np.testing.assert_array_equal(plain.weather, before.weather)
    chex.assert_trees_all_equal(dataclasses.replace(changed, weather=plain.weather, time=plain.time), plain)


def test_conditions_say_what_is_seen(looks):
    states, looked, info, _ = looks
    names = ("caption", "boxes", "weather", "cameras", "depth", "segmentation")
    world = Drive(**{**vars(WORLD), "conditions": names})
    some = jax.tree.map(lambda x: x[:, 0], states)
    told = jax.device_get(jax.jit(jax.vmap(world.condition))(some))
    world.spec.check_condition(told, (EPISODES,))
    boxes, visible = info["boxes"][:, 0], info["visible"][:, 0]
    np.testing.assert_allclose(told["boxes"][..., :4], boxes, atol=1e-6)
    kinds = np.array([[1, 0]] * WORLD.cars + [[0, 1]] * WORLD.walkers)
    np.testing.assert_array_equal(told["boxes"][..., 4:], visible[..., None] * kinds)
    np.testing.assert_array_equal(told["weather"][:, :4].argmax(1), some.weather)
    np.testing.assert_array_equal(told["weather"][:, 4:].argmax(1), some.time)
    np.testing.assert_allclose(told["cameras"][:, 1, :2], np.sqrt(0.5), atol=1e-6)
    kind = np.stack([looked[view].segmentation[:, 0] for view in WORLD.views], -1)
    walks = kind >= drive.AGENT + WORLD.cars
    np.testing.assert_array_equal(
        told["segmentation"], np.where(walks, drive.AGENT + 1, np.minimum(kind, drive.AGENT))
    )
    depth = np.stack([looked[view].depth[:, 0] for view in WORLD.views], -1)
    np.testing.assert_allclose(told["depth"], 255 * np.minimum(3 / depth, 1), atol=0.51)
    for index, tokens in enumerate(told["caption"]):
        words = captions.decode(tokens).split()
        cars, walkers = np.split(visible[index, 0], [WORLD.cars])
        assert words[:2] == [drive.TIMES[some.time[index]], drive.WEATHERS[some.weather[index]]]
        assert words[2:4] == [("no", "one", "two", "three")[cars.sum()], "car" if cars.sum() == 1 else "cars"]
        if cars.any():
            nearest = np.flatnonzero(cars)[some.cars[index, cars, 0].argmin()]
            middle = boxes[index, 0, nearest, [0, 2]].mean()
            colour = list(drive.COLOURS)[some.car_colour[index, nearest]]
            assert words[4:7] == ["near", colour, ("left", "ahead", "right")[int(middle * 3)]]
        assert words[-2:] in (["no", "walker"], ["walker", "waiting"], ["walker", "crossing"])
        assert (words[-2] == "no") == (not walkers.any())


def test_a_crash_and_the_verge_end_an_episode():
    world = Drive(cars=1, walkers=1, bend=0.0)
    state = world.reset(jax.random.key(0))
    step = jax.jit(lambda state: world.step(jax.random.key(1), state, jnp.zeros(2)))
    into = jnp.stack([state.along + 5.0, state.aside])[None]
    hit = step(dataclasses.replace(state, cars=into, car_speed=jnp.zeros(1), speed=jnp.float32(10.0)))
    assert hit.is_terminal
    assert hit.state.crashed
    assert not hit.state.off_road
    assert float(hit.reward) <= 0.0
    off = step(dataclasses.replace(state, aside=jnp.float32(4.0)))
    assert off.is_terminal
    assert off.state.off_road
    free = step(state)
    assert not free.is_terminal
    assert float(free.reward) > 0.3


def test_wrong_parameters_are_named():
    for parameters, message in (
        ({"cars": 0}, r"drive\.cars is 0"),
        ({"views": ("front", "front")}, r"drive\.views .*twice"),
        ({"views": ("up",)}, r"drive\.views"),
        ({"weathers": ()}, r"drive\.weathers"),
        ({"bend": 0.2}, r"drive\.bend is 0\.2"),
        ({"conditions": ("colour",)}, r"drive\.conditions"),
    ):
        with pytest.raises(ValueError, match=message):
            make_world("drive", **parameters)


def test_the_driver_model_brakes_for_what_is_near():
    gap = jnp.array([3.0, 10.0, 1e3])
    gain = drive.follow(jnp.full(3, 8.0), jnp.float32(10.0), gap, jnp.full(3, 4.0))
    assert gain[0] < gain[1] < 0 < gain[2]
    state = WORLD.reset(jax.random.key(1))
    assert keep_lane(WORLD, jax.random.key(0), state).shape == (2,)


def test_cars_that_are_left_behind_come_again_ahead_and_apart():
    world = Drive(size=8, cars=4, lanes=1)
    state = world.reset(jax.random.key(0))
    behind = jnp.stack([state.along - 30.0 - 8.0 * jnp.arange(4), jnp.zeros(4)], axis=-1)
    step = jax.jit(jax.vmap(lambda key: world.step(key, dataclasses.replace(state, cars=behind), jnp.zeros(2)).state))
    after = jax.device_get(step(jax.random.split(jax.random.key(2), 64)))
    ahead = np.sort(after.cars[..., 0] - after.along[:, None], axis=1)
    assert ahead.min() > 40
    assert np.diff(ahead, axis=1).min() > 2 * drive.CAR[0]
    assert len(np.unique(ahead[:, 0])) > 32
