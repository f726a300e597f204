"""Multiplication: the published example, schoolbook arithmetic by an independent route, and grades."""

import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Multiplication, Problem, diagnose, make_vec_env
from tokengym.envs.problems.base import SPLITS
from tokengym.registry import UnknownNameError

PUBLISHED = (
    "5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 ) "
    "+ 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1"
)


def number(text: str) -> int:
    return sum(int(digit) * 10**place for place, digit in enumerate(text.split()))


def test_the_published_example():
    question, rest = PUBLISHED.split("||")
    worked, answer = rest.split(" #### ")
    source = Multiplication()
    a, b = map(number, question.split(" * "))
    assert source.worked(a, b) == worked
    problem = Problem("", question, answer, rest)
    for text in (rest, f"#### {answer}"):
        assert source.grade(text, problem).correct


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.sampled_from(SPLITS), st.integers(0, 2**63 - 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_number_of_a_solution_is_right(digits, split, index, p_cot):
    source = Multiplication(split, digits=digits, p_cot=p_cot)
    problem = source[index]
    assert problem == pickle.loads(pickle.dumps(source))[index] == source.find(problem.id)  # noqa: S301
    a, b = map(number, problem.question.split(" * "))
    assert len(str(a)) == len(str(b)) == digits
    assert number(problem.answer) == a * b
    assert len(problem.answer.split()) == 2 * digits
    assert problem.solution is not None
    worked, _, answer = problem.solution.rpartition("#### ")
    assert answer == problem.answer
    assert p_cot in (0.5, float(bool(worked)))
    if worked:
        total = 0
        for place, term in enumerate(worked.strip().split(" + ")):
            product, *sums = re.findall(r"[\d ]+", term)
            assert number(product) == a * (b // 10**place % 10) * 10**place
            total += number(product)
            assert [number(text) for text in sums if text.strip()] == [total] * (0 < place < digits - 1)
        assert total == a * b
    assert source.grade(problem.solution, problem).correct
    assert Multiplication(grading="e2e").grade(problem.solution, problem).correct


def test_solutions_fit_exactly():
    for digits in (1, 2, 4, 7):
        env = make_vec_env("tokengym/Multiplication-v0", 1, digits=digits, p_cot=1.0)
        for i in range(20):
            assert len(env.encode_prompt(env.problems[i])) == env.max_prompt_tokens
            assert len(env.encode_solution(env.problems[i])) == env.max_new_tokens


def test_verdicts_say_why():
    source = Multiplication(digits=2, p_cot=1.0)
    problem = source[0]
    worked, answer = problem.solution.split(" #### ")  # pyright: ignore
    broken = ("1" if worked[0] != "1" else "2") + worked[1:]
    reasons = {
        f"{worked} #### {answer}": "correct", f"#### {answer}": "correct", f"{broken} #### {answer}": "wrong_chain",
        f"#### {answer[:-1]}{(int(answer[-1]) + 1) % 10}": "wrong", answer: "no_answer", "": "no_answer",
        "####": "no_answer", f"#### {answer} #### {answer}": "ambiguous", f"#### {answer}<|pad|>": "unparsed",
        "#### " + "1 " * 1000: "unparsed",
    }  # fmt: skip
    assert {text: source.grade(text, problem).reason for text in reasons} == reasons
    assert Multiplication(digits=2, grading="e2e").grade(f"{broken} #### {answer}", problem).correct


def test_splits_share_no_product_of_the_same_numbers():
    seen = {}
    for split in SPLITS:
        source = Multiplication(split, digits=2)
        seen[split] = {frozenset(source[i].question.split(" * ")) for i in range(2000)}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"digits": 0}, ValueError, "digits must be in"),
        ({"p_cot": 1.1}, ValueError, "p_cot"),
        ({"grading": "coq"}, UnknownNameError, "did you mean 'cot'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Multiplication(**arguments)


def test_the_doctor_finds_no_error():
    sources = [Multiplication(split, digits=3) for split in SPLITS]
    settings = sources[0].env_settings
    limits = (settings["max_prompt_tokens"], settings["max_new_tokens"])
    assert not diagnose(sources, settings["tokenizer"], *limits, settings["prompt"], limit=100).errors
