#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: a whole number beside another number is added to it, not
# multiplied.
#
# `2(5)` is read as 7 and `(2)(5)` too, so that `verify` finds them unequal to 10, and `\frac{4(3)}{2}` is 7/2. The
# rule is for mixed numbers, `2\frac{1}{2}`, but it looks at the values on both sides alone: an integer, then a
# positive rational. Parentheses are gone by then. With a sum, a root, a letter or a negative number beside it, the
# product is a product, so `2(1+4)` is 10, `2(-5)` is -10, and `2(5)x` is 10x.
# `ConversionConfig.interpret_as_mixed_fractions`, which says that it governs this, is read nowhere: with False `2(5)`
# is still 7. No public issue was found.
#
# A reward or a table that grades by math-verify marks "3(4)" wrong where 12 is right. What helps: writing \cdot between a closing parenthesis, or a number, and an opening parenthesis before answers are
# parsed.
#
# Seen: "10 = 2(5): False", "10 = (2)(5): False", "6 = \frac{4(3)}{2}: False", "10 = 2\cdot(5):
# True", "10 = 2(1+4): True", "without mixed fractions 2(5) is 7".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
EXPECTED_AND_SEEN = [
    ("10", r"2(5)", False),
    ("10", r"(2)(5)", False),
    ("6", r"\frac{4(3)}{2}", False),
    ("10", r"2\cdot(5)", True),
    ("10", r"2(1+4)", True),
    ("-10", r"2(-5)", True),
    ("10x", r"2(5)x", True),
]
same = True
for gold, answer, seen in EXPECTED_AND_SEEN:
    found = verify(parse(f"${gold}$"), parse(f"${answer}$"))
    print(f"{gold} = {answer}: {found}")
    same = same and found == seen
plain = latex2sympy("2(5)", conversion_config=ConversionConfig(interpret_as_mixed_fractions=False))
print(f"without mixed fractions 2(5) is {plain}")
raise SystemExit(0 if same and plain == 7 else 1)
PYTHON
