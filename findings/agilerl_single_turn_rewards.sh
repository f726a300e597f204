#!/bin/bash
# AgileRL 2.58.0, REINFORCE and PPO for language models: in batches of one turn each token of an answer gets the whole
# reward, and returns add them up. What counts is the reward times the length. No error, no warning.
#
# The documentation takes one turn for the special case of several, a turn being one action with one return. That is so
# with advantage_granularity="turn". With "auto", the default, a batch in which no sample has a second turn is computed
# token by token. `_compute_token_rewards` has put the reward of the turn on every one of its tokens before, which a
# mean over the turn takes back; a sum over the tokens that are left does not. At the first of n tokens the return is n
# times the reward (less with gamma below 1, or with PPO's lambda), at the last one it is the reward. So long right
# answers push out short right ones, a long answer of half the reward beats a short one of the whole, and penalties
# shorten. Within an answer early tokens are praised and late ones blamed, also where all rewards are equal and nothing
# is to be learned. By the source, as soon as one sample of a batch has two turns, the whole batch is computed the other
# way. (The docstring says that "auto" takes tokens there, not that the sum is another one; no public issue about it was
# found.) What helps: advantage_granularity="turn".
#
# Two answers of 4 and of 20 tokens, small random models: REINFORCE's advantages, at the first token, at the last and on
# average; and PPO's returns at the first and the last token, with an untrained critic.
#
# Seen: "REINFORCE, auto, rewards 1 and 1: -0.83 to -1.32, mean -1.08; 1.75 to -1.32, mean 0.22", "REINFORCE, auto,
# rewards 1 and 0.5: -0.27 to -1.30, mean -0.78; 1.78 to -1.47, mean 0.16", "REINFORCE, turn, rewards 1 and 1: 0.00 to
# 0.00, mean 0.00; 0.00 to 0.00, mean 0.00", "REINFORCE, turn, rewards 1 and 0.5: 0.71 to 0.71, mean 0.71; -0.71 to
# -0.71, mean -0.71", "PPO, auto, rewards 1 and 1: 3.66 to 1.00; 12.81 to 1.00", "PPO, turn, rewards 1 and 1: 1.00 to
# 1.00; 1.00 to 1.00".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
"$pip" install -q \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 datasets==5.2.0 tensordict==0.15.3 \
    gymnasium==1.4.0 pettingzoo==1.27.0 fastrand==3.1.0 lazy-loader==0.6 pydantic==2.14.4 wandb==0.31.0 \
    pillow==12.3.0 pandas==3.1.1
# The rest of their requirements is for other environments and for GPUs.
"$pip" install -q --no-deps agilerl==2.58.0 agilerl-arena==1.29.0 bitsandbytes==0.50.2 \
    liger-kernel==0.8.5 openenv==0.10.0 triton==3.9.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
from importlib.metadata import version

import torch
from agilerl.algorithms.ppo_llm import PPO
from agilerl.algorithms.reinforce_llm import REINFORCE
from agilerl.utils.ppo_value_head import AutoModelForCausalLMWithValueHead
from peft import LoraConfig
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

print(f"agilerl {version('agilerl')}, torch {torch.__version__}")
PROMPT, LENGTHS = 3, (4, 20)
COMPUTED = (
    "_compute_rebn_advantages", "_compute_rebn_advantages_token", "_compute_gae_returns",
    "_compute_gae_returns_token",
)  # fmt: skip


def network():
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config)


def learned(agent_class, granularity, rewards):
    """What one call of `learn` computes for each answer's tokens: advantages, or returns of PPO."""
    agent = agent_class(
        actor_network=AutoModelForCausalLMWithValueHead(network()) if agent_class is PPO else network(),
        pad_token_id=0, pad_token="<pad>", batch_size=2, beta=0.0, max_model_len=64, device="cpu",
        advantage_granularity=granularity, use_liger_loss=False, gradient_checkpointing=False,
        lora_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    seen = []

    def watched(compute):
        def computed(*args):
            result = compute(*args)
            seen.append(result[0] if isinstance(result, tuple) else result)
            return result

        return computed

    for name in COMPUTED:
        if hasattr(agent, name):
            setattr(agent, name, watched(getattr(agent, name)))
    ids = [torch.arange(5, 5 + PROMPT + length)[None] for length in LENGTHS]
    masks = [(torch.arange(PROMPT + length - 1) >= PROMPT - 1)[None] for length in LENGTHS]
    agent.learn((ids, masks, torch.tensor(rewards)))
    (rows,) = seen
    return [row[PROMPT - 1 : PROMPT - 1 + length] for row, length in zip(rows, LENGTHS)]


found = {}
for agent_class, granularity, rewards in (
    (REINFORCE, "auto", (1.0, 1.0)), (REINFORCE, "auto", (1.0, 0.5)), (REINFORCE, "turn", (1.0, 1.0)),
    (REINFORCE, "turn", (1.0, 0.5)), (PPO, "auto", (1.0, 1.0)), (PPO, "turn", (1.0, 1.0)),
):  # fmt: skip
    tokens = learned(agent_class, granularity, rewards)
    name = f"{agent_class.__name__}, {granularity}, rewards {rewards[0]:g} and {rewards[1]:g}"
    found[name] = [(float(row[0]), float(row[-1]), float(row.mean())) for row in tokens]
    mean = "" if agent_class is PPO else ", mean {2:.2f}"
    print(name + ": " + "; ".join(("{0:.2f} to {1:.2f}" + mean).format(*numbers) for numbers in found[name]))
equal, halved = found["REINFORCE, auto, rewards 1 and 1"], found["REINFORCE, auto, rewards 1 and 0.5"]
by_turn, returns = found["REINFORCE, turn, rewards 1 and 1"], found["PPO, auto, rewards 1 and 1"]
by_length = equal[1][0] > 1 and halved[0][2] < 0 < halved[1][2] and returns[1][0] > 10
raise SystemExit(0 if by_length and all(abs(number) < 1e-3 for row in by_turn for number in row) else 1)
PYTHON
