"""Random models and problems for measuring engines, whose contents do not matter."""

import math
from typing import cast

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ...envs.problems.base import Problem, ProblemList


def tiny_llama(
    tokenizer: PreTrainedTokenizerBase,
    positions: int,
    stop: float,
    seed: int,
    *,
    layers: int = 4,
    width: int = 256,
    heads: int = 8,
    kv_heads: int = 2,
) -> PreTrainedModel:
    """A random Llama that ends an attempt at each token with a probability near `stop`; 0 means never."""
    eos = cast(int, tokenizer.eos_token_id)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=cast(int, tokenizer.pad_token_id),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        head = torch.nn.Linear(width, len(tokenizer))
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.weight[eos] = 0
        # The final norm makes hidden states of squared length `width`, so the other logits have this variance, and
        # their exponentials this mean.
        others = (len(tokenizer) - 1) * math.exp(width * config.initializer_range**2 / 2)
        head.bias[eos] = math.log(others * stop / (1 - stop)) if stop else -1e4
    model.lm_head = head
    return model.eval()


def random_problems(count: int, length: int, characters: str, seed: int) -> ProblemList:
    """Questions of `length` random characters each, one token per character."""
    rng = np.random.default_rng(seed)
    letters = np.array(list(characters))
    questions = ["".join(rng.choice(letters, length)) for _ in range(count)]
    return ProblemList([Problem(f"random-{i}", question, "42") for i, question in enumerate(questions)])
