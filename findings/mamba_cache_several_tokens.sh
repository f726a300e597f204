#!/bin/bash
# transformers 5.23.0, layers of Mamba's first version (Jamba, Mamba, FalconMamba): several new tokens after a cache
# are computed as if nothing stood before them. No error, no warning.
#
# A cache that holds a text, and more than one token to follow it, is how the next turn of a dialog is appended, how
# `generate` continues from `past_key_values`, and what its `prefill_chunk_size` does. Token by token the state of the
# cache is used. Several at once go through `mamba_selective_scan`, which takes no first state: the recurrent state is
# read, left out, and written over by that of the new tokens alone. Layers of the second version (Bamba, Zamba2,
# FalconH1) had the same fault, which is mended (issue 46032, pull request 46741). What helps: append token by token,
# or compute all again.
#
# A text of 24 tokens, 12 of them in the cache: how far the logits of the others are from those of one pass, relative
# to their norm, appended one by one and at once; random small models.
#
# Seen: "jamba: one by one 0.000, at once 0.151", "mamba: one by one 0.000, at once 0.046", "falcon_mamba: one by one
# 0.000, at once 0.686", "llama: one by one 0.000, at once 0.000".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import math

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
PLAIN = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 4}
ATTENTION = {"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
MAMBA = {**PLAIN, "state_size": 16}
JAMBA = {
    **PLAIN, **ATTENTION, "num_experts": 1, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
    "mamba_d_state": 16,
}  # fmt: skip
KINDS = {"jamba": JAMBA, "mamba": MAMBA, "falcon_mamba": MAMBA, "llama": {**PLAIN, **ATTENTION}}


@torch.no_grad()
def made(kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind])).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 1 / math.sqrt(parameter.shape[-1]))
    return model


def cached(model, ids, sizes):
    name = "cache_params" if "mamba" in model.config.model_type else "past_key_values"
    cache, logits = None, []
    for part in ids.split(sizes, dim=1):
        outputs = model(input_ids=part, use_cache=True, **{name: cache})
        cache = outputs[name]
        logits.append(outputs.logits)
    return torch.cat(logits, 1)[:, sizes[0]:]


same = True
with torch.no_grad():
    for kind in KINDS:
        model, ids = made(kind), torch.randint(3, 64, (1, 24), generator=torch.Generator().manual_seed(1))
        whole = model(input_ids=ids, use_cache=False).logits[:, 12:]
        step, chunk = (
            float((cached(model, ids, sizes) - whole).norm() / whole.norm()) for sizes in ([12] + [1] * 12, [12, 12])
        )
        print(f"{kind}: one by one {step:.3f}, at once {chunk:.3f}")
        same = same and step < 1e-3 and (chunk < 1e-3 if kind == "llama" else chunk > 0.01)
raise SystemExit(0 if same else 1)
PYTHON
