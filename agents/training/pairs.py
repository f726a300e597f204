"""Pairs of attempts at one problem, a right one and a wrong one: what preferences are learned from."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ..rollouts.attempts import Attempt
from .learner import Example


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two completions of the same prompt.

    Attributes:
        chosen: Attempt that is right.
        rejected: Attempt that is wrong.
        problem_id: Id of their problem.
    """

    chosen: Example
    rejected: Example
    problem_id: str


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
