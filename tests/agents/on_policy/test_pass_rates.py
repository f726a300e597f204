"""Problems chosen by their pass rates before training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokengym.agents import Reinforce
from tokengym.agents.rollouts.attempts import AttemptFile
from tokengym.envs import Problem
from tokengym.rewards import Verdict

BOUNDS: dict[str, Any] = {"min_pass_rate": 0.4, "max_pass_rate": 0.6, "pass_rate_attempts": 5, "iterations": 2}


def recorded_rates(run: Path) -> dict[str, float]:
    """Counted from the file of attempts alone."""
    found: dict[str, list[bool]] = {}
    for line in (run / "pass-rates" / "attempts-0.jsonl").read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["problem_id"], []).append(record["is_success"])
    assert {len(successes) for successes in found.values()} == {5}
    return {problem: sum(successes) / 5 for problem, successes in found.items()}


def test_only_problems_within_the_bounds_are_trained_on_and_the_pool_is_paid_for(metrics_of, make, tmp_path) -> None:
    trained: set[str] = set()
    tokens: list[int] = []

    class Spy(Reinforce):
        def improve(self, learner, attempts, iteration):
            trained.update(attempt.problem.id for attempt in attempts)
            tokens.extend(len(attempt.completion) for attempt in attempts)
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
    pool = [
        json.loads(line) for line in (tmp_path / "run" / "pass-rates" / "attempts-0.jsonl").read_text().splitlines()
    ]
    assert agent.num_tokens == sum(tokens) + sum(len(record["completion"]) for record in pool)
    agent.learn()  # the choice is made once
    assert agent.num_attempts == 25 + 4 * 6 * 2
    assert trained == expected


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_filtered_run_resumes_in_its_pool_and_after_it(
    killed, metrics_of, same, weights, make, tmp_path, monkeypatch, killed_at: int
) -> None:
    settings = BOUNDS | {"save_iterations": 1}
    whole = make("rloo", run=tmp_path / "whole", **settings).learn()
    seen: list[Any] = []

    def kill(*_: Any) -> bool:
        seen.append(None)
        if len(seen) == (8 if killed_at == 0 else killed_at):
            raise killed
        return True

    if killed_at == 0:
        write = AttemptFile.write
        monkeypatch.setattr(AttemptFile, "write", lambda self, attempt: (write(self, attempt), kill()))
    with pytest.raises(killed):
        make("rloo", run=tmp_path / "cut", **settings).learn(callback=None if killed_at == 0 else kill)
    monkeypatch.undo()
    resumed = make("rloo", run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert (whole.num_attempts, whole.num_tokens) == (resumed.num_attempts, resumed.num_tokens)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
    assert recorded_rates(tmp_path / "whole") == recorded_rates(tmp_path / "cut")


def test_bounds_that_leave_nothing_or_cannot_be_kept_are_one_line(letters, make, caplog) -> None:
    class Hopeless(letters):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    with pytest.raises(ValueError, match=r"none of 5 problems .* from 0.1 to 1 in 5 attempts: 5 were never solved, 0"):
        make("rloo", problems=Hopeless, min_pass_rate=0.1, pass_rate_attempts=5).learn()
    with pytest.raises(ValueError, match=r"min_pass_rate is 0\.9, above max_pass_rate, 0\.1"):
        make("rloo", min_pass_rate=0.9, max_pass_rate=0.1)
    with pytest.raises(ValueError, match="pass_rate_problems is 3, but it counts only with min_pass_rate"):
        make("rloo", pass_rate_problems=3)
    with pytest.raises(ValueError, match="pass rates take 40 attempts and one iteration 24, more than"):
        make("rloo", min_pass_rate=0.1).learn(60)
    make("rloo", iterations=1, max_pass_rate=1.0, pass_rate_problems=2, pass_rate_attempts=2).learn()
    assert "an iteration has 6 problems, and only 2 are left to train on" in caplog.text
