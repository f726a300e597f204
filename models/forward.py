"""Forward passes over whole sequences: micro-batches without much padding, heads at chosen positions only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from .head import float32_head

Index = Tensor | tuple[Tensor, Tensor]
"""Positions of `[B, T]`: a mask of that shape, or their rows and columns."""


def action_logits(
    model: nn.Module, base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
) -> Tensor:
    """Logits `[A, V]` at the A selected positions.

    The language-model head is the widest layer; running it on prompts and padding would be wasted. A hook narrows its
    input, so the modelling code, with whatever it does to logits behind the head, stays transformers' own.

    Args:
        model: what is called: `base`, or a wrapper of it for data parallel training.
        base: the language model itself.
        input_ids: `[B, T]` right-padded tokens.
        attention_mask: `[B, T]`, 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
        select: the positions where the next token's logits are wanted.
        inputs: what else the model is called with.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(base).__name__} has no output embeddings: not a causal language model")
    return selected_logits(model, head, input_ids, attention_mask, select, **inputs)


def selected_logits(
    model: nn.Module, head: nn.Module, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
) -> Tensor:
    """What `model` makes of the A selected positions, `[A, ...]`, by a `head` that runs nowhere else.

    Args:
        model: what is called: a transformer, or a wrapper of it for data parallel training.
        head: its last layer, from hidden states to logits.
        input_ids: `[B, T]` right-padded tokens.
        attention_mask: `[B, T]`, 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
        select: the positions.
        inputs: what else the model is called with.
    """
    with head_at(head, select), float32_head(head):
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs).logits


def compute_dtype(model: nn.Module) -> torch.dtype:
    """What a model's attention is computed in: its own precision, or autocast's."""
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return next(model.parameters()).dtype


@contextmanager
def head_at(head: nn.Module, index: Index) -> Iterator[None]:
    """Within the block, `head` runs on the hidden states `[A, H]` at `index` of `[B, T, H]`, and on no others."""
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][index],))
    try:
        yield
    finally:
        handle.remove()


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability `[A]`, float32, of `tokens` `[A]` under `logits` `[A, V]` at a sampling temperature."""
    logits = logits.float() / temperature
    return -nn.functional.cross_entropy(logits, tokens, reduction="none")


def token_logprobs_and_entropy(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The same, with the entropy `[A]`, in nats, of the whole distribution at each of the positions."""
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return logprobs.gather(-1, tokens[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logits)) in float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[NDArray[np.int64]]:
    """Cuts sequences, sorted by length, into groups of at most `max_tokens` tokens with padding (one at the least)."""
    order = np.argsort(np.negative(lengths), kind="stable")
    groups: list[NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // int(lengths[order[start]]))
        groups.append(order[start : start + rows])
        start += rows
    return groups
