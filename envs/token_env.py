"""One attempt at a time, as a plain Gymnasium environment."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from ..registry import unknown_name
from .infos import slot_info
from .problems.base import ProblemSource
from .token_vector_env import Observation, TokenVectorEnv


class TokenEnv(gym.Env[Observation, int]):
    """A `TokenVectorEnv` of one slot without its slot axis; the rules are written there, and only there.

    Observation: `input_ids`, int64 `[L]`, and `attention_mask`, int8 `[L]`, right-padded; an action is one token id.

    Args:
        problems: Source of the problems, which also grades finished attempts.
        render_mode: Render mode: "ansi" or None.
        settings: Arguments of `TokenVectorEnv` other than `num_envs`, `autoreset_mode` and `copy`.

    Attributes:
        slots: Vector environment of one slot that does the work, with its tokenizer, encoders and `state_dict`.

    Raises:
        TypeError: There is no such setting; the nearest is suggested.
    """

    metadata = TokenVectorEnv.metadata

    def __init__(self, problems: ProblemSource, *, render_mode: str | None = None, **settings: Any) -> None:
        known = inspect.signature(TokenVectorEnv).parameters.keys() - {"num_envs", "autoreset_mode", "copy"}
        for name in settings:
            if name not in known:
                raise TypeError(str(unknown_name("argument", name, known)))
        self.slots = TokenVectorEnv(
            problems, 1, autoreset_mode=AutoresetMode.DISABLED, copy=False, render_mode=render_mode, **settings
        )
        self.render_mode = render_mode
        self.observation_space = self.slots.single_observation_space
        self.action_space = self.slots.single_action_space
        self._ended = False

    @property
    def np_random(self) -> np.random.Generator:
        return self.slots.np_random

    @np_random.setter
    def np_random(self, value: np.random.Generator) -> None:
        self.slots.np_random = self._np_random = value

    @property
    def np_random_seed(self) -> int:
        return cast(int, self.slots.np_random_seed)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins an attempt; `options` are `problem_id` and `prefix`, as in `TokenVectorEnv.reset`."""
        observation, infos = self.slots.reset(seed=seed, options=options)
        self._np_random = self.slots.np_random  # what Gymnasium's checker reads
        self._ended = False
        return self._one(observation), slot_info(infos, 0)

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Appends one token.

        Raises:
            ResetNeeded: Before the first reset, and after the attempt has ended.
            ValueError: `action` is no token id.
        """
        if self._ended:
            raise ResetNeeded("the attempt has ended: call reset() before step()")
        observation, rewards, terminations, truncations, infos = self.slots.step(np.asarray(action).reshape(-1))
        terminated, truncated = bool(terminations[0]), bool(truncations[0])
        self._ended = terminated or truncated
        return self._one(observation), float(rewards[0]), terminated, truncated, slot_info(infos, 0)

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride] (Gymnasium's type parameter)
        """The problem's id, the prompt, and the completion, line by line with each line's reward."""
        frames = self.slots.render()
        return None if frames is None else frames[0]

    @staticmethod
    def _one(observation: Observation) -> Observation:
        return {key: value[0].copy() for key, value in observation.items()}
