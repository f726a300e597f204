"""Estimators of advantages equal their definitions in a loop, and other libraries' on the same numbers."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import explained_variance as sb3_explained_variance

from tokengym.agents.training.advantages import (
    AGGREGATIONS,
    STD_EPSILON,
    adapted_kl_coef,
    explained_variance,
    generalized_advantages,
    group_advantages,
    leave_one_out,
    mean_baseline,
    overlong_penalty,
    uniform_groups,
    whiten,
)

groups_of_returns = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.floats(-10, 10, width=32), min_size=k, max_size=k), min_size=1, max_size=5)
).map(np.array)  # fmt: skip


@given(groups_of_returns)
def test_advantages_equal_their_definitions_in_a_loop(returns) -> None:
    rloo, plain, scaled = (
        leave_one_out(returns),
        group_advantages(returns, "none"),
        group_advantages(returns, "group"),
    )
    batch = group_advantages(returns, "batch")
    everything = [value for group in returns.tolist() for value in group]
    middle = sum(everything) / len(everything)
    spread = (sum((value - middle) ** 2 for value in everything) / (len(everything) - 1)) ** 0.5
    for n, group in enumerate(returns.tolist()):
        mean = sum(group) / len(group)
        deviation = (sum((value - mean) ** 2 for value in group) / (len(group) - 1)) ** 0.5
        for k, value in enumerate(group):
            others = group[:k] + group[k + 1 :]
            assert rloo[n, k] == pytest.approx(value - sum(others) / len(others), abs=1e-9)
            assert plain[n, k] == pytest.approx(value - mean, abs=1e-9)
            assert scaled[n, k] == pytest.approx((value - mean) / (deviation + STD_EPSILON), rel=1e-6, abs=1e-6)
            assert batch[n, k] == pytest.approx((value - mean) / (spread + STD_EPSILON), rel=1e-6, abs=1e-6)
    assert mean_baseline(returns).sum() == pytest.approx(0, abs=1e-9)


def test_a_group_of_equal_returns_says_nothing_at_all() -> None:
    returns = np.array([[0.1] * 3, [0.1, 0.1, 0.2]])
    assert uniform_groups(returns).tolist() == [True, False]
    for advantages in (
        leave_one_out(returns),
        *(group_advantages(returns, scale) for scale in ("group", "batch", "none")),
    ):
        assert advantages[0].tolist() == [0, 0, 0]
        assert (advantages[1] != 0).all()
    for estimator in (leave_one_out, lambda returns: group_advantages(returns, "group")):
        with pytest.raises(ValueError, match="groups of at least 2"):
            estimator(np.ones((4, 1)))


def test_what_is_added_to_a_standard_deviation_is_a_ten_thousandth() -> None:
    returns = np.array([[0.0, 2e-4]])  # deviate by sqrt(2) ten-thousandths
    for scale in ("group", "batch"):
        assert group_advantages(returns, scale)[0] == pytest.approx(np.array([-1, 1]) / (1 + 2**0.5))


def test_tokens_weigh_what_each_aggregation_says() -> None:
    lengths, values = np.array([3, 0, 2, 5]), np.random.default_rng(0).normal(size=(4, 5))  # the second is masked
    averages = {
        "attempts": sum(sum(row[:n]) / n for row, n in zip(values, lengths, strict=True) if n) / 4,
        "tokens": sum(sum(row[:n]) for row, n in zip(values, lengths, strict=True)) / 10,
        "constant": sum(sum(row[:n]) / 8 for row, n in zip(values, lengths, strict=True)) / 4,
    }
    for name, expected in averages.items():
        weights = AGGREGATIONS[name](lengths, 8)
        found = sum(weight * sum(row[:n]) for weight, row, n in zip(weights, values, lengths, strict=True))
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_soft_overlong_punishment_is_dapos() -> None:
    """Equation 13 of the paper: 0 up to L_max - L_cache, falling to -1 at L_max."""
    found = overlong_penalty(np.array([1, 12, 13, 16, 20]), 20, 8)
    np.testing.assert_allclose(found, [0, 0, -1 / 8, -4 / 8, -1])
    np.testing.assert_allclose(overlong_penalty(np.array([0, 5, 20]), 20, 20), [0, -0.25, -1])


# ------------------------------------------------------------------------------------------------ PPO


def attempts_with_values(lengths: list[int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, values and a mask, `[B, T]`; NaN where there is no token."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    rewards, values = (np.where(mask, rng.normal(size=mask.shape), np.nan) for _ in range(2))
    return rewards, values, mask


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 99),
    st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]),
)  # fmt: skip
def test_advantages_and_returns_equal_those_of_stable_baselines3(lengths, seed, gamma, gae_lambda) -> None:
    rewards, values, mask = attempts_with_values(lengths, seed)
    buffer = RolloutBuffer(
        int(mask.sum()), spaces.Discrete(2), spaces.Discrete(2), "cpu", gae_lambda=gae_lambda, gamma=gamma
    )
    for row in range(len(mask)):  # one attempt after the other in one environment
        for t in range(lengths[row]):
            value, none = torch.tensor([values[row, t]]), torch.zeros(1)
            buffer.add(np.zeros(1), np.zeros(1), rewards[row, t], np.array([t == 0]), value, none)
    buffer.compute_returns_and_advantage(torch.tensor([7.0]), np.array([True]))
    ours = generalized_advantages(rewards, values, mask, gamma, gae_lambda)
    assert (ours[~mask] == 0).all()
    np.testing.assert_allclose(ours[mask], buffer.advantages[:, 0], atol=1e-5)
    np.testing.assert_allclose((ours + values)[mask], buffer.returns[:, 0], atol=1e-5)
    told = explained_variance(values[mask], buffer.returns[:, 0].astype(np.float64))
    assert told == pytest.approx(sb3_explained_variance(values[mask], buffer.returns[:, 0]), abs=1e-4, nan_ok=True)


def test_with_lambda_and_gamma_one_the_advantage_is_the_return_minus_the_value() -> None:
    rewards, values, mask = attempts_with_values([3, 1, 5], 0)
    advantages = generalized_advantages(rewards, values, mask, 1.0, 1.0)
    for row, length in enumerate([3, 1, 5]):
        to_go = np.cumsum(rewards[row, :length][::-1])[::-1]
        np.testing.assert_allclose(advantages[row, :length], to_go - values[row, :length])


def test_whitening_sees_action_tokens_alone() -> None:
    rewards, _, mask = attempts_with_values([4, 2, 6], 1)
    white = whiten(rewards, mask)
    assert (white[~mask] == 0).all()
    assert white[mask].mean() == pytest.approx(0, abs=1e-12)
    assert white[mask].std(ddof=1) == pytest.approx(1, abs=1e-7)
    np.testing.assert_array_equal(np.argsort(white[mask]), np.argsort(rewards[mask]))
    np.testing.assert_array_equal(whiten(np.array([[3.0, np.nan]]), np.array([[True, False]])), [[3.0, 0.0]])
    assert (whiten(np.full((2, 2), 5.0), np.full((2, 2), True)) == 0).all()


def test_an_adaptive_coefficient_follows_ziegler() -> None:
    assert adapted_kl_coef(0.1, 6.0, 6.0, 256, 10_000) == 0.1
    assert adapted_kl_coef(0.1, 6.6, 6.0, 256, 10_000) == pytest.approx(0.1 * (1 + 0.1 * 256 / 10_000))
    assert adapted_kl_coef(0.1, 60.0, 6.0, 1000, 10_000) == pytest.approx(0.1 * 1.02)  # at most a fifth of the horizon
    assert adapted_kl_coef(0.1, 0.0, 6.0, 1000, 10_000) == pytest.approx(0.1 * 0.98)
