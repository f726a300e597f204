"""Copies in bfloat16: they compute what training computes under autocast, with the weights of now."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.half_copy import half_copy
from tokengym.models.engine.sampling import SamplingConfig
from tokengym.models.forward import action_logprobs, action_states
from tokengym.models.loading import with_lora

IDS = torch.randint(0, 60, (3, 12), generator=torch.Generator().manual_seed(0))
LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 64, "initializer_range": 0.2,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=64)),
    "lora": lambda: with_lora(LlamaForCausalLM(LlamaConfig(**LLAMA)), 2),
}


def make(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    return model


@torch.no_grad()
def trained_logprobs(model: PreTrainedModel) -> torch.Tensor:
    """Log-probabilities of all tokens but the first, as training under autocast computes them."""
    select = torch.ones_like(IDS, dtype=torch.bool)
    select[:, -1] = False
    with torch.autocast("cpu", torch.bfloat16):
        states = action_states(model, model, IDS, torch.ones_like(IDS), select)
        return action_logprobs(model, states, IDS[:, 1:].flatten(), 64)[0].reshape(3, -1)


@torch.no_grad()
def full_logprobs(model: PreTrainedModel) -> torch.Tensor:
    logits = model(input_ids=IDS).logits
    assert logits.dtype == torch.float32
    return logits[:, :-1].log_softmax(-1).gather(2, IDS[:, 1:, None])[..., 0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_computes_what_training_computes_and_follows_the_weights(kind: str) -> None:
    model = make(kind)
    before, exact = trained_logprobs(model), full_logprobs(model)
    half = half_copy(model)
    assert half is not None
    assert torch.equal(full_logprobs(half.newest()), before)
    assert (before - exact).abs().max() > 1e-4  # bfloat16 shows
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    moved = trained_logprobs(model)
    assert (moved - before).abs().max() > 1e-2
    assert torch.equal(full_logprobs(half.newest()), moved)
    assert torch.equal(full_logprobs(model), full_logprobs(model.float()))  # the model itself is as it was


@pytest.mark.parametrize("kind", MODELS)
def test_only_matrices_are_copied(kind: str) -> None:
    model = make(kind)
    half = half_copy(model)
    assert half is not None
    own, made = dict(model.named_parameters()), dict(half.newest().named_parameters())
    assert own.keys() == made.keys()
    copied = {name for name in own if own[name] is not made[name]}
    assert {made[name].dtype for name in copied} == {torch.bfloat16}
    assert not any(made[name].requires_grad for name in copied)
    assert sum(made[name].nbytes for name in copied) == sum(tensor.nbytes for tensor in half.tensors())
    matrices = ("proj", "attn", "mlp", "lora_")
    assert copied == {name for name in own if any(part in name for part in matrices)}
    assert inspect.signature(half.newest().forward) == inspect.signature(model.forward)


def test_weights_in_bfloat16_need_no_copy() -> None:
    assert half_copy(make("llama").to(torch.bfloat16)) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_sampled_has_the_chances_of_the_copy(kind: str) -> None:
    model = make(kind)
    half = half_copy(model)
    assert half is not None
    decoder = SlotDecoder(half.newest(), 3, 64)
    decoder.begin(np.arange(3), [row.numpy() for row in IDS[:, :4]], np.arange(3))
    rows, chances = [row.tolist() for row in IDS[:, :4]], []
    for _ in range(6):
        tokens, logprobs = decoder.step(SamplingConfig())
        chances.append(logprobs)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
    assert {layer.keys.dtype for layer in decoder.cache.layers} == {torch.bfloat16}
    ids = torch.tensor(rows)
    with torch.no_grad():
        whole = half.newest()(input_ids=ids).logits[:, 3:-1].log_softmax(-1).gather(2, ids[:, 4:, None])[..., 0]
    np.testing.assert_allclose(np.stack(chances, 1), whole, atol=0.03)
