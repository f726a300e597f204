"""Logits do not carry the rounding of bfloat16, and nothing else about a head changes."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokengym.models.forward import action_logits, token_logprobs
from tokengym.models.head import float32_head

IDS = torch.arange(24).reshape(2, 12) % 17
EVERYWHERE = torch.ones_like(IDS, dtype=torch.bool)


def model(architecture: str = "llama", tied: bool = False):
    torch.manual_seed(0)
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=17, tie_word_embeddings=tied, **shape)).eval()


def logits(it, bf16: bool = False) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return action_logits(it, it, IDS, torch.ones_like(IDS), EVERYWHERE)


@pytest.mark.parametrize(("architecture", "tied"), [("llama", False), ("llama", True), ("gpt2", True)])
def test_a_float32_head_of_a_float32_model_is_the_models_own(architecture: str, tied: bool) -> None:
    it = model(architecture, tied)
    assert torch.equal(logits(it), it(IDS).logits.flatten(0, 1))
    assert "forward" not in it.get_output_embeddings().__dict__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_a_float32_head_on_the_same_hidden_states(dtype: torch.dtype) -> None:
    it = model().to(dtype)
    hidden = []
    hook = it.lm_head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    found = logits(it, bf16=dtype == torch.float32)
    hook.remove()
    assert found.dtype == torch.float32
    expected = torch.nn.functional.linear(hidden[0].flatten(0, 1).float(), it.lm_head.weight.float())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (found != found.bfloat16().float()).any(), "they are not rounded"


def test_gradients_reach_the_weights_as_without() -> None:
    ours, theirs = model(), model()
    targets = IDS.flatten()
    token_logprobs(logits(ours), targets).sum().backward()
    token_logprobs(theirs(IDS).logits.flatten(0, 1), targets).sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


def test_a_head_of_another_kind_is_left_alone() -> None:
    head = torch.nn.Sequential(torch.nn.Linear(2, 3))
    with float32_head(head):
        assert "forward" not in head.__dict__
    named = torch.nn.Linear(2, 3)
    named.forward = own = lambda hidden: hidden
    with float32_head(named):
        assert named.forward is not own
    assert named.forward is own


def test_an_update_smaller_than_the_rounding_of_logits_shows_in_the_log_probabilities() -> None:
    """The head's weights move by 1e-4 of logits about 20: bfloat16 logits, 0.125 apart there, would hardly move."""
    it = model()
    with torch.no_grad():
        it.lm_head.weight.mul_(20 / logits(it).abs().mean())
        before, exact = logits(it, bf16=True), it(IDS).logits.flatten(0, 1)
        it.lm_head.weight.add_(1e-4 * torch.randn(it.lm_head.weight.shape))
        moved, should = logits(it, bf16=True) - before, it(IDS).logits.flatten(0, 1) - exact
    assert (moved - should).abs().max() < 0.1 * should.abs().max()
