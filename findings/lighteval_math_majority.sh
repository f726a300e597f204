#!/bin/bash
# lighteval 0.13.0, tasks "math:algebra" and the other six of MATH: maj@4 is 0 however right the answers are.
#
# The tasks pass `normalize_pred` and `normalize_gold`, the functions that take the answer out of \boxed, to the metric
# `maj_at_n`. `MajAtN` reads one setting, `normalize`. `Metric.__call__` sets whatever it is given as an attribute,
# without a look at whether there is such a setting, and even writes it into the metric's name in the results table. So
# nothing is taken out: whole completions are voted over, and the winner is compared, word for word, with the reference
# solution. (Issue 1384 tells of settings that another metric, avg@n, ignores.) What helps: sample_params={"n": 4,
# "normalize": math_normalizer} in a task of one's own.
#
# Four equal completions with the right number in \boxed, by the task's metric as it is and with `normalize`.
#
# Seen: "as the task has it: right 0, wrong 0, the reference solution itself 1", "with normalize: right 1, wrong 0, the
# reference solution itself 1".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 lighteval==0.13.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version

from lighteval.metrics.metrics import Metrics
from lighteval.metrics.normalizations import math_normalizer
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.tasks.math import math_algebra, math_prompt

print(f"lighteval {version('lighteval')}")
SOLUTION = r"From $x+3=8$ we have $x=\boxed{5}$."
doc = math_prompt({"problem": "What is $x$ if $x+3=8$?", "solution": SOLUTION})
COMPLETIONS = {
    "right": r"Subtracting 3 from both sides gives $x=\boxed{5}$.",
    "wrong": r"Subtracting 3 from both sides gives $x=\boxed{6}$.",
    "the reference solution itself": SOLUTION,
}


def scores(metric):
    found = [metric.compute_sample(doc=doc, model_response=ModelResponse(text=[text] * 4)) for text in COMPLETIONS.values()]
    return [int(*score.values()) for score in found]


(own,) = math_algebra.metrics
named = Metrics.maj_at_n(sample_params={"n": 4, "normalize": math_normalizer})
found = scores(own), scores(named)
for what, values in zip(("as the task has it", "with normalize"), found, strict=True):
    print(f"{what}: " + ", ".join(f"{name} {score}" for name, score in zip(COMPLETIONS, values, strict=True)))
raise SystemExit(0 if found == ([0, 0, 1], [1, 0, 1]) else 1)
PYTHON
