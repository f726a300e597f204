"""The vector environment as Stable-Baselines3's, which refuses Gymnasium's own vector environments."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ..extras import missing_extra
from .infos import slot_info
from .token_vector_env import TokenVectorEnv

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
except ModuleNotFoundError as error:
    raise missing_extra("sb3", "SB3VecEnv") from error


class SB3VecEnv(VecEnv):
    """Adapter of a `TokenVectorEnv` in `AutoresetMode.SAME_STEP`, which is how SB3 expects finished slots to restart.

    The info of a finished attempt has `terminal_observation` and `episode`, as SB3's `Monitor` would put there.
    `TimeLimit.truncated` is always False, for SB3 takes it to mean that the attempt continues unseen, and adds the
    value it expects there to the reward. A token budget ends the attempt for good, and the observation shows how much
    is left (a time-aware agent in Pardo et al., 2018). Told otherwise, PPO lives on its own expectations: it learns to
    spend the budget and never ends a sequence. The `verdict` of such an attempt is "truncated".

    `env_method` calls methods that take a slot, `env_method("problem")` for example.

    Raises:
        TypeError: The environment is another, or wrapped.
        ValueError: The environment has another autoreset mode, or its observations are views that steps change.
    """

    def __init__(self, envs: TokenVectorEnv) -> None:
        if not isinstance(envs, TokenVectorEnv):  # pyright: ignore[reportUnnecessaryIsInstance] (what users give)
            raise TypeError(
                f"SB3VecEnv takes a TokenVectorEnv without wrappers, got {envs!r}: make it by gym.make_vec(ID, "
                'num_envs, vectorization_mode="vector_entry_point", autoreset_mode="SameStep")'
            )
        if envs.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"SB3 needs autoreset_mode={AutoresetMode.SAME_STEP.value!r}, this environment has "
                f"{envs.autoreset_mode.value!r}"
            )
        if not envs.copy:
            raise ValueError("SB3 stores observations after the next step: make the environment with copy=True")
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        observation, infos = self.envs.reset(seed=self._seeds[0], options=self._joined_options())
        self.reset_infos = [slot_info(infos, slot) for slot in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def _joined_options(self) -> dict[str, Any]:
        """Options for all slots at once, of which SB3 has a dictionary for each slot."""
        first = self._options[0]
        if all(options is first for options in self._options):
            return first
        names = {name for options in self._options for name in options}
        return {name: [options.get(name) for options in self._options] for name in names}

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, terminations, truncations, infos = self.envs.step(self._actions)
        dones = terminations | truncations
        told: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for slot in np.flatnonzero(dones).tolist():
            self.reset_infos[slot] = slot_info(infos, slot)
            final = self.reset_infos[slot].pop("final_info")
            final["episode"] = {"r": final.pop("episode_return"), "l": final.pop("episode_length")}
            final["terminal_observation"] = self.reset_infos[slot].pop("final_obs")
            told[slot] |= final
        return observation, rewards.astype(np.float32), dones, told

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._slots(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        return [getattr(self.envs, method_name)(slot, *args, **kwargs) for slot in self._slots(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        # Infos carry what Monitor would add, and SB3 asks in order to know whether they do.
        return [issubclass(wrapper_class, Monitor) for _ in self._slots(indices)]

    def _slots(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)
