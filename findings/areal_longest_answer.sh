#!/bin/bash
# AReaL 1.0.4, PPO: the longest row of each batch is taken for an answer that was cut off, whether it was or not. With a
# critic its returns are too large by a value, and with `mask_no_eos_with_zero=True` its reward is lost. Nothing is
# said.
#
# An answer that was cut off at the limit has no end, and then returns go on with the critic's value of the last token,
# or the reward is left out, as one has set it. AReaL does not look for the end token, nor at the limit. Rows without
# padding are "without an end", and since trajectories are padded to the longest of them, prompt included, that is the
# longest one of the process, always, also when all answers ended by themselves. Its value after the end is one that is
# never trained, because no token follows. Answers that were cut off, but have a shorter prompt than another, count as
# ended. So the return of an answer depends on the answers beside it, and on the number of processes. Of a group of
# equal rewards the longest one is another; in batches of few rows that is a large part of them. Without a critic, and
# with the default `mask_no_eos_with_zero=False`, nothing is touched. (Pull request 1351, which is open, takes the same
# test for granted; no public issue about it was found.) What helps: one column of padding in each trajectory before
# `compute_advantages`; answers that were cut off then count as ended, too.
#
# An answer with 8 tokens and reward 1, alone, beside a shorter and beside a longer one, whose value is 0.5 at every
# token, discount and lambda 1: its return, which is 1; and the return without a critic by `mask_no_eos_with_zero`.
#
# Seen: "alone: with a critic 1.5, masked 0.0", "beside one of 6: with a critic 1.5, masked 0.0", "beside one of 12:
# with a critic 1.0, masked 1.0", "alone, a column of padding: with a critic 1.0, masked 1.0".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q \
    torch==2.13.0 transformers==5.23.0 datasets==5.2.0 peft==0.21.2 hydra-core==1.4.0.dev1 omegaconf==2.4.0.dev2 \
    aiohttp==3.14.5 httpx==0.28.1 colorlog==6.12.0 tenacity==9.2.1 flask==3.1.3 torchdata==0.11.0 lark==1.3.1 \
    uvloop==0.23.0 ray==2.60.0 numba==0.68.1 pillow==12.3.0 orjson==3.13.0 einops==0.8.2 aiofiles==25.1.0 \
    openai==3.57.0 swanlab==0.10.3 trackio==0.43.0 wandb==0.31.0 tensorboardX==2.6.5 tabulate==0.10.0 \
    pybase64==1.5.1
"$pip" install -q --no-deps areal==1.0.4  # its requirements are those of GPUs
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
import sys
from importlib.metadata import version

import torch

shown, sys.stdout = sys.stdout, sys.stderr
from areal.api.cli_args import PPOActorConfig
from areal.trainer.ppo import PPOActor

print(f"areal {version('areal')}, torch {torch.__version__}", file=shown)
PROMPT = 2


def trajectory(length, reward, padding=0):
    mask = torch.tensor([[1] * length + [0] * padding], dtype=torch.bool)
    loss_mask = mask.long()
    loss_mask[:, :PROMPT] = 0
    return {
        "input_ids": mask.long(), "attention_mask": mask, "loss_mask": loss_mask, "rewards": torch.tensor([reward]),
        "logprobs": torch.zeros(mask.shape), "prox_logp": torch.zeros(mask.shape),
    }  # fmt: skip


def returned(trajectories, critic):
    config = PPOActorConfig(
        experiment_name="experiment", trial_name="trial", kl_ctl=0.0, adv_norm=None, reward_norm=None,
        reward_scaling=1.0, reward_bias=0.0, discount=1.0, gae_lambda=1.0, mask_no_eos_with_zero=not critic,
    )  # fmt: skip
    if critic:
        for rows in trajectories:
            rows["values"] = torch.full(rows["attention_mask"].shape, 0.5)
    rows = PPOActor(config, None).compute_advantages(trajectories)[0]
    return round(float(rows["returns"][0, PROMPT]), 3)


def cases():
    return {
        "alone": [trajectory(8, 1.0)],
        "beside one of 6": [trajectory(8, 1.0), trajectory(6, 1.0)],
        "beside one of 12": [trajectory(8, 1.0), trajectory(12, 1.0)],
        "alone, a column of padding": [trajectory(8, 1.0, padding=1)],
    }


found = {name: (returned(cases()[name], critic=True), returned(cases()[name], critic=False)) for name in cases()}
for name, (with_critic, masked) in found.items():
    print(f"{name}: with a critic {with_critic}, masked {masked}", file=shown)
expected = [(1.5, 0.0), (1.5, 0.0), (1.0, 1.0), (1.0, 1.0)]
raise SystemExit(0 if list(found.values()) == expected else 1)
PYTHON
