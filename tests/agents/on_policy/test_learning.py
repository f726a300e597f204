"""Agents find the best arm, keep to budgets and references, and name bad settings."""

from typing import Any

import numpy as np
import pytest

from tokengym.agents import make_agent
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.training.advantages import group_advantages
from tokengym.agents.training.ranks import Ranks
from tokengym.envs import Problem
from tokengym.envs.curriculum import Uniform, make_curriculum
from tokengym.rewards import Verdict


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


def test_the_entropy_of_rollouts_is_the_mean_surprise_of_their_tokens(make) -> None:
    told: list[dict[str, float]] = []
    seen: list[Attempt] = []
    agent = make("rloo", iterations=1)
    improve = agent.improve
    agent.improve = lambda learner, attempts, iteration: seen.extend(attempts) or improve(learner, attempts, iteration)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    surprises = -np.concatenate([attempt.logprobs for attempt in seen])
    assert (surprises > 0).all()
    assert told[0]["rollout/entropy"] == pytest.approx(surprises.mean())


def test_a_process_that_samples_a_part_leaves_the_curriculum_where_all_attempts_have_brought_it(make) -> None:
    def learn(ranks: type[Ranks]) -> tuple[dict[str, Any], list[Attempt]]:
        seen: list[Attempt] = []
        agent = make("grpo", iterations=1)
        agent.env.curriculum = make_curriculum({"name": "prioritized_replay", "capacity": 3})
        improve, agent.ranks = agent.improve, ranks(agent.accelerator)
        agent.improve = lambda learner, attempts, number: seen.extend(attempts) or improve(learner, attempts, number)
        agent.learn()
        return agent.env.curriculum.state_dict(), seen

    alone, attempts = learn(Ranks)

    class First(Ranks):
        """The first process of two; the other one sampled what a process alone does."""

        def share(self, total: int) -> range:
            return range(total // 2)

        def gather(self, value: Any) -> list[Any]:
            assert len(value) == len(attempts) // 2
            return [value, attempts[len(value) :]]

    shared, gathered = learn(First)
    assert [attempt.tokens.tolist() for attempt in gathered] == [attempt.tokens.tolist() for attempt in attempts]
    assert shared == alone


def test_groups_of_equal_rewards_are_counted_and_move_nothing(letters, same, weights, make) -> None:
    class Hopeless(letters):
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
            settings |= {"minibatches": 1, "epochs": 1, "iterations": 25, "learning_rate": 0.01, "num_slots": 24}
            agent = make(kl_coef=kl_coef, **settings)
            agent.learn(callback=lambda _, metrics, told=told: told.append(metrics))
            assert told[0]["train/reference_kl"] == pytest.approx(0, abs=1e-9)
            distances.append(told[-1]["train/reference_kl"])
        assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_agent_finds_the_best_arm(bandit, make, kind: str, seed: int) -> None:
    told: list[dict[str, float]] = []
    agent = make(
        kind, problems=bandit, seed=seed, iterations=30, problems_per_iteration=16, learning_rate=0.01,
        validation_problems=1, validation_iterations=30, kl_coef=0.001, num_slots=64,
    ) if kind == "grpo-all" else make(
        kind, problems=bandit, seed=seed, iterations=60, problems_per_iteration=32, learning_rate=0.01,
        validation_problems=1, validation_iterations=60, num_slots=128,
    )  # fmt: skip
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert told[0]["rollout/success_rate"] < 0.3
    assert told[-1]["rollout/success_rate"] > 0.9
    assert told[-1]["eval/maj@1"] == 1
    assert told[-1]["eval/median_response_length"] == 2
    assert agent.num_attempts == len(told) * agent.config.problems_per_iteration * agent.config.samples_per_problem


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


def test_what_a_callback_ends_is_kept(make, tmp_path) -> None:
    make("rloo", run=tmp_path / "run", save_iterations=3).learn(callback=lambda *_: False)
    assert [path.name for path in (tmp_path / "run" / "training").iterdir()] == ["step-1"]


def test_patience_of_a_second_call_begins_anew(make, monkeypatch) -> None:
    monkeypatch.setattr("tokengym.agents.on_policy.validate", lambda *_: {"eval/maj@1": 0.5})
    agent = make("rloo", iterations=6, validation_problems=5, validation_iterations=1, patience=2)
    assert agent.learn().num_attempts == 3 * 24
    assert agent.learn().num_attempts == 5 * 24


def test_the_last_iteration_is_validated_and_kept_whatever_the_intervals(make, tmp_path) -> None:
    told: list[dict[str, float]] = []
    settings = {"iterations": 3, "validation_problems": 5, "validation_iterations": 2, "save_iterations": 2}
    make("rloo", run=tmp_path / "run", **settings).learn(callback=lambda _, metrics: told.append(metrics))
    assert ["eval/maj@1" in metrics for metrics in told] == [False, True, True]
    assert [path.name for path in (tmp_path / "run" / "training").iterdir()] == ["step-3"]


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
def test_bad_settings(bandit, slots, letters_folders, name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_agent(name, slots(bandit()), letters_folders["llama"], **settings)


def test_advantages_and_attempts_keep_their_order(attempts_of, make) -> None:
    agent = make("grpo")
    attempts = attempts_of(agent)
    returns = agent.returns(attempts)
    ids = np.array([attempt.problem.id for attempt in attempts]).reshape(returns.shape)
    assert (ids == ids[:, :1]).all()
    assert group_advantages(returns, "group").shape == (6, 4)
