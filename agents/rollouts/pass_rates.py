"""Pass rates of problems, and the choice of problems by them before training."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...envs.problems.base import ProblemSource
from .attempts import Attempt

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PassRates:
    """Shares of attempts at each problem that were correct.

    Attributes:
        rates: Pass rate of each problem, by its id.
        attempts: Attempts at each problem.
    """

    rates: Mapping[str, float]
    attempts: int

    @classmethod
    def of(cls, attempts: Sequence[Attempt], samples: int) -> "PassRates":
        """The pass rates of attempts, `samples` at each problem."""
        successes: dict[str, int] = {}
        for attempt in attempts:
            successes[attempt.problem.id] = successes.get(attempt.problem.id, 0) + attempt.is_success
        return cls({problem: count / samples for problem, count in successes.items()}, samples)

    def between(self, low: float | None, high: float | None, problems: ProblemSource) -> list[int]:
        """Indices of the problems whose pass rates lie within bounds, those included.

        Args:
            low: Least pass rate; `None` sets no bound.
            high: Largest pass rate; `None` sets no bound.
            problems: Source that has the problems at its first indices, maybe with others between them.

        Raises:
            ValueError: No problem is left.
        """
        low, high = 0.0 if low is None else low, 1.0 if high is None else high
        rates = np.array(list(self.rates.values()))
        if not ((rates >= low) & (rates <= high)).any():
            raise ValueError(
                f"none of {len(rates)} problems has a pass rate from {low:g} to {high:g} in {self.attempts} attempts: "
                f"{(rates == 0).sum()} were never solved, {(rates == 1).sum()} always, and the mean is "
                f"{rates.mean():.3f}. Widen min_pass_rate and max_pass_rate, raise pass_rate_problems or "
                "pass_rate_attempts, or choose other problems"
            )
        kept, left, index = [], len(rates), 0
        while left:
            rate = self.rates.get(problems[index].id)
            if rate is not None:
                left -= 1
                if low <= rate <= high:
                    kept.append(index)
            index += 1
        return kept
