"""Attempts at problems: as values, in files, and counted."""

import itertools
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...envs.problems.base import Problem
from ...envs.token_vector_env import TokenVectorEnv
from ...files import LineFile, lines
from ...models.kept_tokens import KeptTokens
from ...settings import check_kind

_logger = logging.getLogger(__name__)
_SAMPLES = 4


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at one problem: tokens, not observations.

    Attributes:
        problem: Problem that was attempted.
        index: Number of earlier attempts at the problem in this collection.
        prompt: `[P]` int64 tokens before the first action (a reset's `prefix` included); attempts share the array.
        completion: `[T]` int32 sampled tokens, the end-of-sequence token included.
        logprobs: `[T]` float32 log-probability of each token under the distribution that it was drawn from.
        rewards: `[T]` float32 reward of each token.
        is_success: True if the final answer was correct.
        verdict: Verdict of the grader in one word (see `rewards.Verdict`).
        answer: Final answer, if one was given.
        terminated: True if the attempt ended by itself; False if its token budget ran out.
        reward_components: Sum that each component of the reward has paid, by name; empty for rewards without
            components.
        number: Number of the attempt in its collection, from 0; -1 for an attempt outside any collection.
        kept: Tokens that each token was drawn from, if distributions were truncated and this was asked for; files do
            not hold them.
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
    number: int = -1
    kept: KeptTokens | None = None

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Prompt and completion, `[P + T]`."""
        return np.concatenate([self.prompt, self.completion], dtype=np.int64)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


class RolloutStatistics:
    """Statistics of sampled attempts that agents log: success, verdicts, lengths, rewards; adds up over ranks."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self.samples: list[Attempt] = []
        """The first attempts at a few problems, to look at."""

    @property
    def attempts(self) -> int:
        return int(self._sums["attempts"])

    @property
    def tokens(self) -> int:
        """All sampled tokens, end-of-sequence included."""
        return int(self._sums["tokens"])

    def add(self, attempt: Attempt) -> None:
        """Counts an attempt."""
        if attempt.index == 0 and len(self.samples) < _SAMPLES:
            self.samples.append(attempt)
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
        self.samples = [*self.samples, *other.samples][:_SAMPLES]

    def metrics(self, seconds: float) -> dict[str, float]:
        """Means over the attempts, by the names they are logged under.

        Args:
            seconds: Wall time of sampling in seconds.
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


class AttemptFile(LineFile):
    """Attempts as JSON lines, appended as they come, each with its number in the collection.

    As a context manager it holds the file open for `write`; a line that a killed process left unfinished is cut off
    first.
    """

    def read(self, env: TokenVectorEnv) -> Iterator[Attempt]:
        """The attempts in the file, their problems and prompts taken from `env`; log-probabilities are not kept.

        Raises:
            ValueError: A line is not an attempt at a problem of `env`; the message names file and line.
        """
        for line, _, content in lines(self.path):
            try:
                attempt = _attempt(json.loads(content), env)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"{self.path}, line {line} is no attempt at a problem here: {why}") from error
            yield attempt

    def write(self, attempt: Attempt) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Appends one attempt; rewards that are not zero are kept as [positions, values]."""
        paid = np.flatnonzero(attempt.rewards)
        super().write({
            "number": attempt.number,
            "problem_id": attempt.problem.id,
            "index": attempt.index,
            "completion": attempt.completion.tolist(),
            "rewards": [paid.tolist(), attempt.rewards[paid].tolist()],
            "is_success": attempt.is_success,
            "verdict": attempt.verdict,
            "answer": attempt.answer,
            "terminated": attempt.terminated,
            "reward_components": attempt.reward_components,
        })  # fmt: skip


def attempt_files(folder: Path) -> list[Path]:
    """The files of attempts in a folder, in the order of the processes that wrote them."""
    return sorted(folder.glob("attempts-*.jsonl"), key=lambda path: int(path.stem.removeprefix("attempts-")))


def read_attempts(folder: Path, env: TokenVectorEnv) -> list[Attempt]:
    """All attempts of a collection, in its order, however many processes wrote them; see `AttemptFile.read`."""
    attempts = [attempt for path in attempt_files(folder) for attempt in AttemptFile(path).read(env)]
    return sorted(attempts, key=lambda attempt: attempt.number)


class RecordedAttempts:
    """Attempts of a collection that earlier processes wrote, however many processes there were.

    A line that cannot be read counts as missing, and a warning names it.

    Args:
        folder: Folder with the `attempts-<rank>.jsonl` files of all processes.
        numbers: Numbers of the attempts to read.
        env: Token environment that has their problems.
    """

    def __init__(self, folder: Path, numbers: range, env: TokenVectorEnv) -> None:
        self._env, self._numbers = env, numbers
        self._places: dict[int, tuple[Path, int]] = {}
        for path in attempt_files(folder):
            for line, offset, content in lines(path):
                if (number := _number(content)) is not None and number not in numbers:
                    continue
                if (number := _readable(content, env)) is None:
                    _logger.warning("%s, line %d cannot be read: that attempt is sampled again", path, line)
                elif number in numbers:
                    self._places[number] = path, offset

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def parts(self) -> Iterator[tuple[bool, range]]:
        """All numbers in order, as ranges of those that are there and of those that are missing, by turns."""
        due = self._numbers.start
        for _, group in itertools.groupby(enumerate(sorted(self._places)), lambda place: place[1] - place[0]):
            found = [number for _, number in group]
            if due < found[0]:
                yield False, range(due, found[0])
            due = found[-1] + 1
            yield True, range(found[0], due)
        if due < self._numbers.stop:
            yield False, range(due, self._numbers.stop)

    def read(self, numbers: range) -> Iterator[Attempt]:
        """The attempts with these numbers, in order."""
        files: dict[Path, BinaryIO] = {}
        with ExitStack() as stack:
            for number in numbers:
                path, offset = self._places[number]
                if path not in files:
                    files[path] = stack.enter_context(path.open("rb"))
                files[path].seek(offset)
                yield _attempt(json.loads(files[path].readline()), self._env)


def _number(content: bytes) -> int | None:
    """The number of the attempt in a line, without reading the rest of it."""
    found = _NUMBER.match(content)
    return None if found is None else int(found[1])


_NUMBER = re.compile(rb'\{"number": (-?\d+),')


def _readable(content: bytes, env: TokenVectorEnv) -> int | None:
    """The number of the attempt in a line from which all of it can be read."""
    try:
        record = json.loads(content)
        _check(record, env)
        env.problems.find(record["problem_id"])
        return record["number"]
    except (ValueError, KeyError, TypeError):
        return None


_FIELDS: Mapping[str, Any] = {
    "number": int,
    "problem_id": str,
    "index": int,
    "completion": Sequence,
    "rewards": Sequence,
    "is_success": bool,
    "verdict": str,
    "answer": str | None,
    "terminated": bool,
    "reward_components": Mapping,
}


def _check(record: Any, env: TokenVectorEnv) -> None:
    """Checks the values of an attempt that was read from a file.

    Raises:
        KeyError: A value is not there.
        TypeError: A value is of another kind, or there are no values at all.
        ValueError: There is no token, one that is none of the tokenizer's, or rewards are at other positions.
    """
    check_kind("the line", record, Mapping)
    for name, kind in _FIELDS.items():
        check_kind(name, record[name], kind)
    tokens, vocabulary = record["completion"], env.encoder.vocab_size
    if not all(type(token) is int and 0 <= token < vocabulary for token in tokens) or not tokens:
        raise ValueError(f"its completion is not of this tokenizer's tokens, 0 to {vocabulary - 1}")
    positions, values = record["rewards"]
    if len(positions) != len(values) or not all(type(place) is int and 0 <= place < len(tokens) for place in positions):
        raise ValueError(f"its rewards are not at positions from 0 to {len(tokens) - 1}")


def _attempt(record: Mapping[str, Any], env: TokenVectorEnv) -> Attempt:
    _check(record, env)
    problem = env.problems.find(record["problem_id"])
    tokens = np.array(record["completion"], np.int32)
    rewards = np.zeros(len(tokens), np.float32)
    rewards[record["rewards"][0]] = record["rewards"][1]
    return Attempt(
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
        number=record["number"],
    )
