"""The first ratio is one, and the update follows the policy gradient of a real model."""

import numpy as np
import pytest
import torch

from tokengym.agents import grpo
from tokengym.agents.training.learner import Example, Learner
from tokengym.agents.training.losses import clipped_surrogate
from tokengym.models import load_tokenizer

LETTERS = load_tokenizer("chars:ab?")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_the_first_ratio_is_exactly_one_and_nothing_is_clipped(
    attempts_of, make, monkeypatch, architecture, shape
) -> None:
    epochs, minibatches = shape
    agent = make(
        architecture=architecture, epochs=epochs, minibatches=minibatches, micro_batch_tokens=12, learning_rate=0.05
    )
    calls, first, updates = [], [], []

    def spy(ratios, advantages, mask, *clips):
        calls.append(ratios[mask].exp().detach())
        return clipped_surrogate(ratios, advantages, mask, *clips)

    real = Learner.update

    def update(self, *args):
        start = len(calls)
        metrics = real(self, *args)
        first.append(torch.cat(calls[start:]))
        updates.append(metrics)
        return metrics

    monkeypatch.setattr(grpo, "clipped_surrogate", spy)
    monkeypatch.setattr(Learner, "update", update)
    learner = Learner(agent.model, agent.config, 9, agent.accelerator, len(LETTERS))
    agent.improve(learner, attempts_of(agent), 0)
    assert len(updates) == epochs * minibatches
    assert (first[0] == 1).all()
    assert len(calls) > len(updates)  # several micro-batches each
    assert (updates[0]["clip_fraction"], updates[0]["approx_kl"]) == (0, 0)
    assert updates[0]["reference_kl"] == pytest.approx(0, abs=1e-9)
    for ratios, metrics in zip(first, updates, strict=True):
        share = ((ratios - 1).abs() > agent.config.clip).float().mean().item()
        assert metrics["clip_fraction"] == pytest.approx(share, abs=1e-6)
    if len(updates) > 1:
        assert updates[-1]["clip_fraction"] > 0
        assert updates[-1]["reference_kl"] > 1e-4


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_training_forward_pass_agrees_with_the_rollout(attempts_of, make, architecture: str) -> None:
    agent = make(architecture=architecture)
    attempts = attempts_of(agent)
    learner = Learner(agent.model, agent.config, 1, agent.accelerator, len(LETTERS))
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    found = learner.logprobs(examples, agent.config.temperature)
    for attempt, values in zip(attempts, found, strict=True):
        np.testing.assert_allclose(values, attempt.logprobs, atol=1e-5)


@pytest.mark.parametrize("kind", ["reinforce", "mean", "rloo", "grpo"])
@pytest.mark.parametrize("temperature", [0.75, 1.5])
def test_the_update_follows_the_policy_gradient_of_the_sampling_policy(
    attempts_of, plain_gradient, make, kind: str, temperature: float
) -> None:
    settings = {"temperature": temperature, "max_grad_norm": 1e9, "micro_batch_tokens": 30, "learning_rate": 0.0}
    agent = make(kind, problems_per_iteration=60, **settings)
    attempts = attempts_of(agent)
    returns = np.array([attempt.total_reward for attempt in attempts]).reshape(60, -1)
    size = returns.shape[1]
    others = (returns.sum(1, keepdims=True) - returns) / (size - 1)
    deviation = returns.std(1, ddof=1, keepdims=True) + 1e-4
    lengths = np.array([len(attempt.completion) for attempt in attempts]).reshape(returns.shape)
    signals = {
        "reinforce": returns,
        "mean": returns - returns.mean(),
        "rloo": returns - others,
        "grpo": (returns - returns.mean(1, keepdims=True)) / deviation / lengths,
    }[kind]
    learner = Learner(agent.model, agent.config, 1, agent.accelerator, len(LETTERS))
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters]))
    )
    metrics = agent.improve(learner, attempts, 0)
    assert metrics["trained_attempts"] == np.count_nonzero(signals) > 3
    expected = plain_gradient(agent, attempts, signals)
    assert torch.linalg.norm(caught[0] - expected) <= 1e-5 * expected.norm()
