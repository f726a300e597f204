"""Attempts at problems: as values, in files, and counted."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...envs.problems.base import Problem
from ...envs.token_vector_env import TokenVectorEnv


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
        reward_components: what each part of a reward with parts has paid, by name; empty for others.
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
    reward_components: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and completion, `[P + T]`."""
        return np.concatenate([self.prompt, self.completion], dtype=np.int64)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


class RolloutStatistics:
    """What agents log of the attempts they sample: success, verdicts, lengths, rewards; adds up over ranks."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)

    @property
    def attempts(self) -> int:
        return int(self._sums["attempts"])

    @property
    def tokens(self) -> int:
        """All sampled tokens, end-of-sequence included."""
        return int(self._sums["tokens"])

    def add(self, attempt: Attempt) -> None:
        """Counts an attempt."""
        sums = self._sums
        sums["attempts"] += 1
        sums["tokens"] += len(attempt.completion)
        sums["success_rate"] += attempt.is_success
        sums["truncation_rate"] += not attempt.terminated
        sums["mean_reward"] += attempt.total_reward
        sums[f"verdict/{attempt.verdict}"] += 1
        for name, paid in attempt.reward_components.items():
            sums[f"reward/{name}"] += paid

    def merge(self, other: "RolloutStatistics") -> None:
        """Adds what another process counted."""
        for name, value in other._sums.items():
            self._sums[name] += value

    def metrics(self, seconds: float) -> dict[str, float]:
        """Means over the attempts, by the names they are logged under.

        Args:
            seconds: wall time that the sampling took.
        """
        means = {
            f"rollout/{name}": value / self.attempts
            for name, value in self._sums.items()
            if name not in ("attempts", "tokens")
        }
        return means | {
            "rollout/mean_length": self.tokens / self.attempts,
            "time/rollout_seconds": seconds,
            "time/tokens_per_second": self.tokens / seconds,
        }


class AttemptFile:
    """Attempts as JSON lines, appended as they come.

    As a context manager it holds the file open for `write`; if the file has been read, a line that a killed process
    left unfinished is cut off first.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        """Attempts that the file holds."""
        self._complete: int | None = None  # bytes of the whole lines, once they have been read

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
                    reward_components=record["reward_components"],
                )
        self._complete = complete

    def __enter__(self) -> Self:
        self._file = self.path.open("a")
        if self._complete is not None:
            self._file.truncate(self._complete)
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
            "reward_components": attempt.reward_components,
        }
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.count += 1
