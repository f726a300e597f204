#!/bin/bash
# TRL 1.16.0 with math-verify 0.9.0, `accuracy_reward`: a solution in LaTeX without dollars around it is read as one of
# its numbers.
#
# The reward parses the column "solution" by `parse(sol)`, which reads LaTeX inside of $...$, \[...\] or \boxed alone,
# and otherwise takes a plain number from the text. Of 3\sqrt{13} it takes 3, and the right answer gets 0. Of \sqrt{2}, where there is no plain number, nothing is left, and the reward is None, which trains nothing.
# Bare fractions are an exception that math-verify reads, and the docstring's example is one ("\frac{1}{3}", without
# dollars), so that trials with fractions and numbers look right. Answers of MATH-500, DeepScaleR and others come
# without dollars. (Math-Verify's issue 56 and its README tell of `parse` wanting dollars; TRL's documentation does
# not.) What helps: writing f"${solution}$" into the column.
#
# The answer in \boxed{} and the solution the same, without and with dollars.
#
# Seen: "\frac{1}{3}: bare 1.0, in dollars 1.0", "3\sqrt{13}: bare 0.0, in dollars 1.0", "2\pi: bare 0.0, in dollars
# 1.0", "6 - 5i: bare 0.0, in dollars 1.0", "\left( 3, \frac{\pi}{2} \right): bare 0.0, in dollars 1.0", "\sqrt{2}:
# bare None, in dollars 1.0".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 trl==1.16.0 transformers==5.23.0 math-verify==0.9.0 \
  latex2sympy2_extended==1.11.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version

from trl.rewards import accuracy_reward

print(f"trl {version('trl')}, math-verify {version('math-verify')}")


def rewards(answer, solution):
    """The reward of an answer in a box, for the solution as it is and in dollars."""
    completion = [{"role": "assistant", "content": rf"The answer is \boxed{{{answer}}}."}]
    return tuple(accuracy_reward([completion], [text])[0] for text in (solution, f"${solution}$"))


SEEN = {
    r"\frac{1}{3}": (1.0, 1.0),
    r"3\sqrt{13}": (0.0, 1.0),
    r"2\pi": (0.0, 1.0),
    r"6 - 5i": (0.0, 1.0),
    r"\left( 3, \frac{\pi}{2} \right)": (0.0, 1.0),
    r"\sqrt{2}": (None, 1.0),
}
same = True
for solution, seen in SEEN.items():
    found = rewards(solution, solution)
    print("{}: bare {}, in dollars {}".format(solution, *found))
    same = same and found == seen
raise SystemExit(not same)
PYTHON
