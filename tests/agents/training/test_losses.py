"""Losses: exact by enumeration of everything that can happen, equal to TRL's, and blind to what is masked."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.agents import GRPO
from tokengym.agents.configs.dpo import DPOConfig
from tokengym.agents.configs.grpo import GRPOConfig
from tokengym.agents.dpo import update_on_pairs
from tokengym.agents.grpo import Signals
from tokengym.agents.preference import update_on_groups
from tokengym.agents.training.advantages import AGGREGATIONS, group_advantages, leave_one_out
from tokengym.agents.training.learner import Example
from tokengym.agents.training.losses import (
    DIVERGENCES,
    clipped,
    clipped_importance,
    clipped_surrogate,
    importance_weights,
    k1_divergence,
    k3_divergence,
    log_ratios,
    masked_aggregate,
    policy_gradient,
    sequence_log_ratios,
    value_error,
)
from tokengym.agents.training.pairs import Group
from tokengym.models.engine.sampling import SamplingConfig, sample_with_kept
from tokengym.models.forward import among_kept, token_entropies, token_logprobs
from tokengym.models.kept_tokens import KeptTokens

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
    return clipped_surrogate(log_ratios(logprobs, logprobs.detach(), mask), advantages, mask, 0.2)


@pytest.mark.parametrize("loss", [policy_gradient, surrogate])
@pytest.mark.parametrize("size", [2, 3])
def test_reinforce_and_rloo_are_unbiased_and_the_group_mean_is_short_by_one_in_k(size: int, loss) -> None:
    model = Enumerable(seed=size)
    truth = model.true_gradient()
    assert truth.norm() > 0.01
    factors = {
        lambda returns: returns: 1.0,
        leave_one_out: 1.0,
        lambda returns: group_advantages(returns, "none"): (size - 1) / size,
    }
    for advantages, factor in factors.items():
        found = model.expected_gradient(size, advantages, loss)
        torch.testing.assert_close(found, factor * truth, atol=1e-10, rtol=0)
    # The check can fail: other baselines are not unbiased.
    biased = model.expected_gradient(size, lambda returns: group_advantages(returns, "group"), loss)
    assert (biased - truth).abs().max() > 1e-3


class Truncated(Enumerable):
    """The same model, of which a token is drawn among those that top-p sampling keeps after each prefix."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        table = self.logits.detach().flatten(0, 1)
        zeros = torch.zeros(len(table), dtype=torch.int64)
        kept = sample_with_kept(table, zeros, zeros, SamplingConfig(top_p=0.85))[2]
        self.kept = np.split(np.array(kept.rows(), object), 2)

    def logprobs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As training computes them; completions of no probability have none."""
        values, mask = super().logprobs()
        for question, i in itertools.product(range(2), range(len(COMPLETIONS))):
            completion = COMPLETIONS[i]
            places = [PREFIXES.index(completion[:t]) for t in range(len(completion))]
            choices = [self.kept[question][place] for place in places]
            if all(token in row for token, row in zip(completion, choices, strict=True)):
                kept = KeptTokens(np.array(list(map(len, choices))), np.concatenate(choices).astype(np.int32))
                logits, numbers = among_kept(self.logits[question, places], torch.tensor(completion), kept)
                values[question, i, : len(completion)] = token_logprobs(logits, numbers)
            else:
                values[question, i] = -1e4
        return values, mask

    def expected_reward(self, logits: np.ndarray) -> float:
        """Written down anew: a product of shares among what is kept."""
        total = 0.0
        for question, i in itertools.product(range(2), range(len(COMPLETIONS))):
            chance = 1.0
            for t, token in enumerate(COMPLETIONS[i]):
                place = PREFIXES.index(COMPLETIONS[i][:t])
                weights = {choice: np.exp(logits[question, place, choice]) for choice in self.kept[question][place]}
                chance *= weights.get(token, 0.0) / sum(weights.values())
            total += chance * self.rewards[question, i] / 2
        return total


@pytest.mark.parametrize("loss", [policy_gradient, surrogate])
def test_the_gradient_of_a_truncated_policy_is_exact(loss) -> None:
    """That of the expected reward under the very distribution that attempts are drawn from."""
    model = Truncated(seed=2)
    sizes = {len(row) for rows in model.kept for row in rows}
    assert sizes == {1, 2, 3}
    truth = model.true_gradient()
    found = model.expected_gradient(2, leave_one_out, loss)
    torch.testing.assert_close(found, truth, atol=1e-10, rtol=0)
    logits, step = model.logits.detach().numpy(), 1e-5
    for place in np.ndindex(logits.shape):
        moved = [logits.copy(), logits.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (model.expected_reward(moved[0]) - model.expected_reward(moved[1])) / (2 * step)
        assert truth[place].item() == pytest.approx(slope, abs=1e-9)
    # The check can fail: the probabilities of the whole vocabulary have another gradient for the same attempts.
    values, mask = model.logprobs()
    chances = torch.where(mask, values, 0).sum(-1).exp().detach() * torch.from_numpy(model.rewards)
    whole = torch.where(mask, Enumerable.logprobs(model)[0], 0).sum(-1)
    (gradient,) = torch.autograd.grad((chances * whole).sum() / 2, model.logits)
    assert (gradient - truth).abs().max() > 1e-2


# ------------------------------------------------------------------------------- options of GRPO, by enumeration


def expected(sampler: Enumerable, other: Enumerable, values: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Gradient to MODEL's logits of a loss's expectation over the completions that `sampler` draws.

    `values` makes the loss `[C, T]` of each question's completions from their log-probabilities `[C, T]` by MODEL and
    by `other`, their advantages `[C, 1]` and the mask.
    """
    (new, mask), (chances, _), (old, _) = MODEL.logprobs(), sampler.logprobs(), other.logprobs()
    chances = torch.where(mask, chances, 0).sum(-1).exp().detach()
    advantages = torch.from_numpy(ADVANTAGES)[:, :, None]
    losses = [chances[q] * values(new[q], old[q].detach(), advantages[q], mask).sum(-1) for q in range(2)]
    (gradient,) = torch.autograd.grad(sum(loss.sum() for loss in losses), MODEL.logits)
    return gradient


def by_hand(factor: Callable[[list[float], list[float], float], list[float]]) -> torch.Tensor:
    """The same gradient for attempts of ACTOR in loops, from what each token's d log pi is multiplied by.

    `factor` gives that for a completion, from its tokens' log-probabilities by MODEL and ACTOR, and its advantage.
    """
    (new, _), (old, _) = MODEL.logprobs(), ACTOR.logprobs()
    gradient, chosen = torch.zeros_like(MODEL.logits), MODEL.logits.detach().softmax(-1)
    for question in range(2):
        for i, completion in enumerate(COMPLETIONS):
            size = len(completion)
            p, q = new[question, i, :size].tolist(), old[question, i, :size].tolist()
            chance = np.exp(sum(q))
            for t, (token, weight) in enumerate(zip(completion, factor(p, q, ADVANTAGES[question, i]), strict=True)):
                prefix = PREFIXES.index(completion[:t])
                gradient[question, prefix] -= chance * weight * chosen[question, prefix]
                gradient[question, prefix, token] += chance * weight
    return gradient.detach()


ADVANTAGES = np.random.default_rng(7).normal(size=(2, len(COMPLETIONS)))
MODEL, ACTOR, LOW, HIGH, DUAL = Enumerable(0), Enumerable(3), 0.2, 0.28, 1.6


def clip_weight(ratio: float, advantage: float, dual: float = np.inf) -> float:
    """rho A where the clipped objective follows the ratio, and 0 where it is flat."""
    follows = ratio < 1 + HIGH if advantage > 0 else 1 - LOW < ratio < dual
    return ratio * advantage if follows else 0.0


OPTIONS = {
    "clip": (
        lambda new, old, a, mask: clipped_surrogate(log_ratios(new, old, mask), a, mask, LOW, HIGH),
        lambda p, q, a: [-clip_weight(np.exp(x - y), a) for x, y in zip(p, q, strict=True)],
    ),
    "dual clip": (
        lambda new, old, a, mask: clipped_surrogate(log_ratios(new, old, mask), a, mask, LOW, HIGH, DUAL),
        lambda p, q, a: [-clip_weight(np.exp(x - y), a, DUAL) for x, y in zip(p, q, strict=True)],
    ),
    "cispo": (
        lambda new, old, a, mask: clipped_importance(new, log_ratios(new, old, mask), a, mask, LOW, HIGH),
        lambda p, q, a: [-np.clip(np.exp(x - y), 1 - LOW, 1 + HIGH) * a for x, y in zip(p, q, strict=True)],
    ),
    "gspo": (
        lambda new, old, a, mask: clipped_surrogate(
            sequence_log_ratios(log_ratios(new, old, mask), mask), a, mask, LOW, HIGH
        )
        / mask.sum(-1, keepdim=True),
        lambda p, q, a: [-clip_weight(np.exp((sum(p) - sum(q)) / len(p)), a) / len(p)] * len(p),
    ),
    "token_truncate": (
        lambda new, old, a, mask: policy_gradient(new, a, mask)
        * importance_weights(log_ratios(new.detach(), old, mask), mask, "token_truncate", 0.5, 1.5),
        lambda p, q, a: [-a * min(max(np.exp(x - y), 0.5), 1.5) for x, y in zip(p, q, strict=True)],
    ),
    "token_mask": (
        lambda new, old, a, mask: policy_gradient(new, a, mask)
        * importance_weights(log_ratios(new.detach(), old, mask), mask, "token_mask", 0.5, 1.5),
        lambda p, q, a: [-a * np.exp(x - y) * (0.5 <= np.exp(x - y) <= 1.5) for x, y in zip(p, q, strict=True)],
    ),
    "sequence_truncate": (
        lambda new, old, a, mask: policy_gradient(new, a, mask)
        * importance_weights(log_ratios(new.detach(), old, mask), mask, "sequence_truncate", 0.5, 1.5),
        lambda p, q, a: [-a * min(max(np.exp(sum(p) - sum(q)), 0.5), 1.5)] * len(p),
    ),
    "sequence_mask": (
        lambda new, old, a, mask: policy_gradient(new, a, mask)
        * importance_weights(log_ratios(new.detach(), old, mask), mask, "sequence_mask", 0.5, 1.5),
        lambda p, q, a: [-a * np.exp(sum(p) - sum(q)) * (0.5 <= np.exp(sum(p) - sum(q)) <= 1.5)] * len(p),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_the_expected_gradient_of_each_option_is_that_of_its_formula(name: str) -> None:
    values, factor = OPTIONS[name]
    found, exact = expected(ACTOR, ACTOR, values), by_hand(factor)
    assert exact.norm() > 0.01
    torch.testing.assert_close(found, exact, atol=1e-10, rtol=0)


def test_whole_importance_weights_give_the_gradient_of_the_policy_that_is_trained() -> None:
    """Attempts of another policy, weighted by the ratio of whole probabilities: E_q[p/q A d log p] = d E_p[A]."""

    def loss(new, old, a, mask):
        weights = importance_weights(log_ratios(new.detach(), old, mask), mask, "sequence_truncate", 0.0, np.inf)
        return policy_gradient(new, a, mask) * weights

    own = expected(MODEL, MODEL, lambda new, old, a, mask: policy_gradient(new, a, mask))
    torch.testing.assert_close(expected(ACTOR, ACTOR, loss), own, atol=1e-10, rtol=0)
    uncorrected = expected(ACTOR, ACTOR, lambda new, old, a, mask: policy_gradient(new, a, mask))
    assert (uncorrected - own).abs().max() > 1e-3


def state_kl(reverse: bool) -> torch.Tensor:
    """Gradient of the KL divergences in every state, each weighed by how often the policy comes there."""
    p, q = MODEL.logits.log_softmax(-1), ACTOR.logits.detach().log_softmax(-1)
    values, mask = MODEL.logprobs()
    visits = torch.zeros(2, len(PREFIXES), dtype=torch.float64)
    chances = torch.where(mask, values, 0).sum(-1).exp().detach()
    for i, completion in enumerate(COMPLETIONS):
        for t in range(len(completion)):
            visits[:, PREFIXES.index(completion[:t])] += chances[:, i]
    divergence = (q.exp() * (q - p)).sum(-1) if reverse else (p.exp() * (p - q)).sum(-1)
    (gradient,) = torch.autograd.grad((visits * divergence).sum(), MODEL.logits)
    return gradient


def test_each_divergence_as_a_loss_has_the_gradient_that_its_documentation_says() -> None:
    """K1 none; k2 that of KL(pi || ref), k3 that of KL(ref || pi), state by state (on-policy)."""
    k1, k2, k3 = (
        expected(MODEL, ACTOR, lambda new, other, a, mask, estimate=estimate: estimate(new, other, mask))
        for estimate in DIVERGENCES.values()
    )
    torch.testing.assert_close(k1, torch.zeros_like(k1), atol=1e-10, rtol=0)
    torch.testing.assert_close(k2, state_kl(reverse=False), atol=1e-10, rtol=0)
    torch.testing.assert_close(k3, state_kl(reverse=True), atol=1e-10, rtol=0)
    assert (k2 - k3).abs().max() > 1e-3


def test_k1_in_the_reward_has_the_gradient_of_the_divergence_of_whole_completions() -> None:
    """The policy gradient of a return of -KL1: exact for sequences, where a loss only sees states."""
    (new, mask), (reference, _) = MODEL.logprobs(), ACTOR.logprobs()
    paid = -k1_divergence(new, reference, mask.expand_as(new)).sum(-1).detach()
    chances = torch.where(mask, new, 0).sum(-1).exp()
    (exact,) = torch.autograd.grad(
        (chances * torch.where(mask, new - reference.detach(), 0).sum(-1)).sum(), MODEL.logits
    )
    total = sum(
        (chances[q].detach() * policy_gradient(MODEL.logprobs()[0][q], paid[q, :, None], mask).sum(-1)).sum()
        for q in range(2)
    )
    (found,) = torch.autograd.grad(total, MODEL.logits)
    torch.testing.assert_close(found, exact, atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------ TRL's

TRL = json.loads((Path(__file__).parent / "trl_losses.json").read_text())


@pytest.mark.parametrize("name", TRL["cases"])
def test_the_loss_of_grpo_is_that_of_trl(name: str) -> None:
    """The whole loss, as `GRPO` composes it, on a batch that `scripts/record_trl_losses.py` gave TRL 1.16.0."""
    case = TRL["cases"][name]
    config = GRPOConfig(**case["settings"])
    table = {key: torch.tensor(value, dtype=torch.float64) for key, value in TRL["batch"].items()}
    lengths = np.array(TRL["lengths"])
    kept = lengths < TRL["limit"] if config.truncated == "mask" else np.ones(len(lengths), bool)
    rows = np.flatnonzero(kept)
    mask = torch.arange(TRL["limit"]) < torch.from_numpy(lengths[rows])[:, None]
    new, entropies = (table[key].clone().requires_grad_() for key in ("new", "entropies"))
    cut = lambda key: [table[key][i, : lengths[i]].numpy() for i in rows]  # noqa: E731
    weights = AGGREGATIONS[config.aggregation](lengths * kept, TRL["limit"])[rows]
    spread = lambda values: torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(  # noqa: E731
        mask, torch.from_numpy(np.concatenate(values))
    )
    agent = object.__new__(GRPO)
    agent.config, agent.model = config, SimpleNamespace(device=torch.device("cpu"))
    reference = cut("reference") if config.kl_coef else None
    loss = agent._loss(Signals(table["advantages"].numpy()[rows], weights, cut("sampled"), cut("old"), reference))
    batch = SimpleNamespace(action_mask=mask, rows=torch.arange(len(rows)), spread=spread)
    output = (new[rows], entropies[rows]) if config.entropy_coef else new[rows]
    found, metrics = loss(batch, output)
    assert found.item() == pytest.approx(case["loss"], rel=1e-6)  # advantages are float32
    found.backward()
    for key, tensor in (("new", new), ("entropies", entropies)):
        theirs = case["gradients"][key]
        if theirs is not None and tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, torch.tensor(theirs, dtype=torch.float64), atol=1e-7, rtol=1e-6)
    assert (entropies.grad is None) == (config.entropy_coef == 0)
    if config.ratio == "token":
        assert metrics["clip_fraction"] == metrics["clip_fraction_low"] + metrics["clip_fraction_high"]


class TableLearner:
    """Stands for a learner whose model is a table of log-probabilities or of rewards, `[A, T]`; keeps the gradient."""

    base = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def logprobs(self, examples: list[Example]) -> list[np.ndarray]:
        return [row[: len(one.completion)].numpy() for row, one in zip(self.table, examples, strict=True)]

    def evaluate(self, examples: list[Example]) -> tuple[list[np.ndarray]]:
        return (self.logprobs(examples),)

    def update(self, examples: list[Example], loss: Any, seed: int) -> dict[str, float]:
        mask = torch.arange(self.table.shape[1]) < torch.tensor([len(one.completion) for one in examples])[:, None]
        spread = lambda parts: torch.zeros(mask.shape).masked_scatter(  # noqa: E731
            mask, torch.from_numpy(np.concatenate(parts))
        )
        table = self.table.clone().requires_grad_()
        value = loss(SimpleNamespace(rows=torch.arange(len(examples)), action_mask=mask, spread=spread), table)
        (self.gradient,) = torch.autograd.grad(value, table)
        return {}


def examples_of(lengths: list[int]) -> list[Example]:
    return [Example(np.zeros(1, np.int32), np.zeros(length, np.int32)) for length in lengths]


@pytest.mark.parametrize("name", TRL["preferences"])
def test_the_loss_of_dpo_is_that_of_trl(name: str) -> None:
    """Loss and gradient of whole pairs; TRL has the chosen ones first, ours are in turns."""
    case = TRL["preferences"][name]
    order = np.array(case["pairs"])  # rows of the chosen and of the rejected ones
    rows, lengths = order.T.ravel(), np.array(TRL["lengths"])
    new, reference = (torch.tensor(TRL["batch"][key], dtype=torch.float64)[rows] for key in ("new", "reference"))
    sums = [values[:length].sum().item() for values, length in zip(reference, lengths[rows], strict=True)]
    learner: Any = TableLearner(new)
    examples = examples_of(lengths[rows].tolist())
    metrics = update_on_pairs(learner, examples, np.array(sums), DPOConfig(**case["settings"]), 0)
    assert metrics["loss"] == pytest.approx(case["loss"], rel=1e-6)
    theirs = torch.tensor(case["gradient"], dtype=torch.float64)[np.arange(len(rows)).reshape(2, -1).T.ravel()]
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(learner.gradient, theirs, atol=1e-7, rtol=1e-5)  # weights are float32


@pytest.mark.parametrize("case", TRL["rewards"], ids=lambda case: str(case["center_coef"]))
def test_the_loss_of_preference_models_is_that_of_trl(case: dict[str, Any]) -> None:
    """Of one pair at each prompt, as TRL has them."""
    rewards = torch.tensor(TRL["batch"]["advantages"], dtype=torch.float64).reshape(2, -1)
    learner: Any = TableLearner(rewards.T.reshape(-1, 1))
    groups = [Group(examples_of([1, 1]), np.array([1.0, 0.0]), f"p{i}") for i in range(rewards.shape[1])]
    metrics = update_on_groups(learner, groups, case["center_coef"], 0)
    assert metrics["loss"] == pytest.approx(case["loss"], rel=1e-6)
    theirs = torch.tensor(case["gradient"], dtype=torch.float64).reshape(2, -1).T.reshape(-1, 1)
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(learner.gradient, theirs, atol=1e-7, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ masks and signs


def losses(values: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    new, old, advantages = values["new"], values["old"], values["advantages"]
    return {
        "policy_gradient": policy_gradient(new, advantages, mask),
        "clipped_surrogate": clipped_surrogate(log_ratios(new, old, mask), advantages, mask, 0.2, 0.3, 3.0),
        "gspo": clipped_surrogate(sequence_log_ratios(log_ratios(new, old, mask), mask), advantages, mask, 0.2),
        "cispo": clipped_importance(new, log_ratios(new, old, mask), advantages, mask, 0.2, 0.3),
        "weighted": policy_gradient(new, advantages, mask)
        * importance_weights(log_ratios(new.detach(), old, mask), mask, "sequence_mask", 0.1, 9.0),
        **{name: estimate(new, old, mask) for name, estimate in DIVERGENCES.items()},
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
        low, high = clipped(log_ratios(inputs["new"], inputs["old"], mask), mask, 0.2)
        found["clipped"] = [low.float(), high.float()]
        seen.append(found)
    for other in seen[1:]:
        for name, tensors in seen[0].items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, other[name], strict=True)), name


def test_the_clip_takes_the_pessimistic_side() -> None:
    ratio = torch.tensor([[0.5, 0.9, 1.0, 1.1, 1.5]])
    mask = torch.ones_like(ratio, dtype=torch.bool)
    for clip, advantage, expected in (
        (0.2, 1.0, [0.5, 0.9, 1.0, 1.1, 1.2]),
        (0.2, -1.0, [-0.8, -0.9, -1.0, -1.1, -1.5]),
        (0.4, 1.0, [0.5, 0.9, 1.0, 1.1, 1.4]),
        (0.4, -1.0, [-0.6, -0.9, -1.0, -1.1, -1.5]),
    ):
        values = clipped_surrogate(ratio.log(), torch.tensor([[advantage]]), mask, clip)
        torch.testing.assert_close(-values, torch.tensor([expected]))
    low, high = clipped(ratio.log(), mask, 0.2)
    assert (low.tolist(), high.tolist()) == ([[True] + [False] * 4], [[False] * 4 + [True]])
    low, high = clipped(ratio.log(), mask, 0.6, 0.05)
    assert (low.sum(), high.tolist()) == (0, [[False, False, False, True, True]])
    low, high = clipped(ratio.log(), mask, 0.09, 0.6)
    assert (low.tolist(), high.sum()) == ([[True, True, False, False, False]], 0)


def test_k3_is_unbiased_for_the_divergence_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    values = k3_divergence(p[None], q[None], torch.ones(1, 6, dtype=torch.bool))[0]
    assert (values >= 0).all()
    assert (p.exp() * values).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-12)


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
    entropy = token_entropies(logits, temperature)
    theirs = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(entropy.double(), theirs.entropy(), atol=1e-5, rtol=1e-5)
    assert entropy[0].item() == pytest.approx(np.log(11), abs=1e-6)


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
        lambda a, b, c, d: clipped_surrogate(log_ratios(a, b, mask), c, mask, 0.2),
        lambda a, b, c, d: k1_divergence(a, b, mask),
    ):
        found = []
        for poison in (0.0, torch.nan, torch.inf):
            inputs = [torch.where(mask, tensor, poison).requires_grad_() for tensor in clean]
            loss = masked_aggregate(losses(*inputs), mask, 3)
            (gradient,) = torch.autograd.grad(loss, inputs[0])
            found.append((loss.item(), gradient))
        assert all(loss == found[0][0] and torch.equal(gradient, found[0][1]) for loss, gradient in found)
