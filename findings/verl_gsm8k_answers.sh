#!/bin/bash
# verl 0.9.1, the reward of GSM8K (`data_source` "openai/gsm8k"): right answers that end a sentence, or have a dollar
# or a thousands separator, get 0.
#
# `verl.utils.reward_score.gsm8k` takes digits, dots and commas as the answer and compares strings. The period of a
# sentence is taken as well, so "#### 18." is "18.", which is not "18". "strict" takes out commas and dollars, but its
# pattern wants a digit right after "#### ", so an answer with a dollar is not found at all. "flexible" takes out
# neither: "1,200" is not "1200", and "The answer is 18." is "18.". Policies are then trained to leave out periods and
# commas, and early curves show form, not arithmetic. (Issue 2150 tells of low scores of instruction-tuned models by
# both methods, without the causes.) What helps: an own `custom_reward_function` that strips a last period and compares
# numbers.
#
# Seen: strict "#### 18" 1, "#### 18." 0, "#### $18" 0, "#### 18.00" 0, "#### 1,200" 1; flexible "The answer is 18" 1,
# "The answer is 18." 0, "The answer is 1,200" 0.
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps verl==0.9.1  # the scorer is one file that imports nothing
"$folder/venv/bin/python" - <<'PYTHON'
import runpy
from importlib.metadata import distribution

package = distribution("verl")
print(f"verl {package.version}")
compute_score = runpy.run_path(str(package.locate_file("verl/utils/reward_score/gsm8k.py")))["compute_score"]
SEEN = [
    ("strict", "#### 18", "18", 1),
    ("strict", "#### 18.", "18", 0),
    ("strict", "#### $18", "18", 0),
    ("strict", "#### 18.00", "18", 0),
    ("strict", "#### 1,200", "1200", 1),
    ("flexible", "The answer is 18", "18", 1),
    ("flexible", "The answer is 18.", "18", 0),
    ("flexible", "The answer is 1,200", "1200", 0),
]
same = True
for method, answer, truth, seen in SEEN:
    score = compute_score(f"20 - 2 = 18, so\n{answer}", truth, method=method)
    print(f"{method}, {truth}: {answer!r} {score:g}")
    same = same and score == seen
raise SystemExit(0 if same else 1)
PYTHON
