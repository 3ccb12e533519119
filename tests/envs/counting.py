"""Environments that count, and so can tell what became of every one of their steps."""

import gymnasium as gym
import numpy as np


class Counting(gym.Env):
    """Shows (episode of this copy, step, last action, its own seed); lasts 3, 4, 5, 3 ... steps; rewards the step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gym.spaces.Box(-2.0, 3.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None, limited=False):
        self.render_mode = render_mode
        self.limited = limited
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed = seed
        self.episode, self.count, self.last = self.episode + 1, 0, 0.0
        return self.look(), {}

    def look(self):
        return np.array([self.episode, self.count, self.last, self.seed])

    def step(self, action):
        self.count, self.last = self.count + 1, float(action[0])
        ended = self.count == 3 + self.episode % 3
        return self.look(), float(self.count), ended and not self.limited, ended and self.limited, {}

    def render(self):
        picture = np.zeros((6, 6, 3), np.uint8)
        picture[...] = 10 * self.count + self.episode
        return picture


class Everything(Counting):
    """A dict of what there is, with choices that begin at 2."""

    action_space = gym.spaces.Discrete(3, start=2)
    observation_space = gym.spaces.Dict(
        camera=gym.spaces.Box(0, 255, (8, 4, 3), np.uint8),
        depth=gym.spaces.Box(0, 255, (4, 4), np.uint8),
        body=gym.spaces.Dict(angle=gym.spaces.Box(-1, 1, (2, 2), np.float64), room=gym.spaces.Discrete(3)),
        pair=gym.spaces.Tuple([gym.spaces.MultiBinary(2), gym.spaces.MultiDiscrete([2, 3])]),
    )

    def look(self):
        return {
            "camera": np.full((8, 4, 3), self.count, np.uint8),
            "depth": np.full((4, 4), self.count + 100, np.uint8),
            "body": {"angle": np.full((2, 2), self.last), "room": self.count % 3},
            "pair": (np.array([0, 1], np.int8), np.array([1, 2])),
        }

    def step(self, action):
        assert action in (2, 3, 4)
        return super().step([action])


class Unfit(Counting):
    """Takes, and shows, what no spec describes."""

    action_space = gym.spaces.MultiDiscrete([2, 2])
    observation_space = gym.spaces.Dict(stack=gym.spaces.Box(0, 255, (5, 8, 8), np.uint8), text=gym.spaces.Text(4))


class Faulty(Counting):
    """Does something wrong in its second episode, at step 2."""

    def __init__(self, render_mode=None, fault="crash"):
        super().__init__(render_mode)
        self.fault = fault

    def is_due(self):
        return self.episode == 1 and self.count == 2

    def look(self):
        vector = super().look()
        if not self.is_due():
            return vector
        broken = {"nan": vector * np.nan, "shape": vector[:3], "dtype": vector.astype(str), "type": "nothing"}
        return broken.get(self.fault, vector)

    def step(self, action):
        result = super().step(action)
        if self.is_due() and self.fault == "crash":
            raise RuntimeError("the arm\nis stuck")
        if self.is_due() and self.fault == "tuple":
            return result[:4]
        if self.is_due() and self.fault in ("inf", "none"):
            return result[0], {"inf": float("inf"), "none": None}[self.fault], *result[2:]
        return result

    def render(self):
        return super().render()[..., :2] if self.is_due() else super().render()

    def close(self):
        if self.is_due():
            raise RuntimeError("it cannot even be closed")


for name, entry in {"Counting": Counting, "Everything": Everything, "Unfit": Unfit, "Faulty": Faulty}.items():
    gym.register(f"Jaxwm{name}-v0", entry)
