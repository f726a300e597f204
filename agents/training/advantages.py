"""Estimators of how much better an attempt or a token was than could be expected: pure functions on arrays."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...arrays import FloatArray, IntArray
from ..configs.grpo import Aggregation, Scale

# What the public implementations of GRPO add to the standard deviation (TRL).
STD_EPSILON = 1e-4

# What Stable-Baselines3 adds to it.
WHITEN_EPSILON = 1e-8


def mean_baseline(returns: FloatArray) -> FloatArray:
    """Returns minus the mean over the whole batch.

    The baseline holds each attempt's own return, so with B attempts the expected gradient is (B-1)/B of the true one.

    Args:
        returns: Returns, of any shape.
    """
    return returns - returns.mean()


def leave_one_out(returns: FloatArray) -> FloatArray:
    """Returns minus the mean return of the *other* attempts at the same problem (RLOO, Kool et al. 2019): unbiased.

    Args:
        returns: `[N, K]` returns, K attempts at each of N problems.

    Raises:
        ValueError: K is below 2.
    """
    size = _group_size(returns)
    return group_advantages(returns, "none") * (size / (size - 1))


def group_advantages(returns: FloatArray, scale: Scale) -> FloatArray:
    """Returns minus their group's mean, over a standard deviation if wanted (GRPO, Shao et al. 2024).

    Without the division the expected gradient is (K-1)/K of the true one (Dr. GRPO, Liu et al. 2025). Over the group's
    standard deviation, problems of middling difficulty, where returns vary most, weigh less; over that of the batch all
    weigh the same (Liu et al. 2025b, "Lite PPO"). A group of equal returns has advantages of exactly 0.

    Args:
        returns: `[N, K]` returns, K attempts at each of N problems.
        scale: Groups whose standard deviation plus 1e-4 divides the advantages: each "group" or the whole "batch" (with
            one less in the denominator, as for a sample); "none" does not divide.

    Raises:
        ValueError: K is below 2.
    """
    _group_size(returns)
    advantages = returns - returns.mean(1, keepdims=True)
    if scale == "group":
        advantages /= returns.std(1, ddof=1, keepdims=True) + STD_EPSILON
    elif scale == "batch":
        advantages /= returns.std(ddof=1) + STD_EPSILON
    return np.where(uniform_groups(returns)[:, None], 0.0, advantages)


AGGREGATIONS: dict[Aggregation, Callable[[IntArray, float], FloatArray]] = {
    "attempts": lambda lengths, constant: 1 / (len(lengths) * np.maximum(lengths, 1)),
    "tokens": lambda lengths, constant: np.full(len(lengths), 1 / max(lengths.sum(), 1)),
    "constant": lambda lengths, constant: np.full(len(lengths), 1 / (len(lengths) * constant)),
}
"""Weights `[A]` in a loss of each token of A attempts, from their lengths `[A]`, 0 for attempts that are masked.

By name: "attempts", the mean over attempts of the mean over each one's tokens (GRPO); "tokens", the mean over all
tokens of the batch (DAPO); "constant", the sum over tokens divided by the attempts and a constant (Dr. GRPO).
"""


def overlong_penalty(lengths: IntArray, limit: int, buffer: int) -> FloatArray:
    """Penalties `[A]`, 0 to -1, of attempts that end in the last `buffer` tokens before the limit.

    The soft overlong punishment of DAPO (Yu et al. 2025) falls in a line, from 0 at `limit - buffer` tokens to -1 at
    the limit.

    Args:
        lengths: `[A]` tokens of each attempt, at most `limit`.
        limit: Largest number of tokens of an attempt.
        buffer: Tokens, 1 to `limit`, over which the penalty grows.
    """
    return np.minimum((limit - buffer - lengths) / buffer, 0.0)


def uniform_groups(returns: FloatArray) -> NDArray[np.bool_]:
    """Bool `[N]`, true for groups of returns `[N, K]` that are all equal, which teach a group method nothing."""
    return returns.min(1) == returns.max(1)


def generalized_advantages(
    rewards: FloatArray, values: FloatArray, mask: NDArray[np.bool_], gamma: float, gae_lambda: float
) -> FloatArray:
    """A_t = delta_t + gamma lambda A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t (GAE, Schulman et al. 2016).

    Behind an attempt's last token nothing is expected, whether it ended by itself or by its token budget: V = A = 0.

    Args:
        rewards: `[B, T]` reward of each token.
        values: `[B, T]` value before each token.
        mask: `[B, T]` bool, true at each attempt's tokens, which come first in its row; the rest may hold anything.
        gamma: Discount factor of rewards.
        gae_lambda: GAE lambda: 1 gives the return minus the value, 0 the one-step TD error.

    Returns:
        `[B, T]`, 0 outside the mask.
    """
    rewards, values = np.where(mask, rewards, 0.0), np.where(mask, values, 0.0)
    advantages = np.zeros_like(rewards)
    following, value = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = rewards[:, t] + gamma * value - values[:, t] + gamma * gae_lambda * following
        value = values[:, t]
        advantages[:, t] = following
    return advantages


def whiten(values: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """Values `[B, T]` with mean 0 and variance 1 over the mask, and 0 outside; one value alone is left as it is."""
    chosen = values[mask]
    if len(chosen) < 2:
        return np.where(mask, values, 0.0)
    return np.where(mask, (values - chosen.mean()) / (chosen.std(ddof=1) + WHITEN_EPSILON), 0.0)


def explained_variance(values: FloatArray, returns: FloatArray) -> float:
    """1 - Var(returns - values) / Var(returns), of values `[A]` and returns `[A]`; NaN where returns do not vary."""
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if variance else float("nan")


def adapted_kl_coef(coef: float, divergence: float, target: float, attempts: int, horizon: int) -> float:
    """The next weight of a KL penalty that aims at a divergence (Ziegler et al. 2019).

    Args:
        coef: Weight of the KL penalty so far.
        divergence: KL to the initial policy of the newest attempts, in nats per attempt.
        target: Target of the divergence.
        attempts: Number of attempts that it was measured on.
        horizon: Attempts over which the weight may change by a factor of about e^0.2.
    """
    error = min(max(divergence / target - 1, -0.2), 0.2)
    return coef * (1 + error * attempts / horizon)


def _group_size(returns: FloatArray) -> int:
    if returns.ndim != 2 or returns.shape[1] < 2:
        raise ValueError(f"attempts are compared within groups of at least 2 at one problem, got shape {returns.shape}")
    return returns.shape[1]
