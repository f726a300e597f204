"""Greedy completions by this package's decoder and by `generate` of transformers, for prompts of several lengths.

    python -m tokengym.benchmarks.studies.greedy --model M.gguf --lengths 20 700 --new 32 --output greedy.json

Lengths past a model's attention window show whether its windows are where transformers has them. A tie between two
tokens may break either way, so where completions part, the logits of both tokens are compared, too.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from ...arrays import IntArray
from ...exits import exit_status
from ...files import check_output, write_text
from ...models.engine.decoder import SlotDecoder
from ...models.engine.row_decoder import RowDecoder
from ...models.engine.sampling import SamplingConfig
from ...models.engine.self_check import decoding
from ...models.loading import load
from ...models.vocabulary import num_token_ids


@dataclass(frozen=True)
class Comparison:
    """One prompt's completions.

    Attributes:
        prompt_tokens: Length of the prompt.
        new_tokens: Length of the completions.
        same_tokens: Number of tokens that are the same, up to the first that differs.
        gap: Difference of the log-probabilities, by one pass, of the two tokens where completions part; 0 if they do
            not. One of about 1e-6 is a tie.
    """

    prompt_tokens: int
    new_tokens: int
    same_tokens: int
    gap: float


def decoded(model: PreTrainedModel, vocab_size: int, prompts: Sequence[IntArray], new_tokens: int) -> list[IntArray]:
    """Greedy completions `[new_tokens]` by the decoder that fits the model, all prompts in one batch."""
    kind = SlotDecoder if decoding(model) == "slots" else RowDecoder
    decoder = kind(model, len(prompts), vocab_size)
    decoder.begin(np.arange(len(prompts)), prompts, np.arange(len(prompts)))
    steps = [decoder.step(SamplingConfig(temperature=0.0))[0] for _ in range(new_tokens)]
    return list(np.stack(steps, 1)[np.argsort(decoder.slots)])


@torch.no_grad()
def generated(model: PreTrainedModel, prompt: IntArray, new_tokens: int) -> IntArray:
    """The greedy completion by `generate`, which no token ends."""
    ids = torch.from_numpy(prompt)[None].to(model.device)
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0, bos_token_id=None
    )
    usual, model.generation_config = model.generation_config, config  # whose end tokens would be put in place of none
    try:
        output: Any = model.generate(ids, attention_mask=torch.ones_like(ids))  # pyright: ignore[reportCallIssue]
    finally:
        model.generation_config = usual
    return output[0, len(prompt) :].cpu().numpy()


@torch.no_grad()
def compare(model: PreTrainedModel, vocab_size: int, prompts: Sequence[IntArray], new_tokens: int) -> list[Comparison]:
    """Both completions of each prompt; see `Comparison`."""
    found: list[Comparison] = []
    for prompt, ours in zip(prompts, decoded(model, vocab_size, prompts, new_tokens), strict=True):
        theirs = generated(model, prompt, new_tokens)
        same, gap = int((ours == theirs).cumprod().sum()), 0.0
        if same < new_tokens:
            row = torch.from_numpy(np.concatenate([prompt, ours[:same]]))[None].to(model.device)
            logprobs = model(input_ids=row, use_cache=False).logits[0, -1].float().log_softmax(-1)
            gap = float((logprobs[ours[same]] - logprobs[theirs[same]]).abs())
        found.append(Comparison(len(prompt), new_tokens, same, gap))
    return found


def main() -> None:
    """Prints the comparisons as JSON, and writes them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what tokengym.load takes")
    parser.add_argument("--text", type=Path, help="file whose text the prompts begin with; by default random tokens")
    parser.add_argument("--lengths", type=int, nargs="+", default=[20, 700], help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of each completion")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    check_output(options.output)
    started = time.process_time()
    model, tokenizer = load(options.model, device="cpu")
    if options.text is None:
        tokens = np.random.default_rng(0).integers(0, num_token_ids(tokenizer), max(options.lengths))
    else:
        tokens = np.array(tokenizer(options.text.read_text())["input_ids"])
    if len(tokens) < max(options.lengths):
        raise SystemExit(f"{options.text} has {len(tokens)} tokens, fewer than {max(options.lengths)}")
    found = compare(model, num_token_ids(tokenizer), [tokens[:length] for length in options.lengths], options.new)
    record = {
        "model": Path(options.model).name,
        "window": getattr(model.config.get_text_config(), "sliding_window", None),
        "decoding": decoding(model),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cpu_seconds": time.process_time() - started,
        "comparisons": [asdict(one) for one in found],
    }
    print(json.dumps(record, indent=1))
    if options.output is not None:
        write_text(options.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
