"""Estimators and losses: unbiased by enumeration of everything that can happen, and blind to what is masked."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import explained_variance as sb3_explained_variance

from tokengym.agents.training.advantages import (
    STD_EPSILON,
    adapted_kl_coef,
    explained_variance,
    generalized_advantages,
    group_advantages,
    leave_one_out,
    mean_baseline,
    uniform_groups,
    whiten,
)
from tokengym.agents.training.losses import (
    clipped,
    clipped_surrogate,
    k1_divergence,
    k3_divergence,
    masked_aggregate,
    policy_gradient,
    value_error,
)
from tokengym.models.forward import token_logprobs, token_logprobs_and_entropy

# A language model small enough to write down: two letters and an end, two questions, at most three tokens.
LETTERS, END, LIMIT = (0, 1), 2, 3


def completions() -> list[tuple[int, ...]]:
    found = []
    for length in range(LIMIT):
        found += [(*letters, END) for letters in itertools.product(LETTERS, repeat=length)]
    return found + list(itertools.product(LETTERS, repeat=LIMIT))


COMPLETIONS = completions()
PREFIXES = [prefix for length in range(LIMIT) for prefix in itertools.product(LETTERS, repeat=length)]


class Enumerable:
    """Logits of its own after each prefix of each question, in float64."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(2, len(PREFIXES), 3, generator=generator, dtype=torch.float64, requires_grad=True)
        self.rewards = torch.rand(2, len(COMPLETIONS), generator=generator, dtype=torch.float64).numpy()

    def logprobs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`[2, C, T]` log-probabilities of every completion's tokens, and where there is one."""
        table = self.logits.log_softmax(-1)
        values = torch.full((2, len(COMPLETIONS), LIMIT), torch.nan, dtype=torch.float64)
        mask = torch.zeros(len(COMPLETIONS), LIMIT, dtype=torch.bool)
        for i, completion in enumerate(COMPLETIONS):
            for t, token in enumerate(completion):
                values[:, i, t] = table[:, PREFIXES.index(completion[:t]), token]
                mask[i, t] = True
        return values, mask

    def true_gradient(self) -> torch.Tensor:
        """Of the expected reward, averaged over the questions."""
        values, mask = self.logprobs()
        probabilities = torch.where(mask, values, 0).sum(-1).exp()
        assert probabilities.sum(-1).tolist() == pytest.approx([1, 1], abs=1e-12)
        (gradient,) = torch.autograd.grad((probabilities * torch.from_numpy(self.rewards)).sum() / 2, self.logits)
        return gradient

    def expected_gradient(self, size: int, advantages: Callable, loss: Callable) -> torch.Tensor:
        """Of the loss, over all batches of `size` attempts at each question, each with its probability."""
        values, mask = self.logprobs()
        chances = torch.where(mask, values, 0).sum(-1).exp().detach().numpy()
        total = torch.zeros((), dtype=torch.float64)
        groups = np.array(list(itertools.product(range(len(COMPLETIONS)), repeat=size)))
        # Questions are independent, and so are the groups' advantages: each question's batches by themselves.
        for question in range(2):
            returns = self.rewards[question][groups]
            weights = chances[question][groups].prod(1)
            signal = torch.from_numpy((advantages(returns) * weights[:, None]).ravel())
            rows = values[question][groups.ravel()]
            where = mask[groups.ravel()]
            total = total + masked_aggregate(loss(rows, signal[:, None], where), where, 2 * size)
        (gradient,) = torch.autograd.grad(-total, self.logits)
        return gradient


def surrogate(logprobs, advantages, mask):
    return clipped_surrogate(logprobs, logprobs.detach(), advantages, mask, 0.2)


@pytest.mark.parametrize("loss", [policy_gradient, surrogate])
@pytest.mark.parametrize("size", [2, 3])
def test_reinforce_and_rloo_are_unbiased_and_the_group_mean_is_short_by_one_in_k(size: int, loss) -> None:
    model = Enumerable(seed=size)
    truth = model.true_gradient()
    assert truth.norm() > 0.01
    factors = {
        lambda returns: returns: 1.0,
        leave_one_out: 1.0,
        lambda returns: group_advantages(returns, scale_by_std=False): (size - 1) / size,
    }
    for advantages, factor in factors.items():
        found = model.expected_gradient(size, advantages, loss)
        torch.testing.assert_close(found, factor * truth, atol=1e-10, rtol=0)
    # The check can fail: other baselines are not unbiased.
    biased = model.expected_gradient(size, lambda returns: group_advantages(returns, scale_by_std=True), loss)
    assert (biased - truth).abs().max() > 1e-3


groups_of_returns = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.floats(-10, 10, width=32), min_size=k, max_size=k), min_size=1, max_size=5)
).map(np.array)  # fmt: skip


@given(groups_of_returns)
def test_advantages_equal_their_definitions_in_a_loop(returns) -> None:
    rloo, plain, scaled = (
        leave_one_out(returns),
        group_advantages(returns, scale_by_std=False),
        group_advantages(returns, scale_by_std=True),
    )
    for n, group in enumerate(returns.tolist()):
        mean = sum(group) / len(group)
        deviation = (sum((value - mean) ** 2 for value in group) / (len(group) - 1)) ** 0.5
        for k, value in enumerate(group):
            others = group[:k] + group[k + 1 :]
            assert rloo[n, k] == pytest.approx(value - sum(others) / len(others), abs=1e-9)
            assert plain[n, k] == pytest.approx(value - mean, abs=1e-9)
            assert scaled[n, k] == pytest.approx((value - mean) / (deviation + STD_EPSILON), rel=1e-6, abs=1e-6)
    assert mean_baseline(returns).sum() == pytest.approx(0, abs=1e-9)


def test_a_group_of_equal_returns_says_nothing_at_all() -> None:
    returns = np.array([[0.1] * 3, [0.1, 0.1, 0.2]])
    assert uniform_groups(returns).tolist() == [True, False]
    for advantages in (leave_one_out(returns), *(group_advantages(returns, scale) for scale in (True, False))):
        assert advantages[0].tolist() == [0, 0, 0]
        assert (advantages[1] != 0).all()
    for estimator in (leave_one_out, lambda returns: group_advantages(returns, True)):
        with pytest.raises(ValueError, match="groups of at least 2"):
            estimator(np.ones((4, 1)))


# ------------------------------------------------------------------------------------------------ losses


def losses(values: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    new, old, advantages = values["new"], values["old"], values["advantages"]
    return {
        "policy_gradient": policy_gradient(new, advantages, mask),
        "clipped_surrogate": clipped_surrogate(new, old, advantages, mask, 0.2),
        "k3": k3_divergence(new, old, mask),
    }


def test_nan_in_every_masked_position_leaves_losses_and_gradients_bit_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator) < 0.5
    clean = {name: torch.randn(5, 7, generator=generator) for name in ("new", "old", "advantages")}
    seen = []
    for fill in (None, torch.nan, torch.inf):
        inputs = {name: v if fill is None else torch.where(mask, v, fill) for name, v in clean.items()}
        inputs["new"] = inputs["new"].clone().requires_grad_()
        found = {}
        for name, values in losses(inputs, mask).items():
            loss = masked_aggregate(values, mask, 3)
            found[name] = [loss.detach(), *torch.autograd.grad(loss, inputs["new"])]
            assert found[name][1][~mask].count_nonzero() == 0
            assert values[~mask].count_nonzero() == 0
        found["clipped"] = [clipped(inputs["new"], inputs["old"], mask, 0.2).float()]
        seen.append(found)
    for other in seen[1:]:
        for name, tensors in seen[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, other[name], strict=True)), name


def test_the_clip_takes_the_pessimistic_side() -> None:
    ratio = torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.5]])
    mask = torch.ones_like(ratio, dtype=torch.bool)
    for advantage, expected in ((1.0, [0.5, 0.9, 1.0, 1.1, 1.2]), (-1.0, [-0.8, -0.9, -1.0, -1.1, -1.5])):
        values = clipped_surrogate(ratio.log(), torch.zeros_like(ratio), torch.tensor([[advantage]]), mask, 0.2)
        torch.testing.assert_close(-values, torch.tensor([expected]))
    assert clipped(ratio.log(), torch.zeros_like(ratio), mask, 0.2).tolist() == [[True, False, False, False, True]]


def test_k3_is_unbiased_for_the_divergence_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    values = k3_divergence(p[None], q[None], torch.ones(1, 6, dtype=torch.bool))[0]
    assert (values >= 0).all()
    assert (p.exp() * values).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-12)


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


def test_kl_estimators_are_unbiased_by_enumeration() -> None:
    """Of whole completions: expected sums of the per-token estimates are the KL of the two distributions."""
    p, mask = Enumerable(0).logprobs()
    q, _ = Enumerable(1).logprobs()
    chances = torch.where(mask, p, 0).sum(-1).exp()
    exact = (chances * torch.where(mask, p - q, 0).sum(-1)).sum(-1)
    assert (exact > 0.1).all()
    for estimate in (k1_divergence, k3_divergence):
        torch.testing.assert_close((chances * estimate(p, q, mask.expand_as(p)).sum(-1)).sum(-1), exact)
    assert (k1_divergence(p, q, mask.expand_as(p)) < 0).any()
    assert (k3_divergence(p, q, mask.expand_as(p)) >= 0).all()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_entropy_is_the_exact_one_of_the_distribution_that_acts(temperature: float) -> None:
    logits = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    logits[0] = 0.0
    tokens = torch.arange(5)
    logprobs, entropy = token_logprobs_and_entropy(logits, tokens, temperature)
    theirs = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(entropy.double(), theirs.entropy(), atol=1e-5, rtol=1e-5)
    assert entropy[0].item() == pytest.approx(np.log(11), abs=1e-6)
    torch.testing.assert_close(logprobs, token_logprobs(logits, tokens, temperature))


def test_value_error_is_trlxs() -> None:
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 4, 5, generator=generator)
    mask = torch.rand(4, 5, generator=generator) < 0.7
    near = torch.clamp(values, old - 0.2, old + 0.2)
    theirs = 0.5 * (torch.max((values - returns) ** 2, (near - returns) ** 2) * mask).sum() / mask.sum()
    ours = masked_aggregate(value_error(values, old, returns, mask, 0.2), mask, int(mask.sum()))
    torch.testing.assert_close(ours, theirs)
    plain = masked_aggregate(value_error(values, old, returns, mask, None), mask, int(mask.sum()))
    torch.testing.assert_close(plain, ((values - returns)[mask] ** 2).mean() / 2)


def test_ppos_losses_are_blind_to_what_is_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    clean = torch.randn(4, 2, 3, generator=generator)
    for losses in (
        lambda a, b, c, d: value_error(a, b, c, mask, 0.2),
        lambda a, b, c, d: clipped_surrogate(a, b, c, mask, 0.2),
        lambda a, b, c, d: k1_divergence(a, b, mask),
    ):
        found = []
        for poison in (0.0, torch.nan, torch.inf):
            inputs = [torch.where(mask, tensor, poison).requires_grad_() for tensor in clean]
            loss = masked_aggregate(losses(*inputs), mask, 3)
            (gradient,) = torch.autograd.grad(loss, inputs[0])
            found.append((loss.item(), gradient))
        assert all(loss == found[0][0] and torch.equal(gradient, found[0][1]) for loss, gradient in found)


def test_an_adaptive_coefficient_follows_ziegler() -> None:
    assert adapted_kl_coef(0.1, 6.0, 6.0, 256, 10_000) == 0.1
    assert adapted_kl_coef(0.1, 6.6, 6.0, 256, 10_000) == pytest.approx(0.1 * (1 + 0.1 * 256 / 10_000))
    assert adapted_kl_coef(0.1, 60.0, 6.0, 1000, 10_000) == pytest.approx(0.1 * 1.02)  # at most a fifth of the horizon
    assert adapted_kl_coef(0.1, 0.0, 6.0, 1000, 10_000) == pytest.approx(0.1 * 0.98)
