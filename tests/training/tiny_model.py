"""A model, a data set and configurations as small as they can be, for the tests of training."""

import dataclasses
import warnings
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pydantic

from jaxwm import models
from jaxwm.config import parse_config
from jaxwm.data import Episode, step_flags, write_episodes
from jaxwm.types import ActionSpec, Aux, Field, Prediction, Spec, Stage, Trajectory

SPEC = Spec((Field("vector", (3,), "float32"),), ActionSpec(2))


def waves(key, shape, dtype):
    """Instead of random numbers, whose compilation takes most of the time of these tests."""
    return jnp.sin(jnp.arange(np.prod(shape), dtype=dtype)).reshape(shape)


class Network(nn.Module):
    width: int

    def setup(self):
        self.encoder = nn.Dense(self.width, kernel_init=waves)
        self.dynamics = nn.Dense(self.width, kernel_init=waves)
        self.decoder = nn.Dense(3, kernel_init=waves)

    def __call__(self, vector, action):
        state = jnp.tanh(self.encoder(vector))
        following = jnp.tanh(self.dynamics(jnp.concatenate([state, action], -1)))
        return self.decoder(state), self.decoder(following)


@models.register("tiny_test")
@dataclasses.dataclass(frozen=True)
class TinyModel:
    """Reconstructs the vector and predicts the next one, with noise on its inputs; fails at update ``fails_at``."""

    spec: Spec
    width: pydantic.PositiveInt = 4
    noise: pydantic.NonNegativeFloat = 0.1
    fails_at: int = -1

    stages: ClassVar = (Stage("autoencode", ("encoder", "decoder")), Stage("dynamics", ("dynamics",)), Stage("joint"))

    @property
    def network(self):
        return Network(self.width)

    def init(self, key, batch):
        params = self.network.init(key, batch.observation["vector"], batch.action)["params"]
        return {"params": params, "targets": {"mean": jnp.zeros(3), "count": jnp.zeros((), jnp.int32)}}

    def loss(self, variables, keys, batch, stage):
        self.spec.check_trajectory(batch)
        vector = batch.observation["vector"]
        noise = jax.random.key_data(keys)[:, :1, None] / 2.0**32 - 0.5
        now, following = self.network.apply({"params": variables["params"]}, vector + self.noise * noise, batch.action)
        reconstruction = jnp.mean((now - vector) ** 2)
        prediction = jnp.mean((following[:, :-1] - vector[:, 1:]) ** 2)
        loss = {"autoencode": reconstruction, "dynamics": prediction, "joint": reconstruction + prediction}[stage]
        # The root is constant in effect, but where its argument is zero its gradient is not finite.
        is_fine = jnp.where(variables["targets"]["count"] == self.fails_at, 0.0, 1.0)
        loss += 1e-9 * jnp.sqrt(is_fine * (1.0 + variables["params"]["dynamics"]["bias"][0] ** 2))
        mean = jnp.mean(vector, (0, 1))
        return loss, Aux({"reconstruction": reconstruction, "noise": jnp.mean(noise)}, mean)

    def after_update(self, variables, aux, stage):
        old = variables["targets"]
        return {**variables, "targets": {"mean": 0.9 * old["mean"] + 0.1 * aux.states, "count": old["count"] + 1}}

    def init_state(self, batch_size):
        return jnp.zeros((batch_size, self.width))

    def observe(self, variables, keys, state, previous_action, observation, is_first, condition=None):
        return state

    def predict(self, variables, keys, state, action, condition=None):
        return state

    def features(self, variables, state):
        return state

    def decode(self, variables, state):
        return Prediction({"vector": jnp.zeros((state.shape[0], 3))})

    def surprise(self, variables, keys, state, previous_action, observation, condition=None):
        return jnp.zeros(state.shape[0])


def synthetic_batch(batch=8, length=6, seed=0):
    generator = np.random.default_rng(seed)
    no = np.zeros((batch, length), bool)
    return Trajectory(
        observation={"vector": generator.normal(size=(batch, length, 3)).astype(np.float32)},
        action=generator.normal(size=(batch, length, 2)).astype(np.float32),
        previous_action=np.zeros((batch, 2), np.float32),
        reward=np.zeros((batch, length), np.float32),
        is_first=no,
        is_last=no,
        is_terminal=no,
        valid=~no,
        action_valid=~no,
        info={"truth": np.zeros((batch, length, 1), np.float32)},
    )


def write_tiny_data(path):
    """12 training and 4 test episodes of 10 steps."""
    generator = np.random.default_rng(7)

    def episodes(count):
        for _ in range(count):
            yield Episode(
                observation={"vector": generator.normal(size=(10, 3)).astype(np.float32)},
                action=generator.normal(size=(10, 2)).astype(np.float32),
                reward=np.zeros(10, np.float32),
                **step_flags(10),
            )

    write_episodes(path, SPEC, {"train": episodes(12), "test": episodes(4)}, "tiny")


def tiny_config(data_path, *overrides, stages=None):
    values = {
        "model": {"family": "tiny_test"},
        "data": {"path": str(data_path), "batch": 8, "length": 6, "threads": 1, "prefetch": 2},
        "stages": stages or {"joint": {"steps": 20, "optimizer": {"learning_rate": 0.01}}},
        "training": {"log_every": 1, "checkpoint_every": 5, "evaluate_every": 0, "video_every": 0, "ema": 0.9},
        "evaluation": {"episodes": 8},
    }
    return parse_config(values, overrides)


def saved_arrays(run_dir, step):
    """Everything that a checkpoint holds."""
    reader = ocp.PyTreeCheckpointer()
    folder = run_dir.resolve() / "checkpoints" / str(step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {part: reader.restore(folder / part) for part in ("params", "targets", "average", "optimizer")}


def assert_same(actual, expected):
    """Bit for bit the same arrays at the same paths."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))
