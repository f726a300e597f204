"""Groups of attempts at the same problem, and dynamic sampling, which replaces those that teach nothing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .attempts import Attempt


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of attempts that were sampled to learn from.

    Attributes:
        batch: Attempts to learn from, K at each of N problems in a row.
        sampled: Attempts that were sampled, in order.
        uniform: Number of groups among the first N whose attempts were all paid the same.
        replaced: Number of those groups that later groups have replaced.
    """

    batch: list[Attempt]
    sampled: list[Attempt]
    uniform: int
    replaced: int


def sample_groups(
    collect: Callable[[range], Sequence[Attempt]],
    problems: int,
    size: int,
    rounds: int = 0,
    limit: float = math.inf,
) -> Groups:
    """Samples groups of attempts, and others for those of equal rewards: dynamic sampling (DAPO, Yu et al. 2025).

    Args:
        collect: Function that samples the attempts with some numbers, all at a problem in a row.
        problems: N.
        size: K, attempts at each problem.
        rounds: Largest number of times that further problems are sampled, as many as there are groups to replace.
        limit: Largest number of attempts in total.
    """
    sampled = list(collect(range(problems * size)))
    groups = _groups(sampled, size)
    uniform = [i for i, group in enumerate(groups) if is_uniform(group)]
    replaced = 0
    for _ in range(rounds):
        begun, wanted = len(sampled), len(uniform) - replaced
        if begun + wanted * size > limit:
            wanted = int(limit - begun) // size
        if wanted <= 0:
            break
        further = collect(range(begun, begun + wanted * size))
        sampled += further
        for group in _groups(further, size):
            if not is_uniform(group):
                groups[uniform[replaced]] = group
                replaced += 1
    return Groups([attempt for group in groups for attempt in group], sampled, len(uniform), replaced)


def is_uniform(group: Sequence[Attempt]) -> bool:
    """True if attempts were all paid the same, so that a group method learns nothing from them."""
    return len({attempt.total_reward for attempt in group}) == 1


def _groups(attempts: Sequence[Attempt], size: int) -> list[Sequence[Attempt]]:
    return [attempts[i : i + size] for i in range(0, len(attempts), size)]
