"""An environment that does something wrong when it is told to."""

import signal

import gymnasium as gym
import numpy as np


class Fragile(gym.Env):
    """Shows (number of the episode among all of this process, step); lasts 5 steps, each of which rewards 1.

    Attributes:
      fault: what goes wrong, in the first step of any copy after ``patience`` others; None for nothing.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    fault, patience, begun = None, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Fragile.begun += 1
        self.episode, self.count = Fragile.begun, 0
        return self.look(), {}

    def look(self):
        return np.array([self.episode, self.count], np.float32)

    def step(self, action):
        Fragile.patience -= 1
        self.count += 1
        frame, reward, fault = self.look(), 1.0, Fragile.fault if Fragile.patience == 0 else None
        if fault == "crash":
            raise RuntimeError("the cable\nis torn")
        if fault == "signal":
            signal.raise_signal(signal.SIGTERM)
        if fault == "reward":
            reward = float("nan")
        frame = {"frame": frame * np.nan, "shape": frame[:1]}.get(fault, frame)
        return frame, reward, self.count == 5, False, {}


gym.register("JaxwmFragile-v0", Fragile)
