"""A world model whose dreams can be computed by hand: it climbs."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxwm.envs import DreamEnvironments
from jaxwm.types import ActionSpec, Field, Prediction, Spec

SPEC = Spec((Field("image", (2, 3, 1), "uint8"), Field("vector", (2,), "float32")), ActionSpec(3, discrete=True))


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Choice k climbs k rungs; the reward is the new height; it goes on with probability ``params["stay"]``.

    The vector is (height, luck), where luck is normal times the temperature. The picture is height / 10 everywhere;
    the uncertainty is the square of the height.
    """

    spec: Spec = SPEC
    rewards: bool = True
    doubts: bool = True
    continues: bool = True

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, 2))

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return observation["vector"]

    def predict(self, variables, keys, state, action, condition=None):
        luck = condition["temperature"] * jax.vmap(jax.random.normal)(keys)
        return jnp.stack([state[:, 0] + action @ jnp.arange(3.0), luck], axis=1)

    def features(self, variables, state):
        return jnp.concatenate([state, state[:, :1] + 100], axis=1)

    def decode(self, variables, state):
        height = state[:, 0]
        picture = jnp.broadcast_to((height / 10)[:, None, None, None], (len(height), 2, 3, 1))
        stay = jnp.broadcast_to(variables["params"]["stay"], height.shape)
        return Prediction(
            {"image": picture, "vector": state},
            reward=height if self.rewards else None,
            continuation=stay if self.continues else None,
            uncertainty=height**2 if self.doubts else None,
        )


@dataclasses.dataclass(frozen=True)
class Climber:
    """An agent that always takes two rungs."""

    spec: Spec = SPEC

    def init(self, count):
        return None

    def act(self, params, keys, memory, observation, is_first):
        return jnp.tile(jnp.eye(3)[2], (len(is_first), 1)), None


def make(stay=1.0, length=4, starts=(0.0,), temperature=1.0, show="observation", penalty=None, **options):
    states = jnp.stack([jnp.asarray(starts), jnp.zeros(len(starts))], axis=1)
    return DreamEnvironments(Ladder(**options), length, {"params": {"stay": stay}}, states, temperature, show, penalty)
