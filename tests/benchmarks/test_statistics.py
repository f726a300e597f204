"""Estimates over seeds and problems: by hand, against scipy, and by how often their intervals cover."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokengym.benchmarks.statistics import Estimate, crossed_mean, holm, ratio_difference
from tokengym.benchmarks.studies.interval_coverage import draw


def test_one_problem_is_students_t_over_seeds() -> None:
    values = np.array([[0.1], [0.2], [0.3]])
    estimate = crossed_mean(values)
    assert (estimate.mean, estimate.degrees) == pytest.approx((0.2, 2))
    # Mean 0.2, standard deviation 0.1, t of two degrees 4.3027.
    assert estimate.error == pytest.approx(0.1 / math.sqrt(3))
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert estimate.interval == (0.0, pytest.approx(0.2 + half, abs=1e-5))
    wide = crossed_mean(values, (-1.0, 1.0))
    assert wide.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    result = stats.ttest_1samp(values[:, 0], 0.05, alternative="greater")
    assert estimate.p_above(0.05) == pytest.approx(result.pvalue)
    assert estimate.p_below(0.05) == pytest.approx(1 - result.pvalue)


def test_equal_seeds_are_a_sample_of_problems_alone() -> None:
    one = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    estimate = crossed_mean(np.tile(one, (4, 1)))
    assert estimate.error == pytest.approx(one.std(ddof=1) / math.sqrt(5))
    assert estimate.degrees == pytest.approx(4)
    assert crossed_mean(one[None]).error == pytest.approx(estimate.error)


def test_components_by_hand() -> None:
    values = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    # Means by seed 2/3 and 1/3, by problem 1/2, 0 and 1; mean squares: 3 * 1/18, 2 * 1/4, and for the rest 1/6.
    estimate = crossed_mean(values)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.error == pytest.approx(math.sqrt((1 / 6 + 1 / 2 - 1 / 6) / 6))
    assert estimate.degrees == pytest.approx(0.25 / (1 / 36 + 0.25 / 2 + 1 / 36 / 2))


def test_shares_are_linearized() -> None:
    rng = np.random.default_rng(0)
    ones, zeros = np.ones((4, 50)), np.zeros((4, 50))
    # With equal denominators a share is a mean.
    values, others = rng.random((2, 4, 50))
    found, mean = ratio_difference(2 * values, 2 * ones, others, ones), crossed_mean(values - others, (-1.0, 1.0))
    assert (found.mean, found.error, found.degrees) == pytest.approx((mean.mean, mean.error, mean.degrees))
    # The error is that of drawing the table again: here of 2,000 independent tables, with half the places empty.
    drawn: list[Estimate] = []
    for _ in range(2000):
        denominators = rng.integers(0, 4, (4, 50)).astype(float)
        drawn.append(ratio_difference(rng.binomial(denominators.astype(int), 0.3), denominators, zeros, ones))
    assert np.mean([one.mean for one in drawn]) == pytest.approx(0.3, abs=0.002)
    assert np.std([one.mean for one in drawn]) == pytest.approx(np.sqrt(np.mean([one.error**2 for one in drawn])), 0.2)
    with pytest.raises(ValueError, match="nothing to take a share of"):
        ratio_difference(zeros, zeros, ones, ones)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 2\.0"):
        ratio_difference(2 * ones, ones, ones, ones)


def test_shares_of_zero_and_one_have_intervals_and_decide_nothing() -> None:
    certain = crossed_mean(np.ones((3, 50)))
    # Wilson's interval of 50 of 50: n / (n + z^2).
    assert certain.interval == (pytest.approx(50 / (50 + 1.959964**2), abs=1e-6), 1.0)
    assert (certain.p_above(0.5), certain.p_below(0.5), certain.power(0.1)) == (1.0, 1.0, 0.0)
    none = crossed_mean(np.zeros((3, 50)), (-1.0, 1.0))
    assert none.interval == pytest.approx((-0.07135, 0.07135), abs=1e-5)


def test_a_single_seed_says_nothing_about_others() -> None:
    one = crossed_mean(np.array([[0.0, 1.0, 1.0, 1.0]]))
    assert one.p_above(0.0) == one.p_below(1.0) == 1.0
    assert one.power(1.0) == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 3), np.nan), "values must be between 0.0 and 1.0, got nan"),
        (np.array([[2.0, -1.0]]), "values must be between 0.0 and 1.0, got 2.0"),  # though their mean is a share
        (np.array([[0.5, np.inf]]), "values must be between 0.0 and 1.0, got inf"),
        (np.ones(3), "need a matrix"),
        (np.ones((0, 3)), "nothing to take"),
    ],
)
def test_values_that_are_none(values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_mean(values)


def test_a_small_p_value_is_not_rounded_to_nothing() -> None:
    estimate = Estimate(-0.5, 0.01, 200.0, 3, 100, (-1.0, 1.0))
    assert 0 < estimate.p_below(0.0) < 1e-100
    assert estimate.p_below(0.0) == Estimate(0.5, 0.01, 200.0, 3, 100, (-1.0, 1.0)).p_above(0.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_mean_is_in_its_interval_and_both_are_shares(rows: list[list[float]]) -> None:
    values = np.array(rows)
    estimate = crossed_mean(values)
    low, high = estimate.interval
    assert estimate.mean == pytest.approx(values.mean())
    assert 0 <= low <= estimate.mean <= high <= 1
    assert low < high
    # Neither the order of seeds nor that of problems matters.
    other = crossed_mean(values[::-1, ::-1])
    assert (other.error, other.degrees) == pytest.approx((estimate.error, estimate.degrees))


def test_an_estimate_in_words_is_its_mean_and_interval() -> None:
    assert str(crossed_mean(np.ones((3, 100)))) == "1.000 [0.963, 1.000]"  # Wilson's bound, 100 / (100 + 1.96^2)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("seeds", "problems", "spread"), [(3, 60, 0.1), (3, 150, 0.4), (5, 100, 0.2)])
def test_intervals_cover(seeds: int, problems: int, spread: float) -> None:
    """Of 600 drawn tables without a true difference, at least 92.5 % of the intervals hold 0."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        low, high = crossed_mean(draw(rng, seeds, problems, spread), (-1.0, 1.0)).interval
        held += low <= 0 <= high
    assert held / 600 >= 0.925


def test_power_is_what_simulation_finds() -> None:
    rng, effect = np.random.default_rng(0), 0.08
    excluded, predicted = 0, 0.0
    for _ in range(400):
        values = draw(rng, 5, 100, 0.2)
        estimate = crossed_mean(values, (-1.0, 1.0))
        predicted += estimate.power(effect) / 400
        excluded += estimate.interval[0] > -effect
    assert predicted == pytest.approx(excluded / 400, abs=0.1)
    assert 0.2 < predicted < 0.9


def test_an_estimate_has_no_power_without_an_effect() -> None:
    estimate = Estimate(0.0, 0.02, 10.0, 3, 100, (-1.0, 1.0))
    assert estimate.power(0.0) == pytest.approx(0.025, abs=1e-4)
    assert estimate.power(0.2) > 0.999


def test_the_variance_is_never_below_what_problems_alone_or_seeds_alone_show() -> None:
    values = np.array([[1.0, 0.0], [0.2, 0.9]])  # nearly all is of the pairs of seed and problem
    for matrix in (values, values.T):
        assert crossed_mean(matrix).error == pytest.approx(0.075)  # half the distance of the means 0.6 and 0.45
