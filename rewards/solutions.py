"""Reading worked solutions: the equations that a solution goes through."""

import re

# `<<48/2=24>>`, GSM8K's calculator annotations.
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")
# `48 / 2 = 24` in plain text: at least one operator between numbers, then the result.
_NUMBER = r"\$?\d[\d,]{0,30}(?:\.\d{1,30})?"
_PLAIN = re.compile(rf"{_NUMBER}(?:\s?[-+*/x×÷]\s?{_NUMBER}){{1,20}}\s?=\s?-?{_NUMBER}")

_OPERATORS = str.maketrans("x×÷", "**/")


def equations(solution: str) -> list[str]:
    """The equations of a solution in order: calculator annotations, else those in plain text.

    They come without spaces, dollar signs and thousands commas, and with * and / for other signs of the same operation.
    """
    found = _ANNOTATION.findall(solution) or _PLAIN.findall(solution)
    return [re.sub(r"[\s$,]", "", equation).translate(_OPERATORS) for equation in found]


def equation_sequence(solution: str) -> str:
    """What makes two solutions the same: their sequence of arithmetic operations (Havrilla et al. 2024).

    A solution without any equation stands for itself, as its text with white space folded.
    """
    return "|".join(equations(solution)) or exact_text(solution)


def exact_text(solution: str) -> str:
    """The solution's text with white space folded."""
    return " ".join(solution.split())
