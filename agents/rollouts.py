"""Rollouts: attempts at problems, collected by stepping a token environment.

The environment's slots are the decoder's cache slots, so stepping the vector environment is continuous batching: a slot
that ends is handed the next problem or leaves the batch.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..envs.problems import Problem
from ..envs.token_vector_env import TokenVectorEnv
from ..models.decoding import COMPACT_BELOW
from ..models.sampling import stream_key
from .policy import CausalLMPolicy


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at one problem: tokens, not observations.

    Attributes:
        problem: what was attempted.
        index: how often the problem had been attempted before, in this collection.
        prompt: `[P]` int64 tokens before the first action (a reset's `prefix` included); attempts share the array.
        completion: `[T]` int32 sampled tokens, the end-of-sequence token included.
        logprobs: `[T]` float32 log-probability of each under the distribution it was drawn from.
        rewards: `[T]` float32 reward of each.
        is_success: whether the final answer was correct.
        verdict: why, in one word (see `rewards.Verdict`).
        answer: the final answer, if one was given.
        terminated: whether the attempt ended by itself; otherwise its token budget ran out.
    """

    problem: Problem
    index: int
    prompt: NDArray[np.int64]
    completion: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    rewards: NDArray[np.float32]
    is_success: bool
    verdict: str
    answer: str | None
    terminated: bool

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


def collect(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    episodes: int,
    *,
    seed: int,
    start: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Attempt]:
    """Collects attempts in the order in which the environment's curriculum begins them.

    What attempt number i holds depends on the model, the curriculum and `seed`, not on the number of slots and not on
    `start`: a collection that was cut short goes on with `start` set to the attempts that are there already.

    Args:
        policy: draws the actions.
        env: a token environment with `autoreset_mode` DISABLED.
        episodes: number of the last attempt to collect, plus one.
        seed: of the curriculum and of the attempts' random streams.
        start: number of the first attempt to collect.
        on_step: called with the number of attempts that ended, after each environment step in which some did.

    Yields:
        Attempts `start` to `episodes - 1`.

    Raises:
        ValueError: when the environment resets finished slots by itself.
    """
    if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
        raise ValueError("rollouts retire and refill slots themselves: make the env with autoreset_mode='Disabled'")
    env.seek(seed, start)
    decoder = policy.decoder(env.num_envs)
    drawn_tokens = np.zeros((env.num_envs, env.max_new_tokens), np.int32)
    drawn_logprobs = np.zeros((env.num_envs, env.max_new_tokens), np.float32)
    rewards = np.zeros((env.num_envs, env.max_new_tokens), np.float32)
    drawn = np.zeros(env.num_envs, np.int64)
    number = np.full(env.num_envs, -1)  # of the attempt in each slot; -1 where none goes on
    index = np.zeros(env.num_envs, np.int64)
    prompts: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * env.num_envs
    actions = np.zeros(env.num_envs, np.int64)
    finished: dict[int, Attempt] = {}
    begun = due = start
    idle = np.arange(env.num_envs)

    while due < episodes:
        if len(idle) and len(idle) >= (1 - COMPACT_BELOW) * len(decoder.slots):
            slots, retired = np.split(np.sort(idle), [min(len(idle), episodes - begun)])
            decoder.retire(retired[np.isin(retired, decoder.slots)])
            if len(slots):
                mask = np.zeros(env.num_envs, bool)
                mask[slots] = True
                _, infos = env.reset(options={"reset_mask": mask})
                index[slots] = infos["attempt"][slots]
                number[slots] = begun + np.arange(len(slots))
                begun += len(slots)
                drawn[slots] = 0
                ids = infos["problem_id"]
                keys = np.array([stream_key(seed, ids[slot], int(index[slot])) for slot in slots])
                shared = {prompts[slot].tobytes(): prompts[slot] for slot in decoder.slots}
                for slot in slots:
                    prompt = np.concatenate([env.prompt(slot), env.completion(slot)])
                    prompts[slot] = shared.setdefault(prompt.tobytes(), prompt)
                decoder.begin(slots, [prompts[slot] for slot in slots], keys)
            idle = np.empty(0, np.int64)
        tokens, logprobs = decoder.step(policy.sampling)
        slots = decoder.slots
        actions[slots] = tokens
        _, step_rewards, terminations, truncations, infos = env.step(actions)
        at = np.minimum(drawn[slots], env.max_new_tokens - 1)
        drawn_tokens[slots, at] = tokens
        drawn_logprobs[slots, at] = logprobs
        rewards[slots, at] = step_rewards[slots]
        drawn[slots] += 1
        ended = slots[(terminations | truncations)[slots] & (number[slots] >= 0)]
        for slot in ended:
            count = drawn[slot]
            finished[int(number[slot])] = Attempt(
                problem=env.problem(slot),
                index=int(index[slot]),
                prompt=prompts[slot],
                completion=drawn_tokens[slot, :count].copy(),
                logprobs=drawn_logprobs[slot, :count].copy(),
                rewards=rewards[slot, :count].copy(),
                is_success=bool(infos["is_success"][slot]),
                verdict=infos["verdict"][slot],
                answer=infos["answer"][slot],
                terminated=bool(terminations[slot]),
            )
        if len(ended):
            number[ended] = -1
            decoder.finish(ended)
            idle = np.concatenate([idle, ended])
            if on_step is not None:
                on_step(len(ended))
        while due in finished:
            yield finished.pop(due)
            due += 1


class AttemptFile:
    """Attempts as JSON lines, appended as they come; a line that a killed process left unfinished is cut off.

    As a context manager it holds the file open for `write`.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        """Attempts that the file holds."""

    def read(self, env: TokenVectorEnv) -> Iterator[Attempt]:
        """The attempts in the file, their problems and prompts taken from `env`; log-probabilities are not kept."""
        if not self.path.exists():
            return
        complete = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                complete += len(line)
                record = json.loads(line)
                problem = env.problems.find(record["problem_id"])
                tokens = np.array(record["completion"], np.int32)
                rewards = np.zeros(len(tokens), np.float32)
                rewards[record["rewards"][0]] = record["rewards"][1]
                self.count += 1
                yield Attempt(
                    problem=problem,
                    index=record["index"],
                    prompt=env.encode_prompt(problem),
                    completion=tokens,
                    logprobs=np.full(len(tokens), np.nan, np.float32),
                    rewards=rewards,
                    is_success=record["is_success"],
                    verdict=record["verdict"],
                    answer=record["answer"],
                    terminated=record["terminated"],
                )
        os.truncate(self.path, complete)

    def __enter__(self) -> Self:
        self._file = self.path.open("a")
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, attempt: Attempt) -> None:
        """Appends one attempt; rewards that are not zero are kept as [positions, values]."""
        paid = np.flatnonzero(attempt.rewards)
        record = {
            "problem_id": attempt.problem.id,
            "index": attempt.index,
            "completion": attempt.completion.tolist(),
            "rewards": [paid.tolist(), attempt.rewards[paid].tolist()],
            "is_success": attempt.is_success,
            "verdict": attempt.verdict,
            "answer": attempt.answer,
            "terminated": attempt.terminated,
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.count += 1
