"""Properties of the grader against Python's exact fractions."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokengym.rewards import Verdict, grade, normalize_number

SIGNIFICANT = st.integers(-(10**60), 10**60)
SMALL = st.integers(-1000, 1000)
MANTISSA = st.one_of(SMALL, SIGNIFICANT, st.integers(-60, 60).map(lambda e: 10 ** abs(e)))


@st.composite
def written_numbers(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A number in some notation of the grammar, and its value worked out apart."""
    magnitude = abs(draw(MANTISSA))
    value = Fraction(magnitude)
    comma = draw(st.booleans())
    text = f"{magnitude:,}" if comma else "0" * draw(st.integers(0, 3)) + str(magnitude)
    notations = ["integer", "decimal", "fraction"] + ["mixed number"] * (magnitude > 0)
    notation = draw(st.sampled_from(notations))
    if notation == "decimal":
        decimals = draw(st.text("0123456789", min_size=1, max_size=20))
        text += f".{decimals}"
        value += Fraction(int(decimals), 10 ** len(decimals))
    elif notation == "fraction":
        denominator = draw(st.one_of(st.integers(1, 12), st.integers(1, 10**30)))
        text += draw(st.sampled_from(["/", " / "])) + str(denominator)
        value /= denominator
    elif notation == "mixed number":
        denominator = draw(st.one_of(st.integers(2, 12), st.integers(2, 10**30)))
        numerator = draw(st.integers(0, denominator - 1))
        text += f" {numerator}" + draw(st.sampled_from(["/", " / "])) + str(denominator)
        value += Fraction(numerator, denominator)
    if notation in ("integer", "decimal") and draw(st.booleans()):
        exponent = draw(st.integers(-999, 999))
        text += f"{draw(st.sampled_from('eE'))}{exponent}"
        value *= Fraction(10) ** exponent
    if draw(st.booleans()):
        text, value = draw(st.sampled_from("-\u2212")) + text, -value
    elif draw(st.booleans()):
        text = f"+{text}"
    if draw(st.booleans()):
        text = draw(
            st.sampled_from([f"${text}", f"{text}$", f"{text[:1]}${text[1:]}" if text[0] in "+-\u2212" else text])
        )
    tails = ["", ".", " apples", " miles per hour."]
    return text + draw(st.sampled_from(tails if text.endswith("$") else [*tails, "%", " percent."])), value


def is_finite(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def are_equal(a: Fraction, b: Fraction) -> bool:
    """The rule of `rewards.grading`, on exact fractions."""
    if a == b or is_finite(a) == is_finite(b):
        return a == b
    endless, decimal = (b, a) if is_finite(a) else (a, b)
    return decimal.denominator != 1 and abs(decimal - endless) <= abs(endless) / 1000


def value_of(normal: str) -> Fraction:
    top, _, bottom = normal.partition("/")
    return Fraction(top) / int(bottom or 1)


@given(written_numbers())
def test_normal_form_keeps_the_value(number: tuple[str, Fraction]) -> None:
    text, value = number
    normal = normalize_number(text)
    assert normal is not None
    assert value_of(normal) == value
    assert normalize_number(normal) in (normal, None)  # None: too long for the grammar, or its exponent is


@given(written_numbers(), written_numbers())
def test_a_number_is_correct_if_and_only_if_it_is_equal(a: tuple[str, Fraction], b: tuple[str, Fraction]) -> None:
    for (text, value), (gold, gold_value) in ((a, b), (b, a), (a, a)):
        verdict = grade(f"Some text.\n#### {text}\n", gold)
        assert verdict.reason == ("correct" if are_equal(value, gold_value) else "wrong")
        assert (verdict.answer == normalize_number(gold)) == (value == gold_value)


@given(SMALL, st.integers(1, 400), st.integers(1, 12))
def test_rounded_decimals_against_fractions(numerator: int, denominator: int, places: int) -> None:
    fraction = Fraction(numerator, denominator)
    rounded = round(fraction, places)
    decimal = f"{Decimal(rounded.numerator) / Decimal(rounded.denominator):f}"
    expected = are_equal(fraction, Fraction(decimal))
    assert grade(f"#### {decimal}", f"{numerator}/{denominator}").correct is expected
    assert grade(f"#### {numerator}/{denominator}", decimal).correct is expected


@given(st.integers(2, 10**120), st.integers(0, 800), st.integers(0, 350))
def test_fractions_with_long_finite_expansions(numerator: int, twos: int, fives: int) -> None:
    denominator = 2**twos * 5**fives
    assume(denominator < 10**120)
    normal = normalize_number(f"{numerator}/{denominator}")
    assert normal is not None
    assert value_of(normal) == Fraction(numerator, denominator)


@given(written_numbers())
def test_percentages_by_policy(number: tuple[str, Fraction]) -> None:
    text = number[0].rstrip(".$% abcdefghijklmnopqrstuvwxyz")
    assume(len(text) < 250)
    plain, percentage = normalize_number(text), normalize_number(f"{text}%")
    assert plain is not None
    assert plain == percentage
    hundredth = normalize_number(f"{text} percent", percent="fraction")
    assert hundredth is not None
    assert value_of(hundredth) * 100 == value_of(plain)


@given(st.text(max_size=300), st.sampled_from(["42", "1/3", "0.5"]), st.booleans())
def test_no_text_raises(text: str, gold: str, last_number: bool) -> None:
    for completion in (text, f"#### {text}", text.replace(" ", "####")):
        verdict = grade(completion, gold, last_number=last_number)
        assert verdict == grade(completion, gold, last_number=last_number)
        assert verdict.correct == (verdict.reason == "correct")
    grade(text, gold, marker=None, percent="fraction")


@given(st.text("0123456789.,-+/eE$%# \u2212\u0664_xn()^!\n", max_size=300))
def test_no_number_like_text_raises_and_every_answer_is_a_number(text: str) -> None:
    for verdict in (grade(f"####{text}", "42"), grade(text, "42", marker=None), grade(text, "42", last_number=True)):
        assert verdict.reason in {"correct", "wrong", "no_answer", "ambiguous", "unparsed", "too_long"}
        assert verdict.correct == (verdict.answer is not None and value_of(verdict.answer) == 42)


@given(st.text(max_size=20).filter(lambda text: "#" not in text and "\n" not in text), written_numbers())
def test_text_before_and_after_the_marked_line_is_ignored(text: str, number: tuple[str, Fraction]) -> None:
    assert grade(f"{text}#### {number[0]}\n{text}", number[0]).reason == "correct"


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_two_marked_answers_are_ambiguous_unless_equal(first: int, last: int) -> None:
    verdict = grade(f"#### {first}\n#### {last:,}", str(last))
    assert verdict == (Verdict(True, "correct", str(last)) if first == last else Verdict(False, "ambiguous", None))


@pytest.mark.parametrize("gold", ["", "forty-two", "12,34", "9" * 300, "inf", "1/0"])
def test_a_gold_answer_that_is_no_number_is_an_error_that_names_it(gold: str) -> None:
    with pytest.raises(ValueError, match="gold answer") as error:
        grade("#### 42", gold)
    assert gold[:80] in str(error.value)
    assert len(str(error.value)) < 200


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="percent='ratio'"):
        grade("#### 42", "42", percent="ratio")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="marker=''"):
        grade("42", "42", marker="")
    with pytest.raises(ValueError, match="last_number=True"):
        grade("42", "42", marker=None, last_number=True)
