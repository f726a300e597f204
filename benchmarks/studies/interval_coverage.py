"""Coverage of intervals over seeds and problems, by simulation: ours, and the bootstrap over both.

`python -m tokengym.benchmarks.studies.interval_coverage` prints a table. Tables are drawn without a true difference
between two systems: problems differ in difficulty, seeds in how well training went, and both meet by chance.
"""

import argparse
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from ...arrays import FloatArray
from ...exits import exit_status
from ..statistics import LEVEL, crossed_mean

RESAMPLES = 1000


def draw(rng: np.random.Generator, seeds: int, problems: int, spread: float) -> FloatArray:
    """Differences `[S, P]` between two systems that are equally good.

    An attempt is right with the logistic function of the problem's difficulty (standard deviation 2), the seed's
    effect on the system, the problem's (0.5) and that of seed and problem together (0.8).

    Args:
        rng: Random stream.
        seeds: S.
        problems: P.
        spread: Standard deviation of the seeds' effects, in logits; 0.2 moves an accuracy of one half by 0.05 at most
            in two of three seeds.
    """
    difficulty = rng.normal(0, 2, problems)

    def system() -> FloatArray:
        logits = difficulty + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.5, problems)
        logits = logits + rng.normal(0, 0.8, (seeds, problems))
        return (rng.random((seeds, problems)) < 1 / (1 + np.exp(-logits))).astype(np.float64)

    return system() - system()


def bootstrap_interval(rng: np.random.Generator, values: FloatArray) -> tuple[float, float]:
    """Percentile interval of the mean when seeds and problems are drawn again, both with replacement."""
    seeds, problems = values.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    by_problem = rng.multinomial(problems, np.full(problems, 1 / problems), RESAMPLES) / problems
    means = np.einsum("rs,sp,rp->r", by_seed, values, by_problem, optimize=True)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def coverage(seeds: int, problems: int, spread: float, trials: int) -> dict[str, tuple[float, float]]:
    """Share of trials in which an interval holds 0, and its mean width, by kind of interval."""
    rng = np.random.default_rng(0)
    held = {"seeds and problems, t": [0, 0.0], "bootstrap of both": [0, 0.0]}
    for _ in range(trials):
        values = draw(rng, seeds, problems, spread)
        found = (crossed_mean(values, (-1.0, 1.0)).interval, bootstrap_interval(rng, values))
        for sums, (low, high) in zip(held.values(), found, strict=True):
            sums[0] += low <= 0 <= high
            sums[1] += high - low
    return {name: (covered / trials, width / trials) for name, (covered, width) in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    title = f"coverage (mean width) of 95 % intervals, {trials} simulated tables each"
    table = Table("seeds", "problems", "spread", "seeds and problems, t", "bootstrap of both", title=title)
    for seeds in (3, 5):
        for problems in (200, 1000):
            for spread in (0.05, 0.15, 0.3):
                found = coverage(seeds, problems, spread, trials)
                cells = (f"{share:.3f} ({width:.3f})" for share, width in found.values())
                table.add_row(str(seeds), str(problems), str(spread), *cells)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
