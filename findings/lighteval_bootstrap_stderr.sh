#!/bin/bash
# lighteval 0.13.0: standard errors by bootstrap are about 32 times too small.
#
# For metrics whose aggregation is not a mean (F1, MCC, BLEU, chrF, TER, perplexities) the results table has "± stderr"
# from 1000 bootstrap samples. The standard deviation of the metric over bootstrap samples is the standard error.
# `bootstrap_stderr` divides it by the square root of the number of bootstrap samples once more (it returns
# `mean_stderr` of them, the error of their mean), so it falls with the number of bootstrap samples and not with that
# of problems. lm-evaluation-harness, from which the function comes, returns the standard deviation. Means take another
# way, which is right (pull request 409 mended it for them). Differences of noise then look significant. What helps:
# multiplying by sqrt(1000), or by the square root of the number of bootstrap samples that was given.
#
# The standard errors of a mean of 400 zeros and ones, known to be 0.025, and of their F1 with noisy predictions, by
# lighteval and by SciPy's bootstrap.
#
# Seen: "numpy.mean 0.0250 (as a mean)", "share_right: lighteval 0.0008, scipy 0.0246, ratio 31", "f1: lighteval
# 0.0007, scipy 0.0230, ratio 32".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps lighteval==0.13.0  # the file of its standard errors imports what follows alone
"$folder/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 tqdm
cat > "$folder/errors.py" <<'PYTHON'
import runpy
from importlib.metadata import distribution

import numpy as np
from scipy.stats import bootstrap

package = distribution("lighteval")
errors = runpy.run_path(str(package.locate_file("lighteval/metrics/utils/stderr.py")))
get_stderr_function = errors["get_stderr_function"]  # the results table takes its errors from this
rng = np.random.default_rng(0)
gold = rng.random(400) < 0.5
guess = gold ^ (rng.random(400) < 0.2)
right = (rng.random(400) < 0.5).astype(float).tolist()
pairs = list(zip(gold.tolist(), guess.tolist(), strict=True))


def share_right(values):
    return float(np.mean(values))


def f1(pairs):
    gold, guess = np.array(pairs).T
    return float(2 * (gold & guess).sum() / (gold.sum() + guess.sum()))


def by_scipy(statistic, values):
    picked = lambda index: statistic([values[i] for i in index])  # noqa: E731
    found = bootstrap([range(len(values))], picked, n_resamples=1000, vectorized=False, rng=rng, method="percentile")
    return float(found.standard_error)


print(f"lighteval {package.version}; numpy.mean {get_stderr_function(np.mean)(right):.4f} (as a mean)")
same = True
for statistic, values in ((share_right, right), (f1, pairs)):
    found, expected = get_stderr_function(statistic, number_experiments=1000)(values), by_scipy(statistic, values)
    print(f"{statistic.__name__}: lighteval {found:.4f}, scipy {expected:.4f}, ratio {expected / found:.0f}")
    same = same and 25 < expected / found < 40
raise SystemExit(0 if same else 1)
PYTHON
LIGHTEVAL_DISABLE_TQDM=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/errors.py"
