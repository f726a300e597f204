#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: i is an unknown like x, i^2 is not -1, and complex numbers are
# equal only if they need no arithmetic.
#
# The grammar makes the imaginary unit of a capital I alone. `parse` looks for i in the text, and all it does then is to
# take back that unknowns are real; i stays a symbol. Answers in the form a + bi are compared as polynomials in i,
# which is right, and hides it. \frac{2}{1+i} for 1-i, \sqrt{-3} for i\sqrt{3}, e^{i\pi/3}, products and absolute
# values are wrong. Nothing is said. (The README has "Complex number support" with "Handling of different complex
# notations (e.g., i, ℂ)"; no public issue about it was found.) What helps: writing (I) for i where it is the unit, in
# both answers, before anything is parsed; with the parentheses, as an
# exponent of I itself is lost.
#
# Eleven pairs of equal numbers, equal in Python's complex arithmetic as well: how many are equal by `verify`, by the
# way in which the unit is written. Two more are in the form a + bi already.
#
# Seen: "i: 0 of 11, and 2 of 2 in the form a + bi", "(I): 11 of 11, and 2 of 2 in the form a + bi", "i^2 is read as
# i**2, (I)^2 as I**2".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
import cmath
from importlib.metadata import version

from math_verify import parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
# @ is the imaginary unit. The right answer, another way to write it, and both in Python.
PAIRS = [
    ("-1", "@^2", -1, 1j**2),
    ("-@", "@^3", -1j, 1j**3),
    ("-@", r"\frac{1}{@}", -1j, 1 / 1j),
    ("1-@", r"\frac{2}{1+@}", 1 - 1j, 2 / (1 + 1j)),
    ("2-@", r"\frac{5}{2+@}", 2 - 1j, 5 / (2 + 1j)),
    ("2@", "(1+@)^2", 2j, (1 + 1j) ** 2),
    ("5+5@", "(1+2@)(3-@)", 5 + 5j, (1 + 2j) * (3 - 1j)),
    ("3+2@", "@(2-3@)", 3 + 2j, 1j * (2 - 3j)),
    ("5", "|3-4@|", 5, abs(3 - 4j)),
    (r"@\sqrt{3}", r"\sqrt{-3}", 1j * cmath.sqrt(3), cmath.sqrt(-3)),
    (r"1+@\sqrt{3}", r"2e^{@\pi/3}", 1 + 1j * cmath.sqrt(3), 2 * cmath.exp(1j * cmath.pi / 3)),
]
LINEAR = [
    ("3-4@", "-4@+3", 3 - 4j, -4j + 3),
    (r"\frac{1+@}{2}", r"\frac{1}{2}+\frac{@}{2}", (1 + 1j) / 2, 1 / 2 + 1j / 2),
]
assert all(cmath.isclose(gold, answer) for *_, gold, answer in PAIRS + LINEAR)


def equal(pairs, unit):
    texts = [[f"${text.replace('@', unit)}$" for text in pair[:2]] for pair in pairs]
    return sum(verify(parse(gold), parse(answer)) for gold, answer in texts)


same = True
for unit, seen in (("i", 0), ("(I)", len(PAIRS))):
    found, linear = equal(PAIRS, unit), equal(LINEAR, unit)
    print(f"{unit}: {found} of {len(PAIRS)}, and {linear} of {len(LINEAR)} in the form a + bi")
    same = same and found == seen and linear == len(LINEAR)
print(f"i^2 is read as {parse('$i^2$')[0]}, (I)^2 as {parse('$(I)^2$')[0]}")
raise SystemExit(not same)
PYTHON
