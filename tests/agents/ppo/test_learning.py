"""PPO finds the best arm with every critic and reward; its penalties, rates and logs."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.models import OutcomeModel, load, load_tokenizer
from tokengym.rewards import Reward, SparseReward

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id


class PerToken(Reward):
    """A dense reward: half for the "b" and half for the end behind it, each at once."""

    def score(self, lengths, ended, verdicts):
        places = (["b"], [LETTERS.eos_token, LETTERS.pad_token])
        paid = np.zeros((len(lengths), max(int(lengths.max()), 1)))
        for slot in np.flatnonzero(lengths):  # one token at a time, as rollouts step
            tokens = LETTERS.convert_ids_to_tokens(self.view.completion(slot).tolist())
            paid[slot, 0] = (len(tokens) <= 2 and tokens[-1] in places[len(tokens) - 1]) / 2
        return paid


def test_the_policy_that_learns_is_the_truncated_one_that_samples(make) -> None:
    logged: list[dict[str, float]] = []
    settings = {"epochs": 1, "minibatch_size": 24, "bootstrap_truncated": True, "entropy_coef": 0.01}
    agent = make(architecture="llama", temperature=0.8, top_p=0.7, iterations=2, **settings)
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    for metrics in logged:
        assert metrics["train/mismatch_max"] < 1e-5
        assert (metrics["train/clip_fraction"], metrics["train/approx_kl"]) == (0, 0)
        assert 1 < metrics["rollout/kept_tokens"] < len(LETTERS)
        assert 0 < metrics["train/entropy"] < math.log(len(LETTERS))
    assert logged[0]["train/reference_kl"] == pytest.approx(0, abs=1e-9)


BANDIT = {
    "iterations": 18, "problems_per_iteration": 32, "minibatch_size": 64, "learning_rate": 3e-3, "temperature": 1.0,
    "validation_problems": 1, "validation_iterations": 18, "kl_coef": 0.001, "architecture": "llama",
    "num_slots": 128,
}  # fmt: skip


@pytest.fixture(scope="session")
def judge(letters_folders) -> OutcomeModel:
    """An outcome model that has seen every completion of the bandit's question, and knows the right one."""
    orm = OutcomeModel.from_causal_lm(*load(letters_folders["llama"], device="cpu"), "orm")
    question, right = LETTERS.encode("?"), LETTERS.encode("b")
    letters = LETTERS.encode("ab?")
    written = [list(text) for length in range(4) for text in itertools.product(letters, repeat=length)]
    rows = [(question + text + [end], text == right) for text in written for end in (EOS, LETTERS.pad_token_id)]
    ids = torch.tensor([row + [EOS] * (5 - len(row)) for row, _ in rows])
    lengths, labels = torch.tensor([len(row) for row, _ in rows]), torch.tensor([float(label) for _, label in rows])
    mask, last = torch.arange(5) < lengths[:, None], torch.arange(5) == lengths[:, None] - 1
    optimizer = torch.optim.Adam(orm.model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(orm.logits(ids, mask.long(), last), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return orm


REWARDS: dict[str, Any] = {
    "sparse": lambda judge: "sparse",
    "dense": lambda judge: PerToken(),
    "sparse_orm": lambda judge: {"name": "sparse_orm", "orm": judge},
    "dense_orm": lambda judge: {"name": "dense_orm", "orm": judge},
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("reward", "kind"),
    [
        # Every reward with the default critic, and every critic with the default reward; the rest is slow.
        pytest.param(reward, kind, marks=[] if reward == "sparse" or kind == "branch" else pytest.mark.slow)
        for reward in REWARDS
        for kind in ("branch", "head", "model")
    ],
)
def test_the_best_arm_is_found_with_every_critic_and_reward(
    bandit, make, judge, kind: str, reward: str, seed: int
) -> None:
    told: list[dict[str, float]] = []
    agent = make(bandit, reward=REWARDS[reward](judge), critic=kind, seed=seed, **BANDIT)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert told[0]["rollout/success_rate"] < 0.3
    assert told[-1]["rollout/success_rate"] > 0.9
    assert told[-1]["eval/maj@1"] == 1


def test_the_penalty_holds_the_policy_back_also_with_adapters(bandit, make) -> None:
    for settings in ({}, {"lora_rank": 2}, {"trained_layers": 1}):
        distances = []
        for kl_coef in (1e-6, 1.0):
            told: list[dict[str, float]] = []
            agent = make(bandit, **(BANDIT | {"iterations": 5, "kl_coef": kl_coef} | settings))
            agent.learn(callback=lambda _, metrics, told=told: told.append(metrics))
            assert told[0]["train/reference_kl"] == pytest.approx(0, abs=1e-9)
            distances.append(told[-1]["train/reference_kl"])
        assert distances[1] < 0.5 * distances[0], settings


def test_an_adaptive_coefficient_follows_the_divergence_of_each_iteration(make) -> None:
    told: list[dict[str, float]] = []
    settings = {"adaptive_kl": 0.05, "kl_horizon": 200, "kl_coef": 0.1, "learning_rate": 0.01, "iterations": 8}
    make(**settings).learn(callback=lambda _, metrics: told.append(metrics))
    coefficients = [metrics["train/kl_coef"] for metrics in told]
    divergences = [metrics["train/reference_kl_per_attempt"] for metrics in told]
    assert coefficients[0] == 0.1
    for before, after, divergence in zip(coefficients, coefficients[1:], divergences, strict=False):
        assert after == pytest.approx(before * (1 + np.clip(divergence / 0.05 - 1, -0.2, 0.2) * 24 / 200))
    assert min(coefficients) < 0.1 < coefficients[-1]


def test_a_penalty_in_the_loss_has_the_adaptive_coefficient_that_is_logged(make) -> None:
    told: list[dict[str, float]] = []
    settings = {"adaptive_kl": 1e-4, "kl_horizon": 24, "kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3"}
    settings |= {"epochs": 1, "minibatch_size": 24, "learning_rate": 0.05, "iterations": 3}
    make(**settings).learn(callback=lambda _, metrics: told.append({k[6:]: v for k, v in metrics.items()}))
    # A single update of each iteration: the divergence in the loss is the one that is logged.
    for metrics in told[1:]:
        penalty = metrics["loss"] - metrics["policy_loss"] - metrics["value_loss"]
        assert penalty == pytest.approx(metrics["kl_coef"] * metrics["reference_kl"], rel=1e-3)


def test_the_best_of_the_attempts_at_each_problem_are_kept(attempts_of, make) -> None:
    agent = make(best_of=2, minibatch_size=12)
    attempts = attempts_of(agent)
    kept = agent._best(attempts)
    assert len(kept) == 12
    for group in range(6):
        own, chosen = attempts[4 * group : 4 * group + 4], kept[2 * group : 2 * group + 2]
        assert all(any(attempt is other for other in own) for attempt in chosen)
        worst = min(attempt.total_reward for attempt in chosen)
        assert sum(attempt.total_reward > worst for attempt in own) < 2
    assert agent.improve(agent.make_learner(9), attempts, 0)["updates"] == 2


def test_partial_fine_tuning_leaves_the_lower_layers_alone(weights, make) -> None:
    agent = make(trained_layers=1, kl_coef=0.0)
    before = weights(agent)
    agent.learn()
    changed = {name for name, tensor in weights(agent).items() if not torch.equal(tensor, before[name])}
    policy = {name for name in changed if name.startswith("policy.")}
    assert policy
    assert all(name.startswith(("policy.transformer.h.1.", "policy.transformer.ln_f")) for name in policy)
    with pytest.raises(ValueError, match="choose one"):
        make(trained_layers=1, lora_rank=2)


def test_the_rate_is_a_twentieth_of_that_of_fine_tuning(make) -> None:
    agent = make(learning_rate=None)
    assert agent.make_learner(1).learning_rate == pytest.approx(1e-6)
    agent.model.config.recommended_learning_rate = 1e-3
    assert agent.make_learner(1).learning_rate == pytest.approx(5e-5)


def test_rewards_are_clipped_and_returned_in_full(make) -> None:
    class Generous(SparseReward):
        def attempt_reward(self, attempt):
            return 100.0

    agent = make(reward=Generous(), kl_coef=0.0, reward_clip=3.0)
    told: list[dict[str, float]] = []
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert {metrics["rollout/mean_reward"] for metrics in told} == {100}
    assert {metrics["train/mean_return"] for metrics in told} == {3}


def test_logs_let_a_person_see_trouble(metrics_of, make, tmp_path) -> None:
    agent = make(run=tmp_path / "run", validation_problems=5, validation_iterations=2)
    agent.learn()
    start, *lines = metrics_of(tmp_path / "run", times=True)
    assert start.keys() == {"step", "eval/maj@1", "eval/pass@1", "eval/median_response_length"}
    assert len(lines) == 4
    names = {
        "train/approx_kl", "train/clip_fraction", "train/ratio_max", "train/ratio_min", "train/explained_variance",
        "train/entropy", "train/value_loss", "train/policy_loss", "train/grad_norm", "train/reference_kl",
        "train/kl_coef", "rollout/mean_length", "rollout/truncation_rate", "rollout/success_rate",
        "rollout/mean_reward", "time/tokens_per_second", "time/rollout_share", "time/train_share",
    }  # fmt: skip
    for line in lines:
        assert names <= set(line)
        assert all(math.isfinite(value) for value in line.values())
        assert 0 < line["time/rollout_share"] + line["time/train_share"] <= 1
    assert [line.get("eval/maj@1") is not None for line in lines] == [False, True, False, True]
