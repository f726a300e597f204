#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: of a percentage that is a mixed number, 12\frac{1}{2}\%, a part
# is lost. In \boxed{} that is the 12, between dollars it is the half, and in \boxed{} between dollars all of it.
#
# The grammar has the percent sign behind a plain number alone, so that 12.5\% is read and 12\frac{1}{2}\% is an error.
# `parse` then tries what is left of its patterns on the text. Without dollars the next one is a bare fraction with a
# percent sign behind it, and \boxed{12\frac{1}{2}\%} is half a percent. With dollars it is a plain number, and
# $12\frac{1}{2}\%$ is 12. So answers with another whole number, or another fraction, count as right, and the same
# percentage as a decimal or as a fraction counts as wrong. In $\boxed{...}$ nothing is read, and text is compared.
# Nothing is said. (The README has "Percentage conversion" among what is handled. That a number inside of a formula that
# cannot be read stands for all of it is told by pull request 82, which was closed; 81, which is open, is about mixed
# numbers without LaTeX. Nothing about \frac before \% was found.) What helps: the percent sign or "percent" outside of
# the formula, `$12\frac{1}{2}$ percent`, which is read right.
#
# Percentages of 1 to 20 with a half, a third and three quarters, by three ways to write them: how many answers are
# equal to them that are right (an improper fraction with "percent" outside), that have another whole number, and that
# have another fraction.
#
# Seen: "\boxed{12\frac{1}{2}\%} is read as (1/100)/2: right 0, other whole number 60, other fraction 0 of 60",
# "$12\frac{1}{2}\%$ is read as 12: right 0, other whole number 0, other fraction 60 of 60", "$12\frac{1}{2}$ percent is
# read as 25*(1/100)/2: right 60, other whole number 0, other fraction 0 of 60".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from fractions import Fraction
from importlib.metadata import version

from math_verify import parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
OTHER = {Fraction(1, 2): Fraction(1, 3), Fraction(1, 3): Fraction(3, 4), Fraction(3, 4): Fraction(1, 2)}
VALUES = [(whole, part) for whole in range(1, 21) for part in OTHER]
# How to write it: equal to right answers, to those with another whole number, and to those with another fraction.
SEEN = {
    r"\boxed{@\%}": [0, 60, 0],
    r"$@\%$": [0, 0, 60],
    "$@$ percent": [60, 0, 0],
}


def mixed(way, whole, part):
    return way.replace("@", rf"{whole}\frac{{{part.numerator}}}{{{part.denominator}}}")


same = True
for way, seen in SEEN.items():
    counts = [0, 0, 0]
    for whole, part in VALUES:
        gold = parse(mixed(way, whole, part))
        value = whole + part
        answers = (
            rf"$\frac{{{value.numerator}}}{{{value.denominator}}}$ percent",
            mixed(way, whole % 20 + 1, part),
            mixed(way, whole, OTHER[part]),
        )
        for kind, answer in enumerate(answers):
            counts[kind] += verify(gold, parse(answer))
    example = mixed(way, 12, Fraction(1, 2))
    right, whole_number, fraction = counts
    print(
        f"{example} is read as {parse(example)[0]}: right {right}, other whole number {whole_number}, "
        f"other fraction {fraction} of {len(VALUES)}"
    )
    same = same and counts == seen
raise SystemExit(not same)
PYTHON
