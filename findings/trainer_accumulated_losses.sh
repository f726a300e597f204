#!/bin/bash
# transformers 5.23.0, `Trainer`: with gradient accumulation over N batches, the gradients of sequence classifiers
# (regression among them) and of the router losses of mixtures of experts are N times too large. No error, no warning.
#
# One expects 8 rows at once and 4 times 2 rows to give one gradient. `Trainer` divides the loss by the number of
# batches unless the model takes keyword arguments in `forward`, which is read as "it divides by `num_items_in_batch`
# itself". Classifiers of Llama, Qwen, Gemma and others (`GenericForSequenceClassification`) take them and do not hand
# them to their loss, which is a mean of each batch, so that the means are added up: reward and value models that are
# trained on scores or labels have a loss and a gradient that grow with N. So has `router_aux_loss_coef * aux_loss`,
# which Mixtral, Qwen's mixtures and others add to a cross entropy that is divided. With Adam the step hides the
# factor, but clipping at `max_grad_norm`, SGD, the logged loss and, for routers, the balance of the two losses do
# not. (Issue 47688, which is open, tells of such heads; issue 48690, open as well, of router losses times the number
# of processes. None about router losses and accumulation was found.) What helps: `trainer.model_accepts_loss_kwargs =
# False` for classifiers, a coefficient divided by N for routers.
#
# Gradients before the first step on 8 equal rows, in 4 batches of 2 relative to one of 8; random small models.
#
# Seen: "language model: 1.00", "one label of 3: 4.00", "regression: 4.00", "several labels: 4.00", "router loss:
# 4.00", "regression, model_accepts_loss_kwargs=False: 1.00".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
import copy

import torch
import transformers
from transformers import (
    LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, MixtralConfig, MixtralForCausalLM, PrinterCallback,
    Trainer, TrainerCallback, TrainingArguments,
)  # fmt: skip

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.randint(3, 64, (12,), generator=torch.Generator().manual_seed(1))


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def gradients(model, labels, batches, takes_arguments=True):
    kept = Gradients()
    args = TrainingArguments(
        output_dir="out", per_device_train_batch_size=8 // batches, gradient_accumulation_steps=batches, max_steps=1,
        max_grad_norm=0, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    rows = [{"input_ids": IDS, "labels": labels}] * 8
    trainer = Trainer(model=copy.deepcopy(model), args=args, train_dataset=rows, callbacks=[kept])
    trainer.model_accepts_loss_kwargs = trainer.model_accepts_loss_kwargs and takes_arguments
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return kept.found


def ratio(model, labels, *arguments):
    return float(gradients(model, labels, 4, *arguments).norm() / gradients(model, labels, 1, *arguments).norm())


def classifier(count):
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=count))


def mixture(coefficient):
    torch.manual_seed(0)
    own = {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": coefficient}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **own))


def router_ratio():
    parts = [gradients(mixture(1.0), IDS, batches) - gradients(mixture(0.0), IDS, batches) for batches in (4, 1)]
    return float(parts[0].norm() / parts[1].norm())


torch.manual_seed(0)
found = {
    "language model": ratio(LlamaForCausalLM(LlamaConfig(**SIZES)), IDS),
    "one label of 3": ratio(classifier(3), torch.tensor(1)),
    "regression": ratio(classifier(1), torch.tensor(0.5)),
    "several labels": ratio(classifier(3), torch.tensor([1.0, 0.0, 1.0])),
    "router loss": router_ratio(),
    "regression, model_accepts_loss_kwargs=False": ratio(classifier(1), torch.tensor(0.5), False),
}
for name, factor in found.items():
    print(f"{name}: {factor:.2f}")
wanted = {"one label of 3": 4, "regression": 4, "several labels": 4, "router loss": 4}
raise SystemExit(0 if all(abs(factor - wanted.get(name, 1)) < 0.05 for name, factor in found.items()) else 1)
PYTHON
