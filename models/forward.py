"""The training forward pass: logits at the positions that are trained, and nowhere else."""

from torch import Tensor, nn
from transformers import PreTrainedModel


def action_logits(
    model: nn.Module, base: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, select: Tensor
) -> Tensor:
    """Logits `[A, V]` at the A selected positions.

    The language-model head is the widest layer; running it on prompts and padding would be wasted. A hook narrows its
    input, so the modelling code, with whatever it does to logits behind the head, stays transformers' own.

    Args:
        model: what is called: `base`, or a wrapper of it for data parallel training.
        base: the language model itself.
        input_ids: `[B, T]` right-padded tokens.
        attention_mask: `[B, T]`, 1 at tokens.
        select: `[B, T]` bool, true where the next token's logits are wanted.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise TypeError(f"{type(base).__name__} has no output embeddings: not a causal language model")
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][select],))
    try:
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    finally:
        handle.remove()


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability `[A]`, float32, of `tokens` `[A]` under `logits` `[A, V]` at a sampling temperature."""
    logits = logits.float() / temperature
    return -nn.functional.cross_entropy(logits, tokens, reduction="none")
