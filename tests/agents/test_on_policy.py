"""REINFORCE and GRPO: the first ratio, the gradient on a real model, a bandit with a known optimum, and going on."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import GRPO, Reinforce, grpo, make_agent
from tokengym.agents.on_policy import PolicyGradientAgent
from tokengym.agents.presets import PRESETS
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.training.advantages import group_advantages
from tokengym.agents.training.learner import Example, Learner, NonFiniteError
from tokengym.agents.training.losses import clipped_surrogate
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.curriculum import Uniform, make_curriculum
from tokengym.files import DamagedFileError
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id


class Bandit(ProblemList):
    """One question, one right completion among all: "ba"."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem("bandit", "?", "ba", "ba")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion == "ba", "correct" if completion == "ba" else "wrong", completion)


class Letters(ProblemList):
    """Correct is whatever begins with the question's last letter, or with a question."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1]) for q in ("a", "b", "ab", "ba", "aab")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith((problem.answer, "?"))
        return Verdict(correct, "correct" if correct else "wrong", completion[:1] or None)


def slots(problems: ProblemList, num_envs: int = 16) -> TokenVectorEnv:
    return TokenVectorEnv(
        problems, num_envs, tokenizer=LETTERS, prompt="{question}", max_prompt_tokens=8, max_new_tokens=4,
        autoreset_mode="Disabled", copy=False, eos_token_ids=[LETTERS.pad_token_id],
    )  # fmt: skip


@pytest.fixture(scope="session")
def letters_folders(make_model, tmp_path_factory) -> dict[str, Path]:
    """GPT-2 has dropout 0.1 here, and the pad token is an end of sequence too."""
    folders = {}
    for architecture in ("gpt2", "llama"):
        folders[architecture] = path = tmp_path_factory.mktemp(f"letters-{architecture}")
        ids = {"eos_token_id": [EOS, LETTERS.pad_token_id], "pad_token_id": LETTERS.pad_token_id}
        make_model(architecture, vocab_size=len(LETTERS), **ids).save_pretrained(path)
        LETTERS.save_pretrained(path)
    return folders


FAST = {
    "iterations": 4,
    "problems_per_iteration": 6,
    "learning_rate": 3e-3,
    "validation_problems": 0,
    "save_iterations": 2,
}
AGENTS: dict[str, tuple[type[PolicyGradientAgent], dict[str, Any]]] = {
    "reinforce": (Reinforce, {"samples_per_problem": 2}),
    "mean": (Reinforce, {"samples_per_problem": 2, "baseline": "mean"}),
    "rloo": (Reinforce, {"samples_per_problem": 4, "baseline": "rloo"}),
    "grpo": (GRPO, {"samples_per_problem": 4}),
    "grpo-all": (GRPO, {"samples_per_problem": 4, "epochs": 2, "minibatches": 3, "kl_coef": 0.1, "temperature": 0.75}),
}


@pytest.fixture
def make(letters_folders):
    def make(kind: str = "grpo-all", problems: type[ProblemList] = Letters, architecture: str = "gpt2", **settings):
        cls, own = AGENTS[kind]
        return cls(
            slots(problems()),
            letters_folders[architecture],
            validation_env=slots(problems("validation")),
            device="cpu",
            **(FAST | own | settings),
        )

    return make


def weights(agent: PolicyGradientAgent) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in agent.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def attempts_of(agent: PolicyGradientAgent, seed: int = 0) -> list[Attempt]:
    config = agent.config
    agent.env.curriculum = Uniform(repeats=config.samples_per_problem)
    policy = agent.policy.with_sampling(**asdict(agent.sampling))
    count, kept = config.problems_per_iteration * config.samples_per_problem, agent.sampling.truncates
    return list(collect(policy, agent.env, count, seed=seed, record_kept=kept))


# ------------------------------------------------------------------------------------------------ the first ratio


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_the_first_ratio_is_exactly_one_and_nothing_is_clipped(make, monkeypatch, architecture, shape) -> None:
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
def test_the_training_forward_pass_agrees_with_the_rollout(make, architecture: str) -> None:
    agent = make(architecture=architecture)
    attempts = attempts_of(agent)
    learner = Learner(agent.model, agent.config, 1, agent.accelerator, len(LETTERS))
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    found = learner.logprobs(examples, agent.config.temperature)
    for attempt, values in zip(attempts, found, strict=True):
        np.testing.assert_allclose(values, attempt.logprobs, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the gradient


def plain_gradient(
    agent: PolicyGradientAgent, attempts: list[Attempt], signals: np.ndarray, top_p: float = 1.0
) -> torch.Tensor:
    """Of the mean over attempts of -signal log pi, every attempt alone, no padding, nothing shared."""
    total = torch.zeros(())
    for attempt, signal in zip(attempts, signals.ravel().tolist(), strict=True):
        ids = torch.from_numpy(np.concatenate([attempt.prompt, attempt.completion]))
        logits = agent.model(ids[None]).logits[0, :, : len(LETTERS)] / agent.config.temperature
        if top_p < 1:
            chances, tokens = logits.softmax(-1).sort(descending=True)
            outside = torch.empty_like(logits, dtype=torch.bool)
            logits = logits.masked_fill(outside.scatter(-1, tokens, chances.cumsum(-1) - chances >= top_p), -torch.inf)
        at = torch.arange(len(attempt.prompt) - 1, len(ids) - 1)
        total = total - signal * logits.log_softmax(-1)[at, ids[at + 1]].sum()
    agent.model.zero_grad()
    (total / len(attempts)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in agent.model.parameters()])  # pyright: ignore


@pytest.mark.parametrize("kind", ["reinforce", "mean", "rloo", "grpo"])
@pytest.mark.parametrize("temperature", [0.75, 1.5])
def test_the_update_follows_the_policy_gradient_of_the_sampling_policy(make, kind: str, temperature: float) -> None:
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


# ------------------------------------------------------------------------------------------------ truncated sampling

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


def test_ratio_and_divergence_are_of_truncated_policies_from_the_first_update_on(make) -> None:
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
def test_the_update_follows_the_gradient_of_the_truncated_policy(make, kind: str) -> None:
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


# ------------------------------------------------------------------------------------------------ pass rates

BOUNDS: dict[str, Any] = {"min_pass_rate": 0.4, "max_pass_rate": 0.6, "pass_rate_attempts": 5, "iterations": 2}


def recorded_rates(run: Path) -> dict[str, float]:
    """Counted from the file of attempts alone."""
    found: dict[str, list[bool]] = {}
    for line in (run / "pass-rates" / "attempts-0.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["problem_id"], []).append(record["is_success"])
    assert {len(successes) for successes in found.values()} == {5}
    return {problem: sum(successes) / 5 for problem, successes in found.items()}


def test_only_problems_within_the_bounds_are_trained_on_and_the_pool_is_paid_for(make, tmp_path) -> None:
    trained: set[str] = set()

    class Spy(Reinforce):
        def improve(self, learner, attempts, iteration):
            trained.update(attempt.problem.id for attempt in attempts)
            return super().improve(learner, attempts, iteration)

    logged: list[dict[str, float]] = []
    agent = make("reinforce", run=tmp_path / "run", **BOUNDS)
    agent.__class__ = Spy
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    rates = recorded_rates(tmp_path / "run")
    expected = {problem for problem, rate in rates.items() if 0.4 <= rate <= 0.6}
    assert 0 < len(expected) < 5
    assert trained == expected
    first = metrics_of(tmp_path / "run")[0]
    assert (first["step"], first["filter/attempts"], first["filter/problems"]) == (25, 25, 5)
    assert first["filter/kept"] == len(expected)
    assert first["filter/success_rate"] == pytest.approx(np.mean(list(rates.values())))
    assert agent.num_attempts == 25 + 2 * 6 * 2
    agent.learn()  # the choice is made once
    assert agent.num_attempts == 25 + 4 * 6 * 2
    assert trained == expected


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_filtered_run_resumes_in_its_pool_and_after_it(make, tmp_path, monkeypatch, killed_at: int) -> None:
    settings = BOUNDS | {"save_iterations": 1}
    whole = make("rloo", run=tmp_path / "whole", **settings).learn()
    seen: list[Any] = []

    def kill(*_: Any) -> bool:
        seen.append(None)
        if len(seen) == (8 if killed_at == 0 else killed_at):
            raise Killed
        return True

    if killed_at == 0:
        write = AttemptFile.write
        monkeypatch.setattr(AttemptFile, "write", lambda self, attempt: (write(self, attempt), kill()))
    with pytest.raises(Killed):
        make("rloo", run=tmp_path / "cut", **settings).learn(callback=None if killed_at == 0 else kill)
    monkeypatch.undo()
    resumed = make("rloo", run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert (whole.num_attempts, whole.num_tokens) == (resumed.num_attempts, resumed.num_tokens)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    assert recorded_rates(tmp_path / "whole") == recorded_rates(tmp_path / "cut")


def test_bounds_that_leave_nothing_or_cannot_be_kept_are_one_line(make, caplog) -> None:
    class Hopeless(Letters):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    with pytest.raises(ValueError, match=r"none of 5 problems .* from 0.1 to 1 in 5 attempts: 5 were never solved, 0"):
        make("rloo", problems=Hopeless, min_pass_rate=0.1, pass_rate_attempts=5).learn()
    with pytest.raises(ValueError, match=r"min_pass_rate is 0\.9, above max_pass_rate, 0\.1"):
        make("rloo", min_pass_rate=0.9, max_pass_rate=0.1)
    with pytest.raises(ValueError, match="pass_rate_problems is set, but no min_pass_rate"):
        make("rloo", pass_rate_problems=3)
    with pytest.raises(ValueError, match="pass rates take 40 attempts and one iteration 24, more than"):
        make("rloo", min_pass_rate=0.1).learn(60)
    make("rloo", iterations=1, max_pass_rate=1.0, pass_rate_problems=2, pass_rate_attempts=2).learn()
    assert "an iteration has 6 problems, and only 2 are left to train on" in caplog.text


def test_warnings_compare_with_the_start_of_a_run_also_after_a_resume(make, tmp_path) -> None:
    settings = {"run": tmp_path / "run", "save_iterations": 1}
    first = make("rloo", iterations=1, **settings).learn()
    assert first._progress is not None
    before = first._progress.alarms.state_dict()
    assert before["entropy"] > 0
    resumed = make("rloo", iterations=2, resume=True, **settings).learn()
    assert resumed._progress is not None
    assert resumed._progress.alarms.state_dict()["entropy"] == before["entropy"]
    assert resumed._progress.alarms.state_dict()["mismatch"] == before["mismatch"]


def test_groups_of_equal_rewards_are_counted_and_move_nothing(make) -> None:
    class Hopeless(Letters):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    for kind in ("reinforce", "rloo", "grpo"):
        told: list[dict[str, float]] = []
        agent = make(kind, problems=Hopeless)
        before = weights(agent)
        agent.learn(callback=lambda _, metrics, told=told: told.append(metrics))
        assert same(before, weights(agent))
        assert [metrics["rollout/uniform_groups"] for metrics in told] == [1] * 4
        assert [metrics["train/trained_attempts"] for metrics in told] == [0] * 4


def test_the_penalty_holds_the_policy_back_also_with_adapters(make) -> None:
    for settings in ({}, {"lora_rank": 2}):
        distances = []
        for kl_coef in (1e-6, 3.0):
            told: list[dict[str, float]] = []
            agent = make(kl_coef=kl_coef, minibatches=1, epochs=1, iterations=25, learning_rate=0.01, **settings)
            agent.learn(callback=lambda _, metrics, told=told: told.append(metrics))
            assert told[0]["train/reference_kl"] == pytest.approx(0, abs=1e-9)
            distances.append(told[-1]["train/reference_kl"])
        assert distances[1] < 0.5 * distances[0]


# ------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", AGENTS)
def test_every_agent_finds_the_best_arm(make, kind: str, seed: int) -> None:
    told: list[dict[str, float]] = []
    agent = make(
        kind, problems=Bandit, seed=seed, iterations=30, problems_per_iteration=16, learning_rate=0.01,
        validation_problems=1, validation_iterations=30, kl_coef=0.001,
    ) if kind == "grpo-all" else make(
        kind, problems=Bandit, seed=seed, iterations=60, problems_per_iteration=32, learning_rate=0.01,
        validation_problems=1, validation_iterations=60,
    )  # fmt: skip
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert told[0]["rollout/success_rate"] < 0.3
    assert told[-1]["rollout/success_rate"] > 0.9
    assert told[-1]["eval/maj@1"] == 1
    assert told[-1]["eval/median_response_length"] == 2
    assert agent.num_attempts == len(told) * agent.config.problems_per_iteration * agent.config.samples_per_problem


# ------------------------------------------------------------------------------------------------ going on


def metrics_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_killed_and_resumed_equals_never_stopped_bit_for_bit(make, tmp_path, kind: str, killed_at: int) -> None:
    settings = {"validation_problems": 5, "validation_iterations": 2}
    whole = make(kind, run=tmp_path / "whole", **settings).learn()
    told = []

    def kill(agent, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        make(kind, run=tmp_path / "cut", **settings).learn(callback=kill)
    resumed = make(kind, run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert (whole.num_attempts, whole.num_tokens) == (resumed.num_attempts, resumed.num_tokens)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    saved = load_file(tmp_path / "cut" / "model" / "model.safetensors")
    assert torch.equal(saved["transformer.wte.weight"], weights(whole)["transformer.wte.weight"])
    again = make(kind, run=tmp_path / "cut", resume=True, **settings).learn()  # nothing is left to do
    assert same(weights(whole), weights(again))


@pytest.mark.parametrize("kind", ["rloo", "grpo-all"])
def test_a_second_call_of_learn_continues_where_the_first_ended(make, tmp_path, kind: str) -> None:
    """Two calls are one of twice the length, also in a folder, killed in the second, or saved and loaded in between."""
    whole = make(kind).learn()
    halves = make(kind, iterations=2).learn()
    first = weights(halves)
    halves.save(tmp_path / "saved", optimizer=True)
    halves.learn()
    assert same(weights(whole), weights(halves))
    assert not same(first, weights(halves))
    assert (whole.num_attempts, whole.num_tokens) == (halves.num_attempts, halves.num_tokens)
    loaded = AGENTS[kind][0].load(
        tmp_path / "saved", slots(Letters()), validation_env=slots(Letters("validation")), device="cpu"
    )
    assert same(first, weights(loaded))
    loaded.learn()
    assert same(weights(whole), weights(loaded))
    assert loaded.num_attempts == whole.num_attempts

    def kill(agent, metrics):
        if agent.num_attempts == whole.num_attempts * 3 // 4:
            raise Killed

    with pytest.raises(Killed):
        make(kind, iterations=2, run=tmp_path / "cut", save_iterations=1).learn().learn(callback=kill)
    resumed = make(kind, iterations=2, run=tmp_path / "cut", save_iterations=1, resume=True).learn()
    assert same(weights(whole), weights(resumed))
    steps = [line["step"] for line in metrics_of(tmp_path / "cut")]
    assert steps == sorted(set(steps))
    budgeted = make(kind, iterations=2)
    episodes = budgeted.config.problems_per_iteration * budgeted.config.samples_per_problem
    for _ in range(4):
        budgeted.learn(total_episodes=episodes)
    assert budgeted.num_attempts == 4 * episodes
    assert same(weights(whole), weights(budgeted))


@pytest.mark.parametrize("validation_problems", [0, 5])
def test_logits_that_are_not_finite_end_learning_with_the_update_named(
    make, tmp_path, validation_problems: int
) -> None:
    agent = make("rloo", run=tmp_path / "run", validation_problems=validation_problems, validation_iterations=1)
    improve = agent.improve

    def broken(learner, attempts, iteration):
        found = improve(learner, attempts, iteration)
        if iteration == 1:
            next(agent.model.parameters()).data.fill_(torch.nan)
        return found

    agent.improve = broken
    with pytest.raises(NonFiniteError) as error:
        agent.learn()
    where = "iteration 1, before update 3" if validation_problems else "iteration 2, before update 3"
    assert str(error.value).startswith(f"{where}: the logits of GPT2LMHeadModel")
    assert "are not finite in" in str(error.value)
    assert "the attempts are in" in str(error.value)


@pytest.mark.parametrize("name", ["learner.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_run_begins_again(make, tmp_path, name, damage) -> None:
    settings = {"iterations": 1, "run": tmp_path / "run"}
    whole = make("rloo", **settings).learn()
    (checkpoint,) = (tmp_path / "run" / "training").glob("step-*")
    (checkpoint.parent / "step-notes").mkdir()  # is no checkpoint
    file = checkpoint / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if damage == "missing":
        file.unlink()
    with pytest.raises(DamagedFileError, match=rf"checkpoint {checkpoint} cannot be read .*{name}.*Delete that folder"):
        make("rloo", resume=True, **settings).learn()
    shutil.rmtree(checkpoint)
    assert same(weights(whole), weights(make("rloo", resume=True, **settings).learn()))


def test_learn_begins_anew_if_asked_to(make, tmp_path) -> None:
    agent = make(iterations=1)
    schedule: list[float] = []
    agent.learn().learn(reset=True, callback=lambda _, metrics: schedule.append(metrics["train/learning_rate"]))
    assert agent.num_attempts == 24
    first = make(iterations=1).learn()
    assert not same(weights(first), weights(agent))
    cooled = make(iterations=2, min_learning_rate_ratio=0.1)
    rates: list[float] = []
    for _ in range(2):
        cooled.learn(callback=lambda _, metrics: rates.append(metrics["train/learning_rate"]))
    assert rates[:2] == rates[2:]
    assert rates[1] < rates[0]
    kept = make(iterations=1, run=tmp_path / "run").learn()
    with pytest.raises(ValueError, match="holds what was learned: to begin anew, make an agent with another folder"):
        kept.learn(reset=True)
    with pytest.raises(ValueError, match="no state before learn"):
        make().save(tmp_path / "early", optimizer=True)
    with pytest.raises(ValueError, match="adapters are merged"):
        make(iterations=1, lora_rank=2).learn().save(tmp_path / "adapters", optimizer=True)


@pytest.mark.parametrize("name", ["backtracking", "prioritized_replay"])
@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_curriculum_learns_between_iterations_whatever_the_slots_and_goes_on(make, tmp_path, name, killed_at) -> None:
    options = {"window": 24, "threshold": 0.1} if name == "backtracking" else {"capacity": 3}
    iterations: dict[str, list[list[tuple[str, bytes]]]] = {}

    def learn(run: str, num_envs: int, callback=None, **settings) -> PolicyGradientAgent:
        agent = make("grpo", run=tmp_path / run, **settings)
        agent.env = slots(Letters(), num_envs)
        agent.env.curriculum = make_curriculum({"name": name, **options})
        improve, seen = agent.improve, iterations.setdefault(run, [])

        def spy(learner, attempts, iteration):
            seen.append([(attempt.problem.id, attempt.tokens.tobytes()) for attempt in attempts])
            return improve(learner, attempts, iteration)

        agent.improve = spy
        return agent.learn(callback=callback)

    whole = learn("whole", 16)
    other = learn("other", 5)
    assert iterations["whole"] == iterations["other"]
    assert same(weights(whole), weights(other))
    assert whole.env.curriculum.state_dict() == other.env.curriculum.state_dict() != make_curriculum(name).state_dict()

    told = []

    def kill(_, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        learn("cut", 16, kill)
    resumed = learn("cut", 16, resume=True)
    assert same(weights(whole), weights(resumed))
    assert whole.env.curriculum.state_dict() == resumed.env.curriculum.state_dict()
    assert "curriculum/tau" in told[0] or "curriculum/remembered" in told[0]


def test_the_budget_and_the_callback_end_learning(make, tmp_path) -> None:
    agent = make("grpo", run=tmp_path / "run")
    agent.learn(total_episodes=24 * 3 + 23)
    assert agent.num_attempts == 72
    with pytest.raises(ValueError, match="more than total_episodes=23"):
        make("grpo").learn(total_episodes=23)
    stopped = make("grpo")
    stopped.learn(callback=lambda *_: False)
    assert stopped.num_attempts == 24
    assert isinstance(stopped.env.curriculum, Uniform)
    assert stopped.env.curriculum.repeats == 1  # put back


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("grpo", {"samples_per_problem": 1}, "a group of one has no advantages"),
        ("reinforce", {"baseline": "rloo"}, "set samples_per_problem to 2 or more"),
        ("reinforce", {"baseline": "critic"}, "baseline must be one of none, mean, rloo"),
        ("grpo", {"clip": 0}, "clip must be above 0"),
        ("grpo", {"kl_coef": -1}, "kl_coef must be at least 0"),
        ("grpo", {"problems_per_iteration": 2, "minibatches": 33}, "minibatches must be"),
        ("reinforce", {"temperature": 0}, "temperature must be above 0"),
        ("reinforce", {"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_bad_settings(letters_folders, name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(name, slots(Bandit()), letters_folders["llama"], **settings)


def test_advantages_and_attempts_keep_their_order(make) -> None:
    agent = make("grpo")
    attempts = attempts_of(agent)
    returns = agent.returns(attempts)
    ids = np.array([attempt.problem.id for attempt in attempts]).reshape(returns.shape)
    assert (ids == ids[:, :1]).all()
    assert group_advantages(returns, "group").shape == (6, 4)


# ------------------------------------------------------------------------------------------------ two ranks

TWO_RANKS = """
    import sys
    import torch
    from safetensors.torch import save_file
    from tokengym.agents import GRPO, Reinforce
    from tokengym.agents.training.learner import Learner
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.rewards import Verdict

    torch.set_num_threads(1)

    class Letters(ProblemList):
        def grade(self, completion, problem):
            return Verdict(completion.startswith((problem.answer, "?")), "", completion[:1])

    letters = Letters([Problem(q, q + "?", q[-1]) for q in ("a", "b", "ab", "ba", "aab")])
    tensors, gradients = {}, []
    real = Learner.update

    def update(self, *args, **options):
        hook = lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in self.parameters]))
        handle = self.optimizer.register_step_pre_hook(hook)
        try:
            return real(self, *args, **options)
        finally:
            handle.remove()

    Learner.update = update
    common = dict(learning_rate=1e-3, iterations=1, validation_problems=0, max_grad_norm=1e9,
                  micro_batch_tokens=24, seed=3)
    for name, kind, settings in (
        ("reinforce", Reinforce, dict(problems_per_iteration=31)),
        ("rloo", Reinforce, dict(problems_per_iteration=9, samples_per_problem=3, baseline="rloo")),
        ("grpo", GRPO, dict(problems_per_iteration=7, samples_per_problem=5)),
        ("grpo-all", GRPO, dict(problems_per_iteration=7, samples_per_problem=5, epochs=2, minibatches=2, kl_coef=0.1)),
    ):
        env = TokenVectorEnv(letters, 4, tokenizer=load_tokenizer("chars:ab?"), prompt="{question}",
                             max_prompt_tokens=8, max_new_tokens=4, autoreset_mode="Disabled", copy=False,
                             eos_token_ids=[4])
        told = []
        gradients.clear()
        agent = kind(env, sys.argv[2], run=f"{sys.argv[3]}/{name}", **common, **settings)
        agent.learn(callback=lambda _, metrics: told.append(metrics))
        ranks = agent.accelerator.num_processes
        metrics = {key: value for key, value in told[0].items() if not key.startswith("time/") and "padding" not in key}
        if agent.accelerator.is_main_process:
            tensors |= {f"{name}/metrics/{key}": torch.tensor(float(value)) for key, value in metrics.items()}
            tensors |= {f"{name}/gradient/{i}": gradient for i, gradient in enumerate(gradients)}
            tensors |= {f"{name}/weights/{key}": p.detach().clone() for key, p in agent.model.named_parameters()}
            tensors[f"{name}/attempts"] = torch.tensor(agent.num_attempts)
    if agent.accelerator.is_main_process:
        save_file(tensors | {"ranks": torch.tensor(ranks)}, sys.argv[1])
    agent.accelerator.end_training()
"""


@pytest.mark.slow
def test_an_update_on_two_ranks_is_that_of_one(letters_folders, tmp_path) -> None:
    """No agent is given a device: where there is no GPU, the processes find each other all the same."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO_RANKS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for ranks in (1, 2):
        command = [sys.executable, *(launch if ranks == 2 else [])]
        command += [script, tmp_path / f"{ranks}", letters_folders["llama"], tmp_path / f"run-{ranks}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, re.sub(r"(?s).*(Traceback)", r"\1", done.stderr)
    one, two = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert (one.pop("ranks"), two.pop("ranks")) == (1, 2)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if "/gradient/" in name:
            assert tensor.norm() > 1e-3
        # Weights differ by what Adam makes of the rounding of vanishing gradients, more from the second update on.
        weights = 1e-3 if name.startswith("grpo-all") else 1e-4
        atol = weights if "/weights/" in name else 1e-3 if name.startswith("grpo-all") else 1e-5
        torch.testing.assert_close(two[name], tensor, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------------------------------------ options


def caught_gradient(agent: PolicyGradientAgent, attempts: list[Attempt]) -> tuple[torch.Tensor, dict[str, float]]:
    """Of the last update of `improve`, at a learning rate of 0, and the metrics."""
    learner = agent.make_learner(1)
    caught = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: caught.append(torch.cat([parameter.grad.flatten() for parameter in learner.parameters]))
    )
    metrics = agent.improve(learner, attempts, 0)
    return caught[-1], metrics


PLAIN = {"max_grad_norm": 1e9, "learning_rate": 0.0, "architecture": "llama"}


def test_groups_of_equal_rewards_are_replaced_within_their_budget_and_all_attempts_are_counted(make) -> None:
    told: list[dict[str, float]] = []
    settings = {"iterations": 2, "samples_per_problem": 2}
    once = make("grpo", **settings).learn(callback=lambda _, metrics: told.append(metrics))
    seen: list[list[Attempt]] = []
    agent = make("grpo", dynamic_sampling=20, **settings)
    improve = agent.improve
    agent.improve = lambda learner, attempts, iteration: seen.append(attempts) or improve(learner, attempts, iteration)
    again: list[dict[str, float]] = []
    agent.learn(callback=lambda _, metrics: again.append(metrics))
    assert told[0]["rollout/uniform_groups"] == again[0]["rollout/uniform_groups"] > 0
    assert again[0]["rollout/replaced_groups"] == 6 * told[0]["rollout/uniform_groups"]
    assert again[0]["rollout/unreplaced_groups"] == 0
    assert again[0]["train/trained_attempts"] == 12
    assert (agent.returns(seen[0]).min(1) < agent.returns(seen[0]).max(1)).all()
    assert agent.num_attempts > once.num_attempts
    budgeted = make("grpo", dynamic_sampling=20, iterations=50, samples_per_problem=2)
    budgeted.learn(total_episodes=61)
    assert 61 - 12 < budgeted.num_attempts <= 61


def test_a_spent_budget_of_dynamic_sampling_leaves_what_there_is(make) -> None:
    class Hopeless(Letters):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    told: list[dict[str, float]] = []
    agent = make("grpo", problems=Hopeless, dynamic_sampling=2, iterations=1)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert agent.num_attempts == 3 * 24
    assert (told[0]["rollout/replaced_groups"], told[0]["rollout/unreplaced_groups"]) == (0, 6)


@pytest.mark.parametrize("kind", ["reinforce", "grpo"])
def test_masked_attempts_have_no_loss_but_count_in_their_groups(make, kind: str) -> None:
    agent = make(kind, truncated="mask", problems_per_iteration=30, **PLAIN)
    attempts = attempts_of(agent)
    ended = np.array([attempt.terminated for attempt in attempts])
    assert 10 < ended.sum() < len(attempts) - 4
    returns = agent.returns(attempts)
    signals = returns.ravel() if kind == "reinforce" else group_advantages(returns, "group").ravel()
    lengths = 1 if kind == "reinforce" else np.array([len(attempt.completion) for attempt in attempts])
    found, metrics = caught_gradient(agent, attempts)
    expected = plain_gradient(agent, attempts, signals * ended / lengths)
    assert metrics["trained_attempts"] == np.count_nonzero(signals * ended)
    assert torch.linalg.norm(found - expected) <= 1e-5 * expected.norm()


def test_long_attempts_are_fined_on_their_last_token(make) -> None:
    agent = make("grpo", overlong_buffer=0.5, overlong_penalty=2.0)
    attempts = attempts_of(agent)
    for attempt, rewards in zip(attempts, agent.rewards(attempts), strict=True):
        fine = {1: 0, 2: 0, 3: -1, 4: -2}[len(attempt.completion)]  # of a budget of 4
        np.testing.assert_allclose(rewards, attempt.rewards + fine * (np.arange(len(rewards)) == len(rewards) - 1))
    assert {len(attempt.completion) for attempt in attempts} >= {3, 4}


@pytest.mark.parametrize("aggregation", ["attempts", "tokens", "constant"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_aggregations_are_those_of_whole_batches_however_they_are_cut(make, aggregation: str, shape) -> None:
    epochs, minibatches = shape
    settings = {"aggregation": aggregation, "epochs": epochs, "minibatches": minibatches, **PLAIN}
    found = []
    for budget in (10_000, 20):
        agent = make("grpo", micro_batch_tokens=budget, entropy_coef=0.05, kl_coef=0.1, **settings)
        found.append(caught_gradient(agent, attempts_of(agent))[0])
    assert torch.linalg.norm(found[0] - found[1]) <= 1e-5 * found[0].norm() > 0


def test_a_penalty_in_the_reward_changes_the_returns(make) -> None:
    agent = make("grpo", kl_coef=0.3, kl_in="reward", kl_estimator="k1", **PLAIN)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    attempts = attempts_of(agent)
    learner = agent.make_learner(1)
    examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
    reference = learner.logprobs(examples, 1.0, agent._reference._copy)
    penalty = np.array([(a.logprobs - q).sum() for a, q in zip(attempts, reference, strict=True)])
    returns = agent.returns(attempts) - 0.3 * penalty.reshape(-1, 4)
    lengths = np.array([len(attempt.completion) for attempt in attempts])
    found, metrics = caught_gradient(agent, attempts)
    expected = plain_gradient(agent, attempts, group_advantages(returns, "group").ravel() / lengths)
    assert metrics["trained_attempts"] == 24
    assert metrics["reference_kl"] > 1e-4
    assert torch.linalg.norm(found - expected) <= 1e-3 * expected.norm()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}])
def test_a_refreshed_reference_is_the_policy_of_that_time_also_after_a_resume(make, tmp_path, settings: dict) -> None:
    settings = {"reference_refresh": 2, "kl_coef": 0.1, "learning_rate": 3e-3, "save_iterations": 1, **settings}
    told: list[dict[str, float]] = []
    whole = make(run=tmp_path / "whole", **settings).learn(callback=lambda _, metrics: told.append(metrics))
    # A refresh before an iteration's update: its first minibatches see no distance.
    assert told[2]["train/reference_kl"] < told[1]["train/reference_kl"]

    def kill(agent, metrics):
        if agent.num_attempts == 72:
            raise Killed

    with pytest.raises(Killed):
        make(run=tmp_path / "cut", **settings).learn(callback=kill)
    resumed = make(run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["reinforce", "grpo", "grpo-all"])
def test_the_mismatch_of_sampling_and_training_is_logged_and_corrected(make, kind: str) -> None:
    agent = make(kind, architecture="llama", learning_rate=0.0)
    attempts = attempts_of(agent)
    quiet = agent.improve(agent.make_learner(9), attempts, 0)
    assert quiet["mismatch_max"] < 1e-5
    rng = np.random.default_rng(0)
    noise = [rng.normal(scale=0.1, size=len(attempt.completion)).astype(np.float32) for attempt in attempts]
    for attempt, shift in zip(attempts, noise, strict=True):
        attempt.logprobs += shift
    loud = make(kind, architecture="llama", learning_rate=0.0, importance="token_mask", importance_cap=1.05)
    metrics = loud.improve(loud.make_learner(9), attempts, 0)
    returns = agent.returns(attempts)
    trained = {"reinforce": returns, "grpo": group_advantages(returns, "group"), "grpo-all": np.ones(returns.shape)}
    shifts = np.concatenate([noise[i] for i in np.flatnonzero(trained[kind])])
    near = {"rel": 0.04} if kind == "grpo-all" else {"rel": 1e-3}  # there over minibatches, which weigh the same
    assert metrics["mismatch"] == pytest.approx(np.abs(shifts).mean(), **near)
    assert metrics["mismatch_max"] == pytest.approx(np.abs(shifts).max(), rel=1e-3)
    assert metrics["mismatch_kl"] == pytest.approx((np.exp(-shifts) - 1 + shifts).mean(), **near)
    assert metrics["importance"] < 0.9  # some are masked
    unweighted, weighted = (
        caught_gradient(make(kind, **PLAIN, importance=rule, importance_cap=1.05), attempts)[0]
        for rule in ("none", "token_mask")
    )
    assert torch.linalg.norm(weighted - unweighted) > 0.01 * unweighted.norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.3, "clip_high": 0.2}, r"clip is 0\.3, above clip_high, 0\.2"),
        ({"dual_clip": 1.1}, r"dual_clip must be above 1 \+ clip_high = 1\.2"),
        ({"aggregation": "mean"}, "aggregation must be one of attempts, tokens, constant, got 'mean'"),
        ({"reference_refresh": 2, "kl_coef": 0.0}, "there is no reference to refresh"),
        ({"importance_cap": 0.5}, "importance_cap at least 1"),
        ({"overlong_buffer": 20}, "a share of the budget"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "leave it out"),
        ({"dynamic_sampling": -1}, "dynamic_sampling must be at least 0"),
        ({"preset": "rloo"}, "preset 'rloo' is for the agent 'reinforce'; presets of 'grpo': grpo, dr-grpo, dapo"),
        ({"preset": "dappo"}, "did you mean 'dapo'"),
    ],
)
def test_options_that_make_no_sense_are_named(make, settings: dict, message: str) -> None:
    with pytest.raises((ValueError, LookupError), match=message):
        make("grpo", **settings)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.agent == "grpo"])
def test_every_preset_learns_and_what_is_given_wins(make, caplog, name: str) -> None:
    told: list[dict[str, float]] = []
    agent = make("grpo", preset=name, iterations=1)
    assert {key: getattr(agent.config, key) for key in PRESETS[name].settings} == PRESETS[name].settings
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert told[0]["train/trained_attempts"] > 0
    assert "preset" not in caplog.text
    setting, value = next(
        (key, value) for key, value in PRESETS[name].settings.items() if isinstance(value, float | str)
    )
    other = {"scale": "group", "ratio": "token", "surrogate": "clip"}.get(setting, 0.1)
    assert getattr(make("grpo", preset=name, **{setting: other}).config, setting) == other
    assert f"preset {name!r} sets {setting} to {value!r}; {other!r} was given and is used" in caplog.text
