#!/bin/bash
# transformers 5.23.0, MiniMax (MiniMax-Text-01, MiniMax-M1): beam search gives each beam the state of another one, and
# tells of scores that its answers do not have. No error, no warning.
#
# When a beam takes the place of another one, `reorder_cache` moves its keys and values along. `MiniMaxCache` keeps the
# states of its lightning attention, most of the layers, in a list beside them, which it repeats and selects in
# `batch_repeat_interleave` and `batch_select_indices`, but `reorder_cache` is inherited and does not know of it. From
# the first change of places on, most layers have read another text. Greedy decoding and sampling are not touched.
# (Issue 46612 tells of caches under other names that were not reordered at all, as of Mamba, which is mended; none
# about MiniMax was found.) What helps: use_cache=False, or sampling several answers and ranking them by a pass.
#
# A prompt of 20 tokens and 20 new ones by 4 beams, small random models: the mean log-probability of the answer's
# tokens, as `sequences_scores` tells it and by one pass over the answer.
#
# Seen: "llama, with its cache: score -0.952, by one pass -0.952", "llama, without a cache: score -0.952, by one pass
# -0.952", "minimax, with its cache: score -0.803, by one pass -5.235", "minimax, without a cache: score -0.928, by one
# pass -0.928".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
LLAMA = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MINIMAX = {
    **LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
PROMPT = torch.randint(3, 64, (1, 20), generator=torch.Generator().manual_seed(1))


def made(kind, sizes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()


@torch.no_grad()
def beam_search(model, beams, **cache):
    found = model.generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=20, num_beams=beams, do_sample=False,
        eos_token_id=None, pad_token_id=0, output_scores=True, return_dict_in_generate=True, **cache,
    )  # fmt: skip
    ids = found.sequences
    whole = model(input_ids=ids, use_cache=False).logits[:, 19:-1].log_softmax(-1)
    own = float(whole.gather(-1, ids[:, 20:, None]).mean())
    return own, float(found.sequences_scores) if beams > 1 else own


same = True
for kind, sizes in (("llama", LLAMA), ("minimax", MINIMAX)):
    model = made(kind, sizes)
    for cache in ({}, {"use_cache": False}):
        own, told = beam_search(model, 4, **cache)
        print(f"{kind}, {'without a cache' if cache else 'with its cache'}: score {told:.3f}, by one pass {own:.3f}")
        same = same and (abs(own - told) > 0.01) == (kind == "minimax" and not cache)
raise SystemExit(0 if same else 1)
PYTHON
