#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: a repeating decimal is not the fraction that it is.
#
# The grammar does not know `0.\overline{3}`. After an error in reading LaTeX, `parse` looks for plain numbers in the
# same text and takes the 0 before the point for the answer, so that 1/3 is another number. With a digit before the bar,
# 0.1\overline{6} is read as 0.1 times a symbol, and equals 1/6 neither. \bar does the same. In \boxed nothing is found
# inside, and such answers are compared as text. (That a number inside of a formula that cannot be read stands for all
# of it is told by the project's pull request 82, which was closed.) What helps: replacing repeating decimals by fractions
# before anything is parsed.
#
# Seen: "\frac{1}{3} = 0.\overline{3}: False, read as 0", "\frac{4}{3} = 1.\bar{3}: False, read as 1", "\frac{1}{6} =
# 0.1\overline{6}: False, read as 0.1*bar{6}".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from math_verify import parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
SEEN = {
    (r"\frac{1}{3}", r"0.\overline{3}"): "0",
    (r"\frac{4}{3}", r"1.\bar{3}"): "1",
    (r"\frac{1}{6}", r"0.1\overline{6}"): "0.1*bar{6}",
}
same = True
for (gold, answer), seen in SEEN.items():
    read = parse(f"${answer}$")
    found = verify(parse(f"${gold}$"), read)
    print(f"{gold} = {answer}: {found}, read as {read[0]}")
    same = same and not found and str(read[0]) == seen
raise SystemExit(not same)
PYTHON
