"""Sampling by top-k, top-p and min-p: the truncated policy is the one that learns."""

import numpy as np
import pytest
import torch

from tokengym.agents.training.learner import Learner
from tokengym.models import load_tokenizer

LETTERS = load_tokenizer("chars:ab?")
TRUNCATIONS = [{"top_p": 0.7}, {"top_k": 3}, {"min_p": 0.5}]


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=lambda item: next(iter(item)))
@pytest.mark.parametrize("kind", ["rloo", "grpo-all"])
def test_the_policy_that_learns_is_the_truncated_one_that_samples(make, kind: str, truncation) -> None:
    logged: list[dict[str, float]] = []
    bonus = {"entropy_coef": 0.01} if kind == "grpo-all" else {}
    agent = make(kind, architecture="llama", temperature=0.8, **truncation, **bonus)
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    for metrics in logged:
        assert metrics["train/mismatch_max"] < 1e-5
        assert 1 < metrics["rollout/kept_tokens"] < len(LETTERS)
        assert metrics["rollout/kept_tokens"] == 3 or "top_k" not in truncation
    if kind == "grpo-all":
        assert 0 < logged[0]["train/entropy"] < np.log(len(LETTERS))


def test_ratio_and_divergence_are_of_truncated_policies_from_the_first_update_on(attempts_of, make) -> None:
    agent = make("grpo-all", architecture="llama", top_p=0.7, epochs=1, minibatches=1)
    attempts = attempts_of(agent)
    learner = Learner(agent.model, agent.config, 1, agent.accelerator, len(LETTERS))
    metrics = agent.improve(learner, attempts, 0)
    assert metrics["mismatch_max"] < 1e-5
    assert (metrics["clip_fraction"], metrics["approx_kl"]) == (0, 0)
    assert metrics["reference_kl"] == pytest.approx(0, abs=1e-9)
    # The check can fail: whole distributions give the same actions other probabilities.
    for attempt in attempts:
        attempt.kept = None
    assert agent.improve(learner, attempts, 0)["mismatch_max"] > 0.1


@pytest.mark.parametrize("kind", ["reinforce", "grpo"])
def test_the_update_follows_the_gradient_of_the_truncated_policy(attempts_of, plain_gradient, make, kind: str) -> None:
    settings = {"temperature": 0.75, "top_p": 0.8, "max_grad_norm": 1e9, "micro_batch_tokens": 30, "learning_rate": 0.0}
    agent = make(kind, problems_per_iteration=30, **settings)
    attempts = attempts_of(agent)
    returns = np.array([attempt.total_reward for attempt in attempts]).reshape(30, -1)
    lengths = np.array([len(attempt.completion) for attempt in attempts]).reshape(returns.shape)
    deviation = returns.std(1, ddof=1, keepdims=True) + 1e-4
    signals = returns if kind == "reinforce" else (returns - returns.mean(1, keepdims=True)) / deviation / lengths
    learner = Learner(agent.model, agent.config, 1, agent.accelerator, len(LETTERS))
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters]))
    )
    agent.improve(learner, attempts, 0)
    expected, whole = plain_gradient(agent, attempts, signals, 0.8), plain_gradient(agent, attempts, signals)
    assert torch.linalg.norm(caught[0] - expected) <= 1e-5 * expected.norm()
    assert torch.linalg.norm(whole - expected) > 0.1 * expected.norm()


def test_truncated_sampling_is_refused_where_nothing_is_left_or_nothing_is_known(make, monkeypatch) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 2 to explore"):
        make(top_k=1)
    with pytest.raises(ValueError, match="top_p must be above 0 and at most 1"):
        make(top_p=0.0)
    monkeypatch.setattr("tokengym.agents.base.make_vllm", lambda *_, **__: object())
    with pytest.raises(ValueError, match="which vLLM does not say"):
        make(top_p=0.9, vllm_memory=0.5)
