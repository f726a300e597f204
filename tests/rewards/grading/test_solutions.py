"""What makes two solutions the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.rewards.grading.solutions import (
    equation,
    equation_sequence,
    equations,
    exact_text,
    is_right,
    result,
    steps,
    uses_results,
)

GSM8K = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
)


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        (GSM8K, ["48/2=24", "48+24=72"]),
        ("<<1,200 * 3 = 3,600>> so $3,600", ["1200*3=3600"]),
        ("<<20*.5=10>>", ["20*.5=10"]),
        ("48/2=24<<48/2=24>>", ["48/2=24"]),
        ("<<(3+4)*2=14>> then 5 + 6 = 11", ["(3+4)*2=14", "5+6=11"]),  # some annotated, some not, in their order
        ("5 + 6 = 11, then 11 - 1 = <<11-1=10>>10 and 10 / 2 = 5", ["5+6=11", "11-1=10", "10/2=5"]),
        ("3 * $4 = $<<3*4=12>>12 each", ["3*4=12"]),
        ("5 + 6 = 11, 11 - 1 = 10", ["5+6=11", "11-1=10"]),
        ("He pays $5 * 3 = $15.", ["5*3=15"]),
        ("1 + 2 + 3 = 6", ["1+2+3=6"]),
        ("2-5=-3", ["2-5=-3"]),
        ("1.5*4=6.0", ["1.5*4=6.0"]),
        ("3 x 4 = 12, 3 × 4 = 12, 3*4=12", ["3*4=12"] * 3),
        ("12 ÷ 4 = 3 and 12/4=3", ["12/4=3"] * 2),
        ("0.5*8=4 and .5 * 8 = 4, half is 5+.5=5.5", ["0.5*8=4", ".5*8=4", "5+.5=5.5"]),
        # the right side is read whole, and may go on
        ("30/60 = 1/2 hour", ["30/60=1/2"]),
        ("3*2 = 12/2", ["3*2=12/2"]),
        ("1/4*12=12/4=3", ["1/4*12=12/4", "12/4=3"]),
        ("3+2*10=3+20=<<3+20=23>>23", ["3+2*10=3+20", "3+20=23"]),
        ("2 - 1/2 = 1 1/2 cups, 1 1/2 * 60 = 90", ["2-1/2=(1+1/2)", "(1+1/2)*60=90"]),
        ("20% * 50 = 10, 1/4 = 25%", ["20%*50=10", "1/4=25%"]),
        ("5*2=10*(1+1)", []),
        ("1+1=2\n-3+4=1", ["1+1=2", "-3+4=1"]),
        # signs of numbers, and what only looks like them
        ("It was -6+3=-3 degrees. -2*-3=6, 10 - -3 = 13", ["-6+3=-3", "-2*-3=6", "10--3=13"]),
        ("5 \u2212 7 = \u22122", ["5-7=-2"]),
        ("- 3 + 4 = 7\n* 2 + 2 = 4\nApples - 5*3 = 15. **6*3=18**", ["3+4=7", "2+2=4", "5*3=15", "6*3=18"]),
        # the end of a longer expression is no equation
        *((text, []) for text in ("x + 3 + 4 = 9", "x - 3 + 4 = 9", "a -3+4=9", "24V+15+6=141", "(1+2)*3+4=13")),
        *((text, []) for text in ("2^3+1=9", "(2) - 1 + 4 = 5", "60 min x 1/2 * 3 = 90", "a/2+3=9", "9, a -3+4=9")),
        ("At 6:00+48=6:48", []),
        ("3x - 5 = 16 and 3x -5=16", []),
        ("3 x -5 = -15, 3 x5=15, 3x5=15", ["3*-5=-15", "3*5=15", "3*5=15"]),
        ("x = 5, so the answer is 5", []),
        ("#### 72", []),
        ("<<48/2=24", ["48/2=24"]),  # an annotation that was never closed is plain text
        ("<<a\nb>>", []),
        ("", []),
    ],
)
def test_equations_in_order_without_spaces(solution: str, expected: list[str]) -> None:
    assert equations(solution) == expected


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("48/2=24", True), ("(3+4)*2=14", True), ("20*.5=10", True), ("2-5=-3", True), ("10/3=3.333", True),
        ("1/4=25%", True), ("100-5=95%", True), ("5/20=24%", False), ("2-1/2=(1+1/2)", True),
        ("50%*8=4", True), ("100/20%=500", True), ("100/20%=0.05", False), ("(10+10)%*50=10", True), ("05*2=10", True),
        ("0b11=3", False), ("1_0=10", False), ("1e1=10", False), ("48/2=25", False), ("10/3=3.33", False),
        ("1/0=0", False), ("x+1=2", False),
        ("2**3=8", False), ("7", False), ("", False), ("1+(2=3", False), ("__import__=1", False),
    ],
)  # fmt: skip
def test_right_and_wrong_equations(text: str, right: bool) -> None:
    assert is_right(text) is right


def test_solutions_are_the_same_by_their_equations_in_their_order() -> None:
    reworded = "In May it was <<48/2=24>>24. Both: <<48+24=72>>72.\n#### 72"
    swapped = "<<48+24=72>> <<48/2=24>>"
    assert equation_sequence(GSM8K) == equation_sequence(reworded)
    assert equation_sequence(GSM8K) != equation_sequence(swapped)
    assert equation_sequence("1+1=2") == equation_sequence(" 1 + 1 = 2 ")
    assert equation_sequence("1+1=2 2+1=3") != equation_sequence("1+1=2")
    # Several equations are told from one that looks like them.
    assert equation_sequence("<<1+1=2>><<2+1=3>>") != equation_sequence("<<1+1=22+1=3>>")


def test_solutions_without_equations_are_the_same_by_their_words() -> None:
    assert equation_sequence("the answer\n is 5 ") == equation_sequence("the answer is 5") == "the answer is 5"
    assert equation_sequence("it is 5") != equation_sequence("it is 6")
    assert exact_text("1+1=2") != exact_text("1 + 1 = 2")
    assert exact_text("a\n\tb") == exact_text(" a b")


def test_steps_are_lines_without_the_answers() -> None:
    assert steps(GSM8K) == GSM8K.split("\n")[:2]
    assert steps(" a \n\n b\r\nso #### 3\nc") == ["a", "b", "c"]
    assert steps("#### 3") == steps("") == []


@pytest.mark.parametrize(
    ("step", "last_equation", "comes_to"),
    [
        (GSM8K.split("\n")[0], "48/2=24", "24"),
        ("5 + 6 = 11, 11 - 1 = 10 in 3 days", "11-1=10", "10"),
        ("She pays $1,200.50 for 3", None, "3"),
        ("It is 1,200.50 dollars.", None, "1200.5"),
        ("2-5=-3", "2-5=-3", "-3"),
        ("<<1/3=1/3>>", "1/3=1/3", "1/3"),
        ("That is 5/20 = 1/4 of it", "5/20=1/4", "0.25"),
        ("5*2 + 3 = 10 + 3 = 13 of 40", "10+3=13", "13"),
        ("She starts at 6-4 = 2:00 am", "6-4=2", "2"),
        ("<<3*x=3x>>", "3**=3*", None),
        ("it is 12,34", None, None),
        ("nothing", None, None),
        ("", None, None),
    ],
)
def test_what_a_step_comes_to(step: str, last_equation: str | None, comes_to: str | None) -> None:
    assert equation(step) == last_equation
    assert result(step) == comes_to


@pytest.mark.parametrize(
    ("prefix", "continuation", "expected"),
    [
        ("He has 3+4 = <<3+4=7>>7.", "Now <<7*2=14>>14\n#### 14", True),
        ("He has 3+4 = <<3+4=7>>7.", "Now <<8*2=16>>16\n#### 16", False),
        ("He has 3+4 = <<3+4=7>>7.", "#### 7", True),
        ("He has 3+4 = <<3+4=7>>7.", "Again <<3+4=7>>7 and <<5*2=10>>10\n#### 10", False),
        ("3+4=7\n7*2=14\n", "14-1=13\n#### 13", True),  # 7 has been taken up already
        ("3+4=7\n5*2=10\n", "10-1=9\n#### 9", False),  # 7 is left lying
        ("3+4=7\n5*2=10\n", "10-7=3\n#### 3", True),
        ("$1,000+$500=$1,500\n", "1500.0/2=750\n#### 750", True),
        ("3-7=-4\n", "-4+9=5\n#### 5", True),
        ("words alone", "#### 5", True),
        ("", "", True),
        ("1+1=2\n", "", False),
    ],
)
def test_a_continuation_builds_on_the_results_of_its_prefix(prefix: str, continuation: str, expected: bool) -> None:
    assert uses_results(prefix, continuation) == expected


@given(st.text(alphabet="0123456789+-*/x=<>$,. \n", max_size=200))
def test_any_text_has_a_key(text: str) -> None:
    assert isinstance(equation_sequence(text), str)
    assert equation_sequence(text) == equation_sequence(text)


@pytest.mark.parametrize(
    "hostile",
    [
        "1" * 100_000,
        "1+" * 50_000,
        "1 + " * 25_000,
        "<<" * 50_000,
        "<<" + "1" * 100_000,
        "1,1." * 25_000,
        "$" * 100_000,
    ],
)
def test_long_hostile_text_is_read_in_linear_time(hostile: str) -> None:
    assert equation_sequence(hostile)  # quadratic time would be minutes
