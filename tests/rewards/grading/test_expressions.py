import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.rewards.grading.expressions import evaluate

leaves = st.integers(0, 10**6).map(str) | st.decimals(0, 1000, places=2).map(str)
expressions = st.recursive(
    leaves,
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: "({} {}{} )".format(*parts)),
    max_leaves=8,
)


@given(expressions)
def test_values_equal_pythons(expression):
    exact = re.sub(r"[\d.]+", lambda number: f"Fraction('{number[0]}')", expression)
    assert evaluate(expression)[0] == eval(exact, {"Fraction": Fraction})  # noqa: S307 - made of digits above


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1+2*3", 7),
        ("8-3-2", 3),
        ("8/4/2", 1),
        ("( 7.0 / ( 4.0 + 3.0 ) )", 1),
        (" .5 * 4 ", 2),
        ("20%*50", 10),
        ("100/20%", 500),
        ("(10+10)%*50", 10),
        ("-5 % - 1%", Fraction(-6, 100)),
        ("007+.50", Fraction(15, 2)),
        ("9" * 200 + "*0", 0),
        ("-3+5", 2),
        ("2*-3", -6),
        ("2.", 2),
        ("1/3", Fraction(1, 3)),
    ],
)
def test_grammar(expression, value):
    assert evaluate(expression)[0] == value


def test_steps_come_in_the_order_of_computation():
    _, steps = evaluate("( 9.0 - ( 2.0 * 3.0 ) ) / 3")
    assert [(int(a), op, int(b), int(result)) for a, op, b, result in steps] == [
        (2, "*", 3, 6),
        (9, "-", 6, 3),
        (3, "/", 3, 1),
    ]


@pytest.mark.parametrize(
    "text",
    ["", " ", "1+", "*2", "(1", "1)", "()",
     "1 2", "1//2", "2**9", "1/0", "1/(2-2)", "x", "1_000", "٣", "1e9", "__import__",
     "9" * 257, "5%%", "%5", "0b11", "1+" * 200 + "1", "(" * 100 + "1" + ")" * 100, "-" * 100 + "1", "1..2", "%"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="expression"):
        evaluate(text)
