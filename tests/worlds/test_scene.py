"""A camera among spheres: what it sees is where it is, shadows fall away from the sun, traces stay."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import Scene, World, captions, look_around, make_world, rollout, scene, stand_still

WORLD = Scene(size=16, samples=1)
LENGTH = 80


@pytest.fixture(scope="module")
def episodes():
    """32 episodes of a random camera, with their states and without pictures."""

    @dataclasses.dataclass(frozen=True)
    class Bare(Scene):
        def observation(self, state):
            return {}

        def info(self, state):
            return {"state": state}

    run = jax.jit(jax.vmap(lambda key: rollout(Bare(**vars(WORLD)), key, LENGTH)))
    return jax.device_get(run(jax.random.split(jax.random.key(0), 32)))


def test_an_episode_fulfils_the_spec():
    assert isinstance(WORLD, World)
    world = make_world("scene", size=8, samples=1, spheres=2)
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda key: rollout(world, key, 3), n=1)))
    trajectory = run(jax.random.split(jax.random.key(0), 2))
    world.spec.check_trajectory(trajectory)
    assert trajectory.observation["image"].std() > 10
    assert trajectory.info["visible"].shape == (2, 3, 2)


def test_what_is_seen_is_there_and_shadows_are_cast_by_it(episodes):
    states = jax.tree.map(lambda x: jnp.asarray(x[:, ::20]).reshape(-1, *x.shape[2:]), episodes.info["state"])
    seen, states = jax.device_get((jax.jit(jax.vmap(lambda state: WORLD.look(state)))(states), states))
    own = np.asarray(WORLD.camera.rays(WORLD.size))
    met = shaded = 0
    for index in range(len(states.heading)):
        at = jax.tree.map(lambda x, index=index: np.asarray(x[index]), states)
        cos, sin = np.cos(at.heading), np.sin(at.heading)
        ray = np.stack([cos * own[0] - sin * own[1], sin * own[0] + cos * own[1], own[2]])
        depth, kind = seen.depth[index].reshape(-1), seen.segmentation[index].reshape(-1)
        eye = np.array([*at.place, WORLD.camera.position[2]])
        points = (eye[:, None] + np.where(np.isfinite(depth), depth, 0.0) * ray).T
        np.testing.assert_array_equal(np.isinf(depth), kind == scene.SKY)
        on_floor = kind == scene.FLOOR
        np.testing.assert_allclose(points[on_floor, 2], 0.0, atol=1e-4)
        assert (np.abs(points[on_floor, :2]) < scene.SIDE / 2).all()
        centres = np.concatenate([at.spheres, at.radius[:, None]], axis=1)
        blocked = np.zeros(len(kind), bool)
        for number, (centre, radius) in enumerate(zip(centres, at.radius, strict=True)):
            mine = points[kind == scene.SPHERE + number]
            met += len(mine)
            np.testing.assert_allclose(np.linalg.norm(mine - centre, axis=1), radius, atol=1e-3)
            # How near the line from a point to the sun comes to the middle of the sphere.
            ahead = (centre - points) @ at.sun
            aside = np.linalg.norm(centre - points - ahead[:, None] * at.sun, axis=1)
            clear = np.abs(aside - radius) > 1e-3
            blocked |= (aside < radius) & (ahead > 0) & on_floor
            on_floor &= clear
        np.testing.assert_array_equal(seen.shadow[index].reshape(-1)[on_floor], blocked[on_floor])
        shaded += blocked.sum()
    assert met > 300
    assert shaded > 100


def test_the_roller_keeps_its_speed_and_its_distance(episodes):
    state = episodes.info["state"]
    speed = np.linalg.norm(state.velocity, axis=-1)
    np.testing.assert_allclose(speed, np.broadcast_to(speed[:, :1], speed.shape), rtol=1e-3)
    assert (np.abs(state.spheres) <= scene.SIDE / 2 - state.radius[..., None] + 1e-3).all()
    np.testing.assert_allclose(
        state.spheres[:, :, 1:], np.broadcast_to(state.spheres[:, :1, 1:], state.spheres[:, :, 1:].shape), atol=1e-4
    )
    apart = np.linalg.norm(state.spheres[:, :, 1:] - state.spheres[:, :, :1], axis=-1)
    assert (apart > state.radius[..., 1:] + state.radius[..., :1] - 1e-3).all()
    turned = np.abs(np.diff(np.arctan2(state.velocity[..., 1], state.velocity[..., 0]), axis=1)) > 1e-3
    assert turned.any(1).mean() > 0.5, "most of them hit something"


def test_what_was_rolled_over_stays_painted(episodes):
    state = episodes.info["state"]
    assert (state.painted[:, 1:] >= state.painted[:, :-1]).all()
    for painted, places in zip(state.painted, state.spheres[:, :, 0], strict=True):
        expected = np.zeros((scene.TILES, scene.TILES), bool)
        cells = np.floor(places + scene.SIDE / 2).astype(int)
        expected[cells[:, 0], cells[:, 1]] = True
        np.testing.assert_array_equal(painted[-1], expected)
    assert state.painted[:, -1].sum((1, 2)).mean() > 4
    clean = Scene(paints=False)
    after = clean.step(jax.random.key(0), clean.reset(jax.random.key(1)), jnp.zeros(2)).state
    assert not after.painted.any()


def test_paint_is_seen():
    world = Scene(size=16, spheres=1, rolling=(0.0, 0.0))
    state = world.reset(jax.random.key(4))
    look = jax.jit(world.look)
    red = dataclasses.replace(state, colour=jnp.array([0]), painted=jnp.ones_like(state.painted))
    clean = dataclasses.replace(red, painted=jnp.zeros_like(state.painted))
    red, clean = look(red), look(clean)
    floor = (red.segmentation == scene.FLOOR) & ~red.shadow
    difference = red.image[floor].astype(float) - clean.image[floor]
    assert difference[:, 0].mean() > difference[:, 1:].mean() + 20


def test_once_around_the_picture_is_the_same_again():
    world = Scene(size=16, rolling=(0.0, 0.0), turn=2 * np.pi / 4.0)
    episode = rollout(world, jax.random.key(2), 41, look_around)
    image = np.asarray(episode.observation["image"], float)
    assert np.abs(image[20] - image[0]).mean() > 3
    np.testing.assert_allclose(image[40], image[0], atol=8.0)
    assert np.abs(image[40] - image[0]).mean() < 0.2


def test_the_camera_goes_where_it_looks_and_passes_neither_edge_nor_sphere(episodes):
    state, action = episodes.info["state"], episodes.action
    assert (np.abs(state.place) <= scene.SIDE / 2).all()
    gap = np.linalg.norm(state.spheres - state.place[:, :, None], axis=-1) - state.radius
    assert gap.min() > scene._BODY - 1e-3
    way = np.diff(state.place, axis=1)
    direction = state.heading[:, :-1] + WORLD.turn * WORLD.dt * action[:, :-1, 1] / 2
    wanted = WORLD.speed * WORLD.dt * action[:, :-1, :1] * np.stack([np.cos(direction), np.sin(direction)], -1)
    free = (np.abs(state.place[:, :-1] + wanted) < scene.SIDE / 2).all(-1) & (gap[:, :-1].min(-1) > 0.7)
    assert free.mean() > 0.5
    np.testing.assert_allclose(way[free], wanted[free], atol=1e-5)


def test_conditions_say_what_is_seen():
    world = Scene(size=16, samples=1, fewest=1, conditions=("caption", "camera", "depth", "segmentation"))
    tell = jax.jit(jax.vmap(lambda state: (world.condition(state), world.look(state), world.info(state)["visible"])))
    states = jax.vmap(world.reset)(jax.random.split(jax.random.key(5), 64))
    there = np.asarray(states.radius > 0)
    assert set(there.sum(1)) == {1, 2, 3}
    told, looked, visible = jax.device_get(tell(states))
    world.spec.check_condition(told, (64,))
    np.testing.assert_array_equal(told["segmentation"][..., 0], looked.segmentation)
    near = looked.depth < 50
    np.testing.assert_allclose(told["depth"][..., 0][near], 255 * np.minimum(1 / looked.depth, 1)[near], atol=0.51)
    np.testing.assert_allclose(
        np.arctan2(told["camera"][:, 3], told["camera"][:, 2]) % (2 * np.pi), states.heading, atol=1e-5
    )
    names, rolling = list(scene.COLOURS), 0
    for index, tokens in enumerate(told["caption"]):
        words = captions.decode(tokens).split()
        seen = [names[colour] for colour, is_seen in zip(states.colour[index], visible[index], strict=True) if is_seen]
        assert words[:4] == [
            ("no", "one", "two", "three")[len(seen)],
            "ball" if len(seen) == 1 else "balls",
            "in",
            "sight",
        ]
        assert words[4 : 4 + len(seen)] == seen
        if visible[index, 0]:
            rolling += 1
            x, y = states.velocity[index]
            turned = np.arctan2(y, x) - states.heading[index]
            way = ("away", "left", "near", "right")[int(np.round(turned / (np.pi / 2))) % 4]
            assert words[4 + len(seen) :] == [seen[0], "rolls", way]
    assert rolling > 5
    assert not (visible & ~there).any()


def test_wrong_parameters_are_named():
    for parameters, message in (
        ({"spheres": 5}, r"scene\.spheres is 5"),
        ({"radius": (0.5, 2.0)}, r"scene\.radius .*at most 1\.0"),
        ({"dt": 0.0}, r"scene\.dt is 0\.0"),
        ({"fewest": 4}, r"scene\.fewest is 4, expected at most scene\.spheres, 3"),
        ({"conditions": ("camera", "camera")}, r"scene\.conditions .*twice"),
    ):
        with pytest.raises(ValueError, match=message):
            make_world("scene", **parameters)


def test_a_camera_at_the_edge_looks_at_what_is_on_the_floor():
    """And a wide one sees more of it than a narrow one."""
    keys = jax.random.split(jax.random.key(0), 64)

    def share_seen(**changes):
        world = dataclasses.replace(WORLD, **changes)
        states = jax.vmap(world.reset)(keys)
        edge = jnp.linalg.norm(states.place, axis=-1)
        return float(jnp.mean(jax.vmap(world.info)(states)["visible"])), np.asarray(edge)

    middle, near = share_seen()
    edge, far = share_seen(start="edge")
    wide, _ = share_seen(wide=2.0)
    assert (near < 0.6).all()
    np.testing.assert_allclose(far, scene.SIDE / 2 - 0.4, rtol=1e-5)
    assert edge > 2 * middle
    assert wide > 1.3 * middle


def test_who_stands_still_sees_what_rolls():
    trajectory = jax.jit(lambda key: rollout(WORLD, key, 4, stand_still))(jax.random.key(0))
    np.testing.assert_array_equal(trajectory.info["place"], trajectory.info["place"][:1].repeat(4, 0))
    assert (trajectory.info["spheres"][0, 0] != trajectory.info["spheres"][3, 0]).any()
