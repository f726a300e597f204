"""Discrimination and calibration of scores for two classes."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...arrays import FloatArray


class Bin(NamedTuple):
    """Scores of one interval beside what they predict.

    Attributes:
        low, high: Bounds of the interval, which includes `low` and, only in the last one, `high`.
        size: Number of scores in the interval.
        mean_score: Mean of the scores; `None` without any.
        positives: Share of positives among the scores; `None` without any.
    """

    low: float
    high: float
    size: int
    mean_score: float | None
    positives: float | None


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    It is the Mann-Whitney statistic over all pairs, exact, by ranks.

    Args:
        scores: `[A]` finite numbers.
        labels: `[A]`, true for positives.

    Returns:
        NaN where there are no positives or no negatives.
    """
    scores, labels = _checked(scores, labels)
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    if not pairs:
        return float("nan")
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]  # from 1; equal scores share the mean of theirs
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / pairs)


def grouped_auc(scores: ArrayLike, labels: ArrayLike, groups: Sequence[Hashable]) -> tuple[float, int]:
    """Mean over groups of the area under the ROC curve inside each, every group counting the same.

    It says how well scores choose among the attempts at one problem, where the AUC of all attempts together also
    rewards knowing which problems are hard. Averages in retrieval are taken over queries in the same way; with equally
    large groups it is the group AUC (GAUC) of Zhu et al. 2017, which weighs groups by their size.

    Args:
        scores: `[A]` finite numbers.
        labels: `[A]`, true for positives.
        groups: `[A]` group of each score, such as the id of its problem.

    Returns:
        The mean, NaN where no group has both positives and negatives, and the number of groups that have both.
    """
    scores, labels = _checked(scores, labels)
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    inside = np.array([auc(scores[rows], labels[rows]) for rows in members.values()])
    inside = inside[~np.isnan(inside)]
    return (float(inside.mean()) if len(inside) else float("nan")), len(inside)


def accuracy(scores: ArrayLike, labels: ArrayLike) -> float:
    """Share of scores that are above 0.5 just where the label is positive; NaN without any."""
    scores, labels = _checked(scores, labels)
    return float(((scores > 0.5) == labels).mean()) if len(labels) else float("nan")


def calibration(scores: ArrayLike, labels: ArrayLike, bins: int = 10) -> list[Bin]:
    """Probabilities in intervals of equal width, beside the share of positives in each.

    Args:
        scores: `[A]` probabilities.
        labels: `[A]`, true for positives.
        bins: Number of intervals.
    """
    scores, labels = _checked(scores, labels)
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    table: list[Bin] = []
    for i in range(bins):
        inside = index == i
        means = (float(scores[inside].mean()), float(labels[inside].mean())) if inside.any() else (None, None)
        table.append(Bin(i / bins, (i + 1) / bins, int(inside.sum()), *means))
    return table


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between mean score and share of positives over bins, weighted by count (Guo et al. 2017)."""
    total = sum(item.size for item in bins)
    gaps = [
        item.size * abs(item.mean_score - item.positives)
        for item in bins
        if item.mean_score is not None and item.positives is not None
    ]
    return sum(gaps) / total if total else float("nan")


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    if values.shape != truth.shape or values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"need finite scores and labels [A], got shapes {values.shape} and {truth.shape}")
    return values, truth
