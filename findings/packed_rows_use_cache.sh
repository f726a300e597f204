#!/bin/bash
# transformers 5.23.0: rows packed by position ids are kept apart with use_cache=False alone. With the default the
# second row sees the first, in training mode too, and nothing is said.
#
# Position ids that start again (0 1 2 0 1 2 3), without an attention mask, are how DataCollatorWithFlattening packs,
# and masks are made from them for "sdpa", "eager" and "flex_attention". But they are looked at only where there is no
# cache, and `use_cache`, true by default in configurations, makes an empty cache before the mask. So the same call
# gives other logits with use_cache=True and False, which is elsewhere a question of memory alone. `Trainer` and TRL's
# trainers set it to False; own training loops, and the scoring of packed rows by reference or reward models, have to
# do so themselves. (Pull request 46634 tells of another condition, an attention mask of ones; it names this one in
# passing.)
#
# Two rows by DataCollatorWithFlattening, the log-probabilities of the second one's tokens, and how far they are on
# average from those of that row alone, for three architectures.
#
# Seen, the same in evaluation and in training mode: "llama: use_cache=False 0.000, default 3.015", "qwen3:
# use_cache=False 0.000, default 2.802", "gemma3_text: use_cache=False 0.000, default 1.046".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3,
}  # fmt: skip


def logprobs(model, **inputs):
    logits = model(input_ids=inputs["input_ids"], position_ids=inputs.get("position_ids"), **inputs["cache"]).logits
    return logits[0, :-1].log_softmax(-1).gather(-1, inputs["input_ids"][0, 1:, None])[:, 0]


@torch.no_grad()
def differences(kind, training):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES)).train(training)
    first, second = torch.randint(3, 64, (12,)), torch.randint(3, 64, (10,))
    packed = DataCollatorWithFlattening()([{"input_ids": row.tolist()} for row in (first, second)])
    assert "attention_mask" not in packed and packed["position_ids"][0, 12] == 0
    alone = logprobs(model, input_ids=second[None], cache={"use_cache": False})
    return [
        float((logprobs(model, **packed, cache=cache)[12:] - alone).abs().mean()) for cache in ({"use_cache": False}, {})
    ]


same = True
for kind in ("llama", "qwen3", "gemma3_text"):
    for training in (False, True):
        apart, default = differences(kind, training)
        print(f"{kind}, {'training' if training else 'evaluation'}: use_cache=False {apart:.3f}, default {default:.3f}")
        same = same and apart < 1e-3 and default > 0.1
raise SystemExit(0 if same else 1)
PYTHON
