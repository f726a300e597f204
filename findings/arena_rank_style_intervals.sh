#!/bin/bash
# arena-rank 0.1.1, `ContextualBradleyTerry` (ratings with style control): confidence intervals of models that differ in
# style are up to twice too wide. No error, no warning.
#
# The loss is the mean log loss plus `reg` / 2 times the squares of the features' coefficients, and `reg` is 1 by
# default. Intervals (`ci_method="sandwich"`, the default) are H^-1 M H^-1 / n, where H is the Hessian of that loss. M
# is corrected for the penalty, H is not: its block of the features gets `hessian_reg`, 1e-5, which is there for the
# ratings, in place of `reg`. So variances are those of a model whose coefficients are free, while they are held near 0.
# Where features have nothing to do with the models that are compared, ratings do not notice. Where some models answer
# at length and others briefly, which is what style control is for, H does not tell a higher rating from a larger
# coefficient, and the most verbose and the tersest model have the widest intervals. Ratings, and intervals of
# `BradleyTerry` without features, are right. (No public issue was found.) What helps: the same formula with `reg` in H,
# as below.
#
# Four models, 2000 battles, and one feature, the difference in length, of which a part lies between the models. The
# standard error of the first model's rating by arena-rank; by the formula with the Hessian that JAX derives from
# arena-rank's own loss; and the standard deviation of the ratings of 400 new sets of battles, by Newton's method on the
# same loss. The ratings of both agree.
#
# Seen: "length between models 0%: arena-rank 8.4, Hessian of the loss 8.4, 400 sets 8.3", "57%: arena-rank 12.2,
# Hessian of the loss 8.7, 400 sets 8.9", "83%: arena-rank 18.6, Hessian of the loss 8.8, 400 sets 9.1", and ratings
# that differ by 0.000.
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile jax==0.8.1 numpy==2.3.3 optax==0.2.6 jaxtyping==0.3.11 pandas==2.3.3
"$folder/venv/bin/pip" install -q --no-deps arena-rank==0.1.1  # datasets, which it asks for, is not needed
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version

import jax
import numpy as np
import pandas as pd
from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
from arena_rank.utils.data_utils import ContextualPairDataset

print(f"arena-rank {version('arena-rank')}, jax {version('jax')}")
MODELS, BATTLES, SETS, REG, SCALE = 4, 2000, 400, 1.0, 400 / np.log(10)
SKILL, LENGTH = np.array([0.0, 0.2, 0.4, 0.6]), np.array([-1.0, -0.3, 0.3, 1.0])
PENALTY = np.diag([1e-9] * MODELS + [REG])


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def battles(seed, between):
    """Design (battles x (models + 1)) and outcomes of a set of battles, and the share of length between models."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, MODELS, BATTLES)
    second = (first + rng.integers(1, MODELS, BATTLES)) % MODELS
    of_models = between * (LENGTH[first] - LENGTH[second])
    length = of_models + rng.normal(size=BATTLES)
    share = of_models.var() / length.var()
    length = (length - length.mean()) / length.std()
    design = np.zeros((BATTLES, MODELS + 1))
    design[np.arange(BATTLES), first], design[np.arange(BATTLES), second], design[:, -1] = 1, -1, length
    won = rng.random(BATTLES) < sigmoid(SKILL[first] - SKILL[second] + 0.3 * length)
    return design, won.astype(float), share


def fit(design, won):
    values = np.zeros(MODELS + 1)
    for _ in range(10):
        expected = sigmoid(design @ values)
        gradient = design.T @ (expected - won) / BATTLES + PENALTY @ values
        hessian = (design.T * (expected * (1 - expected))) @ design / BATTLES + PENALTY
        values = values - np.linalg.solve(hessian, gradient)
    return values


same = True
for between in (0, 1, 2):
    design, won, share = battles(0, between)
    names = np.array([f"model {i}" for i in range(MODELS)])
    winner = np.where(won == 1, "model_a", "model_b")
    rows = {"model_a": names[(design[:, :-1] == 1).argmax(1)], "model_b": names[(design[:, :-1] == -1).argmax(1)]}
    frame = pd.DataFrame({**rows, "winner": winner, "length": design[:, -1]})
    data = ContextualPairDataset.from_pandas(frame, feature_cols=["length"], reweighted=False)
    model = ContextualBradleyTerry(MODELS, 1)
    found = model.compute_ratings_and_cis(data)
    assert model.reg == REG

    values = fit(design, won)
    apart = np.abs(np.array(found["ratings"]) - 1000 - SCALE * values[:-1]).max()
    parts = jax.hessian(model.loss_function)(model.params, data.as_dict())
    order = ("ratings", "coeffs")
    hessian = np.block([[np.array(parts[row][column]) for column in order] for row in order])
    hessian = hessian + np.diag([1e-5] * MODELS + [0])  # the ratings' own: only their differences are determined
    gradients = (design.T * (sigmoid(design @ values) - won)).T + PENALTY @ values
    inverse = np.linalg.inv(hessian)
    by_loss = SCALE * np.sqrt(np.diag(inverse @ (gradients.T @ gradients / BATTLES) @ inverse)[0] / BATTLES)
    by_library = float(np.sqrt(found["variances"][0]))
    by_sets = SCALE * np.std([fit(*battles(seed, between)[:2])[0] for seed in range(1, SETS + 1)], ddof=1)
    print(
        f"length between models {share:.0%}: arena-rank {by_library:.1f}, Hessian of the loss {by_loss:.1f}, "
        f"{SETS} sets {by_sets:.1f}; ratings differ by {apart:.3f}"
    )
    same = same and apart < 0.1 and abs(by_loss / by_sets - 1) < 0.12
    same = same and (
        abs(by_library / by_loss - 1) < 0.02 if between == 0 else by_library > (1 + 0.3 * between) * by_loss
    )
raise SystemExit(0 if same else 1)
PYTHON
