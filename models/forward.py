"""Forward passes over whole sequences: micro-batches without much padding, heads at chosen positions only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .head import float32_head
from .kept_tokens import KeptTokens
from .layers import short_pass

# Logits that exist at a time: 256 MB in float32, about 440 positions of a vocabulary of 151,936.
CHUNK_LOGITS = 2**26

Entropy = Literal["none", "value", "gradient"]
"""Computation of a policy's entropy: none, without a gradient, or with one."""

Index = Tensor | tuple[Tensor, Tensor]
"""Positions of `[B, T]`: a mask of that shape, or their rows and columns."""


def action_logits(
    model: nn.Module, base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
) -> Tensor:
    """Logits `[A, V]` at the A selected positions.

    The language-model head is the widest layer; running it on prompts and padding would be wasted. A hook narrows its
    input, so the modeling code, with whatever it does to logits behind the head, stays transformers' own.

    Args:
        model: Module to call: `base`, or a wrapper of it for data-parallel training.
        base: Language model itself.
        input_ids: `[B, T]` right-padded tokens.
        attention_mask: `[B, T]` with 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
        select: Positions whose next-token logits are wanted.
        inputs: Further arguments of the model.
    """
    return selected_logits(model, output_head(base), input_ids, attention_mask, select, **inputs)


def action_states(
    model: nn.Module, base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
) -> Tensor:
    """States that `action_logprobs` turns into log-probabilities of the A selected positions: less than their logits.

    These are the hidden states `[A, H]` that the head reads. Of models that change what their head makes, by a soft cap
    or a factor, they are the logits `[A, V]`.

    Args:
        model: Module to call: `base`, or a wrapper of it for data-parallel training.
        base: Language model itself.
        input_ids: `[B, T]` right-padded tokens.
        attention_mask: `[B, T]` with 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
        select: Positions whose next-token logits are wanted.
        inputs: Further arguments of the model.
    """
    if not ends_with_its_head(base):
        return action_logits(model, base, input_ids, attention_mask, select, **inputs)
    states: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        states.append(inputs[0][select])
        return (states[0][:1],)

    hook = output_head(base).register_forward_pre_hook(keep)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs)
    finally:
        hook.remove()
    return states[0]


def action_logprobs(
    base: PreTrainedModel,
    states: Tensor,
    tokens: Tensor,
    vocab_size: int,
    temperature: float = 1.0,
    entropy: Entropy = "none",
    kept: KeptTokens | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities `[A]`, float32, of tokens, and the entropies `[A]`, in nats, of their distributions if wanted.

    A vocabulary's logits are the largest tensors of an update. Where they are many, the head runs on some positions at
    a time, and again in the backward pass, so that no more than `CHUNK_LOGITS` exist at once.

    Args:
        base: Language model itself.
        states: `[A, ...]` output of `action_states` at the positions.
        tokens: `[A]` next token of each position.
        vocab_size: Vocabulary size of the tokenizer; logits beyond it are dropped before the softmax.
        temperature: Sampling temperature of the distribution.
        entropy: Entropies to return: "value" without a gradient, "gradient" with one, "none" for none.
        kept: Tokens that each distribution is truncated to, of A draws; `None` truncates none.
    """

    def some(states: Tensor, tokens: Tensor, kept: KeptTokens | None) -> tuple[Tensor, Tensor | None]:
        logits = logits_of(base, states)[:, :vocab_size]
        if kept is not None:
            logits, tokens = among_kept(logits, tokens, kept)
        logprobs = token_logprobs(logits, tokens, temperature)
        if entropy == "none":
            return logprobs, None
        with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
            return logprobs, token_entropies(logits, temperature)

    weight: Any = output_head(base).weight
    count = max(1, CHUNK_LOGITS // len(weight))
    if len(states) <= count or not ends_with_its_head(base):
        return some(states, tokens, kept)
    learns = torch.is_grad_enabled()
    chunks = states.split(count), tokens.split(count)
    parts = [
        checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) if learns else some(*part)
        for part in zip(*chunks, [None] * len(chunks[0]) if kept is None else kept.split(count), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), None if entropy == "none" else torch.cat(entropies)


def logits_of(base: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits `[A, V]` of what `action_states` gave for A positions."""
    if not ends_with_its_head(base):
        return states
    with float32_head(head := output_head(base)):
        return head(states)


def among_kept(logits: Tensor, tokens: Tensor, kept: KeptTokens) -> tuple[Tensor, Tensor]:
    """Logits `[A, K]` of the tokens that A draws were made from, and the numbers of the drawn ones `[A]` among them.

    Their softmax is the truncated distribution. No more than these logits are computed on, however large the
    vocabulary.

    Args:
        logits: `[A, V]` logits.
        tokens: `[A]` drawn tokens, each among those kept.
        kept: Tokens that each draw was made from; where they are fewer than K, the rest has no probability.
    """
    candidates = kept.padded(logits.device)
    found = logits.gather(1, candidates.clamp(min=0))
    found = at_least_float32(found).masked_fill(candidates < 0, _NO_PROBABILITY)
    return found, (candidates == tokens[:, None]).int().argmax(1)


_NO_PROBABILITY = -1e30
"""A logit beside which no other is lost: with -inf in its place entropies would be NaN."""


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32, or in float64 if that is what they are in."""
    return values if values.dtype == torch.float64 else values.float()


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability `[A]` of `tokens` `[A]` under `logits` `[A, V]` at a sampling temperature.

    It is in float32, of logits in float64 in float64.
    """
    return -nn.functional.cross_entropy(at_least_float32(logits) / temperature, tokens, reduction="none")


def token_entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy `[A]`, in nats, of the distributions that `logits` `[A, V]` give at a sampling temperature."""
    logprobs = (at_least_float32(logits) / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def output_head(model: PreTrainedModel) -> nn.Module:
    """The layer that makes logits of hidden states.

    Raises:
        TypeError: The model has no output head.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(model).__name__} has no output embeddings: not a causal language model")
    return head


def ends_with_its_head(model: PreTrainedModel) -> bool:
    """True if a model's logits are what its head makes, tried once on two tokens."""
    if (known := _HEAD_IS_LAST.get(model)) is not None:
        return known
    made: list[Any] = []
    hook = output_head(model).register_forward_hook(lambda _, inputs, output: made.append(output))
    try:
        logits = short_pass(model).logits  # without dropout, which would draw from the stream of the update
    finally:
        hook.remove()
    same = len(made) == 1 and logits.shape == made[0].shape
    same = same and (logits is made[0] or torch.equal(logits.float(), made[0].float()))
    _HEAD_IS_LAST[model] = same
    return same


_HEAD_IS_LAST: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def selected_logits(
    model: nn.Module, head: nn.Module, input_ids: Tensor, attention_mask: Tensor, select: Index, **inputs: Tensor
) -> Tensor:
    """Outputs of `model` at the A selected positions, `[A, ...]`, by a `head` that runs nowhere else.

    Args:
        model: Module to call: a transformer, or a wrapper of it for data-parallel training.
        head: Last layer of the transformer, from hidden states to logits.
        input_ids: `[B, T]` right-padded tokens.
        attention_mask: `[B, T]` with 1 at tokens, or a mask for attention itself, `[B, 1, T, T]`.
        select: Positions whose logits are wanted.
        inputs: Further arguments of the model.
    """
    with head_at(head, select), float32_head(head):
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs).logits


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Data type of a model's attention: its own precision, or autocast's."""
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


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """1 / (1 + exp(-logits)) in float64, without overflow."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def default_micro_batch_tokens(device: torch.device) -> int:
    """Tokens of one forward pass that suit a device: a CPU is fastest as long as its cache holds a micro-batch."""
    return 2_048 if device.type == "cpu" else 16_384


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
