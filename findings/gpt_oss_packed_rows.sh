#!/bin/bash
# transformers 5.23.0, gpt-oss, AFMoE, OPT and Falcon: rows packed by position ids see each other, with
# use_cache=False as well, in "eager" and in "sdpa". No error, no warning.
#
# Position ids that start again (0 1 2 0 1 2 3), without an attention mask, are how DataCollatorWithFlattening packs.
# `create_causal_mask` keeps such rows apart, if it is given the position ids. Llama, Qwen, Mixtral or GPT-NeoX hand
# them over; these four call it without (so do BLOOM, MPT, BioGPT and XGLM), and use position ids for their embeddings
# only. Flash attention, which looks at position ids by itself, is another matter. gpt-oss is the one that people
# train, and has no "sdpa", so where there is no flash attention with sinks "eager" is what one gets. Losses fall as
# usual. (packed_rows_use_cache.sh is about the models that do hand them over, and a cache that switches it off. No
# public issue about these was found.) What helps: an own mask of four dimensions, or rows that are padded.
#
# Two rows by DataCollatorWithFlattening, the log-probabilities of the second one's tokens, and how far they are on
# average from those of that row alone, by position ids and by an own mask, with use_cache=False; random small models.
#
# Seen: "llama, eager: position ids 0.000, own mask 0.000", "gpt_oss, eager: position ids 2.529, own mask 0.000",
# "afmoe, eager: position ids 2.729, own mask 0.000", "afmoe, sdpa: position ids 2.729, own mask 0.000", "opt, eager:
# position ids 1.983, own mask 0.000", "opt, sdpa: position ids 1.983, own mask 0.000", "falcon, eager: position ids
# 0.599, own mask 0.000", "falcon, sdpa: position ids 0.599, own mask 0.000".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
SHARED = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SHARED, "intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3}
KINDS = {
    "llama": LLAMA,
    "gpt_oss": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    "afmoe": {**LLAMA, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1},
    "opt": {**SHARED, "ffn_dim": 128, "word_embed_proj_dim": 64, "init_std": 0.3},
    "falcon": {**SHARED, "initializer_range": 0.3},
}


def logprobs(model, ids, **inputs):
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


@torch.no_grad()
def differences(kind, attention):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    first, second = torch.randint(3, 64, (12,)), torch.randint(3, 64, (10,))
    packed = DataCollatorWithFlattening()([{"input_ids": row.tolist()} for row in (first, second)])
    ids, positions = packed["input_ids"], packed["position_ids"]
    assert "attention_mask" not in packed and positions[0, 12] == 0
    row = torch.arange(22) >= 12
    seen = (row[:, None] == row) & torch.ones(22, 22, dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, 22, 22).masked_fill(~seen, torch.finfo(torch.float32).min)
    alone = logprobs(model, second[None])
    by_positions = logprobs(model, ids, position_ids=positions)[12:]
    by_mask = logprobs(model, ids, position_ids=positions, attention_mask=mask)[12:]
    return float((by_positions - alone).abs().mean()), float((by_mask - alone).abs().mean())


same = True
for kind in KINDS:
    for attention in ("eager", "sdpa") if kind != "gpt_oss" else ("eager",):
        packed, masked = differences(kind, attention)
        print(f"{kind}, {attention}: position ids {packed:.3f}, own mask {masked:.3f}")
        same = same and masked < 1e-3 and (packed < 1e-3 if kind == "llama" else packed > 0.1)
raise SystemExit(0 if same else 1)
PYTHON
