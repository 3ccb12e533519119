"""Several worlds behind one spec: each is what it is for itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwm.worlds import Several, World, make_world, rollout
from jaxwm.worlds.several import NAMES

WORLD = Several(size=8)


@pytest.fixture(scope="module")
def episodes():
    run = jax.jit(jax.vmap(chex.assert_max_traces(lambda key: rollout(WORLD, key, 4), n=1)))
    return run(jax.random.split(jax.random.key(0), 32))


def test_episodes_of_all_worlds_fulfil_the_spec(episodes):
    assert isinstance(WORLD, World)
    WORLD.spec.check_trajectory(episodes)
    assert set(np.unique(episodes.info["domain"])) == set(range(4))
    np.testing.assert_array_equal(episodes.condition["domain"].argmax(-1), episodes.info["domain"])
    np.testing.assert_array_equal(episodes.info["domain"], episodes.info["domain"][:, :1].repeat(4, 1))


def test_only_the_actions_of_the_own_world_are_done(episodes):
    slots = np.asarray(episodes.action).reshape(32, 4, 4, 2)
    own = np.asarray(episodes.info["domain"])[:, 0]
    for row, domain in enumerate(own):
        assert slots[row, 0, domain].any()
        assert not np.delete(slots[row], domain, axis=1).any()
    assert (np.abs(slots) <= 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_member_is_the_world_itself(name):
    """The same action leads to the same picture, whatever stands in the places of the other worlds."""
    world, at = Several(size=8, names=(name,)), NAMES.index(name)
    member = world.members[at]

    @jax.jit
    def both(key):
        start_key, key, action_key = jax.random.split(key, 3)
        state = world.reset(start_key)
        action = jax.random.uniform(action_key, (8,), minval=-1.0, maxval=1.0)
        after = world.step(key, state, action)
        own = member.step(key, state.members[at], member.spec.action.denormalise(action[2 * at : 2 * at + 2]))
        other = world.step(key, state, jnp.zeros(8).at[2 * at : 2 * at + 2].set(action[2 * at : 2 * at + 2]))
        return (
            (world.render(after.state), after.reward),
            (member.render(own.state), own.reward),
            other.state,
            after.state,
        )

    found, expected, alone, after = both(jax.random.key(1))
    np.testing.assert_allclose(found[0], expected[0], atol=1)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    chex.assert_trees_all_close(alone, after)


def test_a_world_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"several\.names"):
        make_world("several", names=("bounce", "chess"))
