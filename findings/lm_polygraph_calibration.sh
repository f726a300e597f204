#!/bin/bash
# lm-polygraph 0.7.0, `ECE()`: the expected calibration error of a sequence's probability or perplexity is 0, which is
# perfect, whatever the model is like. No error, no warning.
#
# An uncertainty is negated to be a confidence, and confidences are put into twenty bins from 0 to 1. What lies outside
# of them is left out of the sum, and still counted in what it is divided by. `MaximumSequenceProbability` and
# `Perplexity` give negative log-probabilities (and entropies are no probabilities either), so that their confidences
# lie below 0: no bin has a row, and an empty sum is 0. In a table of methods they come out as the best calibrated ones,
# before those whose confidences are probabilities and whose error is a real one. `ECE(normalize=True)` stretches the
# confidences of the data at hand from 0 to 1, which is a number, but one that depends on the two extreme rows; the
# name of both is "ece". (By the source, `UEManager` calls it with the estimators' values as they are; it was not run.
# No public issue was found.) What helps: handing in -exp(-uncertainty) where the uncertainty is a negative
# log-probability.
#
# 2000 answers of four tokens with probabilities of 0.8 to 1, of which 30 % or 90 % are right, and their uncertainties
# as the two methods have them, by the source: the error by `ECE()`, by `ECE(normalize=True)`, by `ECE()` of the
# probabilities, and by hand in twenty bins.
#
# Seen: "30% right, MaximumSequenceProbability: 0.000, normalize=True 0.232, probabilities 0.359, by hand 0.359", "30%
# right, Perplexity: 0.000, normalize=True 0.232, probabilities 0.602, by hand 0.602", "90% right,
# MaximumSequenceProbability: 0.000, normalize=True 0.387, probabilities 0.244, by hand 0.244", "90% right, Perplexity:
# 0.000, normalize=True 0.387, probabilities 0.015, by hand 0.015".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6 scikit-learn==1.8.0
"$folder/venv/bin/pip" install -q --no-deps lm-polygraph==0.7.0  # the metric imports no more than these two
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import sys
from importlib.metadata import files, version
from types import ModuleType

import numpy as np

print(f"lm-polygraph {version('lm-polygraph')}")
(start,) = [file.locate() for file in files("lm-polygraph") if str(file) == "lm_polygraph/__init__.py"]
for name in ("lm_polygraph", "lm_polygraph.ue_metrics"):  # their own beginnings import every model and metric
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(start.parent.joinpath(*name.split(".")[1:]))]

from lm_polygraph.ue_metrics.ece import ECE  # noqa: E402

rng = np.random.default_rng(0)
logprobs = np.log(rng.uniform(0.8, 1.0, (2000, 4)))
UNCERTAINTIES = {"MaximumSequenceProbability": -logprobs.sum(1), "Perplexity": -logprobs.mean(1)}  # as theirs are


def by_hand(confidences, right):
    bins = np.minimum((confidences * 20).astype(int), 19)
    rows = [bins == index for index in range(20)]
    return sum(abs(np.mean(right[row]) - np.mean(confidences[row])) * row.mean() for row in rows if row.any())


same = True
for share in (0.3, 0.9):
    right = (rng.uniform(size=2000) < share).astype(float)
    for method, uncertainty in UNCERTAINTIES.items():
        found = ECE()(uncertainty, right)
        confidences = np.exp(-uncertainty)
        as_probability, hand = ECE()(-confidences, right), by_hand(confidences, right)
        stretched = ECE(normalize=True)(uncertainty, right)
        print(
            f"{share:.0%} right, {method}: {found:.3f}, normalize=True {stretched:.3f}, probabilities "
            f"{as_probability:.3f}, by hand {hand:.3f}"
        )
        same = same and found == 0 and abs(as_probability - hand) < 0.01 and hand > 0.01
raise SystemExit(0 if same else 1)
PYTHON
