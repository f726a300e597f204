#!/bin/bash
# TorchRL 0.14.1, GSM8KEnv, CountdownEnv and MATHEnv with input_mode="text" or "tokens": every answer gets a reward of
# 0, the right ones too. No error, no warning.
#
# Their rewards look for <answer>...</answer>, and take the first of them. With "history", the default, that is in the
# last message. With the other two the parser reads ("text", "full") or ("tokens", "full"), which begins with the
# prompt, and the environments' own system prompt says that the answer is to stand in <answer></answer>: what is found
# is the empty text between these two, so the answer counts as missing, and not even the 0.1 for the format is given.
# GSM8KRewardParser's docstring names ("text", "response") and ("tokens", "response"). All rewards of a group are equal
# then, advantages are 0, and a run looks like one of a model that is too weak. (No public issue was found.) What helps:
# input_mode="history", or compute_reward=False and a parser with in_keys=[("text", "response"), "answer"].
#
# The rewards of a right answer, of a wrong one in the right form, and of one without tags, for each mode. (GSM8KEnv's
# rows are one of our own; MATHEnv, whose parser has the same lines, was not run.)
#
# Seen: "Countdown: history 1.0 0.1 0.0, text 0.0 0.0 0.0, tokens 0.0 0.0 0.0, text with in_keys 1.0 0.1 0.0", and the
# same for "GSM8K".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchrl==0.14.1 tensordict==0.14.3 transformers==5.23.0 jinja2==3.1.6
cat > "$folder/rewards.py" <<'PYTHON'
import re
from importlib.metadata import version

import torch
from tensordict import TensorDict, set_list_to_stack
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from torchrl.data.llm import History
from torchrl.envs import StepCounter
from torchrl.envs.llm import GSM8KEnv
from torchrl.envs.llm.datasets.countdown import CountdownEnv
from torchrl.envs.llm.reward.countdown import CountdownRewardParser
from torchrl.envs.llm.reward.gsm8k import GSM8KRewardParser
from transformers import PreTrainedTokenizerFast

set_list_to_stack(True).set()
print(f"torchrl {version('torchrl')}, tensordict {version('tensordict')}")
END = "<|im_end|>"
ROW = {"query": "What is 40 plus 5?", "answer": "40 + 5 = 45\n#### 45"}

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
bytes_only = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*letters, END])}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytes_only.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token=END, pad_token=END)
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def countdown(mode, response_only):
    env = CountdownEnv(tokenizer=tokenizer, input_mode=mode, seed=3, num_count=2, compute_reward=not response_only)
    if response_only:
        env.append_transform(CountdownRewardParser(tokenizer, in_keys=[(mode, "response"), "answer"]))
    return env


def gsm8k(mode, response_only):
    rows = DataLoader([ROW], collate_fn=lambda rows: torch.stack([TensorDict.from_dict(row) for row in rows]))
    env = GSM8KEnv.from_dataloader(rows, tokenizer=tokenizer, input_mode=mode, batch_size=(1,))
    env.append_transform(StepCounter(max_steps=1))  # this and the next are what GSM8KEnv appends after its download
    keys = {"in_keys": [(mode, "response"), "answer"]} if response_only else {}
    env.append_transform(GSM8KRewardParser(tokenizer, **keys))
    return env


def right_answer(answer):
    if "####" in answer:
        return answer.split("#### ")[1]
    target, first, second = map(int, re.findall(r"\d+", answer))
    values = {"+": first + second, "-": first - second, "*": first * second}
    found = next((sign for sign, value in values.items() if value == target), None)
    return f"{first} {found} {second}" if found else f"{second} - {first}"


def reward(env, mode, respond):
    step = env.reset()
    response = respond(right_answer(step["answer"][0]))
    if mode == "history":
        message = History(role=["assistant"], content=[response], batch_size=(1,))
        step["history"].full = step["history"].prompt.append(message, inplace=False, dim=-1)
    elif mode == "text":
        step["text"].response = [response]
        step["text"].full = [step["text"].prompt[0] + response]
    else:
        ids = torch.tensor(tokenizer(response)["input_ids"])
        for row in step["tokens"].unbind(0):
            row.response, row.full = ids, torch.cat([row.prompt, ids])
    return round(float(env.step(step)["next", "reward"]), 2)


RESPONSES = (
    lambda right: f"<think>I add.</think> <answer>{right}</answer>{END}",
    lambda right: f"<think>I add.</think> <answer>1</answer>{END}",
    lambda right: f"I do not know.{END}",
)
WAYS = {"history": ("history", False), "text": ("text", False), "tokens": ("tokens", False)}
WAYS["text with in_keys"] = ("text", True)
same = True
for name, make in (("Countdown", countdown), ("GSM8K", gsm8k)):
    found = {way: [reward(make(*case), case[0], respond) for respond in RESPONSES] for way, case in WAYS.items()}
    print(f"{name}: " + ", ".join(f"{way} {' '.join(map(str, rewards))}" for way, rewards in found.items()))
    same = same and found["history"] == found["text with in_keys"] == [1.0, 0.1, 0.0]
    same = same and found["text"] == found["tokens"] == [0.0, 0.0, 0.0]
raise SystemExit(0 if same else 1)
PYTHON
cd "$folder"
LIST_TO_STACK=1 OMP_NUM_THREADS=1 venv/bin/python rewards.py 2> log || { status=$?; tail -5 log; exit $status; }
