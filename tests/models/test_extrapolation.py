"""ExPO: its ends bit for bit, its closed form, adapters by their scale, models that do not fit."""

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tokengym.models import extrapolate, load, load_tokenizer
from tokengym.models.adapters import save_model
from tokengym.models.loading import with_lora

TOKENIZER = load_tokenizer("chars:0123456789")
IDS = torch.arange(24).reshape(2, 12) % 10


def make(architecture: str, seed: int = 0, **settings) -> PreTrainedModel:
    torch.manual_seed(seed)
    if architecture == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), **shape, **settings)).eval()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tied = {"tie_word_embeddings": architecture == "tied"}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), **{**shape, **tied, **settings})).eval()


def moved(model: PreTrainedModel, distance: float, seed: int = 7) -> PreTrainedModel:
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(distance * torch.randn(parameter.shape))
    return other


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS).logits.float()


def same(a: PreTrainedModel, b: PreTrainedModel) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in a.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "tied", "gpt2"])
def test_the_ends_are_the_models_themselves_and_the_rest_is_on_the_line(architecture: str) -> None:
    weaker = make(architecture)
    stronger = moved(weaker, 0.01)
    kept = copy.deepcopy(weaker), copy.deepcopy(stronger)
    assert same(extrapolate(weaker, stronger, 0.0), stronger)
    assert same(extrapolate(weaker, stronger, -1.0), weaker)
    for alpha in (0.5, 2.5, -0.25):
        result = dict(extrapolate(weaker, stronger, alpha).named_parameters())
        for (name, old), new in zip(weaker.named_parameters(), stronger.parameters(), strict=True):
            expected = new.double() + alpha * (new.double() - old.double())
            torch.testing.assert_close(result[name].double(), expected, atol=1e-6, rtol=0)
    assert same(weaker, kept[0])
    assert same(stronger, kept[1])


def test_a_tied_head_stays_tied() -> None:
    weaker = make("tied")
    result = extrapolate(weaker, moved(weaker, 0.1), 1.0)
    assert result.get_output_embeddings().weight is result.get_input_embeddings().weight


def test_steps_that_bfloat16_would_round_away_are_extrapolated() -> None:
    weaker = make("llama").bfloat16()
    stronger = copy.deepcopy(weaker)
    weight = stronger.lm_head.weight
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0].float(), torch.tensor(9.0)).bfloat16() * 1.01
    step = (weight[0, 0].double() - weaker.lm_head.weight[0, 0].double()).item()
    assert step != 0
    result = extrapolate(weaker, stronger, 0.1)
    assert {parameter.dtype for parameter in result.parameters()} == {torch.float32}
    assert result.lm_head.weight[0, 0].item() == pytest.approx(weight[0, 0].item() + 0.1 * step, rel=1e-6)
    assert weaker.lm_head.weight.dtype == stronger.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 3.0])
def test_the_optimum_under_a_penalty_becomes_that_under_a_smaller_one(alpha: float) -> None:
    """F3, where the head alone is trained: log pi = log pi_ref + r / beta becomes log pi_ref + (1 + alpha) r / beta."""
    beta, reward = 0.7, torch.randn(len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    weaker = make("llama")
    hidden: list[torch.Tensor] = []
    hook = weaker.lm_head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0][0, -1].detach()))
    reference = logits(weaker)[0, -1].log_softmax(-1)
    hook.remove()
    stronger = copy.deepcopy(weaker)
    with torch.no_grad():
        stronger.lm_head.weight += torch.outer(reward / beta, hidden[0] / (hidden[0] @ hidden[0]))
    expected = (reference + (1 + alpha) * reward / beta).log_softmax(-1)
    found = logits(extrapolate(weaker, stronger, alpha))[0, -1].log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def adapted(base: PreTrainedModel, seed: int, **settings) -> PreTrainedModel:
    model = with_lora(copy.deepcopy(base), 4, **settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05)
    return model.eval()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"alpha": 16.0, "rank_stabilized": True}])
def test_scaled_adapters_are_merged_arithmetic(architecture: str, settings: dict) -> None:
    base = make(architecture)
    stronger = adapted(base, 1, **settings)
    merged = copy.deepcopy(stronger).merge_and_unload()
    for alpha in (0.5, -0.5):
        result = extrapolate(base, stronger, alpha)
        assert hasattr(result, "peft_config")
        torch.testing.assert_close(logits(result), logits(extrapolate(base, merged, alpha)), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(extrapolate(base, stronger, 0.0)), logits(stronger))
    assert torch.equal(logits(extrapolate(base, stronger, -1.0)), logits(base))


def test_adapters_on_other_weights_are_merged_first() -> None:
    base = make("llama")
    weaker, stronger = adapted(base, 1), adapted(base, 2)
    result = extrapolate(weaker, stronger, 0.5)
    assert not hasattr(result, "peft_config")
    plain = [copy.deepcopy(model).merge_and_unload() for model in (weaker, stronger)]
    torch.testing.assert_close(logits(result), logits(extrapolate(*plain, 0.5)))
    assert hasattr(weaker, "peft_config"), "what is given stays as it is"
    assert hasattr(extrapolate(base, stronger, 0.5), "peft_config")
    assert not hasattr(extrapolate(moved(base, 0.1), stronger, 0.5), "peft_config")


def test_scaled_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    base, _ = load(tmp_path / "base", device="cpu")
    stronger, _ = load(tmp_path / "base", device="cpu", lora_rank=4)
    with torch.no_grad():
        for name, parameter in stronger.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05)
    result = extrapolate(base, stronger, 0.5)
    save_model(result, tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model" / "adapter", device="cpu")[0]), logits(result))
    torch.testing.assert_close(logits(load(tmp_path / "model", device="cpu")[0]), logits(result), atol=1e-4, rtol=1e-4)


def test_models_that_do_not_fit_are_refused() -> None:
    weaker = make("llama")
    with pytest.raises(ValueError, match=r"differ in 1 weights.*lm_head.weight has shape none in the weaker"):
        extrapolate(make("tied"), weaker, 0.5)
    with pytest.raises(ValueError, match=r"has shape \(\d+, 32\) in the weaker model and \(\d+, 16\)"):
        extrapolate(weaker, make("llama", hidden_size=16), 0.5)
    with pytest.raises(ValueError, match=r"differ in 9 weights by name or shape: model\.layers\.1"):
        extrapolate(weaker, make("llama", num_hidden_layers=1), 0.5)
    for stronger in (copy.deepcopy(weaker), with_lora(copy.deepcopy(weaker), 2)):
        with pytest.raises(ValueError, match="exactly the weights of the weaker"):
            extrapolate(weaker, stronger, 0.5)
    for alpha in (math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha must be finite"):
            extrapolate(weaker, moved(weaker, 0.1), alpha)
