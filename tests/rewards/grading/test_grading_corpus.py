"""The grader's corpus: strings of four kinds (full reward, zero reward, malformed, determinism) and their verdicts."""

import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tokengym.rewards import Verdict, grade
from tokengym.rewards.grading import numbers as grading

Arguments = dict[str, Any]

WHOLE: Arguments = {"marker": None}
FRACTION: Arguments = {"percent": "fraction"}
LAST: Arguments = {"last_number": True}
BOXED: Arguments = {"marker": "The answer is"}


class Case(NamedTuple):
    kind: str
    reason: str
    gold: str
    completion: str
    arguments: Arguments


# Texts after the marker that earn the full reward, by gold answer.
FULL_MARKED = {
    "42": [
        *("42", "42 ", "  42", "\t42\t", "42\r", "042", "0000042", "+42", "42.", "42 .", "42.0", "42.00", "42.0."),
        *("$42", "$ 42", "$42.00", "$42.", "+$42", "$+42", "42$", "42 $", "$042"),
        *("42%", "42 %", "42 percent", "42 per cent", "42Percent", "42% of them", "42%."),
        *("42 apples", "42 apples.", "42 dollars", "42 miles per hour", "42 km/h", "42 one-way trips", "42cm", "42 m"),
        *("42 apples are left in the basket", "42 square feet", "42 times", "42\tapples", "42   apples"),
        *("4.2e1", "4.2E+1", "420e-1", "420.0e-01", "42e0", "42e000", "0.042e3", ".42e2"),
        *("42/1", "84/2", "84 / 2", "+84/2", "$84/2", "4,200/100", "42,000/1,000", "84/2 apples"),
        *("\\boxed{42}", "$42$", "\\(42\\)", "\\text{42}", "*42*", "**42**", "`42`", '"42"', "'42'", "_42_", "\\$42"),
        *("= 42", "=42", "x=42", "x = 42", "answer: 42", "Answer 42", "The answer is 42.", "the final answer is: 42"),
        *("\u20ac42", "42 \u20ac", "\u00a342", "42\u00b0", "42^\\circ", "42\\%", "**42** apples", "**$42**", "\n42"),
        *("0" * 254 + "42", "42." + "0" * 253, "42" + " " * 1000),
    ],
    "-5": [
        "-5",
        "-5.",
        "-5.0",
        "\u22125",
        "-$5",
        "$-5",
        "\u2212$5",
        "$\u22125",
        "-5$",
        "-10/2",
        "\u221210/2",
        "-5 degrees",
    ],
    "1,234,567": [
        "1,234,567",
        "1234567",
        "$1,234,567.00",
        "1,234,567.",
        "1,234,567 people",
        "1.234567e6",
        "1234567000e-3",
    ],
    "$1,000": ["1000", "1,000", "1e3", "1000 dollars"],
    "0.5": ["0.5", ".5", "+.5", "$.50", "0.50", "00.5", "1/2", "2/4", "0.5e0", "5e-1", "50e-2", "0.5 hours", ".5."],
    "0": ["0", "-0", "+0", "00", "0.000", ".0", "0/7", "-0/7", "0e5", "0e-999", "\u22120.0", "$0"],
    "1/3": ["1/3", "2/6", "0.333", "0.3333", ".33333333333333333333", "3333e-4", "333.3e-3", "333/1000"],
    "0.333": ["0.333", "1/3", "333/1000"],
    "-66.67": ["-200/3", "-66.670"],
    "9" * 200: ["9" * 200, "9" * 200 + ".0", "+" + "9" * 200],
    "1" + "0" * 200: ["1e200", "0.1e201", "10" + "0" * 199, "1" + "0" * 200 + " atoms"],
    "1e999": ["1e999", "10e998", "100e997"],
    "1e-999": ["1e-999", ".1e-998"],
    f"1/{2**840}": [f"1/{2**840}", f"2/{2**841}"],
    f"{10**126 + 1}/{2**420}": [f"{10**126 + 1}/{2**420}"],
    "1/" + "3" * 200: ["1/" + "3" * 200, "2/" + "6" * 200],
}
FULL_COMPLETIONS: list[tuple[str, str, Arguments]] = [
    ("42", "####42", {}),
    ("42", "##### 42", {}),
    ("42", "#### 42 ####", {}),
    ("42", "6*7 = <<6*7=42>>42\n#### 42", {}),
    ("42", "#### 42\nThat is 6 times 7.", {}),
    ("42", "#### 42\n#### 42", {}),
    ("42", "#### 42\n#### 42.00", {}),
    ("42", "#### $42 #### 84/2", {}),
    ("42", "#### Step one: multiply\n6*7=42\n#### 42", {}),
    ("42", "#### 6 * 7\n#### 42", {}),
    ("42", "####\n#### 42", {}),
    ("1/3", "#### 0.333\n#### 1/3", {}),
    ("42", "#### 42\n" * 10_000, {}),
    ("42", "x" * 100_000 + "\n#### 42", {}),
    ("42", "#### 42\n" + "x" * 100_000, {}),
    ("42", "#### " + "9" * 300 + "\n#### 42", {}),
    ("42", "#### **41" + " " * 300 + "**\n#### 42", {}),
    ("42", "#### 41\n" + "#### 42\n" * 16, {}),
    ("2/3", "\n".join(f"#### {2 * 7**i * 10**60}/{3 * 7**i * 10**60}" for i in range(60)), {}),
    ("42", "42", WHOLE),
    ("42", "\n 42 \n", WHOLE),
    ("-5", "\u22125", WHOLE),
    ("42", "The answer is 42.", BOXED),
    ("0.2", "#### 20%", FRACTION),
    ("1/5", "#### 20 percent", FRACTION),
    ("20%", "#### 0.2", FRACTION),
    ("20%", "#### 20 %", FRACTION),
    ("0.005", "#### 1/2%", FRACTION),
    ("-1.5", "#### -150%", FRACTION),
    ("0.2", "that is 20%", FRACTION | LAST),
    ("42", "The answer is 42.", LAST),
    ("42", "so 6*7=42", LAST),
    ("42", "I make it **42**, then.", LAST),
    ("42", r"\boxed{42}", LAST),
    ("42", "(6 of 7, or 42)", LAST),
    ("1234.5", "it costs $1,234.50.", LAST),
    ("-5", "from 3 down to -5", LAST),
    ("-5", "x = \u22125!", LAST),
    ("42", "pages 10-42", LAST),
    ("0.5", "about .5 of it", LAST),
    ("20", "that is 20%", LAST),
    ("42", "#### 42\nnot 43", LAST),
    ("42", "42" + " x" * 50_000, LAST),
    ("42", "1 " * 50_000 + "42", LAST),
]

# Texts after the marker that are numbers, but others than the gold answer.
WRONG_MARKED = {
    "42": [
        *(
            "43",
            "-42",
            "\u221242",
            "4.2",
            "420",
            "42.1",
            "42.0000000001",
            "41.9999999999",
            "0",
            "42e1",
            "42/2",
            "4200%",
        ),
        *("$43", "43 apples", "1e999", "-1e999", "1e-999", "42" + "0" * 200, "1/42", "42.5."),
    ],
    "0": ["1e-999", "-1e-999", "1/" + "9" * 200, "0.000000001"],
    "1/3": [
        "0.33",
        "0.3",
        "0.33299999",
        "0.33366667",
        ".334",
        f"1/{2**840}",
        "33/100",
        "0.3337",
        "-1/3",
        "-0.333",
        "3/1",
        "0",
        "33.3%",
    ],
    "1000/3": ["333", "333e0", "334", "33.33"],
    "0.5": ["0.501", "0.4999999", "50%", "5", "1/3", "2/1"],
    "0.1": ["0.1000000001", "0.10000000000000000555"],
    "1" + "0" * 200: ["1" + "0" * 199 + "1", "1e199", "1e201"],
    "9007199254740993": ["9007199254740992", "9007199254740993.5"],
    "1234": ["1.234", "12.34"],
}
ZERO_COMPLETIONS: list[tuple[str, str, str, Arguments]] = [
    *(("ambiguous", gold, "#### 42 #### 43 #### 44", {}) for gold in ("42", "43", "44")),
    ("ambiguous", "42", "#### 41\n#### 42", {}),
    ("ambiguous", "42", "#### 42\n#### 41\n#### 42", {}),
    ("ambiguous", "42", "#### 42.5\nNo:\n#### 42", {}),
    ("ambiguous", "42", "#### -42 #### 42", {}),
    ("ambiguous", "99", "".join(f"#### {i}\n" for i in range(100)), {}),
    ("ambiguous", "42", "#### 41\n" + "#### 42\n" * 15, {}),
    ("ambiguous", "44", "The answer is 43. The answer is 44.", BOXED),
    ("unparsed", "42", "#### 42\n#### 42 or 43", {}),
    ("no_answer", "42", "", {}),
    ("no_answer", "42", " \n ", {}),
    ("no_answer", "42", "42", {}),
    ("no_answer", "42", "The answer is 42.", {}),
    ("no_answer", "42", "### 42", {}),
    ("no_answer", "42", "# # # # 42", {}),
    ("no_answer", "42", "\uff03\uff03\uff03\uff03 42", {}),
    ("no_answer", "42", "####", {}),
    ("no_answer", "42", "####  ", {}),
    ("no_answer", "42", "####\n\n", {}),
    ("no_answer", "42", "6*7 = <<6*7=42>>42", {}),
    ("no_answer", "4", "#" * 100_000, {}),
    ("no_answer", "4", "4" * 100_000, {}),
    ("no_answer", "4", "####" + " " * 100_000, {}),
    ("no_answer", "42", "", WHOLE),
    ("no_answer", "42", "\n", WHOLE),
    ("wrong", "42", "43", WHOLE),
    ("wrong", "42", "The answer is 42, or perhaps 43", LAST),
    ("wrong", "42", "#### 43\nno, 42", LAST),
    ("no_answer", "42", "no digits", LAST),
    ("no_answer", "42", "\u0664\u0662", LAST),
    ("no_answer", "42", "x" * 100_000, LAST),
    ("wrong", "0.2", "#### 20", FRACTION),
    ("wrong", "20", "#### 20%", FRACTION),
]

# Texts after the marker that are no number of the grammar, though they come to the gold answer or look like it.
UNPARSED_MARKED = {
    # commas and separators
    "1234": [
        "12,34",
        "1,2,3,4",
        "1,,234",
        "1,234,",
        ",1,234",
        "1, 234",
        "1 234",
        "1'234",
        "1_234",
        "1\uff0c234",
        "1,2 34",
    ],
    "1234567": ["1,234567", "1234,567", "1,23,4567", "1,234,56,7", "1.234.567"],
    "123": ["0,123", "00,123", ",123"],
    "1000": ["1_000", "1__000", "_1000", "1000_", "1 thousand", "1k", "10 hundred"],
    # what float() or int() would read
    "0": ["inf", "-inf", "Infinity", "nan", "NaN", "-nan", "1e-9999", "none", "1/0", "0/0", "-1/0", "x" * 256],
    "1": ["1e", "1e+", "1e+-0", "1e 0", "1e0.0", "1e0000", "1e99999999999", "1e1000", "e0", "1/1/1", "1//1"],
    # what an evaluator would compute
    "42": [
        *(
            "5 + 37",
            "6*7",
            "6 x 7",
            "6 \u00d7 7",
            "42+0",
            "42-0",
            "40+2 apples",
            "42!",
            "42!!",
            "42**1",
            "42^1",
            "2 * 21",
        ),
        *("[42][0]", "max(41, 42)", "42 if 1", "0x2A", "0b101010", "0o52", "42j", "42L", "4_2"),
        *("$$42", "$-$42", "-$42$", "\\frac{84}{2}", "42\\", "{42}", "\\boxed{42", "**42", "42 x", "42 n", "x x = 42"),
        # signs, points and brackets
        *("--42", "+-42", "-+42", "- -42", "42-", "42..", "4.2.0e1", "..42e2", "4 2"),
        *("(42)", "[42]", "(42", "42)", "<42>", "|42|", "<<42>>"),
        *("~42", "\u224842", "42=42", "42 = x", "is 42"),
        *("#42", "42#", "42,", "42;", "42:", "42?", "42, 43", "42 43", "42 or 43", "42-43", "42 to 43", "42:00", "42/"),
        # words that change the number, or hedge it
        *(
            "42 thirds",
            "42 hundredths of it",
            "42 lakh",
            "42 quadrillion",
            "42 bn",
            "42 tens",
            "42 pi",
            "42pi",
            "42 sqrt",
        ),
        *("42 pi", "42 sqrt", "42xy", "42 xyz", "42ab", "42 abc cm"),
        *("42 million", "42 Thousand dollars", "42 dozen", "42 and a half", "42 or more", "42 squared", "42 factorial"),
        *(
            "42 not",
            "42 minus one",
            "42 point five",
            "42k",
            "42x",
            "42e",
            "42 apples 3",
            "42 (apples)",
            "42 apples, sold",
        ),
        *(
            "forty-two",
            "XLII",
            "42 %%",
            "%42",
            "42%1",
            "42 m\u00b2",
            "42\u00b2",
        ),
        # digits and signs outside ASCII
        *("\u0664\u0662", "\uff14\uff12", "\u096a\u0968", "4\u0662", "\uff142", "\u2463\u2461", "\U0001d7d2\U0001d7d0"),
        *(
            "42\u200b",
            "\u200b42",
            "4\u200b2",
            "42\x00",
            "\x0042",
            "4\u00a02",
            "4\u20282",
            "\ufeff42",
            "42\ud800",
            "\U0001f52242",
        ),
        *(
            "\uff0b42",
            "\u00b142",
            "42\u212a\u212a",
            "42 \u017f",
            "42 \u0430pples",
            "8\u20444",
            "84\u00f72",
            "84\u22152",
        ),
        *("(" * 200 + "42" + ")" * 50, "-" * 200 + "42", "4" + "." * 200 + "2", "42" + "!" * 200, "42 " + "," * 200),
    ],
    "-5": ["- 5", "-- 5", "\u20135", "\u20145", "\u207b5", "(5)", "-\u22125", "5-", "minus 5", "\u2212 5", "-$ -5"],
    "0.5": [
        "\u00bd",
        "1.0/2",
        "1/2.0",
        "-1/-2",
        "1/+2",
        "1/2/1",
        "0 1/2",
        "0,5",
        "0.5.5",
        ".",
        "/2",
        "4\u066b2",
        "one half",
    ],
    "9": ["8 2/2", "3^2", "3^{2}", "3**2", "9!", "9!!", "9e0e0", "9%9", "9 mod 10"],
}
TOO_LONG_MARKED = [
    *("9" * 5000, "9" * 257, "0" * 257, "9" * 100_000, "(" * 2000, "{" * 100_000, "-" * 300, "1" + ",000" * 64),
    *(
        "42 " + "apples " * 50,
        "42" + " " * 300 + "apples",
        "1/" + "3" * 300,
        "1e" + "9" * 300,
        "0." + "3" * 300,
        "x" * 257,
    ),
]
MALFORMED_COMPLETIONS: list[tuple[str, str, str, Arguments]] = [
    ("unparsed", "42", "#### 42", WHOLE),
    ("unparsed", "42", "42\n42", WHOLE),
    ("unparsed", "42", "The answer is 42", WHOLE),
    ("unparsed", "42", "42 43", WHOLE),
    ("too_long", "42", "42" + "\n" * 300 + "x", WHOLE),
    ("too_long", "9", "9" * 100_000, WHOLE),
    ("unparsed", "1234", "it costs 12,34", LAST),
    ("unparsed", "1000", "it costs 1_000", LAST),
    ("unparsed", "3", "1,2,3", LAST),
    ("unparsed", "1", "1/0", LAST),
    ("unparsed", "42", "42\n#### forty-two", LAST),
    ("too_long", "9", "9" * 100_000, LAST),
    ("too_long", "9", "." * 50_000 + "9," * 50_000 + "9", LAST),
    ("unparsed", "9", ".." * 50_000 + "9" + ".9" * 100, LAST),
]

# Texts that must all get the same verdict against the gold answer, its normal form included.
SAME = [
    (
        "1234.5",
        Verdict(True, "correct", "1234.5"),
        ["1234.5", "1,234.50", "$1,234.5", "12345e-1", "2469/2", "1234.5 km"],
    ),
    ("7", Verdict(False, "wrong", "-2/3"), ["-2/3", "-4/6", "\u22122/3", "-2 / 3.", "-$2/3"]),
    ("7", Verdict(False, "wrong", "0.125"), ["1/8", "0.125", ".125", "125e-3", "0.1250", "25/200"]),
    ("7", Verdict(False, "wrong", "1e999"), ["1e999", "10e998", "1.0e999", "0001e999"]),
    ("7", Verdict(False, "wrong", "25e-300"), ["25e-300", "2.5e-299", "250e-301"]),
    ("7", Verdict(False, "wrong", "0"), ["0", "-0", "0e999", "0/3", "\u22120.00"]),
    ("7", Verdict(False, "unparsed", None), ["seven", "7!", "NaN"]),
]


def corpus() -> Iterator[Case]:
    for gold, texts in FULL_MARKED.items():
        yield from (Case("full", "correct", gold, f"#### {text}", {}) for text in texts)
    yield from (Case("full", "correct", *case) for case in FULL_COMPLETIONS)
    for gold, texts in WRONG_MARKED.items():
        yield from (Case("zero", "wrong", gold, f"#### {text}", {}) for text in texts)
    yield from (Case("zero", *case) for case in ZERO_COMPLETIONS)
    for gold, texts in UNPARSED_MARKED.items():
        yield from (Case("malformed", "unparsed", gold, f"#### {text}", {}) for text in texts)
    yield from (Case("malformed", "too_long", "42", f"#### {text}", {}) for text in TOO_LONG_MARKED)
    yield from (Case("malformed", *case) for case in MALFORMED_COMPLETIONS)
    for gold, verdict, texts in SAME:
        yield from (Case("determinism", verdict.reason, gold, f"#### {text}", {}) for text in texts)


CORPUS = list(corpus())


def verdict_of(case: Case) -> Verdict:
    return grade(case.completion, case.gold, **case.arguments)


def test_every_string_gets_its_verdict() -> None:
    wrong = [(case, verdict) for case in CORPUS if (verdict := verdict_of(case)).reason != case.reason]
    assert not wrong, "\n".join(f"{c.completion[:80]!r} against {c.gold[:40]!r}: {v}" for c, v in wrong)


def test_only_a_correct_answer_is_correct_and_only_a_number_is_an_answer() -> None:
    for case in CORPUS:
        verdict = verdict_of(case)
        assert verdict.correct == (case.reason == "correct")
        assert (verdict.answer is not None) == (case.reason in ("correct", "wrong"))


def test_the_corpus_has_two_hundred_different_strings_of_the_four_kinds() -> None:
    assert len({(case.completion, case.gold) for case in CORPUS}) >= 200
    assert {case.kind for case in CORPUS} == {"full", "zero", "malformed", "determinism"}


@pytest.mark.parametrize(("gold", "verdict", "texts"), SAME)
def test_notations_of_one_number_get_one_verdict(gold: str, verdict: Verdict, texts: list[str]) -> None:
    assert {grade(f"#### {text}", gold) for text in texts} == {verdict}


def test_verdicts_do_not_depend_on_what_was_graded_before() -> None:
    first = [verdict_of(case) for case in CORPUS]
    order = list(range(len(CORPUS)))
    random.Random(0).shuffle(order)
    assert {i: verdict_of(CORPUS[i]) for i in order} == dict(enumerate(first))


def test_no_string_needs_long_integers_as_text() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)  # the lowest there is
    try:
        assert all(verdict_of(case).reason == case.reason for case in CORPUS)
    finally:
        sys.set_int_max_str_digits(limit)


def test_however_long_the_string_only_a_few_short_pieces_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spy:
        def __init__(self, pattern: Any) -> None:
            self.pattern = pattern
            self.sizes: list[int] = []

        def match(self, text: str) -> Any:
            self.sizes.append(len(text))
            return self.pattern.match(text)

        def findall(self, text: str) -> Any:
            self.sizes.append(len(text))
            return self.pattern.findall(text)

    number, numberlike = Spy(grading._NUMBER), Spy(grading._NUMBERLIKE)
    monkeypatch.setattr(grading, "_NUMBER", number)
    monkeypatch.setattr(grading, "_NUMBERLIKE", numberlike)
    for case in CORPUS:
        number.sizes.clear()
        numberlike.sizes.clear()
        verdict_of(case)
        assert len(number.sizes) <= grading.MAX_MARKS + 1
        assert max(number.sizes, default=0) <= grading.MAX_LENGTH
        assert len(numberlike.sizes) <= 1
        assert max(numberlike.sizes, default=0) <= 2 * grading.MAX_LENGTH + 2
