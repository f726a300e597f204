"""The grading benchmark: its pairs are what it says, and all ways give the same verdicts."""

from fractions import Fraction

from tokengym.benchmarks.speed import grading_throughput
from tokengym.rewards import normalize_number
from tokengym.rewards.grading.latex import boxed


def test_half_of_the_answers_are_right_and_none_is_the_gold_text_or_a_plain_number() -> None:
    pairs = grading_throughput._latex(8)
    assert len(set(pairs)) == len(pairs) == 64
    assert not any(answer == gold or normalize_number(answer) for text, gold in pairs for answer in boxed(text))
    fractions = [(text, gold) for text, gold in pairs if gold == r"\frac{3}{7}"]
    right = [
        Fraction(*map(int, text.split("frac{")[1].rstrip("}$.").split("}{"))) == Fraction(3, 7) for text, _ in fractions
    ]
    assert right == [True, False] * 4


def test_a_small_run() -> None:
    results = grading_throughput.run(problems=8, rounds=1)
    assert results["agreement"] == 1
    assert results["worker"] > 0
    assert "worker" in grading_throughput.table(results)
