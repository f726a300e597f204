"""RFT and STaR, distant solutions, wrong equations, and bad values."""

import json
from typing import Any

import numpy as np
import pytest

from tokengym.agents import RFT, ExpertIteration, STaR, expert_iteration
from tokengym.agents.configs.expert_iteration import ExpertIterationConfig
from tokengym.agents.training.learner import Example


def solution(problem: str, key: str, text: str) -> expert_iteration.Solution:
    return expert_iteration.Solution(problem, key, text, Example(np.array([1]), np.array([len(text)])))


def test_of_solutions_that_are_the_same_the_more_distant_one_is_kept() -> None:
    """Distances by hand: "aaaa" is 4 from "bbbb", "aabb" 2, "abbb" 1; of equally distant ones the first stays."""
    found = [
        solution("p", "x", "aabb"), solution("p", "y", "bbbb"), solution("p", "x", "abbb"),  # nearer to y
        solution("p", "x", "aaaa"), solution("p", "x", "cccc"),  # farther, then as far
        solution("q", "x", "aabb"), solution("q", "x", "longer, but with nothing to differ from"),
    ]  # fmt: skip
    kept = expert_iteration.most_distant(found, {})
    assert kept == {("p", "x"): found[3].example, ("p", "y"): found[1].example, ("q", "x"): found[5].example}
    # A reference is another solution to differ from.
    kept = expert_iteration.most_distant(found, {"p": ["aaaa"]})
    assert kept["p", "x"] == found[4].example


def test_attempts_with_wrong_equations_are_left_out_and_counted(make_agent, monkeypatch) -> None:
    monkeypatch.setattr(
        expert_iteration, "equations", lambda text: ["1+1=2", "1+1=3"] if "b" in text[1:] else ["1+1=2"]
    )
    logged: list[dict[str, float]] = []
    agent = make_agent(RFT, rounds=1, samples_per_problem=30, demonstrations=0, temperature=2.0)
    agent.learn(callback=lambda _, metrics: logged.append(metrics))
    metrics = next(metrics for metrics in logged if "rollout/kept" in metrics)
    assert metrics["rollout/wrong_equations"] > 0
    assert metrics["rollout/kept"] > 0
    assert all("b" not in agent.env.decode(example.completion)[1:] for example in agent._dataset.values())


def test_rft_and_star_are_named_settings() -> None:
    ei, rft, star = ExpertIteration.config_class(), RFT.config_class(), STaR.config_class()
    assert (ei.keep, ei.reject_wrong_equations) == ("first", False)
    assert (rft.keep, rft.reject_wrong_equations) == ("distant", True)
    assert (ei.samples_per_problem, ei.temperature, ei.rounds, ei.epochs, ei.batch_size) == (96, 1.0, 2, 4, 128)
    assert (ei.restart, ei.accumulate, ei.deduplicate, ei.threshold) == ("base", True, "equation_sequence", 1.0)
    assert (rft.samples_per_problem, rft.temperature, rft.rounds, rft.epochs) == (100, 0.7, 1, 3)
    assert (rft.restart, rft.deduplicate) == ("base", "equation_sequence")
    assert (star.samples_per_problem, star.restart, star.accumulate) == (1, "previous", False)
    assert RFT.learn is STaR.learn is ExpertIteration.learn


def test_star_trains_each_round_on_its_own_attempts_from_the_newest_policy(same, texts, make_agent, trainings) -> None:
    make_agent(STaR, samples_per_problem=6, rounds=2).learn()
    (_, demonstrations, first), (before, examples, _), _ = trainings
    assert same(before, first)
    assert len(texts(demonstrations)) == 3
    assert len(examples) > 0


@pytest.mark.parametrize(("cls", "fresh"), [(STaR, True), (ExpertIteration, False)])
def test_star_draws_new_problems_in_every_round_where_they_never_end(
    endless, make_agent, tmp_path, cls, fresh: bool
) -> None:
    settings = {"source": endless(), "samples_per_problem": 2, "problems": 15, "rounds": 2, "accumulate": False}
    make_agent(cls, run=tmp_path / "run", **settings).learn()
    rounds = []
    for number in (1, 2):
        lines = (tmp_path / "run" / f"round-{number}" / "attempts-0.jsonl").read_text().splitlines()
        ids = [json.loads(line)["problem_id"] for line in lines]
        assert ids[::2] == ids[1::2]  # both attempts at a problem in a row
        assert len(set(ids)) == 15
        rounds.append(set(ids))
    assert rounds[0].isdisjoint(rounds[1]) == fresh
    if not fresh:
        assert rounds[0] == rounds[1] == {endless()[i].id for i in range(15)}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("rounds", 0), ("samples_per_problem", 0), ("temperature", 0.0), ("temperature", float("nan")),
        ("temperature", float("inf")), ("validation_problems", 0), ("patience", 0), ("deduplicate", "text"),
        ("restart", "best"), ("epochs", 0), ("problems", 0), ("demonstrations", -1), ("shots", -1),
        ("learning_rate", -1e-3), ("learning_rate", float("nan")), ("orm_filter", "or"), ("orm_threshold", 1.5),
        ("orm_threshold", float("nan")),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(make_agent, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        make_agent(**{setting: value})


def test_the_least_return_counts_beside_an_outcome_model_that_does_not_replace_it() -> None:
    assert ExpertIterationConfig(orm="orm", orm_filter="and", threshold=0.5).threshold == 0.5
    with pytest.raises(ValueError, match=r'threshold is 0\.5, but it counts only with orm_filter="and"'):
        ExpertIterationConfig(orm="orm", threshold=0.5)
