"""Reading worked solutions: their steps, what each comes to, and the equations that they go through."""

import re

from .expressions import evaluate
from .numbers import find_last_number, normalize_number

# `<<48/2=24>>`, GSM8K's calculator annotations.
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")
# `48 / 2 = 24` in plain text: at least one operator between numbers on the left, and all of what is on the right.
_NUMBER = r"\$?(?:\d(?:[\d,]{0,30}\d)?(?:\.\d{1,30})?|(?<![A-Za-z])\.\d{1,30})"
_MIXED = r"(\d{1,30}) (\d{1,30}/\d{1,30})(?![\d/])"
_OPERAND = rf"-?(?:{_MIXED.replace('(', '(?:', 2)}|{_NUMBER})%?"
# 3 x 5 and 3x5 are products, but 3x - 5 has a variable.
_MORE = rf"(?:(?:[ \t]?[-+*/×÷][ \t]?|[ \t]x[ \t]|[ \t]?x(?=[\d$])){_OPERAND})"
_PLAIN = re.compile(
    # What would make it the tail of a longer expression: x + 3 + 4 = 9, (1+2)*3+4 = 13, 6:00 + 48 = 6:48.
    r"(?:(?<!\w)|(?=\$))(?<!\d[.,:])(?<![-+/×÷^])(?<!(?<!\*)\*)(?<![+*/×÷^][ \t])(?<![ \t]x[ \t])"
    r"(?<!(?<![A-Za-z])[\w)%][ \t]-[ \t])(?!(?<=[\w.)%])-|(?<=(?<![A-Za-z])[\w)%][ \t])-)"
    rf"(?P<left>{_OPERAND}{_MORE}{{1,20}})[ \t]?=[ \t]?"
    rf"(?=(?P<right>{_OPERAND}{_MORE}{{0,20}})(?!\d|\.\d|[ \t]?[-+*/x×÷^][ \t]?[\d(.$]))"
)
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+", re.MULTILINE)

_OPERATORS = str.maketrans("x×÷", "**/")
_DASHES = str.maketrans("\u2212\u2013", "--")


def equations(solution: str) -> list[str]:
    """The equations of a solution in order: calculator annotations, and those in plain text that have none.

    A plain equation around an annotation, as in "48/2 = <<48/2=24>>24", is that annotation's own text and counts once.
    A plain one is read whole or not at all: what a longer expression ends with is none. Equations come without spaces,
    dollar signs and thousands commas, with * and / for other signs of the same operation, and with mixed numbers as
    sums.
    """
    solution = _BULLET.sub("", solution.translate(_DASHES))
    found: list[tuple[int, str]] = []
    text, end = "", 0
    for annotation in _ANNOTATION.finditer(solution):
        text += solution[end : annotation.start()]
        end = annotation.end()
        found.append((len(text), annotation[1]))
    places = [place for place, _ in found]
    found += [
        (plain.start(), f"{plain['left']}={plain['right']}")
        for plain in _PLAIN.finditer(text + solution[end:])
        if not any(plain.start() <= place <= plain.end("right") for place in places)
    ]
    ordered = (equation for _, equation in sorted(found, key=lambda item: item[0]))
    return [re.sub(r"[\s$,]", "", re.sub(_MIXED, r"(\1+\2)", equation)).translate(_OPERATORS) for equation in ordered]


def is_right(equation: str, tolerance: float = 1e-3) -> bool:
    """True if both sides of an equation, in the form that `equations` gives it, come to the same.

    An equation whose sides are no expressions in the grammar of `expressions` is not: nobody can tell. A percent sign
    makes a number its hundredth, or says nothing: 1/4 = 25% and 100 - 5 = 95% are both right.

    Args:
        equation: Equation such as "48/2=24".
        tolerance: Greatest absolute difference of the sides; 0.001 is that of RFT's public script (Yuan et al. 2023).
    """
    for text in {equation, equation.replace("%", "")}:
        left, _, right = text.rpartition("=")
        try:
            if abs(evaluate(left)[0] - evaluate(right)[0]) <= tolerance:
                return True
        except ValueError:
            continue
    return False


def equation_sequence(solution: str) -> str:
    """Key by which two solutions are the same: their sequence of arithmetic operations (Havrilla et al. 2024).

    A solution without any equation stands for itself, as its text with white space folded.
    """
    return "|".join(equations(solution)) or exact_text(solution)


def steps(solution: str) -> list[str]:
    """The steps of a solution, which are its lines (Havrilla et al. 2024), without the answer's line ("#### 72")."""
    return [line.strip() for line in solution.split("\n") if line.strip() and "####" not in line]


def equation(step: str) -> str | None:
    """The last equation of a step, in the form that `equations` gives it; None where there is none."""
    found = equations(step)
    return found[-1] if found else None


def result(step: str) -> str | None:
    """Result of a step: the right side of its last equation, or else its last number, in its normal form.

    None where it is no number of the grader's grammar.
    """
    last = equation(step)
    found = find_last_number(step) if last is None else [last.rpartition("=")[2]]
    return normalize_number(found[0]) if found else None


def uses_results(prefix: str, continuation: str) -> bool:
    """True if a continuation builds on its prefix (GLoRe, arXiv 2402.10963), as far as their equations tell.

    Every result that an equation of the prefix came to, and that no later equation of the prefix continues from, must
    be a number on the left of one of the continuation's equations, or its last number, the answer. Signs do not matter:
    the minus in front of an equation is not read as part of it.
    """
    loose: list[str] = []
    for item in equations(prefix):
        left, _, right = item.rpartition("=")
        loose = [value for value in loose if value not in _values(left)] + _values(right)
    used = {value for item in equations(continuation) for value in _values(item.rpartition("=")[0])}
    return used.union(*map(_values, find_last_number(continuation))).issuperset(loose)


def _values(text: str) -> list[str]:
    """The numbers in a text, in their normal form and without a sign."""
    return [value for number in re.findall(_NUMBER, text) if (value := normalize_number(number)) is not None]


def exact_text(solution: str) -> str:
    """The solution's text with white space folded."""
    return " ".join(solution.split())
