#!/bin/bash
# TRL 1.16.0, RLOO with dropout in adapters (lora_dropout=0.05 is common): before anything has changed, half of the
# answers have a ratio of new to old policy outside of the clipping range, and a few others rule the gradient.
#
# Log-probabilities of the old policy and of the new one are two passes of the same weights in training mode, each with
# masks of dropout of its own. RLOO's ratio is that of whole answers, exp of a sum over tokens, so that the noise of
# some hundred tokens adds up to factors of 10 and more either way. What is too small or too large is clipped, which the
# metrics tell as if the policy had moved; a large one with a negative advantage is not clipped at all. GRPO's ratios of
# tokens have the same noise as soon as old log-probabilities are computed, as with num_iterations=2. It grows as the
# adapter learns: one that is still zero has none. (`disable_dropout` is False by default, and its help speaks of
# reference models. Pull request 3234, which added it to GRPO, tells that ratios are not 1 with dropout, and that RLOO's
# trainer of that time switched dropout off by itself; this one does not.) What helps: disable_dropout=True, or
# lora_dropout=0.
#
# The first step of a small random Llama, whose adapters are not zero, with answers of up to 200 tokens: the share of
# answers (of tokens for GRPO) that the metrics call clipped, and the norm of the gradient.
#
# Seen: "RLOO, no dropout: 0% clipped, gradient 41.5", "RLOO, 0.05: 62% clipped, gradient 239.3", "RLOO, 0.1: 38%
# clipped, gradient 280.6", "RLOO, 0.1 with disable_dropout=True: 0% clipped, gradient 41.5", "GRPO with
# num_iterations=2, 0.1: 20% clipped, gradient 0.4".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 trl==1.16.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
from importlib.metadata import version

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

print(f"trl {version('trl')}, peft {version('peft')}, transformers {version('transformers')}")
letters = ["<pad>", "<eos>", *sorted(ByteLevel.alphabet())]
backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
PROMPTS = Dataset.from_list([{"prompt": f"q{index} "} for index in range(8)])


def reward(completions, **columns):
    return [float(len(completion) % 2) for completion in completions]


def adapted(dropout):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.1, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    adapter = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(LlamaForCausalLM(config), adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    return model


def first_step(trainer_class, config_class, dropout, **settings):
    args = config_class(
        output_dir="out", per_device_train_batch_size=8, num_generations=8, max_completion_length=200, max_steps=1,
        beta=0.0, learning_rate=0.0, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        logging_steps=1, disable_tqdm=True, save_strategy="no", **settings,
    )  # fmt: skip
    trainer = trainer_class(
        model=adapted(dropout), args=args, train_dataset=PROMPTS, processing_class=tokenizer, reward_funcs=reward
    )
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(1)
    trainer.train()
    logs = trainer.state.log_history[0]
    return logs["clip_ratio/region_mean"], logs["grad_norm"]


found = {
    "RLOO, no dropout": first_step(RLOOTrainer, RLOOConfig, 0.0),
    "RLOO, 0.05": first_step(RLOOTrainer, RLOOConfig, 0.05),
    "RLOO, 0.1": first_step(RLOOTrainer, RLOOConfig, 0.1),
    "RLOO, 0.1 with disable_dropout=True": first_step(RLOOTrainer, RLOOConfig, 0.1, disable_dropout=True),
    "GRPO with num_iterations=2, 0.1": first_step(GRPOTrainer, GRPOConfig, 0.1, num_iterations=2),
}
for name, (clipped, norm) in found.items():
    print(f"{name}: {clipped:.0%} clipped, gradient {norm:,.1f}")
right = ("RLOO, no dropout", "RLOO, 0.1 with disable_dropout=True")
raise SystemExit(0 if all((clipped == 0) == (name in right) for name, (clipped, _) in found.items()) else 1)
PYTHON
