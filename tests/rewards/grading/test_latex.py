"""Free-form answers: which text is the answer, and what is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.rewards import grade_free_form
from tokengym.rewards.grading.latex import Worker, boxed
from tokengym.rewards.grading.numbers import grade


def box(*answers: str) -> str:
    return " and ".join(rf"$\boxed{{{answer}}}$" for answer in answers)


# --------------------------------------------------------------------------------------------------- what a box holds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}.", ["5"]),
        (r"\boxed{\frac{1}{2}} then $\boxed {x}$", [r"\frac{1}{2}", "x"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{\left\{ x \right. }", [r"\left\{ x \right."]),
        (r"\boxed{ a" + "\n" + r" b }", ["a b"]),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}"]),
        (r"\boxed{1} {\boxed{2} \boxed{\boxed{3} 4}}", ["1", "2", r"\boxed{3} 4"]),
        (r"\boxed{5", []),
        (r"\boxed{5 \boxed{6}", ["6"]),
        (r"\boxed{5}}}}", ["5"]),
        (r"}}\boxed{5}", ["5"]),
        (r"\boxed{}", [""]),
        (r"\boxed 2$ or \fbox{3}", ["2", "3"]),
        (r"\boxed23. \boxedx", ["23."]),
        (r"\\boxed{5}", []),  # a line break and a word
        ("boxed{5}", []),
        ("#### 5", []),
        ("", []),
    ],
)
def test_boxes(text, expected):
    assert boxed(text) == expected


@pytest.mark.parametrize("piece", [r"\boxed{", "{", "}", r"\boxed{}", r"\boxed{{", "\\", r"\boxed ", r"\boxed{5} "])
def test_boxes_are_found_in_linear_time(piece):
    assert len(boxed(piece * 50_000)) <= 50_000  # quadratic time would be minutes


@given(st.text(alphabet="\\{}boxed 5$", max_size=60))
def test_any_text_has_boxes_with_balanced_braces(text):
    for content in boxed(text):
        plain = content.replace("\\\\", "").replace(r"\{", "").replace(r"\}", "")
        assert plain.count("{") == plain.count("}")


# ------------------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("answer", "gold", "reason", "found"),
    [
        ("5", "5", "correct", "5"),
        ("5.0", "5", "correct", "5"),
        ("1,000", "1000", "correct", "1000"),
        ("6", "5", "wrong", "6"),
        (r"\frac{10}{2}", "5", "correct", "5"),
        ("0.5", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
        (r"\frac12", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
        (r"\dfrac{2}{4}", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
        (r"\frac{3}{2}", r"\frac{1}{2}", "wrong", "1.5"),
        ("2.5", r"\frac{1}{2}", "wrong", "2.5"),
        (r"10,\!000", "10000", "correct", "10000"),
        (r"(x+1)^2", "x^2+2x+1", "correct", "x^2+2x+1"),
        (r"(x+1)^2", "x^2+2x+2", "wrong", "x^2 + 2*x + 1"),
        (r"\text{Evelyn}", r"\text{Evelyn}", "correct", r"\text{Evelyn}"),
        ("Evelyn", r"\text{Evelyn}", "correct", r"\text{Evelyn}"),
        (r"\sqrt{8}", r"2\sqrt{2}", "correct", r"2\sqrt{2}"),
        ("x=5", "5", "correct", "5"),
        ("5 or 6", "5", "wrong", "{5, 6}"),
        ("5, 6", "5", "wrong", "{5, 6}"),
        (r"\{5, 6\}", "6", "wrong", "{5, 6}"),
        ("2, 1", "1, 2", "correct", "1, 2"),
        (r"\frac{5}{0}", "5", "unparsed", None),
        ("nan", "5", "wrong", None),
        (r"\infty", "5", "wrong", "oo"),
        ("٥", "5", "unparsed", None),
        ("５", "5", "unparsed", None),
        ("", "5", "no_answer", None),
        ("5" * 257, "5", "too_long", None),
    ],
)
def test_what_is_right(answer, gold, reason, found):
    verdict = grade_free_form(box(answer), gold)
    assert (verdict.correct, verdict.reason) == (reason == "correct", reason)
    if found is not None or reason not in ("correct", "wrong"):
        assert verdict.answer == found


@pytest.mark.parametrize(
    ("answers", "gold", "reason"),
    [
        (["5", "5"], "5", "correct"),
        (["5", "5.0"], "5", "correct"),
        (["6", "5"], "5", "ambiguous"),
        (["5", "6"], "5", "ambiguous"),
        (["6", "7"], "5", "ambiguous"),
        (["0.5", r"\frac{1}{2}"], r"\frac{1}{2}", "correct"),
        (["0.25", r"\frac{1}{2}"], r"\frac{1}{2}", "ambiguous"),
        (["", r"\frac{1}{2}"], r"\frac{1}{2}", "correct"),
        ([str(n) for n in range(100)], "99", "ambiguous"),
    ],
)
def test_the_last_box_counts_and_others_must_agree(answers, gold, reason):
    assert grade_free_form(box(*answers), gold).reason == reason


def test_without_a_box_there_is_no_answer():
    for completion in ("", "5", "#### 5", r"\boxed{5"):
        assert grade_free_form(completion, "5").reason == "no_answer"


@given(st.sampled_from(["5", "-3", "0.5", "1,200", "3/4"]), st.text(alphabet="0123456789.,-/% ", max_size=8))
def test_numbers_are_graded_as_everywhere_and_start_no_process(gold, text):
    untouched = Worker(deadline=0.0)
    text = text if text.strip() and grade(text, gold, marker=None).reason != "unparsed" else gold
    verdict = grade_free_form(box(text), gold, worker=untouched)
    assert verdict == grade(text, gold, marker=None)
    assert untouched.pid is None


@pytest.mark.parametrize("gold", ["", "  ", "5" * 257])
def test_a_gold_answer_out_of_bounds_is_an_error(gold):
    with pytest.raises(ValueError, match="a gold answer has 1 to 256 characters"):
        grade_free_form(box("5"), gold)
