#!/bin/bash
# transformers 5.23.0, GPT-Neo (also the TinyStories models): `generate` with cache_implementation="static" samples
# from another model as soon as the cache is longer than the window of the local layers, from the first new token on.
#
# Every second layer looks back 256 tokens only. Its rows of the mask are those of the last keys, `bias[key_length -
# query_length : key_length]`, which is right where the keys end at the current token. A static cache has as many keys
# as there will be tokens, so every step takes the rows of the far end, whose window lies over empty keys that come
# after the current token, and the tokens before it are masked out. Nothing is said, and what comes out are tokens.
# GPT-Neo's class says that a static cache cannot be compiled, not that it cannot be used. No public issue was found.
# What helps: the default cache.
#
# A prompt of 20 tokens and 40 or 280 new ones: how far the log-probabilities that `generate` took them from are on
# average from those of one pass over prompt and tokens; a random small model with the window of 256.
#
# Seen: "40 tokens: default cache 0.000, static 0.000", "280 tokens: default cache 0.000, static 0.387, at the first
# static 0.679".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import torch
import transformers
from transformers import GPTNeoConfig, GPTNeoForCausalLM

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
torch.manual_seed(0)
config = GPTNeoConfig(
    vocab_size=64, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
    max_position_embeddings=512, initializer_range=0.2, bos_token_id=1, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
model = GPTNeoForCausalLM(config).eval()
prompt = torch.randint(3, 64, (1, 20))
assert config.window_size == 256


@torch.no_grad()
def differences(tokens, **cache):
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **cache,
    )  # fmt: skip
    taken = torch.stack(found.logits, 1).log_softmax(-1)
    whole = model(input_ids=found.sequences, use_cache=False).logits[:, 19:-1].log_softmax(-1)
    return (taken - whole).abs().mean(-1)[0]


static = {"cache_implementation": "static", "disable_compile": True}
short, long = differences(40, **static), differences(280, **static)
default = {tokens: float(differences(tokens).mean()) for tokens in (40, 280)}
print(f"40 tokens: default cache {default[40]:.3f}, static {short.mean():.3f}")
print(f"280 tokens: default cache {default[280]:.3f}, static {long.mean():.3f}, at the first static {long[0]:.3f}")
right = max(*default.values(), float(short.mean())) < 1e-3
raise SystemExit(0 if right and float(long.mean()) > 0.05 and float(long[0]) > 0.05 else 1)
PYTHON
