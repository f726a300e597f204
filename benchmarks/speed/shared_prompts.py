"""Steps of sampling that read a prompt once for all attempts behind it, against steps that read it for each attempt.

Two decoders of one random model take steps in turns, in one process on one thread, on the same prompts and with the
same random numbers. All attempts go on for as long as is measured.
"""

import time
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ...models.engine.decoder import SlotDecoder
from ...models.engine.sampling import SamplingConfig
from ...models.tokenizers import char_tokenizer
from .random_models import tiny_llama

SHAPES = {
    "4 x 256, 8 heads": {"layers": 4, "width": 256, "heads": 8, "kv_heads": 8},
    "4 x 256, 8 heads on 2": {"layers": 4, "width": 256, "heads": 8, "kv_heads": 2},
    "4 x 576, 9 heads on 3": {"layers": 4, "width": 576, "heads": 9, "kv_heads": 3},
}
"""Models by name; the last one has layers of SmolLM2-135M."""
PROMPTS = (64, 128, 256, 512)
"""Tokens of a prompt."""
_WARMUP = 4
_VOCABULARY = "".join(map(chr, range(0x4E00, 0x4E00 + 510)))


def run(
    *, rows: int = 64, problems: tuple[int, ...] = (8, 1), steps: int = 24, prompts: tuple[int, ...] = PROMPTS
) -> dict[str, Any]:
    """Measures all shapes, numbers of problems and lengths of prompts.

    Args:
        rows: Attempts at once.
        problems: Numbers of problems that these are attempts at.
        steps: Number of steps of each decoder.
        prompts: Tokens of a prompt.

    Returns:
        JSON values: `rows`, `steps`, and `cases`, each with its `model`, `problems` and `prompt`, the median CPU
        seconds of a step `apart` and `shared`, their ratio `speedup`, and `tokens`, the share of draws that are equal.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = [
            {"model": name, "problems": count, "prompt": prompt, **_measure(shape, rows, count, prompt, steps)}
            for name, shape in SHAPES.items()
            for count in problems
            for prompt in prompts
        ]
    finally:
        torch.set_num_threads(before)
    return {"rows": rows, "steps": steps, "cases": cases}


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    head = f"{'model':<24}{'problems':>9}{'prompt':>8}{'apart, ms':>11}{'shared, ms':>12}{'ratio':>7}"
    lines = (
        f"{case['model']:<24}{case['problems']:>9}{case['prompt']:>8}{1000 * case['apart']:>11.2f}"
        f"{1000 * case['shared']:>12.2f}{case['speedup']:>7.2f}"
        for case in results["cases"]
    )
    return "\n".join([head, *lines])


def _measure(shape: dict[str, int], rows: int, problems: int, prompt: int, steps: int) -> dict[str, float]:
    tokenizer = char_tokenizer(_VOCABULARY)
    model = tiny_llama(tokenizer, prompt + _WARMUP + steps, 0.0, 0, **shape)
    decoders = [_decoder(model, rows, problems, prompt, share) for share in (False, True)]
    drawn, seconds = np.zeros((2, steps, rows), np.int64), np.zeros((2, steps))
    for step in range(_WARMUP + steps):
        for side, decoder in enumerate(decoders):
            begun = time.process_time()
            tokens, _ = decoder.step(SamplingConfig())
            if step >= _WARMUP:
                seconds[side, step - _WARMUP] = time.process_time() - begun
                drawn[side, step - _WARMUP] = tokens
    apart, shared = np.median(seconds, axis=1).tolist()
    equal = float((drawn[0] == drawn[1]).mean())
    return {"apart": apart, "shared": shared, "speedup": apart / shared, "tokens": equal}


def _decoder(model: PreTrainedModel, rows: int, problems: int, prompt: int, share: bool) -> SlotDecoder:
    size = model.config.vocab_size
    questions = np.random.default_rng(0).integers(0, size, (problems, prompt))
    decoder = SlotDecoder(model, rows, size)
    if not share:
        decoder.shared.worth = 2**62
    decoder.begin(np.arange(rows), [questions[row % problems] for row in range(rows)], np.arange(rows))
    return decoder
