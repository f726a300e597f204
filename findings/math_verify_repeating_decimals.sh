#!/bin/bash
# math-verify 0.9.0 with latex2sympy2_extended 1.11.0: repeating decimals are equal if their whole parts are.
#
# The grammar does not know `0.\overline{3}`. After an error in reading LaTeX, `parse` looks for plain numbers in the
# same text, finds the 0 before the point, and gives it as the answer. So 0.\overline{3}, 0.\overline{7} and 0 are one
# number, and 1/3 is another one. With a digit before the bar, 0.1\overline{6} is read as 0.1 times a symbol, and
# equals 1/6 neither. \bar and \dot do the same. In \boxed nothing is found inside, and such answers are compared as
# text, so that they equal a gold answer in the same words alone. That a number inside of a formula that cannot be read
# stands for all of it is told by the project's pull request 82, which was closed. What helps: replacing repeating
# decimals by fractions before anything is parsed, or extraction_config=[LatexExtractionConfig()], which compares them
# as text.
#
# Seen: "0.\overline{3} = 0.\overline{7}: True", "0.\overline{3} = 0: True", "0.\overline{3} = \frac{1}{3}: False",
# "0.1\overline{6} = \frac{1}{6}: False", "LaTeX alone, 0.\overline{3} = 0: False".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from math_verify import LatexExtractionConfig, parse, verify

print(", ".join(f"{name} {version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")))
GOLD_ANSWER_AND_SEEN = [
    (r"0.\overline{3}", r"0.\overline{7}", True),
    (r"0.\overline{3}", "0", True),
    (r"1.\bar{3}", r"1.\bar{6}", True),
    (r"0.\overline{3}", r"\frac{1}{3}", False),
    (r"0.1\overline{6}", r"\frac{1}{6}", False),
]
same = True
for gold, answer, seen in GOLD_ANSWER_AND_SEEN:
    found = verify(parse(f"${gold}$"), parse(f"${answer}$"))
    print(f"{gold} = {answer}: {found}")
    same = same and found == seen
alone = verify(*(parse(f"${text}$", [LatexExtractionConfig()]) for text in (r"0.\overline{3}", "0")))
print(rf"LaTeX alone, 0.\overline{{3}} = 0: {alone}")
raise SystemExit(0 if same and not alone else 1)
PYTHON
