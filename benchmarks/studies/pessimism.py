"""Four arms on which the best fit of comparisons misleads and pessimism does not (Zhu et al. 2023, Theorem 3.9).

    python -m tokengym.benchmarks.studies.pessimism

Arms have the rewards 1/2, -1/2, 0 and 0. The first two were compared n - 1 times, the last two once. Whichever of these
won has no evidence against it, and the maximum-likelihood fit of Bradley and Terry's model thinks it the best, however
large n is. The lower bound of the reward, relative to the first arm, knows that it was never compared with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from ...arrays import FloatArray, IntArray
from ...models.pessimism import confidence_radius, lower_bounds
from ...settings import Count, CountOrZero, check_settings
from ..study import study_command

REWARDS = np.array([0.5, -0.5, 0.0, 0.0])
BOUND = 3.0


@dataclass(frozen=True)
class DataSizes:
    """Sizes of the data.

    Attributes:
        comparisons: Numbers of comparisons n.
        seeds: Seeds of the comparisons.
    """

    comparisons: tuple[Count, ...] = (10, 100, 1000, 10_000)
    seeds: tuple[CountOrZero, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.comparisons or not self.seeds:
            raise ValueError("nothing to run: comparisons and seeds need at least one value each")


def compare(comparisons: int, rng: np.random.Generator) -> IntArray:
    """Draws n comparisons, `[n, 2]`: winners and losers."""
    pairs = np.array([(0, 1)] * (comparisons - 1) + [(2, 3)])
    chance = 1 / (1 + np.exp(REWARDS[pairs[:, 1]] - REWARDS[pairs[:, 0]]))
    return np.where(rng.random(comparisons)[:, None] < chance[:, None], pairs, pairs[:, ::-1])


def fit(comparisons: IntArray, arms: int, bound: float) -> FloatArray:
    """Rewards `[arms]` of sum 0 and norm at most `bound` that make comparisons most likely (Bradley and Terry 1952)."""
    from scipy.optimize import minimize

    unique, counts = np.unique(comparisons, axis=0, return_counts=True)

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        margins = theta[unique[:, 0]] - theta[unique[:, 1]]
        slopes = -counts / (1 + np.exp(margins))
        gradient = np.zeros(arms)
        np.add.at(gradient, unique[:, 0], slopes)
        np.add.at(gradient, unique[:, 1], -slopes)
        return float((counts * np.logaddexp(0, -margins)).sum()) / len(comparisons), gradient / len(comparisons)

    limits = [
        {"type": "eq", "fun": np.sum, "jac": np.ones_like},
        {"type": "ineq", "fun": lambda theta: bound**2 - theta @ theta, "jac": lambda theta: -2 * theta},
    ]
    options = {"maxiter": 1000, "ftol": 1e-14}
    return minimize(loss, np.zeros(arms), jac=True, method="SLSQP", constraints=limits, options=options).x


def suboptimality(comparisons: int, seed: int) -> tuple[float, float]:
    """Reward of the best arm less that of the arm that the fit chooses, and less that of the lower bound's choice."""
    found = compare(comparisons, np.random.default_rng(seed))
    arms, theta = np.eye(len(REWARDS)), fit(found, len(REWARDS), BOUND)
    differences = arms[found[:, 0]] - arms[found[:, 1]]
    covariance, ridge = differences.T @ differences / comparisons, 1 / comparisons
    radius = confidence_radius(comparisons, len(REWARDS), ridge, bound=BOUND)
    bounds = lower_bounds(arms - arms[0], theta, covariance, ridge, radius)
    return REWARDS.max() - REWARDS[theta.argmax()], REWARDS.max() - REWARDS[bounds.argmax()]


def run(experiment: DataSizes) -> dict[int, FloatArray]:
    """Suboptimality of both choices, means over seeds, by number of comparisons."""
    return {
        count: np.mean([suboptimality(count, seed) for seed in experiment.seeds], axis=0)
        for count in experiment.comparisons
    }


def table(results: Mapping[int, FloatArray]) -> Table:
    """One row for each number of comparisons."""
    grid = Table("comparisons", "best fit", "lower bound", title="suboptimality", box=SIMPLE, show_edge=False)
    for count, means in results.items():
        grid.add_row(f"{count:,}", *(f"{value:.2f}" for value in means))
    return grid


if __name__ == "__main__":
    study_command(DataSizes, run, table, width=100)
