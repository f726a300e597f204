"""Means over seeds and problems, paired differences, and what they decide.

Every system of a benchmark is run with the same seeds and evaluated on the same problems, so that a metric is a matrix,
`[S, P]` for S seeds and P problems, and a difference between two systems is the difference of their matrices. Seeds and
problems are both samples of what one wants to know about. The variance of the mean is estimated from both at once, by
the mean squares of the two-way layout with random effects (Searle, Casella & McCulloch, Variance Components, 1992,
chapter 4; the two-way clustering of Cameron, Gelbach & Miller, 2011, comes to the same), and the interval is Student's
t with Satterthwaite's degrees of freedom. `benchmarks.studies.interval_coverage` measures how often such intervals
cover, beside the bootstrap over seeds and problems, which covers too seldom with three seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray

LEVEL = 0.95
"""Coverage of intervals, and one less the error rate of a family of claims [choice]."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems, with what is known of its error.

    Attributes:
        mean: Mean over seeds and problems.
        error: Standard error of the mean over other seeds and other problems; over other problems alone with a single
            seed.
        degrees: Satterthwaite's degrees of freedom of that error.
        seeds: Number of seeds.
        problems: Number of problems.
        bounds: Least and greatest possible value, where the interval ends at the latest.
    """

    mean: float
    error: float
    degrees: float
    seeds: int
    problems: int
    bounds: tuple[float, float]

    @property
    def interval(self) -> tuple[float, float]:
        """The two-sided 95 % interval.

        Where nothing varies, as when all attempts are right, it is Wilson's of as many equal trials as there are
        problems, or for a difference as wide to both sides.
        """
        low, high = self.bounds
        if self.error == 0:
            z2 = _quantile(LEVEL, math.inf) ** 2
            half = z2 / (self.problems + z2)
        else:
            half = _quantile(LEVEL, self.degrees) * self.error
        return max(self.mean - half, low), min(self.mean + half, high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:.3f} [{low:.3f}, {high:.3f}]"

    def p_above(self, bound: float) -> float:
        """One-sided p-value of the claim that the mean is above `bound`: small where the data contradict the opposite.

        A single seed says nothing about other seeds: 1. So does data in which nothing varies.
        """
        return self._p_value(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value of the claim that the mean is below `bound`; see `p_above`."""
        return self._p_value(bound - self.mean)

    def _p_value(self, distance: float) -> float:
        """Chance of a distance at least as large where the true one is 0."""
        from scipy import stats

        if self.seeds < 2 or self.error == 0:
            return 1.0
        return float(stats.t.sf(distance / self.error, self.degrees))

    def power(self, effect: float) -> float:
        """Chance that the interval excludes a bound when the true mean is `effect` away from it.

        By the noncentral t distribution at the standard error found here; 0 where there is no interval over seeds.
        """
        from scipy import stats

        if self.seeds < 2 or self.error == 0:
            return 0.0
        return float(stats.nct.sf(_quantile(LEVEL, self.degrees), self.degrees, abs(effect) / self.error))


def crossed_mean(values: FloatArray, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """The mean of a metric, or of a difference of two on the same seeds and problems.

    Args:
        values: `[S, P]`, the metric of each seed at each problem.
        bounds: Least and greatest possible value.

    Raises:
        ValueError: There are no values, or one is not finite or out of bounds.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"need a matrix [S, P], got shape {values.shape}")
    if not values.size:
        raise ValueError("there is nothing to take a mean of")
    wrong = values[~((bounds[0] - 1e-9 <= values) & (values <= bounds[1] + 1e-9))]  # not a number is, too
    if wrong.size:
        raise ValueError(f"values must be between {bounds[0]} and {bounds[1]}, got {wrong[0]}")
    return _estimate(float(values.mean()), values, bounds)


def ratio_mean(numerators: FloatArray, denominators: FloatArray) -> Estimate:
    """A share, the ratio of two sums over the same seeds and problems, such as a mean over problems that have a value.

    Arguments are those of `ratio_difference`.

    Raises:
        ValueError: The share is of nothing, or not between 0 and 1.
    """
    return _estimate(*_share(numerators, denominators), (0.0, 1.0))


def ratio_difference(
    numerators: FloatArray, denominators: FloatArray, other_numerators: FloatArray, other_denominators: FloatArray
) -> Estimate:
    """The difference of two shares, each a ratio of sums over the same seeds and problems.

    The error is that of the mean of the linearized shares, (numerator - ratio * denominator) / mean denominator.

    Args:
        numerators: `[S, P]` of the first share.
        denominators: `[S, P]`, at least 0; where one is 0 its place has no part in the share.
        other_numerators: `[S, P]` of the share that is subtracted.
        other_denominators: `[S, P]` denominators of the other ratio.

    Raises:
        ValueError: A share is of nothing, or not between 0 and 1.
    """
    first, second = _share(numerators, denominators), _share(other_numerators, other_denominators)
    return _estimate(first[0] - second[0], first[1] - second[1], (-1.0, 1.0))


def _share(numerators: FloatArray, denominators: FloatArray) -> tuple[float, FloatArray]:
    """A ratio of sums, and its linearization at each seed and problem."""
    total = float(denominators.sum())
    if not total > 0:
        raise ValueError("there is nothing to take a share of")
    ratio = float(numerators.sum()) / total
    if not 0 <= ratio <= 1:  # not a number is not
        raise ValueError(f"a share must be between 0 and 1, got {ratio}")
    return ratio, (numerators - ratio * denominators) / denominators.mean()


def _estimate(mean: float, values: FloatArray, bounds: tuple[float, float]) -> Estimate:
    seeds, problems = values.shape
    return Estimate(min(max(mean, bounds[0]), bounds[1]), *_standard_error(values), seeds, problems, bounds)


def _standard_error(values: FloatArray) -> tuple[float, float]:
    """Standard error of the mean of `[S, P]` values with random effects of both, and its degrees of freedom.

    A mean square is subtracted that can exceed the sum of the others by chance; the variance is never taken to be less
    than what seeds alone, or problems alone, show.
    """
    seeds, problems = values.shape
    by_seed, by_problem = values.mean(1), values.mean(0)
    if seeds == 1:
        return (float(by_problem.std(ddof=1)) / math.sqrt(problems) if problems > 1 else 0.0), float(problems - 1)
    seed_square = problems * float(by_seed.var(ddof=1))
    problem_square = seeds * float(by_problem.var(ddof=1)) if problems > 1 else 0.0
    rest = values - by_seed[:, None] - by_problem + values.mean()
    rest_square = float(np.square(rest).sum()) / max(1, (seeds - 1) * (problems - 1))
    square = max(seed_square + problem_square - rest_square, seed_square, problem_square)
    if square <= 1e-24:
        return 0.0, float(seeds - 1)
    parts = (
        seed_square**2 / (seeds - 1)
        + problem_square**2 / max(1, problems - 1)
        + rest_square**2 / max(1, (seeds - 1) * (problems - 1))
    )
    return math.sqrt(square / values.size), max(square**2 / parts, 1.0)


def _quantile(level: float, degrees: float) -> float:
    """The t within which a share `level` of Student's distribution lies."""
    from scipy import stats

    return float(stats.norm.ppf((1 + level) / 2) if math.isinf(degrees) else stats.t.ppf((1 + level) / 2, degrees))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many claims are made at once, by Holm's step-down procedure (1979).

    Claims whose adjusted value is at most alpha contain a wrong one with probability at most alpha.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
