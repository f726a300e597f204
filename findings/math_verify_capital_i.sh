#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: a capital I loses its exponent and its index, so that I^2R is
# equal to IR, and I_1 to I_2.
#
# The grammar takes I for the imaginary unit. The conversion returns that for the whole of a letter with its index and
# exponent, before either is looked at. Currents, moments of inertia and intensities are so named: powers of a current,
# which of two currents, and which axis do not matter to the comparison, in $ and in \boxed{}. Other letters keep both.
# As the unit it loses its powers as well, and I^4 is not 1. Nothing is said. (The READMEs tell nothing of a capital I;
# the parser's tests have it as the unit, without exponents. No public issue about it was found.) What helps: another
# letter for I in both answers before anything is parsed.
#
# Seven pairs of formulas that differ, for numbers in Python as well: what `verify` says of them, with I and with J.
#
# Seen: "I^2R is read as I*r, I_1 as I", "different formulas that are equal: 7 of 7 with I, 0 of 7 with J", "I^4 = 1:
# False".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
import math
from importlib.metadata import version

from math_verify import parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
I, I_0, I_1, I_2, I_c, I_e = 2.0, 3.0, 5.0, 7.0, 11.0, 13.0  # any numbers
R, L, M, D, ANGLE = 17.0, 19.0, 23.0, 29.0, 0.4
# The right answer, a wrong one, and what both are for these numbers.
PAIRS = [
    ("$I^2R$", "$IR$", I**2 * R, I * R),
    ("$P=I^2R$", "$P=I^3R$", I**2 * R, I**3 * R),
    (r"$\frac{1}{2}LI^2$", r"$\frac{1}{2}LI$", L * I**2 / 2, L * I / 2),
    ("$I_1$", "$I_2$", I_1, I_2),
    ("$I_1+I_2$", "$2I_1$", I_1 + I_2, 2 * I_1),
    (r"\boxed{I_0\cos^2\theta}", r"\boxed{I_1\cos^2\theta}", I_0 * math.cos(ANGLE) ** 2, I_1 * math.cos(ANGLE) ** 2),
    ("$I_{c}+md^2$", "$I_{e}+md^2$", I_c + M * D**2, I_e + M * D**2),
]
assert not any(math.isclose(gold, answer) for *_, gold, answer in PAIRS)


def equal(letter):
    texts = [[text.replace("I", letter) for text in pair[:2]] for pair in PAIRS]
    assert all(verify(parse(gold), parse(gold)) for gold, _ in texts)
    return sum(verify(parse(gold), parse(answer)) for gold, answer in texts)


found, other = equal("I"), equal("J")
one = verify(parse("$1$"), parse("$I^4$"))
print(f"I^2R is read as {parse('$I^2R$')[0]}, I_1 as {parse('$I_1$')[0]}")
print(f"different formulas that are equal: {found} of {len(PAIRS)} with I, {other} of {len(PAIRS)} with J")
print(f"I^4 = 1: {one}")
raise SystemExit(0 if found == len(PAIRS) and other == 0 and not one else 1)
PYTHON
