#!/bin/bash
# accelerate 1.15.0, gradient accumulation: one look into an evaluation loader, and for the rest of the epoch an
# optimizer step is made after every batch, or the last one of the epoch is left out. No error, no warning.
#
# `next(iter(evaluation))` for a few samples to show, or a `break` after so many batches, in the middle of training.
# `accumulate` makes its step after each N batches and at the end of the loader, and takes for the loader the one that
# was begun last, until that one is read to its end: what takes it from the list stands after the loop of its
# generator, not in a `finally`. If the evaluation loader is left at its last batch (it may have only one), it stays
# "at the end", and each batch of training is a step of its own, with its loss still divided by N. The prepared learning
# rate schedule steps along, N times too fast. If it is left before, the end of the training loader is not seen: its
# last batches are added to the next epoch's first ones, and boundaries move. Trials in which evaluation is read to its
# end are right. transformers' and TRL's trainers do not count by loaders. (Pull request 4248, which is open, tells of
# it.) What helps: reading evaluation loaders to their end, samples from a loader that is not prepared, or
# `GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=False)`.
#
# Two epochs of 22 batches with steps after each four, and a look after the eighth batch: batches with a step are S; and
# the learning rate after the first epoch, times 0.8 with each step.
#
# Seen: "no look: ...S...S...S...S...S.S ...S...S...S...S...S.S, learning rate 0.26", "one of 1 batch:
# ...S...SSSSSSSSSSSSSSS ...S...S...S...S...S.S, learning rate 0.03", "one of 3 batches: ...S...S...S...S...S..
# .S...S...S...S...S...S, learning rate 0.33", "all of 3 batches: ...S...S...S...S...S.S ...S...S...S...S...S.S,
# learning rate 0.26", "one of 1 batch, sync_with_dataloader=False: ...S...S...S...S...S.. .S...S...S...S...S...S,
# learning rate 0.33".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 accelerate==1.15.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
from itertools import islice

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

BATCHES = 22
WHOLE = "...S...S...S...S...S.S"


def steps(batches, looks, by_loader=True):
    """Two epochs' batches, S where the optimizer steps, and the learning rate after the first; one look at `looks`."""
    plugin = GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=by_loader)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training, evaluation = DataLoader(torch.ones(BATCHES, 2)), DataLoader(torch.ones(4 * batches, 2), batch_size=4)
    schedule = LambdaLR(optimizer, lambda step: 0.8**step)
    model, optimizer, training, evaluation, schedule = accelerator.prepare(
        model, optimizer, training, evaluation, schedule
    )
    epochs, rates = [], []
    for epoch in range(2):
        epochs.append("")
        for index, rows in enumerate(training):
            if epoch == 0 and index == 8:
                for _ in evaluation if looks == "all" else islice(evaluation, looks):
                    pass
            with accelerator.accumulate(model):
                accelerator.backward(model(rows).sum())
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            epochs[-1] += "S" if accelerator.sync_gradients else "."
        rates.append(schedule.get_last_lr()[0])
    accelerator.free_memory()
    return epochs, rates[0]


print(f"accelerate {accelerate.__version__}, torch {torch.__version__}")
results = {}
for name, batches, looks, by_loader in (
    ("no look", 1, 0, True),
    ("one of 1 batch", 1, 1, True),
    ("one of 3 batches", 3, 1, True),
    ("all of 3 batches", 3, "all", True),
    ("one of 1 batch, sync_with_dataloader=False", 1, 1, False),
):
    (first, second), rate = results[name] = steps(batches, looks, by_loader)
    print(f"{name}: {first} {second}, learning rate {rate:.2f}")
ok = results["no look"][0] == results["all of 3 batches"][0] == [WHOLE, WHOLE]
ok = ok and results["one of 1 batch"][0] == ["...S...S" + "S" * 14, WHOLE]
ok = ok and results["one of 3 batches"][0][0] == WHOLE[:-1] + "."
ok = ok and results["one of 1 batch"][1] < 0.05 and results["no look"][1] > 0.2
raise SystemExit(not ok)
PYTHON
