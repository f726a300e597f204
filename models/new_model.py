"""New language models with random weights, in the shapes of small published ones."""

from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..registry import unknown_name
from .linear import use_onednn
from .vocabulary import num_token_ids

ARCHITECTURES = ("gpt2", "llama")


def new_model(
    tokenizer: PreTrainedTokenizerBase,
    architecture: str,
    *,
    depth: int,
    width: int,
    heads: int,
    positions: int,
    seed: int,
) -> PreTrainedModel:
    """A model for the tokens of `tokenizer`, without dropout, in evaluation mode, on the CPU.

    Args:
        tokenizer: Tokenizer of the texts that the model will read and write.
        architecture: Architecture of the model: "gpt2" (learned positions, tied embeddings) or "llama" (rotary
            positions).
        depth: Number of layers.
        width: Size of the hidden states; feed-forward layers are four times as wide.
        heads: Attention heads in each layer.
        positions: Length of the longest sequence in tokens.
        seed: Seed of the weights.

    Raises:
        UnknownNameError: There is no such architecture.
        ValueError: A size is below 1, or the heads do not divide the width.
    """
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    sizes = {"depth": depth, "width": width, "heads": heads, "positions": positions}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    # Rotary positions turn pairs of numbers.
    if width % (heads if architecture == "gpt2" else 2 * heads):
        each = "" if architecture == "gpt2" else " into parts of even width"
        raise ValueError(f"{heads} heads do not divide a width of {width}{each}")
    ids = {
        "vocab_size": num_token_ids(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "gpt2":
            shape: dict[str, Any] = {"n_layer": depth, "n_embd": width, "n_head": heads, "n_positions": positions}
            dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2LMHeadModel(GPT2Config(**ids, **shape, **dropout)).eval()
        shape = {"num_hidden_layers": depth, "hidden_size": width, "intermediate_size": 4 * width}
        shape |= {"num_attention_heads": heads, "max_position_embeddings": positions}
        return use_onednn(LlamaForCausalLM(LlamaConfig(**ids, **shape)).eval())
