"""The four arms of Zhu et al. 2023: the best fit is wrong at every size of the data, and the lower bound right."""

import numpy as np
import pytest

from tokengym.benchmarks.studies.pessimism import BOUND, fit, suboptimality


@pytest.mark.parametrize("comparisons", [10, 100, 1000, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_misled_for_ever_and_the_bound_is_not(comparisons: int, seed: int) -> None:
    assert suboptimality(comparisons, seed) == (0.5, 0.0)


def test_the_fit_is_the_logit_of_wins_and_stays_within_its_bound() -> None:
    theta = fit(np.array([(0, 1)] * 30 + [(1, 0)] * 10), 2, BOUND)
    np.testing.assert_allclose(theta, [np.log(3) / 2, -np.log(3) / 2], atol=1e-5)
    theta = fit(np.array([(0, 1)]), 2, BOUND)
    np.testing.assert_allclose(theta, [BOUND / np.sqrt(2), -BOUND / np.sqrt(2)], atol=1e-5)
