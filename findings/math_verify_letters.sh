#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: letters at the end of an answer are taken for units and dropped.
#
# `parse` strips units by default, from a list of words that holds t, s, h, m, g, d, c, l and "ab" as well as cm and
# feet. One that stands at the end after a digit, a closing brace or a space goes, whether or not it is a variable: 3t,
# 3s and 3 are one answer, and so are x^2 - 3t and x^2 - 3. Not so inside: 3t + 1 is not 3s + 1, and letters off the
# list stay, so 3x is not 3. That units of measurement are left out is told in the project's issue 36; that variables
# are is not.
#
# Answers of algebra problems (a distance of 60t, a cost of 5c, a perimeter of 4s) are then found equal to any other
# letter of the list, or to none. What helps: LatexExtractionConfig(normalization_config=NormalizationConfig(
# basic_latex=True, malformed_operators=True, nits=True, boxed="all", units=False)) wherever answers may hold
# variables.
#
# Seen: "3t = 3s: True", "3t = 3: True", "x^2-3t = x^2-3: True", "\sqrt{2}h = \sqrt{2}: True", "3t+1 = 3s+1: False",
# "3x = 3: False", "without units 3t = 3s: False".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
EXPECTED_AND_SEEN = [
    ("3t", "3s", True),
    ("3t", "3", True),
    ("x^2-3t", "x^2-3", True),
    (r"\sqrt{2}h", r"\sqrt{2}", True),
    ("3t+1", "3s+1", False),
    ("3x", "3", False),
]
same = True
for gold, answer, seen in EXPECTED_AND_SEEN:
    found = verify(parse(f"${gold}$"), parse(f"${answer}$"))
    print(f"{gold} = {answer}: {found}")
    same = same and found == seen
normalization = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="all", units=False)
config = [LatexExtractionConfig(normalization_config=normalization)]
apart = verify(parse("$3t$", config), parse("$3s$", config))
print(f"without units 3t = 3s: {apart}")
raise SystemExit(0 if same and not apart else 1)
PYTHON
