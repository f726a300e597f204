import json
import pickle
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs.problems.arithmetic import HE, NAMES, SHE, STRIDES, THINGS, Arithmetic
from tokengym.envs.problems.base import SPLITS, make_problems
from tokengym.envs.problems.procedural import MAX_TRIES
from tokengym.registry import UnknownNameError

STYLES = ("word", "equation")
PINNED_WORD = (
    "Abe is 15 years old. Ken is 32 years older than Abe. Paul is twice as old as Ken. Ana is 5 years "
    "older than Paul. Zoe is 1 year old. How old are Ana and Zoe together?"
)
PINNED_EQUATIONS = ["8*1=", "4+2=", "6+3=", "5-0="]
ANNOTATED = re.compile(r"(\d+)([-+*/])(\d+) = <<(\d+[-+*/]\d+)=(\d+)>>(\d+)")


def compute(a: int, operation: str, b: int) -> int:
    if operation == "/":
        quotient, remainder = divmod(a, b)
        assert remainder == 0
        return quotient
    return {"+": a + b, "-": a - b, "*": a * b}[operation]


def evaluate_chain(chain: str) -> int:
    """Independent of the generator: products and quotients first, then sums from left to right."""
    total = 0
    for sign, product in re.findall(r"([-+]?)([^-+]+)", chain):
        value, *rest = re.findall(r"[*/]?\d+", product)
        value = int(value)
        for factor in rest:
            value = compute(value, factor[0], int(factor[1:]))
        total += -value if sign == "-" else value
        assert total >= 0
    return total


arguments = st.fixed_dictionaries(
    {
        "split": st.sampled_from(SPLITS),
        "seed": st.integers(0, 2**63 - 1),
        "steps": st.tuples(st.integers(1, 4), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair))),
        "max_value": st.sampled_from([30, 100, 9999, 10**6]),
        "operations": st.sampled_from(["+", "-", "+-", "*+", "/+", "+-*/", "/*", "-*"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(arguments, st.integers(0, 2**63 - 1))
def test_every_line_of_a_word_problem_computes(arguments, index):
    source = Arithmetic(**arguments)
    problem = source[index]
    assert problem.solution is not None
    *lines, last = problem.solution.split("\n")
    low, high = arguments["steps"]
    assert low <= len(lines) <= high
    for line in lines:
        (match,) = ANNOTATED.finditer(line)
        a, operation, b, expression, result, repeated = match.groups()
        assert expression == f"{a}{operation}{b}"
        assert int(result) == int(repeated) == compute(int(a), operation, int(b))
        assert max(int(a), int(b), int(result)) <= arguments["max_value"]
        assert operation in arguments["operations"]
    assert last == f"#### {problem.answer}"
    assert problem.answer == repeated
    assert source.grade(problem.solution, problem).correct
    assert not source.grade(f"#### {int(problem.answer) + 1}", problem).correct
    assert not re.search(r"[{}]", problem.question + problem.solution)
    assert problem.question.endswith("?")
    assert source.find(problem.id) == problem


@settings(max_examples=60, deadline=None)
@given(arguments, st.integers(0, 2**63 - 1))
def test_every_chain_equals_its_answer(arguments, index):
    source = Arithmetic(**arguments, style="equation")
    problem = source[index]
    chain = problem.question.removesuffix("=")
    assert arguments["steps"][0] <= len(re.findall(r"[-+*/]", chain)) <= arguments["steps"][1]
    assert set(re.findall(r"[-+*/]", chain)) <= set(arguments["operations"])
    assert str(evaluate_chain(chain)) == problem.answer == problem.solution
    assert int(problem.answer) <= arguments["max_value"]
    assert source.grade(problem.answer, problem).correct
    assert not source.grade(f"#### {problem.answer}", problem).correct
    assert source.find(problem.id) == problem


def test_each_number_that_a_solution_uses_is_in_the_question_or_a_result_before():
    for index in range(500):
        problem = Arithmetic(steps=(1, 6))[index]
        known = set(re.findall(r"\d+", problem.question))
        words = {"twice": "2", "doubles": "2", "half": "2"}
        known |= {number for word, number in words.items() if word in problem.question}
        for a, _, b, _, result, _ in ANNOTATED.findall(problem.solution):
            assert {a, b} <= known, problem
            known.add(result)


def test_a_question_has_one_solution():
    # The question must settle the equations: else a hash of the equations would not keep questions apart.
    solutions: dict[str, str | None] = {}
    for seed in range(3):
        source = Arithmetic(seed=seed, steps=1, max_value=6)
        for index in range(4000):
            problem = source[index]
            assert solutions.setdefault(problem.question, problem.solution) == problem.solution


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("limits", [{"steps": 1, "max_value": 20}, {"steps": (1, 2), "max_value": 9}, {}])
def test_splits_share_no_problem_whatever_their_seeds(style, limits):
    questions: dict[str, set[str]] = {split: set() for split in SPLITS}
    equations: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for seed in (0, 1, 2**40):
            source = Arithmetic(split, seed, style=style, **limits)
            for index in (*range(400), *range(2**62, 2**62 + 100)):
                problem = source[index]
                questions[split].add(problem.question)
                content = problem.question if style == "equation" else " ".join(re.findall("<<.*?>>", problem.solution))
                equations[split].add(content)
    for split, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert len(questions[split] & questions[other]) == 0
        assert len(equations[split] & equations[other]) == 0


@pytest.mark.parametrize("style", STYLES)
def test_problems_are_pure_functions_of_the_index(style):
    source = Arithmetic("test", 5, style=style)
    order = list(range(50))
    expected = [source[index] for index in order]
    random.Random(0).shuffle(order)
    again = pickle.loads(pickle.dumps(Arithmetic("test", 5, style=style)))  # noqa: S301 - our own pickle
    assert [expected[index] for index in order] == [again[index] for index in order]
    assert len({problem.question for problem in expected}) > 40
    assert expected != [Arithmetic("test", 6, style=style)[index] for index in range(50)]


def test_problems_stay_what_they_are():
    # The stream is part of the interface: checkpoints and published results name problems by id.
    assert Arithmetic()[0].question == PINNED_WORD
    assert [Arithmetic(style="equation", steps=1, max_value=9)[i].question for i in range(4)] == PINNED_EQUATIONS


def test_words_are_varied_and_never_run_together():
    assert len(set(NAMES)) == len(SHE) + len(HE) == 40
    assert len(set(THINGS)) == 30
    for stride in STRIDES:  # a story never meets the same person twice
        assert len({step * stride % len(NAMES) for step in range(len(NAMES))}) == len(NAMES)
    questions = [Arithmetic(steps=(1, 5))[index].question for index in range(2000)]
    shapes = {
        re.sub(r"\d+", "#", sentence) for question in questions for sentence in re.findall(r"[^.?]+[.?]", question)
    }
    for name in (name for name, *_ in NAMES):
        shapes = {shape.replace(name, "N") for shape in shapes}
    for thing in THINGS:
        shapes = {re.sub(rf"\b{thing}s?\b", "t", shape) for shape in shapes}
    assert len(shapes) > 60
    assert not any(re.search(r"\b1 (dollars|miles|years|boxes|apples|books)\b", question) for question in questions)


def test_texts_are_short_enough_for_a_small_model():
    def count(text: str) -> int:  # digits one by one, punctuation apart: at least what a small BPE needs
        return len(re.findall(r"\d|[A-Za-z]+|<<|>>|\n|[^\w\s]", text))

    problems = [Arithmetic(steps=(2, 4))[index] for index in range(1000)]
    lengths = sorted(count(problem.question) for problem in problems)
    assert lengths[500] <= 45
    assert lengths[990] <= 80
    lines = sorted(count(line) for problem in problems for line in (problem.solution or "").split("\n"))
    assert lines[len(lines) // 2] <= 25
    assert lines[-1] <= 32


def test_size_and_json_plain_arguments():
    source = make_problems("arithmetic", **json.loads(json.dumps({"steps": [1, 3], "operations": "+-", "seed": 4})))
    assert source.size is None
    assert source.split == "train"
    assert repr(source) == (
        "Arithmetic(split='train', seed=4, steps=(1, 3), max_value=100, operations='+-', style='word')"
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": (3, 2)}, "steps"),
        ({"steps": (1, 2, 3)}, "steps"),
        ({"steps": 33}, "steps"),
        ({"max_value": 0}, "max_value"),
        ({"max_value": 10**6 + 1}, "max_value"),
        ({"operations": ""}, "operations"),
        ({"operations": "+^"}, "operations"),
        ({"operations": "++"}, "operations"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_arguments_out_of_range(bad, message):
    with pytest.raises(ValueError, match=message):
        Arithmetic(**bad)


@pytest.mark.parametrize(("bad", "message"), [({"split": "tain"}, "'train'"), ({"style": "words"}, "'word'")])
def test_unknown_names_are_answered_with_the_nearest(bad, message):
    with pytest.raises(UnknownNameError, match=message):
        Arithmetic(**bad)


@pytest.mark.parametrize("style", STYLES)
def test_a_split_left_empty_says_so_at_once(style):
    # One equation or two in all: they cannot be in all three splits.
    outcomes = []
    for split in SPLITS:
        try:
            Arithmetic(
                split,
                steps=1,
                max_value=2 if style == "word" else 1,
                operations="+" if style == "word" else "*",
                style=style,
            )
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes
    assert all(f"{MAX_TRIES:,} draws" in outcome and "max_value" in outcome for outcome in outcomes)


@pytest.mark.parametrize("index", [-1, 2**63])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match="outside"):
        Arithmetic()[index]


@pytest.mark.parametrize(
    "problem_id",
    ["", "17", "arithmetic-test-0-1", "arithmetic-train-1-1", "arithmetic-train-0-", "arithmetic-train-0-01",
     "arithmetic-train-0--1", "arithmetic-train-0-9223372036854775808", "arithmetic-train-0-" + "9" * 5000,
     "arithmetic-train-0-\u0663"],
)  # fmt: skip
def test_ids_of_other_sources_are_refused(problem_id):
    with pytest.raises(ValueError, match="has no problem"):
        Arithmetic().find(problem_id)
