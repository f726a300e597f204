r"""Grading by a small numeric grammar, bounded and exact. Nothing is ever evaluated.

**Which text is the answer.** What follows the marker (`####` in GSM8K) on its line. The last marked answer counts; if
an earlier one differs from it in value, the attempt earns nothing (`ambiguous`). Empty marks, and earlier marks that
hold no number (a heading, say), are no answers. Of very many marks only the last 16 are looked at. With `marker=None`
the whole completion is the answer. With `last_number=True` a completion with no marked answer is graded by the last
number in it, for prompted models that were never taught the marker: 42 in `42 cm^2` and 3/4 in `\frac{3}{4}`, but
`10^2`, `5 million` and `12:30` are read whole, and are none.

**Which texts are numbers.** ASCII only, but for U+2212, the minus sign; 256 characters at most:

    number   = [sign] ["$"] value ["%"]            the "$" may also come before the sign or after the value
    value    = [integer] ["." digits] ["e" [sign] one to three digits]
             | integer "/" integer | integer " " integer "/" integer, the fraction below 1: 2 1/2 but not 2 5/2
    integer  = digits | digits with a comma before every three and none elsewhere: 12,345 but not 12,34

A final full stop is ignored (`42.`), and so are words after the number (`42 apples left`, `5 miles per hour`, `10cm`)
unless they may change it (`5 million`, `42 or more`, `5 thirds`, `5 times ten`, `5 pi`, `5x`, `5 xy`), and what is set
around it: emphasis, that of a marker too (`**Answer:** 42`), and quotation marks, LaTeX's delimiters and boxes, signs
of currencies and degrees, and after a marker words such as "The answer is" or `x =`. An answer may begin on the line
after an empty mark. GSM8K's own regular expression, `#### (\-?[0-9\.\,]+)`, ignores anything after the number; here
`5 + 3`, `42 or 43`, `5 million` and `99999999!` are `unparsed` and not 5, 42, 5, 99999999. `percent` says what a
percentage means in a data set: with `"number"`, as in GSM8K, 20% is 20; with `"fraction"`, 0.2.

**When numbers are equal.** Exactly, whatever their length and notation: 1.50 = 3/2 = 15e-1, while 0.1 differs from
0.1000000001. The one exception [choice]: a fraction without a finite decimal expansion also equals a decimal within a
thousandth of it (1/3 = 0.333 but not 0.33), since no decimal could equal it exactly. There is no NaN and no infinity.
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MAX_LENGTH = 256
MAX_MARKS = 16
ONE_IN = 1000  # relative tolerance between an endless fraction and a decimal: one part in so many

Percent = Literal["number", "fraction"]

_INTEGER = r"[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+"
_NUMBER = re.compile(
    rf"""
    (?P<head> [+-]?\$\ ? | \$\ ?[+-] | [+-] )?
    (?= \.?[0-9] )
    (?P<whole> {_INTEGER} | )
    (?: (?: \ (?P<numerator> {_INTEGER} ) )? \ ?/\ ?(?P<denominator> {_INTEGER} )
      | (?: \.(?P<decimals> [0-9]+ ) )? (?: [eE](?P<exponent> [+-]?[0-9]{{1,3}} ) )? )
    """,
    re.VERBOSE,
)
# A single letter right after the digits is algebra or a magnitude (5x, 5k, 5e), hence the two.
_TAIL = re.compile(
    r"(?P<percent>\s*(?:%|per\s?cent\b))?(?:\s?\$)?(?P<words>(?:\s+[A-Za-z]+|[A-Za-z]{2,})(?:[\s/-]+[A-Za-z]+)*)?\s*\.?",
    re.ASCII | re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+")
_UNIT = re.compile(r"\s*[A-Za-z]+(?:[\s/-]+[A-Za-z]+)*\s*", re.ASCII)
# Words that make another number of the one before them, or hedge it.
_NOT_UNITS = frozenset(
    {"and", "or", "not", "to", "plus", "minus", "point", "half", "squared", "cubed", "factorial", "dozen", "dozens"}
    | {"hundred", "thousand", "million", "billion", "trillion"}
    | {"hundreds", "thousands", "millions", "billions", "trillions"}
    | {"quadrillion", "quintillion", "bn", "lakh", "lakhs", "crore", "crores", "tens"}
    | {"halves", "thirds", "fourths", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths"}
    | {"hundredths", "thousandths", "pi", "sqrt", "ln", "exp", "sin", "cos"}
    | {"xy", "xz", "yz", "xyz", "ab", "bc", "abc"}
)
# Words that do so at the end: 5 times ten, 5 thousandth, 5 at least, but 5 ten-liter jars.
_NOT_LAST = frozenset(
    {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"}
    | {"thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty"}
    | {"fifty", "sixty", "seventy", "eighty", "ninety", "third", "fourth", "fifth", "sixth", "seventh", "eighth"}
    | {"ninth", "tenth", "hundredth", "thousandth", "millionth", "billionth", "mn", "mln", "bln", "tn", "trn", "grand"}
    | {"negative", "least", "most"}
)
_UNIT_LETTERS = frozenset("mgshlL")  # meters, grams, seconds, hours, liters; any other letter alone is a variable
# What is set around a number and does not change it.
_AROUND = re.compile(
    r"""
    (?: \*\* | __ | [*_`"'] | \$\$? | \\[(\[] | \\(?:boxed|fbox|text(?:bf|it|rm)?|mathbf|mathrm)\s*\{ )
    \s* (?P<inside> (?: [^{}] | \{ (?: [^{}] | \{ [^{}]* \} )* \} )*? ) \s*
    (?: \*\* | __ | [*_`"'}] | \$\$? | \\[)\]] )
    (?P<after> \s*\.? | \s+[A-Za-z][A-Za-z\ ]* )
    """,
    re.VERBOSE | re.ASCII,
)
_CURRENCY = str.maketrans("", "", "\u20ac\u00a3\u00a5\u20b9\u00b0")
# "The answer is", "**Final answer:**"
LEAD = (
    r"(?P<sign>\*\*|__|[*_])?(?:(?:the|my|our)\s+)?(?:final\s+)?answer\b\s*(?:is\b)?\s*[:=]?"
    r"(?(sign)(?P=sign)\s*[:=]?)\s*"
)
_LEAD = re.compile(rf"{LEAD}|[A-Za-z]?\s*=\s*", re.ASCII | re.IGNORECASE)
# Emphasis that begins before a marker, in its line: "**Final " before "Answer:** 72".
_OPEN_EMPHASIS = re.compile(r"(?:^|\s)(?P<sign>[*_]{1,3})(?:[^\s*_][^*_\n]*)?$")
# For `last_number`: anything that looks like one number, to be judged by the grammar, powers and magnitudes included.
_NUMBERLIKE = re.compile(
    r"(?:(?<![\w.)])[+\-\u2212])?\$?(?:[0-9]+ (?=[0-9]+/[0-9]))?\.?[0-9](?:[0-9_,./:]*[0-9])?"
    r"(?:[eE][+\-\u2212]?[0-9]+)?%?(?:\^\{?[+\-\u2212]?[0-9]+\}?|\s(?:hundred|thousand|million|billion|trillion)s?\b)?",
    re.ASCII,
)
# What hides the last number: the exponent of a unit, as in 42 cm^2, and the denominator of \frac{1}{2}.
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}])\s?\^\s?\{?[23]\}?(?![0-9])")
_FRACTION = re.compile(r"(?:(?<=[0-9])\s*)?\\[dtc]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grade of an attempt and the reason for it.

    `reason` is `correct`, `wrong`, or why there was nothing to compare: `no_answer`, `ambiguous` (several different
    marked answers), `unparsed` (no number of the grammar, nothing that can be read,
    or an expression where a number is the answer), `too_long` (over 256 characters), `timeout` or `crashed` (a
    free-form answer that took too long, or ended the process that read it), or `truncated` (given by the environment to
    an attempt that ran out of tokens). `answer` is the number in its normal form, equal in text if
    and only if equal in value, so that answers can be counted as they are; None where there was nothing to compare.
    """

    correct: bool
    reason: str
    answer: str | None


_NO_ANSWER, _AMBIGUOUS, _UNPARSED, _TOO_LONG = (
    Verdict(False, reason, None) for reason in ("no_answer", "ambiguous", "unparsed", "too_long")
)


def grade(
    completion: str,
    answer: str,
    *,
    marker: str | None = "####",
    percent: Percent = "number",
    last_number: bool = False,
    units: Collection[str] | None = None,
) -> Verdict:
    """Grade `completion` against the gold `answer` by the rules at the top of this module.

    Never raises because of the completion, and takes time linear in its length: one search for the marker; only the
    last few answers, of 256 characters at most, are looked at more closely.

    Args:
        completion: Text of an attempt.
        answer: Gold answer alone: a number of the grammar.
        marker: Text before an answer; None if the whole completion is the answer.
        percent: Meaning of "20%" in this data: "number" for 20, "fraction" for 0.2.
        last_number: Grade a completion without a marked answer by the last number in it.
        units: Words that may follow a number, in lower case; `None` for any that do not change it.

    Raises:
        TypeError: The completion or the answer is no text, such as the number 72.
        ValueError: The gold answer is not a number of the grammar, or an argument is out of its range.
    """
    for name, text in (("completion", completion), ("answer", answer)):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, got {text!r}")
    if marker == "" or (marker is None and last_number):
        raise ValueError(f"marker={marker!r}, last_number={last_number}: {_MARKER_HELP}")
    texts = [completion.strip()] if marker is None else marked(completion, marker)
    if not texts and last_number:
        texts = find_last_number(completion)
    return compare_numbers(texts, answer, percent=percent, units=units, is_marked=marker is not None)


def compare_numbers(
    texts: Sequence[str],
    answer: str,
    *,
    percent: Percent = "number",
    units: Collection[str] | None = None,
    is_marked: bool = True,
) -> Verdict:
    """Grade an attempt by the answers that it shows, the last one first.

    Args:
        texts: Answers of the attempt; none, or an empty one, is `no_answer`.
        answer: Gold answer alone: a number of the grammar.
        percent: Meaning of "20%" in this data: "number" for 20, "fraction" for 0.2.
        units: Words that may follow a number, in lower case; `None` for any that do not change it.
        is_marked: Allow words such as "The answer is" before the number.

    Raises:
        ValueError: The gold answer is not a number of the grammar.
    """
    gold = normalize_number(answer, percent=percent, units=units)
    if gold is None:
        raise ValueError(f"gold answer {_shorten(answer)} is not a number that the grader reads: correct the data")
    if not texts or not texts[0]:
        return _NO_ANSWER
    if len(texts[0]) > MAX_LENGTH:
        return _TOO_LONG
    number = _read(texts[0], percent, units, is_marked)
    if number is None:
        return _UNPARSED
    for text in texts[1:]:
        if text != texts[0]:
            other = _read(text, percent, units, is_marked)
            if other is not None and not equal_numbers(other, number):
                return _AMBIGUOUS
    correct = equal_numbers(number, gold)
    return Verdict(correct, "correct" if correct else "wrong", number)


def _read(text: str, percent: Percent, units: Collection[str] | None, is_marked: bool) -> str | None:
    """The number in an answer, without what is set around it."""
    number = normalize_number(text, percent=percent, units=units)
    if number is not None or len(text) > MAX_LENGTH:
        return number
    text = text.strip()
    for _ in range(4):
        if is_marked and (lead := _LEAD.match(text)) is not None:
            text = text[lead.end() :]
        if (around := _AROUND.fullmatch(text)) is None:
            break
        text = (around["inside"] + around["after"]).strip()
    text = text.replace("\\%", "%").replace("\\$", "$").removesuffix(r"^\circ").translate(_CURRENCY)
    return normalize_number(text, percent=percent, units=units)


def normalize_number(text: str, *, percent: Percent = "number", units: Collection[str] | None = None) -> str | None:
    """The normal form of a number of the grammar, or None if `text` is none. Equal values have equal normal forms.

    It is an integer or a decimal without needless zeros (`0.5`; `25e-300` where more than 256 places or zeros would be
    needed), or, if it has no finite decimal expansion, a fraction in lowest terms (`-2/3`). Only words among `units`,
    in lower case, may follow it; with `None` all may that do not change it.
    """
    if percent not in ("number", "fraction"):
        raise ValueError(f'percent={percent!r}: choose "number" (20% is 20) or "fraction" (20% is 0.2)')
    if len(text) > MAX_LENGTH:
        return None
    if text.isascii() and text.isdigit():
        return text.lstrip("0") or "0"
    text = text.strip().replace("\u2212", "-")
    match = _NUMBER.match(text)
    if match is None:
        return None
    head, whole, numerator, denominator, decimals, exponent = match.groups()
    shift = 0
    if match.end() < len(text):
        tail = _TAIL.fullmatch(text, match.end())
        if tail is None or text.count("$") > 1:
            return None
        if tail["percent"] and percent == "fraction":
            shift = -2
        if tail["words"] and len(word := tail["words"].strip()) == 1 and word not in _UNIT_LETTERS:
            return None
        if tail["words"] and _changes_number(tail["words"]):
            return None
        if units is not None and tail["words"] and tail["words"].strip().lower() not in units:
            return None
    sign = "-" if head and "-" in head else ""
    whole = whole.replace(",", "")
    if denominator is not None:
        top, bottom = int(whole), int(denominator.replace(",", ""))
        if numerator is not None:
            part = int(numerator.replace(",", ""))
            if not top or part >= bottom:
                return None
            top = top * bottom + part
        return _fraction(sign, top, bottom * 10**-shift)
    decimals = decimals or ""
    return _decimal(sign, whole + decimals, int(exponent or 0) - len(decimals) + shift)


def is_unit(words: str) -> bool:
    """True if words after a number leave it as it is: letters only, and none that may change it (million, or more)."""
    return _UNIT.fullmatch(words) is not None and not _changes_number(words)


def _changes_number(text: str) -> bool:
    """True if words after a number may make another one of it, or hedge it."""
    words = _WORD.findall(text.lower())
    return not _NOT_UNITS.isdisjoint(words) or words[-1] in _NOT_LAST


def after_thinking(completion: str) -> str:
    """A completion after its last `</think>`: nothing before that is an answer."""
    return completion.rpartition("</think>")[2]


def marked(completion: str, marker: str) -> list[str]:
    """The marked answers, the last one first; emphasis that the marker is in is taken off: "**Answer:** 72"."""
    if marker not in completion:
        return []
    before, *parts = completion.rsplit(marker, MAX_MARKS)
    answers: list[str] = []
    for part in parts:
        inside = part
        if (opened := _OPEN_EMPHASIS.search(before[-MAX_LENGTH:].rpartition("\n")[2])) is not None:
            line, newline, rest = part.partition("\n")
            inside = re.sub(rf"{re.escape(opened['sign'])}(?![*_\w])", "", line, count=1) + newline + rest
        answers.append(inside.lstrip().partition("\n")[0].strip())
        before = part
    return [answer for answer in reversed(answers) if answer]


def find_last_number(completion: str) -> list[str]:
    """The last text that looks like a number, for the grammar to judge: a list of one, or of none."""
    end = max(completion.rfind(digit) for digit in "0123456789")
    if end < 0:
        return []
    text = _UNIT_POWER.sub("", completion[max(0, end - 2 * MAX_LENGTH) : end + 16])
    return _NUMBERLIKE.findall(_FRACTION.sub(r" \1/\2", text))[-1:]


def _decimal(sign: str, digits: str, exponent: int) -> str:
    """The normal form of `sign digits * 10^exponent`."""
    digits = digits.lstrip("0")
    if not digits:
        return "0"
    kept = digits.rstrip("0")
    exponent += len(digits) - len(kept)
    point = len(kept) + exponent  # where the decimal point goes
    if abs(exponent) > MAX_LENGTH:
        return f"{sign}{kept}e{exponent}"
    if exponent >= 0:
        return sign + kept + "0" * exponent
    if point > 0:
        return f"{sign}{kept[:point]}.{kept[point:]}"
    return f"{sign}0.{'0' * -point}{kept}"


def normalize_fraction(value: Fraction) -> str:
    """The normal form of an exact value."""
    normal = _fraction("-" if value < 0 else "", abs(value.numerator), value.denominator)
    return str(normal)


def _fraction(sign: str, numerator: int, denominator: int) -> str | None:
    """The normal form of a fraction; None for a denominator of zero."""
    if not denominator:
        return None
    divisor = math.gcd(numerator, denominator)
    numerator, denominator = numerator // divisor, denominator // divisor
    # The expansion is finite if the denominator is 2^twos * 5^fives, and has max(twos, fives) places.
    twos = (denominator & -denominator).bit_length() - 1
    fives = round(math.log(denominator >> twos, 5))
    if denominator >> twos == 5**fives:
        # Of 256 characters come at most 592 digits (1/2^840), below any limit that Python can set on integers as text.
        places = max(twos, fives)
        return _decimal(sign, str(numerator * 10**places // denominator), -places)
    return f"{sign}{numerator}/{denominator}"


def equal_numbers(a: str, b: str) -> bool:
    """True if two normal forms are equal by the rules at the top."""
    if a == b:
        return True
    if ("/" in a) == ("/" in b):
        return False
    fraction, decimal = (a, b) if "/" in a else (b, a)
    top, bottom = map(int, fraction.split("/"))
    mantissa, _, exponent = decimal.partition("e")
    whole, _, decimals = mantissa.partition(".")
    places = len(decimals) - int(exponent or 0)
    if places <= 0:  # an integer, so no rounding of the fraction
        return False
    exact = top * 10**places
    return abs(int(whole + decimals) * bottom - exact) * ONE_IN <= abs(exact)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")


_MARKER_HELP = "give a marker, or None (without last_number) where the whole completion is the answer"
