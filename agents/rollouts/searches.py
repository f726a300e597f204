"""What all searches at problems share: what they find and what it costs, its grading, and its record in a folder."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...arrays import FloatArray, IntArray
from ...envs.problems.base import Problem
from ...envs.token_vector_env import TokenVectorEnv
from ...files import LineFile, read_jsonl
from .attempts import Attempt, AttemptFile, RecordedAttempts
from .policy import CausalLMPolicy


@dataclass
class SearchCost:
    """Cost of searches.

    Attributes:
        policy_tokens: Tokens that the policy drew, those of abandoned candidates included.
        judged_tokens: Tokens of the completions that the judge was given, each time anew; those of questions and
            answers if the judge votes.
    """

    policy_tokens: int = 0
    judged_tokens: int = 0

    def add(self, other: "SearchCost") -> None:
        """Adds the cost of another search."""
        self.policy_tokens += other.policy_tokens
        self.judged_tokens += other.judged_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search found at one problem.

    Attributes:
        attempts: Attempts, as many as the search is wide, numbered from 0.
        scores: Scores of the attempts by the judge, `[width]`; `None` if there is no judge.
        cost: Cost of the search at this problem.
    """

    attempts: list[Attempt]
    scores: FloatArray | None
    cost: SearchCost


class ProblemSearch(Protocol):
    """Finds attempts at problems."""

    policy: CausalLMPolicy
    env: TokenVectorEnv
    cost: SearchCost

    @property
    def width(self) -> int:
        """Attempts that it ends with at each problem."""
        ...

    def __call__(self, problems: Iterable[str | int], seed: int) -> Iterator[Found]:
        """What it finds at each of the problems, given by id or index, in their order."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """A completion that is to be graded.

    Attributes:
        problem: Problem of the environment.
        index: Number of the solution among those of its problem.
        prompt: `[P]` tokens of the problem's prompt.
        completion: `[T]` tokens.
        logprobs: `[T]` log-probabilities of the tokens.
    """

    problem: Problem
    index: int
    prompt: IntArray
    completion: NDArray[np.integer]
    logprobs: NDArray[np.floating]


def graded(env: TokenVectorEnv, solutions: Sequence[Completion]) -> list[Attempt]:
    """Solutions as attempts, numbered by their indices: stepped through the environment, which pays and grades them.

    Args:
        env: Token environment with `autoreset_mode` DISABLED.
        solutions: Solutions of problems of the environment.
    """
    attempts: list[Attempt] = []
    for first in range(0, len(solutions), env.num_envs):
        part = solutions[first : first + env.num_envs]
        lengths = np.zeros(env.num_envs, np.int64)
        lengths[: len(part)] = [len(one.completion) for one in part]
        tokens = np.zeros((env.num_envs, int(lengths.max())), np.int64)
        for slot, one in enumerate(part):
            tokens[slot, : len(one.completion)] = one.completion
        names = [one.problem.id for one in part]
        env.reset(options={"reset_mask": np.arange(env.num_envs) < len(part), "problem_id": names})
        _, rewards, terminations, _, infos = env.step_tokens(tokens, lengths)
        components = infos.get("reward_components", {})
        attempts += [
            Attempt(
                problem=one.problem,
                index=one.index,
                prompt=one.prompt,
                completion=one.completion.astype(np.int32),
                logprobs=one.logprobs.astype(np.float32),
                rewards=rewards[slot, : len(one.completion)].astype(np.float32),
                is_success=bool(infos["is_success"][slot]),
                verdict=infos["verdict"][slot],
                answer=infos["answer"][slot],
                terminated=bool(terminations[slot]),
                reward_components={name: float(p[slot]) for name, p in components.items() if not name.startswith("_")},
                number=one.index,
            )
            for slot, one in enumerate(part)
        ]
    return attempts


def search_into(
    folder: Path | None,
    search: ProblemSearch,
    problems: range,
    *,
    seed: int,
    rank: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Attempt]:
    """Searches at problems, and writes to a folder what it finds; a search on record is not redone.

    Attempts are numbered as those of `collect_into`, `width` at each problem. What each search cost is written after
    its attempts, so `search.cost` counts all of them, those of earlier processes included.

    Args:
        folder: Folder where each process has its `attempts-<rank>.jsonl` and `searches-<rank>.jsonl`; `None` writes
            nothing.
        search: Search to run.
        problems: Numbers of the problems among those without skipped prompts, without gaps; those of different
            processes must not overlap.
        seed: Seed of the searches' random streams.
        rank: Rank of this process.
        on_step: Function that is called with the number of attempts that have just been found or read.
    """
    width, indices = search.width, search.env.indices(problems.stop)
    numbers = range(problems.start * width, problems.stop * width)
    recorded = None if folder is None else RecordedAttempts(folder, numbers, search.env)
    costs: dict[int, SearchCost] = {}
    for path in [] if folder is None else sorted(folder.glob("searches-*.jsonl")):
        found = read_jsonl(path, "problem", "policy_tokens", "judged_tokens")
        lines = (line for line in found if line["problem"] in problems)
        costs |= {line["problem"]: SearchCost(line["policy_tokens"], line["judged_tokens"]) for line in lines}

    def own(index: int) -> range:
        return range(index * width, (index + 1) * width)

    def is_known(index: int) -> bool:
        return recorded is not None and index in costs and all(number in recorded for number in own(index))

    for known, group in itertools.groupby(problems, is_known):
        part = list(group)
        results = None if known else search([indices[number] for number in part], seed)
        for index in part:
            if results is None:
                assert recorded is not None  # noqa: S101
                search.cost.add(costs[index])
                attempts = list(recorded.read(own(index)))
            else:
                found = next(results)
                attempts = [replace(one, number=number) for one, number in zip(found.attempts, own(index), strict=True)]
                if folder is not None:
                    with AttemptFile(folder / f"attempts-{rank}.jsonl") as file:
                        for one in attempts:
                            if recorded is None or one.number not in recorded:
                                file.write(one)
                    with LineFile(folder / f"searches-{rank}.jsonl") as file:
                        file.write({"problem": index, **asdict(found.cost)})
            if on_step is not None:
                on_step(width)
            yield from attempts
