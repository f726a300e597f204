#!/bin/bash
# transformers 5.23.0, LongRoPE (Phi-3 with long contexts, Phi-3.5, Phi-4-mini): log-probabilities of a row depend on
# how long the longest row of its batch is, and those of sampled tokens are not those of a pass over them.
#
# These models have two sets of rotary frequencies, for sequences up to `original_max_position_embeddings` (4096) and
# for longer ones. `dynamic_rope_update` chooses once in a pass, by the largest position id in it, for all rows and
# all of their tokens. One row of 4097 tokens in a batch therefore changes every shorter row in it, so that evaluation
# depends on batch size and order. A sequence that grows past the limit was sampled with the first set up to there,
# and is scored with the second from its first token, so that ratios of new to old policy and KL are off before
# anything is trained. `generate` computes its cache again at the limit, but not with `prefill_chunk_size`: then keys
# of both sets are mixed. (Issue 24823 of llama.cpp tells of the same choice by the size of the context there; none
# about batches or scoring was found for transformers.) What helps: never going past the limit, or batches of rows
# that are all on one side of it.
#
# A random small model with a limit of 32: mean differences of log-probabilities.
#
# Seen: "a row of 20 beside one of 30 and alone: 0.000", "beside one of 40 and alone: 0.630", "12 tokens sampled up to
# the limit, scored: 0.000 by a pass that ends there, 0.974 by one of 50", "a prompt of 40: next token at once
# 0.000, in chunks of 8 1.443".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import torch
import transformers
from transformers import Phi3Config, Phi3ForCausalLM

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
rope = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.1, 1.3, 2.0, 4.0, 8.0, 8.0, 8.0],
}  # fmt: skip
config = Phi3Config(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=256, original_max_position_embeddings=32, rope_parameters=rope,
    initializer_range=0.3, bos_token_id=1, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
model = Phi3ForCausalLM(config).eval()
row, longer = torch.randint(3, 64, (1, 20)), torch.randint(3, 64, (1, 40))


@torch.no_grad()
def logprobs(ids):
    return model(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=False).logits.log_softmax(-1)


def sampled(prompt, tokens, **settings):
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **settings,
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits, 1).log_softmax(-1)


def mean(one, other):
    return float((one - other).abs().mean())


beside = {}
for length in (30, 40):
    padded = torch.nn.functional.pad(row, (0, length - 20))
    beside[length] = mean(logprobs(torch.cat([padded, longer[:, :length]]))[:1, :20], logprobs(row))
print(f"a row of 20 beside one of 30 and alone: {beside[30]:.3f}, beside one of 40 and alone: {beside[40]:.3f}")
ids, taken = sampled(row, 30)
scored = {end: mean(logprobs(ids[:, :end])[:, 19:31], taken[:, :12]) for end in (32, 50)}
ends = f"{scored[32]:.3f} by a pass that ends there, {scored[50]:.3f} by one of 50"
print(f"12 tokens sampled up to the limit, scored: {ends}")
whole = logprobs(longer)[:, -1:]
once, chunks = (mean(sampled(longer, 1, **settings)[1], whole) for settings in ({}, {"prefill_chunk_size": 8}))
print(f"a prompt of 40: next token at once {once:.3f}, in chunks of 8 {chunks:.3f}")
right, wrong = (beside[30], scored[32], once), (beside[40], scored[50], chunks)
raise SystemExit(0 if max(right) < 1e-3 and min(wrong) > 0.1 else 1)
PYTHON
