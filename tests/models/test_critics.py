"""Critics: what their gradients reach, that they share the policy's forward pass, and which depths are possible."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from tokengym.models.critics import ActorCritic, make_critic
from tokengym.models.forward import logits_of
from tokengym.models.layers import train_top_layers
from tokengym.registry import UnknownNameError

VOCABULARY, DEPTH = 17, 3


def model(architecture: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "gpt2":
            shape = {"n_embd": 32, "n_layer": DEPTH, "n_head": 2, "n_positions": 32}
            return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, initializer_range=0.1, **shape)).eval()
        shape = {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": DEPTH,
            "num_attention_heads": 4, "initializer_range": 0.1,
        }  # fmt: skip
        if architecture == "neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**shape)).eval()
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **shape)).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 3:] = 0, 0
    select = mask.bool() & (torch.arange(9) >= 2)
    return ids, mask, select


def awake(policy: Any, kind: str, layers: int = 2) -> ActorCritic:
    """With a head that is not zero, through which gradients go."""
    pair = ActorCritic(policy, make_critic(kind, policy, layers))
    with torch.no_grad():
        pair.critic.head.weight.normal_(generator=torch.Generator().manual_seed(2))
    return pair


def reached(pair: ActorCritic, output: int) -> set[str]:
    """Parameters that the gradient of one output reaches: 0 the logits, 1 the values."""
    pair.zero_grad()
    pair(*inputs())[output].sum().backward()
    return {name for name, p in pair.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


ARCHITECTURES = ["llama", "gpt2", "neox"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_each_critics_gradient_reaches(architecture: str) -> None:
    policy = model(architecture)
    everything = {f"policy.{name}" for name, _ in policy.named_parameters()}
    for kind in ("branch", "model", "head"):
        pair = awake(policy, kind)
        own = {name for name, _ in pair.named_parameters() if name.startswith("critic.")}
        by_logits, by_values = reached(pair, 0), reached(pair, 1)
        assert by_logits <= everything
        critics = {name for name in by_values if name.startswith("critic.")}
        assert own == critics
        policys = by_values - critics
        if kind == "head":
            assert policys >= {name for name in by_logits if "lm_head" not in name and "embed_out" not in name}
        else:
            assert not policys


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_before_training_every_critic_reads_the_policys_last_hidden_states(architecture: str, kind: str) -> None:
    """Copies of layers, called with the masks and positions of the originals, give what those give."""
    policy = model(architecture)
    for layers in range(1, DEPTH + 1):
        pair = awake(policy, kind, layers)
        ids, mask, select = inputs()
        states, values = pair(ids, mask, select)
        logits = logits_of(policy, states)
        plain = policy(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        torch.testing.assert_close(logits, plain.logits[select], atol=1e-5, rtol=1e-5)
        expected = pair.critic.head(plain.hidden_states[-1][select])[:, 0]
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    fresh = make_critic(kind, policy, 1)
    assert (ActorCritic(policy, fresh)(ids, mask, select)[1] == 0).all()


@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_values_see_the_past_alone_and_no_padding(kind: str) -> None:
    pair = awake(model("llama"), kind)
    ids, mask, select = inputs()
    values = pair(ids, mask, select)[1]
    other = torch.where(mask.bool(), ids, (ids + 5) % VOCABULARY)
    torch.testing.assert_close(pair(other, mask, select)[1], values)
    later = ids.clone()
    later[:, 8] = (ids[:, 8] + 1) % VOCABULARY
    changed = torch.zeros(ids.shape).masked_scatter(select, (pair(later, mask, select)[1] - values).abs())
    assert changed[:, :8].max() < 1e-6
    assert changed[0, 8] > 1e-4


def test_one_pass_through_the_policys_layers_serves_both() -> None:
    policy = model("llama")
    calls = []
    policy.model.layers[0].register_forward_hook(lambda *_: calls.append(0))
    for kind, passes in (("branch", 1), ("head", 1), ("model", 2)):
        pair = awake(policy, kind)  # a copy keeps hooks, too
        calls.clear()
        pair(*inputs())
        assert len(calls) == passes
        assert all(not layer._forward_pre_hooks for layer in (*policy.model.layers, policy.lm_head))


def test_a_policy_with_adapters_has_a_critic_without() -> None:
    policy = model("llama")
    plain = awake(policy, "branch")(*inputs())
    adapted = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    for kind in ("branch", "head", "model"):
        pair = awake(adapted, kind)
        for mine, theirs in zip(pair(*inputs()), plain, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        trained = {name for name, p in pair.named_parameters() if p.requires_grad}
        assert not any("lora" in name for name in trained if name.startswith("critic."))
        assert all("lora" in name for name in trained if name.startswith("policy."))
        assert {name for name in trained if name.startswith("critic.")} == {
            name for name, _ in pair.named_parameters() if name.startswith("critic.")
        }


def test_values_are_float32_under_autocast() -> None:
    pair = awake(model("llama"), "branch")
    exact = pair(*inputs())[1]
    with torch.autocast("cpu", torch.bfloat16):
        rough = pair(*inputs())[1]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.2, rtol=0.1)


def test_a_branch_deeper_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"critic_layers is 4, but LlamaForCausalLM has 3 layers: choose 1 to 3"):
        make_critic("branch", model("llama"), 4)
    with pytest.raises(ValueError, match=r"critic_layers is 0"):
        make_critic("branch", model("gpt2"), 0)
    with pytest.raises(UnknownNameError, match="unknown critic 'brunch': did you mean 'branch'"):
        make_critic("brunch", model("gpt2"), 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_the_top_layers_alone(architecture: str) -> None:
    policy = model(architecture)
    train_top_layers(policy, 1)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    top = {"llama": "model.layers.2.", "gpt2": "transformer.h.2.", "neox": "gpt_neox.layers.2."}[architecture]
    norm = {"llama": "model.norm.", "gpt2": "transformer.ln_f.", "neox": "gpt_neox.final_layer_norm."}[architecture]
    assert trained == {name for name, _ in policy.named_parameters() if name.startswith((top, norm))}
    with pytest.raises(ValueError, match=r"trained_layers is 9, but .* has 3 layers"):
        train_top_layers(policy, 9)
