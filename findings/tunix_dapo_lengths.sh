#!/bin/bash
# google-tunix 0.1.7, DAPO: lengths of answers are counted in characters and compared with limits in tokens, so that
# answers of a quarter of the allowed length are punished, and without a bound. No error, no warning.
#
# DAPO's soft overlong punishment (arXiv 2503.14476, equation 13) is 0 up to L_max - L_cache tokens, falls to -1 at
# L_max and is -1 beyond. `DAPOConfig` has the paper's numbers, `max_response_length` 20480, said to be the "hard
# maximum generation length", and `overlong_buffer_length` 4096, and `DAPOLearner` adds `reward_shaping` to the rewards
# by default. That function takes `len(completion)` of the decoded text. With 4 characters a token punishment begins at
# 4096 tokens and not at 16384, is -1 at 5120, and goes on: an answer of 20,000 tokens, which the paper gives -0.88,
# gets -15.5, beside which a reward of 1 for the right solution is nothing. Long right answers are then worse than short
# wrong ones, and how long is too long depends on the language: a Chinese text has fewer characters a token than an
# English one. (No public issue was found.) What helps: overlong_buffer={"enable": False} and a reward function of one's
# own that counts tokens, or limits in characters, which leaves the missing bound.
#
# Answers that are right get 1 by a reward function, `reward_shaping` is added as by `DAPOLearner`, and the reward
# manager adds both up. Tokens have four characters each.
#
# Seen: "4000 tokens: 1.00, by the paper 1.00", "5120 tokens: 0.00, by the paper 1.00", "8000 tokens: -2.81, by the
# paper 1.00", "16000 tokens: -10.62, by the paper 1.00", "20000 tokens: -14.53, by the paper 0.12".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile jax==0.10.2 flax==0.12.7 optax==0.2.8 jaxtyping==0.3.11 perfetto==0.59.1 \
    sentencepiece==0.2.3 pandas==2.3.3 tensorboardX==2.6.5 pillow==12.0.0 wrapt==2.0.0 tqdm==4.70.1 safetensors==0.7.0
# What they ask for besides (TensorFlow's datasets, for one) is not needed here.
"$folder/venv/bin/pip" install -q --no-deps google-tunix==0.1.7 google-metrax==0.2.4 clu==0.0.12 huggingface-hub==1.33.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
from importlib.metadata import version

from tunix.rl.grpo.dapo_learner import DAPOConfig, reward_shaping
from tunix.rl.reward_manager import SequenceRewardManager

print(f"google-tunix {version('google-tunix')}")
config = DAPOConfig()
LIMIT, BUFFER = (config.overlong_buffer[name] for name in ("max_response_length", "overlong_buffer_length"))
CHARACTERS = 4
LENGTHS = (4000, 5120, 8000, 16000, 20000)  # in tokens


def solved(prompts, completions, **_):
    return [1.0] * len(completions)


def by_the_paper(tokens):
    return min(0.0, max(-1.0, (LIMIT - BUFFER - tokens) / BUFFER))


rewards = SequenceRewardManager([solved, reward_shaping], config)
answers = ["word" * tokens for tokens in LENGTHS]
found = rewards(prompts=["question"] * len(answers), completions=answers, mode="train")["rewards"]
same = True
for tokens, reward in zip(LENGTHS, found, strict=True):
    expected = 1 + by_the_paper(tokens)
    print(f"{tokens} tokens: {reward:.2f}, by the paper {expected:.2f}")
    in_characters = min(0.0, (LIMIT - BUFFER - CHARACTERS * tokens) / BUFFER)
    same = same and abs(reward - 1 - in_characters) < 1e-6
raise SystemExit(0 if same and found[2] < -2 else 1)
PYTHON
