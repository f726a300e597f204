#!/bin/bash
# transformers 5.23.0, models from GGUF files (`from_pretrained(..., gguf_file=...)`): what the file says about rotary
# embeddings is dropped, but for their base. No error, no warning, and another model.
#
# Llama 3.1, 3.2 and 3.3 have their scaled frequencies in a tensor, `rope_freqs.weight`, which is skipped as one that no
# parameter of the model takes. `rope.scaling.type` and `.factor` (YaRN, as of Qwen with long contexts) are read of
# gpt-oss alone. `rope.dimension_count` is read of Llama, Mistral and MiniMax-M2 alone, so Phi-4-mini, which rotates
# three quarters of each head, rotates all of it. Of StarCoder2 even the base, `rope.freq_base`, is not in the table,
# and its 1e6 becomes 10,000. Keys that are left out are named in a log of level INFO; the tensor is not. Weights are
# the right ones, so that short texts look plausible. (Text that llama.cpp writes from the same file is another model's.
# No public issue was found.) What helps: comparing `model.config.rope_parameters` with the original configuration's,
# and handing that in by `config=`.
#
# Small random models, written as llama.cpp's converter does, in float32: mean differences of log-probabilities from the
# model that was written, at the first 20 and at all of 100 tokens, by itself and with the original's `config`.
#
# Seen: "Llama, base 500,000: first 20 0.000, all 0.000, with config 0.000", "Llama 3.1's frequencies: first 20 0.727,
# all 1.894, with config 0.000", "Qwen2, YaRN: first 20 0.830, all 1.836, with config 0.000", "Phi-3, three quarters:
# first 20 2.127, all 2.452, with config 0.000", "StarCoder2, base 1,000,000: first 20 0.783, all 1.587, with config
# 0.000".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
cd "$folder"
OMP_NUM_THREADS=1 venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -5 log; exit $status; }
import math
import os
from importlib.metadata import version

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print(f"transformers {transformers.__version__}, gguf {version('gguf')}")
SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FREQUENCIES = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
IDS = torch.randint(3, 64, (1, 100), generator=torch.Generator().manual_seed(0))


def rope_factors():
    """What llama.cpp's converter writes into rope_freqs.weight: divisors of the frequencies."""
    for frequency in 1 / 1e4 ** (np.arange(0, 16, 2) / 16):
        turns = 64 * frequency / (2 * math.pi)
        share = min(max((turns - 1) / 3, 0.0), 1.0)
        yield 1 / ((1 - share) / 8 + share)


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def write(model, settings):
    config, kind = model.config, model.config.model_type
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    writer = gguf.GGUFWriter(f"{kind}.gguf", kind)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_eps(1e-5) if kind == "starcoder2" else writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(16 * rope.get("partial_rotary_factor", 1.0)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    settings(writer)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if kind == "llama" and (".q_proj." in name or ".k_proj." in name):  # llama.cpp rotates neighbors
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        base, suffix = name.rsplit(".", 1)
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(f"{names.get_name(base)}.{suffix}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def differences(kind, rope, settings=lambda writer: None, **own):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **{**SIZES, "tie_word_embeddings": kind == "starcoder2", **own}, rope_parameters=rope
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 0.3)
    write(model, settings)
    right = model(IDS).logits.log_softmax(-1)
    for given in ({}, {"config": model.config}):
        loaded = AutoModelForCausalLM.from_pretrained(os.getcwd(), gguf_file=f"{kind}.gguf", **given).eval()
        apart = (loaded(IDS).logits.log_softmax(-1) - right).abs().mean(-1)[0]
        yield from (float(apart[:20].mean()), float(apart.mean()))


PLAIN = {"rope_type": "default"}
FACTORS = np.array(list(rope_factors()), dtype=np.float32)
found = {
    "Llama, base 500,000": differences("llama", {**PLAIN, "rope_theta": 5e5}),
    "Llama 3.1's frequencies": differences(
        "llama", FREQUENCIES, lambda writer: writer.add_tensor("rope_freqs.weight", FACTORS)
    ),
    "Qwen2, YaRN": differences("qwen2", YARN, yarn),
    "Phi-3, three quarters": differences(
        "phi3", {**PLAIN, "rope_theta": 1e4, "partial_rotary_factor": 0.75}, vocab_size=32064
    ),
    "StarCoder2, base 1,000,000": differences("starcoder2", {**PLAIN, "rope_theta": 1e6}, sliding_window=None),
}
same = True
for name, values in found.items():
    first, whole, _, with_config = values
    print(f"{name}: first 20 {first:.3f}, all {whole:.3f}, with config {with_config:.3f}")
    same = same and with_config < 1e-3 and (whole < 1e-3 if "500,000" in name else whole > 0.1)
raise SystemExit(0 if same else 1)
PYTHON
