"""Gymnasium's VectorEnv as a VecEnv of Stable-Baselines3, which has an interface of its own for the same thing."""

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv


class Vectorised(VecEnv):
    """``envs`` with one observation and ``AutoresetMode.SAME_STEP``, which is what Stable-Baselines3 expects."""

    def __init__(self, envs: gym.vector.VectorEnv, seed: int) -> None:
        self.envs, self.first_seed, self.actions = envs, seed, None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self):
        """Begins all of them; the first time as the seed says."""
        observation, _ = self.envs.reset(seed=self.first_seed)
        self.first_seed = None
        return observation

    def step_async(self, actions):
        """Keeps the actions."""
        self.actions = actions

    def step_wait(self):
        """Does them."""
        observation, reward, terminated, truncated, info = self.envs.step(self.actions)
        infos = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(terminated | truncated):
            infos[row]["terminal_observation"] = info["final_obs"][row]
            infos[row]["TimeLimit.truncated"] = bool(truncated[row])
        return observation, reward, terminated | truncated, infos

    def close(self):
        """Closes them."""
        self.envs.close()

    def get_attr(self, attr_name, indices=None):
        """The same of each."""
        return [getattr(self.envs, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name, value, indices=None):
        """Sets it for all."""
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        """Calls it for all."""
        found = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        return [found] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class, indices=None):
        """They are not."""
        return [False] * len(list(self._get_indices(indices)))
