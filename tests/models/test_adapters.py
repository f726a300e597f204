"""What adapters have learned is not rounded away before it is loaded again, and no other model takes them."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokengym.models import load, load_tokenizer
from tokengym.models.adapters import fingerprint, save_model, started
from tokengym.models.loading import with_lora

TOKENIZER = load_tokenizer("chars:0123456789")
IDS = torch.arange(24).reshape(2, 12) % 10
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_base(folder: Path, architecture: str, seed: int = 0, **shape: Any) -> Path:
    torch.manual_seed(seed)
    if architecture == "gpt2":
        ids = {"eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": None}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=64, **ids)
        )
    else:
        tied = architecture == "llama tied"
        config = LlamaConfig(vocab_size=len(TOKENIZER), tie_word_embeddings=tied, **{**SHAPE, **shape})
        model = LlamaForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def train(model: Any, updates: int = 16, rate: float = 1e-5) -> None:
    """So few and small updates that nearly all of them would be lost in bfloat16."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    for _ in range(updates):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logprobs(model: Any) -> torch.Tensor:
    return model(IDS).logits.float().log_softmax(-1)


def save(model: Any, folder: Path) -> Path:
    save_model(model, folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "llama tied", "gpt2"])
def test_what_is_saved_is_the_trained_policy(tmp_path: Path, architecture: str, caplog: Any) -> None:
    base = write_base(tmp_path / "base", architecture)
    trained, _ = load(base, device="cpu", dtype="bfloat16", lora_rank=4)
    start = logprobs(copy.deepcopy(trained).float())
    train(trained)
    exact = logprobs(copy.deepcopy(trained).float())
    folder = save(trained, tmp_path / "model")
    step = (exact - start).abs().max()

    merged, _ = load(folder, device="cpu")
    assert not hasattr(merged, "peft_config")
    assert (logprobs(merged) - exact).abs().max() < 0.01 * step

    with caplog.at_level(logging.WARNING):
        adapted, tokenizer = load(folder / "adapter", device="cpu", dtype="bfloat16")
    assert not [record for record in caplog.records if record.name.startswith("tokengym")]
    assert torch.equal(logprobs(adapted), logprobs(trained)), "bit for bit, in the precision of training"
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert started(adapted)

    rounded, _ = load(folder, device="cpu", dtype="bfloat16")
    assert "rounds part of what they learned away: load them from" in caplog.text
    assert (logprobs(rounded.float()) - exact).abs().max() > 0.1 * step, "nothing was at stake here"

    # Training goes on with them, and what is saved then can be loaded again.
    train(adapted, 2, 1e-3)
    again, _ = load(save(adapted, tmp_path / "again") / "adapter", device="cpu", dtype="bfloat16")
    assert torch.equal(logprobs(again), logprobs(adapted))


def test_adapters_fit_their_base_in_any_precision(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "llama")
    low, _ = load(base, device="cpu", dtype="bfloat16", lora_rank=2)
    plain, _ = load(base, device="cpu")
    assert fingerprint(low) == fingerprint(plain)
    folder = save(low, tmp_path / "model")
    assert load(folder / "adapter", device="cpu")[0].dtype == torch.float32


def test_a_weight_of_more_numbers_than_float32_can_count_has_a_fingerprint() -> None:
    shape = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2**22 + 1, tie_word_embeddings=True, **shape)).bfloat16()
    before = fingerprint(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1, -1] += 1
    assert fingerprint(model) != before


def test_adapters_of_another_base_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "llama")
    folder = save(load(base, device="cpu", lora_rank=2)[0], tmp_path / "model") / "adapter"
    write_base(base, "llama", seed=1)
    with pytest.raises(ValueError, match=r"trained on other weights than those of '.*base' now"):
        load(folder, device="cpu")
    # Adapters that others wrote have no record of the weights: what does not fit by its names and shapes is refused.
    (folder / "base.json").unlink()
    load(folder, device="cpu")
    for others in ({"hidden_size": 16}, {"num_hidden_layers": 1}):
        write_base(base, "llama", **others)
        with pytest.raises(ValueError, match=r"the adapters in '.*adapter' do not fit the model '.*base'"):
            load(folder, device="cpu")
    write_base(base, "gpt2")
    with pytest.raises(ValueError, match="do not fit the model"):
        load(folder, device="cpu")


def test_a_folder_of_adapters_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "llama")
    model, _ = load(base, device="cpu", lora_rank=2)
    folder = save(model, tmp_path / "model") / "adapter"
    with pytest.raises(ValueError, match="holds adapters, and training continues them: leave out lora_rank"):
        load(folder, lora_rank=2)
    with pytest.raises(ValueError, match="holds adapters, and training continues them"):
        load(folder, lora_alpha=8)
    with pytest.raises(ValueError, match="the model has adapters already"):
        with_lora(model, 2)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is in one of them only"):
        load(folder, device="cpu")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="base_model_name_or_path None: LoRA adapters with the name"):
        load(folder)


def test_a_model_without_adapters_is_saved_in_its_own_precision(tmp_path: Path) -> None:
    model, _ = load(write_base(tmp_path / "base", "llama"), device="cpu", dtype="bfloat16")
    save_model(model, tmp_path / "model")
    assert not (tmp_path / "model" / "adapter").exists()
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_trained_rows_of_new_tokens_are_saved_merged_alone(tmp_path: Path) -> None:
    model, _ = load(write_base(tmp_path / "base", "llama"), device="cpu", dtype="bfloat16")
    adapted = with_lora(model, 2, trainable_tokens=[10, 11])
    train(adapted)
    folder = save(adapted, tmp_path / "model")
    assert not (folder / "adapter").exists()
    expected = logprobs(copy.deepcopy(adapted).float())
    torch.testing.assert_close(logprobs(load(folder, device="cpu")[0]), expected, atol=1e-6, rtol=1e-6)
