"""Estimators of how much better an attempt was than could be expected: pure functions on arrays of returns."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# What the public implementations of GRPO add to the standard deviation (TRL).
STD_EPSILON = 1e-4


def mean_baseline(returns: FloatArray) -> FloatArray:
    """Returns minus the mean over the whole batch.

    The baseline holds each attempt's own return, so with B attempts the expected gradient is (B-1)/B of the true one.

    Args:
        returns: of any shape.
    """
    return returns - returns.mean()


def leave_one_out(returns: FloatArray) -> FloatArray:
    """Returns minus the mean return of the *other* attempts at the same problem (RLOO, Kool et al. 2019): unbiased.

    Args:
        returns: `[N, K]`, K attempts at each of N problems.

    Raises:
        ValueError: K is below 2.
    """
    size = _group_size(returns)
    return group_advantages(returns, scale_by_std=False) * (size / (size - 1))


def group_advantages(returns: FloatArray, scale_by_std: bool) -> FloatArray:
    """Returns minus their group's mean, over its standard deviation if wanted (GRPO, Shao et al. 2024).

    Without the division the expected gradient is (K-1)/K of the true one; with it, problems of middling difficulty,
    where returns vary most, weigh less. A group of equal returns has advantages of exactly 0.

    Args:
        returns: `[N, K]`, K attempts at each of N problems.
        scale_by_std: divide by the standard deviation (of a sample: K-1 in the denominator) plus 1e-4.

    Raises:
        ValueError: K is below 2.
    """
    _group_size(returns)
    advantages = returns - returns.mean(1, keepdims=True)
    if scale_by_std:
        advantages /= returns.std(1, ddof=1, keepdims=True) + STD_EPSILON
    return np.where(uniform_groups(returns)[:, None], 0.0, advantages)


def uniform_groups(returns: FloatArray) -> NDArray[np.bool_]:
    """Which groups `[N]` of returns `[N, K]` are all equal, and so have nothing to tell a group method."""
    return returns.min(1) == returns.max(1)


def _group_size(returns: FloatArray) -> int:
    if returns.ndim != 2 or returns.shape[1] < 2:
        raise ValueError(f"attempts are compared within groups of at least 2 at one problem, got shape {returns.shape}")
    return returns.shape[1]
