"""Measures of classifiers against their definitions: all pairs, and bins filled by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.agents.evaluation.classification import (
    accuracy,
    auc,
    calibration,
    expected_calibration_error,
    grouped_auc,
)

# Few distinct scores, so that there are ties.
JUDGED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), max_size=30)


@given(JUDGED)
def test_auc_equals_the_count_over_all_pairs_ties_half(judged: list[tuple[float, bool]]) -> None:
    positives = [score for score, label in judged if label]
    negatives = [score for score, label in judged if not label]
    found = auc([score for score, _ in judged], [label for _, label in judged])
    if not positives or not negatives:
        assert math.isnan(found)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    assert found == pytest.approx(wins / (len(positives) * len(negatives)), abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), max_size=30))
def test_auc_within_groups_is_the_mean_of_pairs_in_each(judged: list[tuple[str, float, bool]]) -> None:
    expected = []
    for name in "abc":
        good = [score for group, score, label in judged if group == name and label]
        bad = [score for group, score, label in judged if group == name and not label]
        if good and bad:
            expected.append(np.mean([(p > n) + 0.5 * (p == n) for p in good for n in bad]))
    names, scores, labels = zip(*judged, strict=True) if judged else ((), (), ())
    found, count = grouped_auc(scores, labels, names)
    assert count == len(expected)
    assert found == pytest.approx(np.mean(expected), abs=1e-12) if expected else math.isnan(found)


def test_knowing_the_problem_alone_is_worth_nothing_within_it() -> None:
    """Scores that are each problem's share of correct attempts: good overall, a coin among attempts at one."""
    labels = [True, True, False, False, False, True]
    scores, groups = [2 / 3] * 3 + [1 / 3] * 3, ["easy"] * 3 + ["hard"] * 3
    assert auc(scores, labels) == pytest.approx(2 / 3)
    assert grouped_auc(scores, labels, groups) == (0.5, 2)


@given(JUDGED, st.integers(1, 12))
def test_bins_hold_every_score_once_in_its_interval(judged: list[tuple[float, bool]], bins: int) -> None:
    scores, labels = [score for score, _ in judged], [label for _, label in judged]
    table = calibration(scores, labels, bins)
    assert len(table) == bins
    for i, item in enumerate(table):
        inside = [j for j, s in enumerate(scores) if item.low <= s < item.high or (i == bins - 1 and s == 1)]
        assert item.size == len(inside)
        if inside:
            assert item.mean_score == pytest.approx(np.mean([scores[j] for j in inside]))
            assert item.positives == pytest.approx(np.mean([labels[j] for j in inside]))
        else:
            assert item.mean_score is item.positives is None
    assert sum(item.size for item in table) == len(judged)
    assert math.isnan(expected_calibration_error(table)) == (not judged)


def test_calibration_error_by_hand() -> None:
    scores, labels = [0.1, 0.3, 0.9, 0.8, 0.6], [False, True, True, True, False]
    low, high = calibration(scores, labels, 2)
    assert (low.size, low.mean_score, low.positives) == (2, pytest.approx(0.2), 0.5)
    assert (high.size, high.positives) == (3, pytest.approx(2 / 3))
    expected = 2 / 5 * abs(0.2 - 0.5) + 3 / 5 * abs((0.9 + 0.8 + 0.6) / 3 - 2 / 3)
    assert expected_calibration_error([low, high]) == pytest.approx(expected)
    assert expected_calibration_error(calibration([0.0, 1.0, 1.0], [False, True, True])) == 0


def test_accuracy_is_at_a_threshold_of_one_half() -> None:
    assert accuracy([0.4, 0.6, 0.5, 0.9], [False, True, True, False]) == 0.5
    assert math.isnan(accuracy([], []))


@pytest.mark.parametrize("measure", [auc, accuracy, calibration])
@pytest.mark.parametrize(("scores", "labels"), [([0.1], [True, False]), ([float("nan")], [True]), ([[0.1]], [[True]])])
def test_what_cannot_be_measured_is_an_error(measure, scores, labels) -> None:
    with pytest.raises(ValueError, match="finite scores and labels"):
        measure(scores, labels)
