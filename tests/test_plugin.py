"""A package of a third party, installed on its own, is found by its entry points."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"


@pytest.fixture
def lagr_seq(monkeypatch):
    """The module of LaGR-SEQ, from its source."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    return importlib.import_module("tokengym_plugin.lagr_seq")


@pytest.mark.parametrize("seed", range(3))
def test_a_query_policy_asks_where_proposals_are_worth_their_cost(lagr_seq, seed: int) -> None:
    """Two contexts, right with chances q1 > cost > q0: the return is half of q1 - cost."""
    rng, cost, chances = np.random.default_rng(seed), 0.4, (0.1, 0.8)
    policy = lagr_seq.QueryPolicy(2, cost, 0.1, 0.3, rng)
    contexts = np.eye(2)

    def decide() -> float:
        kind = int(rng.integers(2))
        if not policy.asks(contexts[kind]):
            return 0.0
        is_right = bool(rng.random() < chances[kind])
        policy.learn(contexts[kind], is_right)
        return is_right - cost

    for _ in range(3000):
        decide()
    assert [policy.chance(context) > cost for context in contexts] == [False, True]
    policy.explore = 0.0
    returns = [decide() for _ in range(4000)]
    assert np.mean(returns) == pytest.approx(0.5 * (chances[1] - cost), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("query", ["always", "never", "random", "learned"])
def test_proposals_complete_beginnings_of_failed_attempts(lagr_seq, query: str, tmp_path: Path) -> None:
    """Accepted ones are trained on, each question is counted, and a resumed run is the same."""
    spec = gym.spec("tokengym/Arithmetic-v0")
    spec.kwargs.update(steps=1, max_new_tokens=48)
    settings = {"demonstrations": 8, "problems": 8, "samples_per_problem": 4, "rounds": 1, "epochs": 1}
    settings |= {"validation_problems": 2, "device": "cpu", "query": query, "run": tmp_path / "run"}
    logged: dict[str, float] = {}
    agent = lagr_seq.LaGRSEQ(spec, **settings)
    proposals = []
    monitored = agent._proposed

    def proposed(number, env, attempts):
        for one in monitored(number, env, attempts):
            proposals.append((env.decode(one.completion), one))
            yield one

    agent._proposed = proposed
    agent.learn(callback=lambda _, metrics: logged.update(metrics))
    assert logged["query/asked"] == len(proposals) == agent.queries
    assert logged["query/accepted"] == sum(one.is_success for _, one in proposals)
    assert logged["query/return"] == pytest.approx(logged["query/accepted"] - 0.2 * logged["query/asked"])
    assert (len(proposals) == 0) == (query == "never")
    assert agent.num_attempts == 32 + len(proposals)
    for text, one in proposals:
        assert len(one.logprobs) == len(one.completion) == len(one.rewards)
        assert agent.env.problems.grade(text, one.problem).correct == one.is_success
    again = lagr_seq.LaGRSEQ(spec, **settings, resume=True)
    again.learn()
    assert (again.queries, again.accepted) == (agent.queries, agent.accepted)


def test_settings_of_queries_are_checked(lagr_seq) -> None:
    for settings, message in (
        ({"query": "often"}, "query must be one of always, never, random, learned"),
        ({"query_cost": 2.0}, "query_cost must be between 0 and 1"),
        ({"search": "beam", "search_orm": "x"}, "leave out search"),
    ):
        with pytest.raises(ValueError, match=message):
            lagr_seq.LaGRSEQConfig(**settings)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment with the plug-in on its path."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for file in PLUGIN.rglob("*"):  # a build leaves files beside its source
        if file.is_file() and "egg-info" not in str(file):
            (source / file.relative_to(PLUGIN)).parent.mkdir(parents=True, exist_ok=True)
            (source / file.relative_to(PLUGIN)).write_bytes(file.read_bytes())
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([sys.executable, *command], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def run(environment: dict[str, str], *arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_line_lists_and_trains_it(installed, tmp_path: Path) -> None:
    listed = run(installed, "-m", "tokengym", "list", cwd=tmp_path)
    assert "best-of-n" in listed
    assert "lagr-seq" in listed
    assert "lmgt" in listed
    assert re.search(r"environment +│ tokengym/pens-v0 +│ Prices of pens, one", listed)
    small = ["--n", "2", "--problems-per-update", "2", "--env-args", "steps=1", "max_new_tokens=16"]
    trained = run(
        installed, "-m", "tokengym", "train", "best-of-n", "--total-episodes", "8", *small, "--run", "run", cwd=tmp_path
    )
    assert trained.count("  success_rate ") == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_reward_is_made_by_name_and_adds_up(installed, tmp_path: Path) -> None:
    code = """
import numpy as np, tokengym
spec = {"name": "sum", "terms": [[1.0, "sparse"], [1.0, {"name": "lmgt", "shift": 0.25}]]}
env = tokengym.make_vec_env("tokengym/Arithmetic-v0", 1, reward=spec, autoreset_mode="Disabled")
env.reset(seed=0)
solution = env.encode_solution(env.problem(0))
paid = sum(float(env.step(np.array([token]))[1][0]) for token in solution)
lines = [line for line in env.problem(0).solution.splitlines() if line.strip()]
print(paid, 1 + 0.25 * sum("=" in line for line in lines))
"""
    paid, expected = map(float, run(installed, "-c", code, cwd=tmp_path).split())
    assert paid == pytest.approx(expected)
    assert expected > 1


@pytest.mark.slow
def test_problems_have_an_id_for_gymnasium_agents_and_commands(installed, tmp_path: Path) -> None:
    code = """
import gymnasium, tokengym
env = gymnasium.make("tokengym/pens-v0", most=5, reward="dense")
_, info = env.reset(seed=0, options={"problem_id": "pens-train-0-3"})
print(info["problem_id"])
"""
    assert run(installed, "-c", code, cwd=tmp_path) == "pens-train-0-3\n"
    pens = ["tokengym/pens-v0", "--env-args", "most=9"]
    assert " 0 errors" in run(installed, "-m", "tokengym", "doctor", *pens, cwd=tmp_path)
    train = ["--env", *pens, "--demonstrations", "8", "--epochs", "1", "--validation-problems", "4", "--run", "run"]
    run(installed, "-m", "tokengym", "train", "sft", *train, cwd=tmp_path)
    table = run(installed, "-m", "tokengym", "eval", "--env", *pens, "--problems", "4", "--n", "0", cwd=tmp_path)
    assert "pens-v0" in table
