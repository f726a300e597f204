"""Attempts that are running: what each slot of an environment has drawn and earned so far."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arrays import BoolArray, IntArray
from ...envs.token_vector_env import TokenVectorEnv
from ...models.kept_tokens import KeptTokens
from .attempts import Attempt


class RunningAttempts:
    """One attempt for each slot of an environment, from its prompt to its last token.

    Args:
        env: Token environment whose slots the attempts run in.
    """

    def __init__(self, env: TokenVectorEnv) -> None:
        self._env = env
        self.prompts: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * env.num_envs
        """Prompt of the newest attempt in each slot, its prefix included."""
        self.index = np.zeros(env.num_envs, np.int64)
        """`[N]` number of earlier attempts at the problem in each slot."""
        self._number = np.full(env.num_envs, -1)  # of the attempt in each slot; -1 where none is running
        self._drawn = np.zeros(env.num_envs, np.int64)
        self._tokens = np.zeros((env.num_envs, env.max_new_tokens), np.int32)
        self._logprobs = np.zeros((env.num_envs, env.max_new_tokens), np.float32)
        self._rewards = np.zeros((env.num_envs, env.max_new_tokens), np.float32)
        self._kept: list[list[NDArray[np.int32]]] = [[] for _ in range(env.num_envs)]
        self._every = np.arange(env.num_envs)

    def begin(self, slots: IntArray, numbers: range, index: IntArray, live: IntArray) -> None:
        """Begins the attempts that the environment was just reset to.

        Args:
            slots: `[B]` slots that begin.
            numbers: Numbers of their attempts.
            index: `[B]` number of earlier attempts at each one's problem.
            live: Slots of other attempts, whose prompts are shared where they are equal.
        """
        self.index[slots] = index
        self._number[slots] = numbers
        self._drawn[slots] = 0
        shared = {self.prompts[slot].tobytes(): self.prompts[slot] for slot in live}
        for slot in slots:
            self._kept[slot].clear()
            prompt = np.concatenate([self._env.prompt(slot), self._env.completion(slot)])
            self.prompts[slot] = shared.setdefault(prompt.tobytes(), prompt)

    def append(self, slots: IntArray, tokens: IntArray, logprobs: NDArray[np.float32]) -> None:
        """Adds the token `[B]` that each of some slots has drawn, with its log-probability `[B]`."""
        at = np.minimum(self._drawn[slots], self._env.max_new_tokens - 1)
        self._tokens[slots, at] = tokens
        self._logprobs[slots, at] = logprobs
        self._drawn[slots] += 1

    def record_kept(self, slots: IntArray, choices: Sequence[NDArray[np.int32]]) -> None:
        """Adds the tokens that the newest token of each of some slots was drawn from."""
        for slot, kept in zip(slots.tolist(), choices, strict=True):
            self._kept[slot].append(kept)

    def pay(self, rewards: NDArray[np.floating]) -> None:
        """Pays the newest token of each slot; an attempt that waited for its verdict is paid for its last one."""
        self._rewards[self._every, np.clip(self._drawn - 1, 0, self._env.max_new_tokens - 1)] = rewards

    def ended(self, over: BoolArray) -> IntArray:
        """Slots whose attempts have just ended, of those `[N]` that are over."""
        return np.flatnonzero(over & (self._number >= 0))

    def finish(self, slot: int, terminated: bool, infos: Mapping[str, Any]) -> Attempt:
        """The attempt in a slot, which has ended; the slot then has none.

        Args:
            slot: Slot of the attempt.
            terminated: True if it ended by itself.
            infos: Infos of the step that ended it.
        """
        count, number = self._drawn[slot], int(self._number[slot])
        self._number[slot] = -1
        return Attempt(
            problem=self._env.problem(slot),
            index=int(self.index[slot]),
            prompt=self.prompts[slot],
            completion=self._tokens[slot, :count].copy(),
            logprobs=self._logprobs[slot, :count].copy(),
            rewards=self._rewards[slot, :count].copy(),
            is_success=bool(infos["is_success"][slot]),
            verdict=infos["verdict"][slot],
            answer=infos["answer"][slot],
            terminated=terminated,
            reward_components=_components(infos, slot),
            number=number,
            kept=_kept(self._kept[slot][:count]),
        )


def _kept(choices: Sequence[NDArray[np.int32]]) -> KeptTokens | None:
    """The tokens that each of an attempt's was drawn from, if they were recorded."""
    return KeptTokens(np.array([len(row) for row in choices]), np.concatenate(choices)) if choices else None


def _components(infos: Mapping[str, Any], slot: int) -> dict[str, float]:
    """Sum that each component of the reward has paid an attempt that ended, if the reward has components."""
    parts = infos.get("reward_components", {})
    return {name: float(paid[slot]) for name, paid in parts.items() if not name.startswith("_")}
