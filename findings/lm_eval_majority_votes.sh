#!/bin/bash
# lm-eval 0.4.13, tasks with self-consistency (`gsm8k_cot_self_consistency`: maj@8, maj@64): answers that cannot be
# read vote, all of them for the same thing, and one number written in two ways has its votes split.
#
# The filter "majority_vote" counts the strings that the filter "regex" before it gives. That one gives "[invalid]"
# where it finds no answer, so the completions without an answer stand together as one candidate, and win with three of
# eight votes against two right ones and three different wrong ones. Votes are counted before `regexes_to_ignore` takes
# commas and dollars out, so that 1,000 and 1000 are two candidates. Self-consistency as published votes over answers
# that were read. Models that often stop without an answer, or write commas in some samples, get a maj@k that is too
# low, and may get one below the score of single samples. No public issue was found. What helps: removing "[invalid]",
# commas and dollars by a custom filter between the two, or voting over the logged samples.
#
# Seen, by the filters of maj@8 as the task has them: "5 5 - - - 7 8 9: [invalid]", "1,000 1000 1,000 1000 7 7 7 -: 7".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q lm_eval==0.4.13
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version
from pathlib import Path

import lm_eval.tasks
import yaml
from lm_eval.api.instance import Instance
from lm_eval.filters import build_filter_ensemble

print(f"lm_eval {version('lm_eval')}")
path = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k-cot-self-consistency.yaml"
(task,) = [part for part in yaml.safe_load(path.read_text())["filter_list"] if part["name"] == "maj@8"]
steps = [[step.pop("function"), step or None] for step in task["filter"]]
print("filters:", ", ".join(name for name, _ in steps))


def majority(answers):
    """What the task's filters make of eight completions; "-" stands for one without an answer."""
    instance = Instance("generate_until", {}, ("prompt", {}), 0)
    instance.resps = ["I do not know." if answer == "-" else f"The answer is {answer}." for answer in answers.split()]
    build_filter_ensemble("maj@8", steps).apply([instance])
    return instance.filtered_resps["maj@8"]


found = {answers: majority(answers) for answers in ("5 5 - - - 7 8 9", "1,000 1000 1,000 1000 7 7 7 -")}
for answers, vote in found.items():
    print(f"{answers}: {vote}")
raise SystemExit(0 if list(found.values()) == ["[invalid]", "7"] else 1)
PYTHON
