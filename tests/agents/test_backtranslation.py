"""Synthetic problems: nearest neighbors, what is kept, going on, bad input."""

import copy
import json
from contextlib import suppress

import gymnasium as gym
import numpy as np
import pytest

from tokengym.agents import AGENTS, make_agent
from tokengym.agents.backtranslation import Backtranslation, neighbors
from tokengym.envs import Arithmetic, Dataset, Problem, ProblemList, TokenVectorEnv
from tokengym.registry import UnknownNameError

EASY = {"steps": 1, "max_value": 9}
SMALL = {"demonstrations": 4, "neighbors": 2, "proposals": 12, "samples_per_problem": 4, "epochs": 1, "batch_size": 4}


def make(run=None, **settings) -> Backtranslation:
    env = copy.deepcopy(gym.spec("tokengym/Arithmetic-v0"))  # the registry's own stays as it is
    env.kwargs = {**env.kwargs, **EASY}
    agent = make_agent("backtranslation", env, num_envs=16, run=run, device="cpu", **(SMALL | settings))
    assert isinstance(agent, Backtranslation)
    return agent


def test_neighbors_are_those_of_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 30, size=rng.integers(1, 40)) for _ in range(300)]
    found = neighbors(documents, 5)
    terms = sorted({int(term) for document in documents for term in document})
    containing = {term: sum(term in document for document in documents) for term in terms}
    weight = {term: np.log(301 / (1 + containing[term])) + 1 for term in terms}
    vectors = np.array([[np.count_nonzero(d == term) * weight[term] for term in terms] for d in documents])
    vectors /= np.sqrt((vectors**2).sum(1, keepdims=True))
    for i in (0, 17, 255, 256, 299):
        near = vectors @ vectors[i]
        near[i] = -1
        assert sorted(near[found[i]], reverse=True) == pytest.approx(near[found[i]].tolist())
        assert near[found[i]] == pytest.approx(np.sort(near)[::-1][:5], abs=1e-5)
        assert i not in found[i]


@pytest.fixture
def proposals(monkeypatch) -> list[Problem]:
    """Problems of another split, which the helpers are made to propose, with what must not be kept among them."""
    other = Arithmetic("validation", **EASY)
    known = Arithmetic("train", **EASY)[0]
    proposed = [other[i] for i in range(9)]
    solutions = [problem.solution or "" for problem in proposed]
    solutions += [solutions[0].replace("\n", "  \n"), known.solution or "", "no answer at its end"]
    questions = {problem.solution: problem.question for problem in proposed} | {solutions[1]: known.question}

    def written(self, name, prompt, lessons, seeds, seed, progress_bar):
        assert len(lessons) == SMALL["demonstrations"]
        if name == "writer":
            assert [lesson.solution for lesson in lessons] == [
                Arithmetic("train", **EASY)[i].question for i in range(4)
            ]
            return [questions[problem.question] for problem in seeds]
        assert all(len(seed.question.split("\n\n")) == SMALL["neighbors"] for seed in seeds)
        return solutions

    monkeypatch.setattr(Backtranslation, "_written", written)
    return proposed


def test_what_the_student_solves_sometimes_is_kept_and_can_be_learnt_from(proposals, tmp_path) -> None:
    told = []
    agent = make(tmp_path / "run", temperature=1.2).learn(callback=lambda _, metrics: told.append(metrics))
    (metrics,) = told
    assert metrics["problems/solutions"] == 9  # twice the same, a known one and one without an answer are out
    assert metrics["problems/questions"] == 8  # and a known question
    kept, out = metrics["problems/kept"], metrics["problems/never_solved"] + metrics["problems/always_solved"]
    assert kept + out == 8
    assert 0 < kept == len(agent.problems)
    assert agent.num_attempts == 8 * 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "problems.jsonl").read_text().splitlines()]
    by_question = {problem.question: problem for problem in proposals}
    for row in rows:
        assert 0 < row["successes"] < 4
        assert (row["answer"], row["solution"]) == (
            by_question[row["question"]].answer,
            by_question[row["question"]].solution,
        )
    data = Dataset(tmp_path / "run" / "problems.jsonl", solution="solution", validation=0, test=0)
    assert [(problem.question, problem.answer) for problem in data.problems] == [
        (problem.question, problem.answer) for problem in agent.problems
    ]
    file = tmp_path / "run" / "student" / "sampled" / "attempts-0.jsonl"
    sampled = file.read_bytes()
    again = make(tmp_path / "run", temperature=1.2, resume=True).learn()
    assert again.problems == agent.problems
    assert file.read_bytes() == sampled
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_helpers_are_fine_tuned_write_and_go_on(tmp_path, monkeypatch) -> None:
    seen = []
    written = Backtranslation._written

    def spy(self, *arguments):
        seen.append((arguments[0], written(self, *arguments)))
        return seen[-1][1]

    monkeypatch.setattr(Backtranslation, "_written", spy)
    for resume in (False, True):
        agent = make(tmp_path / "run", resume=resume, proposals=5)
        with suppress(ValueError):  # so short a training may propose nothing that can be kept
            agent.learn()
    assert (tmp_path / "run" / "proposer" / "model").exists()
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first == second
    assert first[0][0] == "proposer"
    assert len(first[0][1]) == 5


def test_the_helpers_train_adapters_where_these_are_asked_for(tmp_path) -> None:
    with suppress(ValueError):
        make(tmp_path / "run", proposals=5, lora_rank=2).learn()
    assert (tmp_path / "run" / "proposer" / "model" / "adapter").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbors": 0}, "neighbors must be at least 1"),
        ({"samples_per_problem": 1}, "samples_per_problem must be at least 2"),
        ({"proposals": 0}, "proposals must be at least 1"),
        ({"temperature": 0}, "temperature must be above 0"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_bad_input(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="needs no budget"):
        make().learn(total_episodes=10)
    with pytest.raises(ValueError, match="4 demonstrations have no 7 neighbors each"):
        make(neighbors=7).learn()
    boxed = ProblemList([Problem("boxed", "1 + 1?", "2", "It is \\boxed{2}.")])
    env = TokenVectorEnv(boxed, 4, autoreset_mode="Disabled")
    with pytest.raises(ValueError, match="problem 'boxed' has no solution that ends with '#### answer'"):
        Backtranslation(env, device="cpu", **(SMALL | {"demonstrations": 1})).learn()
    monkeypatch.setattr(Backtranslation, "_written", lambda *_: ["nothing"])
    with pytest.raises(ValueError, match="of 1 proposals 0 were new solutions with an answer"):
        make(tmp_path / "none", proposals=1).learn()
    assert not (tmp_path / "none" / "problems.jsonl").exists()


def test_it_is_an_agent_by_name() -> None:
    assert AGENTS.get("backtranslation") is Backtranslation
    with pytest.raises(UnknownNameError, match="did you mean 'backtranslation'"):
        AGENTS.get("backtranslate")


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ("tokengym/tny", UnknownNameError, "unknown model 'tokengym/tny': did you mean 'tokengym/tiny'"),
        ("tokengym/tiny-orm", ValueError, "base='tokengym/tiny-orm' is an outcome model, which writes no text"),
        ("chars:0123456789", ValueError, "the tokenizers of base='chars:0123456789' and of the student"),
        (5, TypeError, "base must be text or None, got 5"),
    ],
)
def test_a_base_that_cannot_propose_is_refused_at_once(base, error, message) -> None:
    with pytest.raises(error, match=message):
        make(base=base)
