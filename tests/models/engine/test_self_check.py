"""What the self-check lets pass is right in training and decoding; what it refuses is named."""

import logging

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from tokengym.benchmarks.studies.tiny_architectures import configurations, tiny_config, tiny_model
from tokengym.models.engine.decoder import SlotDecoder
from tokengym.models.engine.row_decoder import RowDecoder
from tokengym.models.engine.sampling import SamplingConfig
from tokengym.models.engine.self_check import check_training, decoding

VOCABULARY = 60
SLOTS = (
    "bloom", "deepseek_v3", "falcon, ALiBi", "gemma3_text", "gemma3n_text", "gemma4_text", "gpt2", "gpt_oss",
    "llama4_text", "mixtral", "modernbert-decoder", "opt, projected", "phi3, window", "qwen2, windows",
)  # fmt: skip
ROWS = ("bart", "falcon_h1", "gpt_neo", "lfm2", "mamba", "qwen3_next", "roformer", "rwkv")


def model(name: str) -> PreTrainedModel:
    ((_, config),) = configurations(VOCABULARY, [name])
    assert not isinstance(config, Exception)
    return tiny_model(config)


@torch.no_grad()
def full_pass(model: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    return model(torch.from_numpy(tokens)[None], use_cache=False).logits[0].log_softmax(-1)


@pytest.mark.parametrize("name", [*SLOTS, *ROWS])
def test_what_is_decoded_is_what_a_full_pass_computes(name: str) -> None:
    """Prompts and completions reach past windows of 6 and chunks of 8; slots begin anew and leave meanwhile."""
    policy = model(name)
    way = decoding(policy)
    assert way == ("slots" if name in SLOTS else "rows")
    decoder = (SlotDecoder if way == "slots" else RowDecoder)(policy, 3, VOCABULARY)
    rng = np.random.default_rng(0)
    rows = {slot: rng.integers(3, VOCABULARY, length) for slot, length in enumerate((4, 13, 9))}
    found: list[tuple[np.ndarray, int, float]] = []
    decoder.begin(np.arange(3), list(rows.values()), np.arange(3))
    for step in range(12):
        if step == 4:
            rows[1] = rng.integers(3, VOCABULARY, 10)
            decoder.finish(np.array([1]))
            decoder.begin(np.array([1]), [rows[1]], np.array([7]))
        if step == 8:
            decoder.finish(np.array([0]))
            decoder.retire(np.array([0]))
        drawn, logprobs = decoder.step(SamplingConfig())
        for slot, token, logprob in zip(decoder.slots.tolist(), drawn.tolist(), logprobs.tolist(), strict=True):
            found.append((rows[slot], token, logprob))
            rows[slot] = np.append(rows[slot], token)
    assert len(found) == 12 * 3 - 4
    for tokens, token, logprob in found:
        assert logprob == pytest.approx(float(full_pass(policy, tokens)[-1, token]), abs=2e-3)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("openai-gpt", r"OpenAIGPTLMHeadModel, of type 'openai-gpt', cannot be decoded: .* keeps no cache"),
        ("deepseek_v4", r"'deepseek_v4', cannot be decoded: .*compressed_sparse_attention"),
        ("nemotron_h", r"'nemotron_h', cannot be decoded: .* a cache for one row changes its outputs"),
        ("zamba2", r"'zamba2', cannot be decoded: .* a cache for one row changes its outputs"),
        ("xlm-roberta", r"'xlm-roberta', cannot be decoded: .* a cache for one row changes its outputs"),
        ("prophetnet", "'prophetnet', cannot be trained or scored: its tokens see later ones"),
    ],
)
def test_types_that_cannot_be_right_are_refused_by_name(name: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as error:
        decoding(model(name))
    assert "\n" not in str(error.value)


def test_an_encoder_read_as_a_decoder_is_refused() -> None:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(ValueError, match="'bert', cannot be trained or scored: its tokens see later ones"):
        check_training(BertLMHeadModel(config))


def test_broken_weights_are_refused() -> None:
    broken = model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="its outputs are not finite"):
        check_training(broken)


def masking(value: float) -> PreTrainedModel:
    """A model that never writes some tokens."""
    masked = model("llama")

    def mask(module: torch.nn.Module, inputs: tuple, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(VOCABULARY) > 50, value)

    masked.get_output_embeddings().register_forward_hook(mask)  # pyright: ignore
    return masked


def test_masked_tokens_do_not_hide_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square of the smallest number is infinite, and all errors are small beside it."""
    lowest = torch.finfo(torch.float32).min
    assert decoding(masking(lowest)) == "slots"
    wrong = masking(lowest)
    forward = wrong.model.forward
    monkeypatch.setattr(wrong.model, "forward", lambda *args, position_ids=None, **named: forward(*args, **named))
    assert decoding(wrong) == "rows"


def test_tokens_masked_by_infinity_are_refused() -> None:
    with pytest.raises(ValueError, match="'llama', cannot be trained or scored: it masks tokens by logits of -inf"):
        check_training(masking(-torch.inf))


def test_a_cache_that_a_model_does_not_read_right_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: a model of a right type whose positions are dropped on the way."""
    wrong = model("llama")
    forward = wrong.model.forward
    monkeypatch.setattr(wrong.model, "forward", lambda *args, position_ids=None, **named: forward(*args, **named))
    assert decoding(wrong) == "rows"


def test_the_check_leaves_the_model_as_it_is_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_model(tiny_config("bart", VOCABULARY))
    policy.train()
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        assert [decoding(policy), decoding(policy)] == ["rows", "rows"]
    assert len([record for record in caplog.records if "one row at a time" in record.message]) == 1
    assert policy.training
    assert all(module.training for module in policy.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())
    windowed = tiny_model(tiny_config("mistral", VOCABULARY))
    decoding(windowed)
    assert windowed.config.sliding_window == 6


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_half_precision_passes(kind: str) -> None:
    assert decoding(tiny_model(tiny_config(kind, VOCABULARY)).to(torch.bfloat16)) == "slots"
