"""Decoding on a GPU: steps as they are, from CUDA graphs and compiled, beside `generate` and the memory's speed.

A step must read every weight and the keys and values of every token once, which takes no less than their bytes over the
speed of the device's memory: the share of that time in a step's is its share of the roofline. The model has the shape
of Qwen2.5-1.5B and random weights in bfloat16; all prompts have one length, so `generate` loses nothing on padding.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ...models.engine.decoder import SlotDecoder
from ...models.engine.graph_decoder import GraphDecoder
from ...models.engine.sampling import SamplingConfig

GOALS = {"graphs over plain": 4.0, "share of the roofline": 0.7}
"""Steps per second of the fastest decoder over those of plain steps, and its share of the roofline, at least."""
_COPIED = 2**32


def run(
    *,
    device: str = "cuda",
    rows: int = 256,
    prompt_tokens: int = 256,
    new_tokens: int = 256,
    compiled: bool = True,
    shape: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures decoders one after the other.

    Args:
        device: Device of the model; on a CPU only plain steps and `generate` are measured.
        rows: Rows of the batch.
        prompt_tokens: Length of every prompt.
        new_tokens: Tokens that each row draws, with end-of-sequence ignored.
        compiled: Measure a compiled step, too, whose compilation takes some minutes.
        shape: Fields of the model's `Qwen2Config`; `None` is the shape of Qwen2.5-1.5B.
        seed: Seed of prompts and samples.

    Returns:
        JSON values: "device", "versions", "settings", "parameters", "bandwidth" (bytes read and written per second by a
        copy), "bytes" (least bytes of a step, at the mean length), and "ways", for each its "first" step and "median"
        step in seconds, tokens per second over all steps as "rate", "share" of the roofline, and of decoders "same",
        the share of the plain one's first tokens that they draw, too.

    Raises:
        ValueError: There is no such device.
    """
    settings = {name: value for name, value in locals().items() if name != "device"}
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("this measures a GPU, and PyTorch finds none here")
    config = Qwen2Config(tie_word_embeddings=True, max_position_embeddings=4096, **(shape or QWEN))
    model = _random_model(config, device)
    prompts = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, prompt_tokens))
    bandwidth = _bandwidth(device)
    mean_length = prompt_tokens + new_tokens / 2
    keys = config.num_hidden_layers * (config.num_key_value_heads or 0) * config.hidden_size
    per_token = 2 * 2 * keys // config.num_attention_heads
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    least = weights + round(rows * mean_length * per_token)
    ways: dict[str, Callable[[], Iterator[Tensor]]] = {
        "generate": lambda: _generate(model, prompts, new_tokens),
        "plain": lambda: _steps(SlotDecoder(model, rows, config.vocab_size), prompts, new_tokens),
    }
    if device != "cpu":
        ways["graphs"] = lambda: _steps(GraphDecoder(model, rows, config.vocab_size), prompts, new_tokens)
        if compiled:
            ways["compiled graphs"] = lambda: _steps(
                GraphDecoder(model, rows, config.vocab_size, compiled=True), prompts, new_tokens
            )
    found = {name: _timed(sample, rows * new_tokens, device) for name, sample in ways.items()}
    plain = found["plain"].pop("tokens")
    del found["generate"]["tokens"]  # by random numbers of its own
    for way in found.values():
        if "median" in way:
            way["share"] = least / bandwidth / way["median"]
        if "tokens" in way:
            way["same"] = float((way.pop("tokens") == plain).mean())
    return {
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": config.transformers_version},
        "settings": settings,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "bandwidth": bandwidth,
        "bytes": least,
        "ways": found,
    }


QWEN: Mapping[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
"""Shape of Qwen2.5-1.5B."""


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    ways, plain = results["ways"], results["ways"]["plain"]
    rows = results["settings"]["rows"]
    lines = [
        f"{results['device']}, {results['parameters'] / 1e9:.2f} billion parameters, {rows} rows; a copy moves "
        f"{results['bandwidth'] / 1e9:,.0f} GB/s",
        f"{'':<18}{'first, s':>10}{'median, ms':>12}{'tokens/s':>11}{'over plain':>12}{'of roofline':>13}",
    ]
    for name, way in ways.items():
        ratio = f"{plain['median'] / way['median']:.2f}" if "median" in way else f"{way['rate'] / plain['rate']:.2f}"
        step = (
            (f"{way['first']:.2f}", f"{1000 * way['median']:.2f}", f"{way['share']:.2f}") if "median" in way else "   "
        )
        lines.append(f"{name:<18}{step[0]:>10}{step[1]:>12}{way['rate']:>11,.0f}{ratio:>12}{step[2]:>13}")
    goals = ", ".join(f"{name} {goal}" for name, goal in GOALS.items())
    return "\n".join([*lines, f"goals: {goals}"])


def _random_model(config: Qwen2Config, device: str) -> PreTrainedModel:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def _bandwidth(device: str, repeats: int = 10) -> float:
    """Bytes that a copy reads and writes in a second: the median of some."""
    source = torch.zeros((_COPIED if device != "cpu" else _COPIED // 16) // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(repeats):
        _wait(device)
        begun = time.perf_counter()
        target.copy_(source)
        _wait(device)
        times.append(time.perf_counter() - begun)
    return 2 * source.numel() * 4 / float(np.median(times))


def _timed(sample: Callable[[], Iterator[Tensor]], tokens: int, device: str) -> dict[str, Any]:
    """Times of what yields the tokens of each step; of one step alone, only the rate of all tokens."""
    times, drawn = [], []
    _wait(device)
    begun = time.perf_counter()
    for step in sample():
        _wait(device)
        now = time.perf_counter()
        times.append(now - begun)
        drawn.append(step.cpu().numpy())
        begun = time.perf_counter()
    found: dict[str, Any] = {"rate": tokens / sum(times), "tokens": drawn[0]}
    if len(times) > 1:
        found |= {"first": times[0], "median": float(np.median(times[len(times) // 8 :]))}
    return found


def _steps(decoder: SlotDecoder, prompts: Any, count: int) -> Iterator[Tensor]:
    slots = np.arange(len(prompts))
    decoder.begin(slots, list(prompts), slots)
    for _ in range(count):
        yield torch.from_numpy(decoder.step(SamplingConfig())[0])


def _generate(model: Any, prompts: Any, count: int) -> Iterator[Tensor]:
    ids = torch.from_numpy(prompts).to(model.device)
    arguments: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 0}
    yield model.generate(ids, min_new_tokens=count, max_new_tokens=count, **arguments)[:, ids.shape[1]]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
