"""Pessimism about rewards that were learned from comparisons (Zhu, Jordan and Jiao 2023, arXiv 2301.11270).

A reward theta . phi that fits comparisons best may be far off for what they say little about, and whoever picks the
highest reward picks just these. So candidates are ranked by the least reward that the data leave possible: over all
theta in an ellipsoid around the fit, which is narrow in directions that were compared often.
"""

from collections.abc import Iterable

import numpy as np

from ..arrays import BoolArray, FloatArray


def comparison_covariance(groups: Iterable[tuple[FloatArray, BoolArray]]) -> tuple[FloatArray, int]:
    """Mean `[H, H]` of (a - b)(a - b)^T over all pairs of a right a and a wrong b of the same group, and their number.

    Args:
        groups: Features `[N, H]` of attempts at one problem, and `[N]` which of them are right.

    Raises:
        ValueError: No group has a pair.
    """
    total: FloatArray | None = None
    pairs = 0
    for features, is_right in groups:
        right, wrong = features[is_right], features[~is_right]
        if len(right) and len(wrong):
            across = np.outer(right.sum(0), wrong.sum(0))
            sums = len(wrong) * right.T @ right + len(right) * wrong.T @ wrong - across - across.T
            total = sums if total is None else total + sums
            pairs += len(right) * len(wrong)
    if total is None:
        raise ValueError(
            "there is no problem with both a right and a wrong attempt, so nothing was ever compared: give the "
            "attempts that the outcome model learned from"
        )
    return total / pairs, pairs


def lower_bounds(
    features: FloatArray, weights: FloatArray, covariance: FloatArray, ridge: float, radius: float
) -> FloatArray:
    """The least x . theta over theta with |theta - weights|_S <= radius, where S = covariance + ridge I.

    It is x . weights - radius |x|_(S^-1).

    Args:
        features: `[A, H]` vectors x, which are differences from a reference: rewards have no zero of their own.
        weights: `[H]` weights that fit the comparisons best.
        covariance: `[H, H]`, as `comparison_covariance` returns it.
        ridge: Number above 0 that keeps S invertible.
        radius: Radius of the ellipsoid; 0 is the plain reward.
    """
    solved = np.linalg.solve(covariance + ridge * np.eye(len(weights)), features.T).T
    return features @ weights - radius * np.sqrt((features * solved).sum(1).clip(min=0))


def confidence_radius(
    comparisons: int, dimension: int, ridge: float, *, failure: float = 0.1, curvature: float = 0.25, bound: float = 1.0
) -> float:
    """Radius sqrt((d + log 1/delta) / (gamma^2 n) + lambda B^2) of the ellipsoid of Lemma 3.1, its constant C being 1.

    Args:
        comparisons: Number n of comparisons.
        dimension: Number d of features.
        ridge: Lambda.
        failure: Chance delta that the true weights are outside, up to the constant.
        curvature: Gamma, 1 / (2 + exp(L B) + exp(-L B)) for features of norm L; at most 1/4.
        bound: Norm B of the weights.
    """
    return float(np.sqrt((dimension - np.log(failure)) / (curvature**2 * comparisons) + ridge * bound**2))
