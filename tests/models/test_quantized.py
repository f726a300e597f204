"""Weights in 4 bits compute, train and are saved as the plain model of the numbers that they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokengym.models import load, load_tokenizer, quantized
from tokengym.models.adapters import save_model
from tokengym.models.critics import make_critic
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.sampling import SamplingConfig
from tokengym.models.engine.self_check import decoding
from tokengym.models.engine.vllm_decoder import merged_weights
from tokengym.models.quantized import expanded, is_in_4bit

pytest.importorskip("bitsandbytes")

TOKENIZER = load_tokenizer("chars:0123456789")
IDS = torch.arange(24).reshape(2, 12) % 10
# The 16 numbers of NF4, from appendix E of the QLoRA paper (Dettmers et al. 2023).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def write(folder: Path, seed: int = 0, hidden_size: int = 64) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=hidden_size, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path) -> Any:
    return load(base, device="cpu", load_in_4bit=True, lora_rank=4)[0]


def plain(model: Any, base: Path) -> Any:
    """The model with adapters, on plain layers of the numbers that its own are expanded to."""
    made, _ = load(base, device="cpu", lora_rank=4)
    with torch.no_grad():
        weights = dict(model.named_parameters())
        for name, parameter in made.named_parameters():
            parameter.copy_(expanded(weights[name]))
    return made


def train(model: Any, updates: int = 4) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(updates):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    return model(IDS).logits.float().log_softmax(-1)


def test_weights_are_the_nearest_numbers_of_nf4(base: Path) -> None:
    (model, _), (whole, _) = load(base, device="cpu", load_in_4bit=True), load(base, device="cpu")
    before, found = dict(whole.named_parameters()), dict(model.named_parameters())
    in_4bit = [name for name, parameter in found.items() if parameter.dtype == torch.uint8]
    assert len(in_4bit) == 2 * 7, "the layers' matrices, and neither embeddings nor the head"
    for name in in_4bit:
        blocks = before[name].detach().reshape(-1, 64)
        scales = blocks.abs().amax(1, keepdim=True)
        nearest = torch.tensor(NF4)[((blocks / scales)[..., None] - torch.tensor(NF4)).abs().argmin(-1)] * scales
        # The scales are quantized, too, to about two digits.
        assert (expanded(found[name]).reshape(-1, 64) - nearest).abs().max() < 0.01 * scales.max()
        assert found[name].numel() == before[name].numel() / 2
    for name in found.keys() - set(in_4bit):
        assert torch.equal(found[name], before[name])


def test_outputs_and_gradients_of_adapters_are_those_of_the_plain_model(model: Any, base: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    right = plain(model, base)
    assert torch.allclose(logprobs(model), logprobs(right), atol=1e-5)
    for one in (model, right):
        one(IDS, labels=IDS).loss.backward()
    expected = {name: parameter.grad for name, parameter in right.named_parameters() if parameter.requires_grad}
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)


def test_what_is_saved_is_the_trained_policy(model: Any, base: Path, tmp_path: Path) -> None:
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = logprobs(model)
    train(model)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert (logprobs(model) - start).abs().max() > 1e-3
    save_model(model, tmp_path)
    TOKENIZER.save_pretrained(tmp_path)

    merged, _ = load(tmp_path, device="cpu")
    assert not is_in_4bit(merged)
    assert merged.dtype == torch.float32
    assert torch.allclose(logprobs(merged), logprobs(model), atol=1e-5)
    assert merged.generation_config.to_dict() == model.generation_config.to_dict()

    adapted, _ = load(tmp_path / "adapter", device="cpu", load_in_4bit=True)
    assert torch.equal(logprobs(adapted), logprobs(model)), "bit for bit"
    train(adapted, 1)

    # They fit the weights that were quantized, as everybody uses such adapters; not those of another model.
    unquantized, _ = load(tmp_path / "adapter", device="cpu")
    assert not is_in_4bit(unquantized)
    assert (logprobs(unquantized) - logprobs(model)).abs().max() > 1e-4
    other = write(tmp_path / "other", seed=1)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), str(other)))
    for load_in_4bit in (False, True):
        with pytest.raises(ValueError, match="were trained on other weights than those of"):
            load(tmp_path / "adapter", device="cpu", load_in_4bit=load_in_4bit)


def test_adapters_of_whole_weights_take_4_bits_under_them(base: Path, tmp_path: Path) -> None:
    trained, _ = load(base, device="cpu", lora_rank=4)
    train(trained)
    save_model(trained, tmp_path)
    adapted, _ = load(tmp_path / "adapter", device="cpu", load_in_4bit=True)
    assert is_in_4bit(adapted)
    assert 0 < (logprobs(adapted) - logprobs(trained)).abs().max() < 0.5


def test_decoding_is_what_a_full_pass_computes(model: Any) -> None:
    assert decoding(model) == "slots"
    train(model)
    decoder = SlotDecoder(model.eval(), 2, len(TOKENIZER))
    decoder.begin(np.arange(2), [np.array([1, 2, 3]), np.array([4])], np.arange(2))
    drawn = [decoder.step(SamplingConfig()) for _ in range(5)]
    for row, prompt in enumerate(([1, 2, 3], [4])):
        tokens = [int(step[0][row]) for step in drawn]
        with torch.no_grad():
            right = model(torch.tensor([prompt + tokens])).logits.log_softmax(-1)[0]
        for i, token in enumerate(tokens):
            assert drawn[i][1][row] == pytest.approx(float(right[len(prompt) - 1 + i, token]), abs=1e-5)


def test_weights_for_another_engine_are_expanded_and_merged(model: Any, base: Path) -> None:
    train(model)
    whole, _ = load(base, device="cpu")
    whole.load_state_dict(dict(merged_weights(model)))
    assert torch.allclose(logprobs(whole), logprobs(model), atol=1e-5)


@pytest.mark.parametrize("kind", ["branch", "head", "model"])
def test_critics_learn_with_expanded_weights(model: Any, kind: str) -> None:
    critic = make_critic(kind, model, 1)
    assert not is_in_4bit(critic)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in critic.parameters())


def transposed(folder: Path) -> Path:
    ids = {"eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": None}
    config = GPT2Config(vocab_size=len(TOKENIZER), n_embd=64, n_layer=1, n_head=2, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_models_that_cannot_be_loaded_in_4_bits_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel .* cannot be loaded in 4 bits, because transformer\.h\.0"):
        load(transposed(tmp_path / "gpt2"), device="cpu", load_in_4bit=True)
    # Kernels that expand rows of some lengths wrong are noticed, and not trained with.
    right = quantized.expanded
    monkeypatch.setattr(quantized, "expanded", lambda weight: right(weight) * 1.1)
    with pytest.raises(ValueError, match=r"expands the 64 columns of model\.layers\.0\.self_attn\.q_proj wrong"):
        load(write(tmp_path / "llama"), device="cpu", load_in_4bit=True)
