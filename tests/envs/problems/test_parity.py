"""Parity: the mixture of solutions, and grading against a reference that multiplies signs."""

import math
import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Parity, diagnose, make_vec_env
from tokengym.envs.problems.base import SPLITS, make_problems
from tokengym.registry import UnknownNameError


def signs(bits: str) -> list[int]:
    """The paper's +1 and -1."""
    return [1 - 2 * int(bit) for bit in bits]


def reference(response: str, question: str, leap: int, grading: str) -> bool:
    """r_e2e and r_cot as the paper writes them: with products of signs, every prefix multiplied anew."""
    if not set(response) <= set("01") or not response:
        return False
    y, x = signs(response), signs(question)
    d = len(x)
    if grading == "e2e":
        return y[-1] == math.prod(x)
    ends = [i for i in range(1, d + 1) if i % leap == 0 or i == d]
    return y == [math.prod(x)] or y == [math.prod(x[:i]) for i in ends]


shapes = st.integers(5, 40).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d)))


@settings(max_examples=200, deadline=None)
@given(shapes, st.sampled_from(["cot", "e2e"]), st.integers(0, 2**63 - 1), st.data())
def test_grades_equal_the_reference(shape, grading, index, data):
    d, leap = shape
    source = Parity(d=d, leap=leap, grading=grading)
    problem = source[index]
    chain = source.chain(problem.question)
    near = [chain, chain[:-1], chain + chain[-1], chain[1:], problem.answer, problem.answer * 2, problem.question]
    flipped = data.draw(st.integers(0, len(chain) - 1))
    near.append(chain[:flipped] + str(1 - int(chain[flipped])) + chain[flipped + 1 :])
    for response in [*near, data.draw(st.text("01", max_size=d + 1))]:
        verdict = source.grade(response, problem)
        assert verdict.correct == reference(response, problem.question, leap, grading), response
        assert (verdict.reason == "correct") == verdict.correct
        assert verdict.answer == (response[-1] if response else None)


def test_verdicts_say_why():
    source = Parity(d=10)
    problem = source[0]
    chain, wrong = source.chain(problem.question), str(1 - int(problem.answer))
    broken = str(1 - int(chain[0])) + chain[1:]
    reasons = {
        chain: "correct", problem.answer: "correct", wrong: "wrong", broken: "wrong_chain", "": "no_answer",
        "1 ": "unparsed", "<|pad|>": "unparsed",
    }  # fmt: skip
    assert {text: source.grade(text, problem).reason for text in reasons} == reasons
    lenient = Parity(d=10, grading="e2e")
    assert lenient.grade(broken, problem).correct
    assert lenient.grade("<|pad|>" + problem.answer, problem).correct


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(SPLITS), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_problems_are_pure_functions_and_their_solutions_right(shape, split, seed, index):
    source = Parity(split, seed, *shape[:1], leap=shape[1])
    problem = source[index]
    assert problem == pickle.loads(pickle.dumps(source))[index] == source.find(problem.id)  # noqa: S301
    assert problem.solution in (source.chain(problem.question), problem.answer)
    assert len(problem.question) == shape[0]
    assert source.grade(problem.solution, problem).correct


@pytest.mark.parametrize("p_cot", [0.0, 0.25, 1.0])
def test_solutions_are_long_with_the_probability_and_independently_of_the_question(p_cot):
    problems = [Parity(d=12, p_cot=p_cot)[i] for i in range(4000)]
    long = [len(problem.solution or "") == 12 for problem in problems]
    five_sigma = 5 * math.sqrt(p_cot * (1 - p_cot) / len(long))
    assert abs(sum(long) / len(long) - p_cot) <= five_sigma
    for place in (0, 11):
        ones = [is_long for problem, is_long in zip(problems, long, strict=True) if problem.question[place] == "1"]
        assert abs(sum(ones) / len(ones) - p_cot) <= 1.5 * five_sigma
    # The questions themselves do not depend on p_cot.
    assert [p.question for p in problems[:50]] == [Parity(d=12)[i].question for i in range(50)]


def test_bits_are_fair_also_beyond_one_word():
    problems = [Parity(d=130)[i].question for i in range(3000)]
    for place in (0, 1, 63, 64, 65, 127, 128, 129):
        ones = sum(question[place] == "1" for question in problems)
        assert abs(ones - 1500) < 5 * math.sqrt(3000) / 2
    assert len(set(problems)) == 3000


def test_splits_share_no_bits():
    questions = {split: {Parity(split, seed, d=10)[i].question for seed in (0, 1) for i in range(2000)}
                 for split in SPLITS}  # fmt: skip
    assert not questions["train"] & questions["test"]
    assert not questions["train"] & questions["validation"]
    assert not questions["validation"] & questions["test"]
    shares = Counter(split for split in SPLITS for _ in questions[split])
    assert shares["train"] > 700
    assert shares["test"] > 70


def test_a_full_attempt_in_the_environment():
    env = make_vec_env("tokengym/Parity-v0", 2, d=9, leap=2, autoreset_mode="Disabled", seed=3)
    env.reset()
    chains = [env.problems.chain(env.problem(slot).question) for slot in (0, 1)]  # pyright: ignore
    eos = env.tokenizer.eos_token_id
    for position in range(5):
        env.step([int(chain[position]) for chain in chains])
    _, rewards, terminations, _, infos = env.step([eos, eos])
    assert rewards.tolist() == [1.0, 1.0]
    assert terminations.all()
    assert infos["verdict"].tolist() == ["correct", "correct"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"d": 0}, ValueError, "d must be in"),
        ({"d": 5000}, ValueError, "d must be in"),
        ({"d": 10, "leap": 11}, ValueError, r"leap must be in \[1, d\]"),
        ({"p_cot": -0.1}, ValueError, "p_cot"),
        ({"p_cot": float("nan")}, ValueError, "p_cot"),
        ({"grading": "e3e"}, UnknownNameError, "did you mean 'e2e'"),
        ({"split": "dev"}, UnknownNameError, "split"),
        ({"seed": -1}, ValueError, "seed"),
        ({"d": 2, "split": "test"}, ValueError, "none of 10,000 draws is a test problem; raise d"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Parity(**arguments)


def test_the_doctor_has_nothing_to_say():
    sources = [make_problems("parity", split=split, d=16) for split in SPLITS]
    assert not diagnose(sources, "chars:01", 16, 17, "{question}", limit=200).findings
