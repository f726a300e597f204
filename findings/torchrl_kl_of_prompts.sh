#!/bin/bash
# TorchRL 0.14.1, GRPOLoss with `kl_to_ref_coeff`: the KL to the reference counts the tokens of prompts and padding, as
# zeros, so that the longer the prompts are, the less of it is left. No error, no warning.
#
# The objective and the entropy are means over the tokens of the answers, by the mask. `_kl_to_ref` sets all others to 0
# by the same mask, and then takes the mean over the whole batch (`.mean()`). The coefficient is so multiplied by the
# share of answer tokens in the padded batch: a tenth, with prompts of 900 tokens and answers of 100. One that was found
# with short prompts is too small with long ones, and it moves from batch to batch with the longest row. `kl_to_ref`,
# which is logged, shrinks along, and so does `kl_to_inference`, by the source. (The docstring calls it the
# "coefficient for the KL divergence to the reference policy". Pull request 4363 changed the padding of the reference's
# log-probabilities, not the mean; no public issue was found.) What helps: multiplying by the size of the mask and
# dividing by its sum, or the KL in the reward.
#
# The same two answers of 8 tokens, whose log-probabilities are 0.5 above the reference's, behind prompts of 0, 8 and 56
# tokens: the objective, and the loss of the KL with a coefficient of 1 (known to be exp(-0.5) - 1 + 0.5 = 0.107).
#
# Seen: "prompts of 0: objective -1.000, KL 0.107", "prompts of 8: objective -1.000, KL 0.053", "prompts of 56:
# objective -1.000, KL 0.013".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
from importlib.metadata import version

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules.distributions import LLMMaskedCategorical
from torchrl.objectives.llm import GRPOLoss

print(f"torchrl {version('torchrl')}, torch {torch.__version__}")
ROWS, ANSWER, VOCABULARY, COEFFICIENT = 2, 8, 16, 1.0
KNOWN = torch.tensor(-0.5).expm1() + 0.5


class Actor(TensorDictModule):
    """Stands for a language model: its logits are in the data."""

    def __init__(self):
        super().__init__(torch.nn.Identity(), in_keys=["logits"], out_keys=["logits"])

    def get_dist(self, data, **names):
        return LLMMaskedCategorical(logits=data["logits"], mask=data["answers"])


def losses(prompt):
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, ANSWER + prompt)
    logits = torch.randn(*shape, VOCABULARY, generator=generator)
    tokens = torch.randint(VOCABULARY, shape, generator=generator)
    answers = torch.ones(shape, dtype=torch.bool)
    answers[:, :prompt] = False
    log_probs = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    data = {
        "logits": logits, "answers": answers, "advantage": torch.ones(*shape, 1), ("tokens", "full"): tokens,
        ("log_probs", "full"): log_probs, ("next", "ref_log_probs", "full"): log_probs - 0.5,
    }  # fmt: skip
    found = GRPOLoss(Actor(), kl_to_ref_coeff=COEFFICIENT, entropy_bonus=False)(TensorDict(data, batch_size=[ROWS]))
    return float(found.loss_objective), float(found.loss_kl_to_ref)


same = True
for prompt in (0, 8, 56):
    objective, kl = losses(prompt)
    print(f"prompts of {prompt}: objective {objective:.3f}, KL {kl:.3f}")
    share = ANSWER / (ANSWER + prompt)
    same = same and abs(objective + 1) < 1e-4 and abs(kl - share * KNOWN) < 1e-4
raise SystemExit(0 if same else 1)
PYTHON
