"""Pairs of completions of one prompt, a better one and a worse one: what preferences are learned from."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ...arrays import FloatArray, IntArray
from ..rollouts.attempts import Attempt
from .learner import Example


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two completions of the same prompt.

    Attributes:
        chosen: Attempt that is right, or the better step.
        rejected: Attempt that is wrong, or the worse step.
        problem_id: Id of their problem.
    """

    chosen: Example
    rejected: Example
    problem_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Completions of one prompt, each with a label.

    Attributes:
        examples: N completions: attempts at a problem, or steps that follow the same beginning of attempts.
        labels: `[N]` labels between 0, bad, and 1, good.
        problem_id: Id of their problem.
        margin: Least difference between the labels of two completions that make a pair.
    """

    examples: list[Example]
    labels: FloatArray
    problem_id: str
    margin: float = 1.0

    @property
    def pairs(self) -> IntArray:
        """Indices `[P, 2]` of the better and the worse completion of each pair."""
        return np.argwhere(self.labels[:, None] - self.labels >= self.margin)


def make_pairs(attempts: Iterable[Attempt], key: Callable[[Attempt], str], per_problem: int, seed: int) -> list[Pair]:
    """Pairs of distinct right and distinct wrong attempts, drawn at random, problem by problem.

    Attempts that their token budget cut off are left out: their answer might have been right.

    Args:
        attempts: Attempts in any order.
        key: Two attempts at a problem with the same key are the same, and the first counts.
        per_problem: Largest number of pairs from one problem.
        seed: Seed of the draws.
    """
    groups: defaultdict[str, tuple[dict[str, Attempt], dict[str, Attempt]]] = defaultdict(lambda: ({}, {}))
    for attempt in attempts:
        if attempt.terminated:
            groups[attempt.problem.id][0 if attempt.is_success else 1].setdefault(key(attempt), attempt)
    pairs: list[Pair] = []
    rng = np.random.default_rng(seed)
    for problem_id, (right, wrong) in groups.items():
        chosen, rejected = list(right.values()), list(wrong.values())
        total = len(chosen) * len(rejected)
        for number in rng.permutation(total)[:per_problem].tolist():
            one, other = chosen[number // len(rejected)], rejected[number % len(rejected)]
            examples = Example(one.prompt, one.completion), Example(other.prompt, other.completion)
            pairs.append(Pair(*examples, problem_id))
    return pairs


def more_pairs(pool: str | None) -> str:
    """What may make a pair where attempts make none, for a message.

    Args:
        pool: Pool that the attempts are from; `None` if they are sampled.
    """
    if pool is None:
        return "raise samples_per_problem or temperature, or choose other problems"
    return f"read more of the pool {pool!r} by problems and samples_per_problem, or choose another pool"
