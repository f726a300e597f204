#!/bin/bash
# liger-kernel 0.8.5, `LigerFusedLinearJSDLoss` with a teacher that has more rows of vocabulary than the student: the
# student gets logits of 0 for the rows it lacks, and so probability. The loss of a student that equals its teacher is
# not 0, and moves with a constant added to all logits, which means nothing to a softmax. No error, no warning.
#
# Models of a family have the same tokens, padded to different numbers of rows (Qwen2.5: 151936 at 3B, 152064 at 7B),
# and for these `_compute_loss` pads "student logits to match the teacher's". It appends zeros to the logits before
# `log_softmax`, where only minus infinity would be nothing: each added row takes part with exp(0) = 1. Logits far above
# 0 hide it. Where they lie below, the added rows take most of the probability, and the gradient is spent on raising all
# logits at once. (Pull request 634 brought the padding; no public issue about the zeros was found. TRL 1.16.0 refuses
# such pairs, by its source.) What helps: weights and bias of the teacher cut to the student's rows,
# `teacher_weight[: len(student_weight)]`.
#
# A teacher, and as its student the same weights without 8 rows whose logits are -30, with a constant added to all of
# the student's logits: the loss by beta = 0, which is KL(teacher, student), its derivative by the constant, the loss
# by the default beta = 0.5, and the first again with a cut teacher. All should be 0. By 8 zeros KL is the mean of
# log(1 + 8 / sum(exp(logits))).
#
# Seen: "+5: KL 0.001, derivative -0.001, JSD 0.000, cut 0.000", "+0: KL 0.074, derivative -0.071, JSD 0.025, cut
# 0.000", "-5: KL 2.489, derivative -0.914, JSD 0.545, cut 0.000", "-15: KL 12.399, derivative -1.000, JSD 0.693, cut
# 0.000".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q --no-deps liger-kernel==0.8.5  # its losses in plain PyTorch need no Triton
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version

import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

print(f"liger-kernel {version('liger-kernel')}, torch {torch.__version__}")
TOKENS, HIDDEN, VOCABULARY, PADDED = 32, 16, 64, 8
generator = torch.Generator().manual_seed(0)
hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5
teacher_weight = torch.cat([weight, torch.zeros(PADDED, HIDDEN)])
teacher_bias = torch.cat([torch.zeros(VOCABULARY), torch.full([PADDED], -30.0)])


def loss(constant, beta, rows=VOCABULARY + PADDED):
    constant = torch.tensor(constant, requires_grad=True)
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    found = fused(
        hidden.clone().requires_grad_(), weight.clone().requires_grad_(), hidden, teacher_weight[:rows],
        torch.zeros(TOKENS, dtype=torch.long), constant.expand(VOCABULARY), teacher_bias[:rows],
    )  # fmt: skip
    found.backward()
    return found.item(), constant.grad.item()


same = True
for constant in (5.0, 0.0, -5.0, -15.0):
    (kl, derivative), (jsd, _), (cut, _) = loss(constant, 0.0), loss(constant, 0.5), loss(constant, 0.0, VOCABULARY)
    print(f"{constant:+.0f}: KL {kl:.3f}, derivative {derivative:.3f}, JSD {jsd:.3f}, cut {abs(cut):.3f}")
    known = (1 + PADDED / (hidden @ weight.T + constant).exp().sum(-1)).log().mean().item()
    same = same and abs(kl - known) < 1e-3 * max(1, known) and abs(cut) < 1e-5
raise SystemExit(0 if same and kl > 10 and derivative < -0.9 and jsd > 0.6 else 1)
PYTHON
