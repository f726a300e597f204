"""Masks between positions, against a plain pass over each sequence on its own."""

import numpy as np
import pytest
import torch

from tokengym.benchmarks.studies.tiny_architectures import tiny_config, tiny_model
from tokengym.models import attention
from tokengym.models.attention import by_groups, layout


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "llama4_text"])
@torch.no_grad()
def test_sequences_after_a_shared_prompt_are_computed_as_on_rows_of_their_own(kind: str) -> None:
    """Full, sliding and chunked attention: columns are no positions here, and windows end between the sequences."""
    model = tiny_model(tiny_config(kind, 50))
    prompt, *ends = (np.random.default_rng(i).integers(3, 50, length) for i, length in enumerate((9, 12, 7)))
    alone = [model(torch.from_numpy(np.append(prompt, end))[None]).logits[0, len(prompt) :] for end in ends]
    ids = torch.from_numpy(np.concatenate([prompt, *ends]))[None]
    segments = torch.tensor([0] * 9 + [1] * 12 + [2] * 7)
    positions = torch.tensor([*range(9), *range(9, 21), *range(9, 16)])[None]
    visible = (segments[:, None] == segments) | (segments == 0)
    with layout(positions, positions, visible[None]):
        packed = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(packed[9:], torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_outside_of_a_layout_masks_are_transformers_own() -> None:
    model = tiny_model(tiny_config("gemma3_text", 50))
    ids = torch.arange(3, 23)[None]
    before = model(ids).logits
    with layout(torch.zeros(1, 20), torch.arange(20)[None]):
        assert not torch.equal(model(ids, attention_mask=torch.ones_like(ids)).logits, before)
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_attention_with_a_mask_takes_no_kernel_that_plans_each_shape_on_a_gpu(monkeypatch) -> None:
    usual, allowed = attention.sdpa_attention_forward, []

    def recorded(*positional, **named):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return usual(*positional, **named)

    monkeypatch.setattr(attention, "sdpa_attention_forward", recorded)
    model = tiny_model(tiny_config("llama", 50))
    ids = torch.arange(3, 23)[None]
    mask = torch.ones_like(ids)
    mask[:, 15:] = 0
    plain = model(ids, attention_mask=mask).logits
    monkeypatch.setattr(attention, "_on_gpu", lambda tensor: True)
    assert torch.equal(model(ids, attention_mask=mask).logits, plain)
    model(ids)  # without a mask there is no such kernel
    layers = model.config.num_hidden_layers
    assert allowed == [True] * layers + [False] * layers + [True] * layers
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_attention_by_groups_of_heads_is_attention(dtype: torch.dtype) -> None:
    config = tiny_config("llama", 50)
    config.num_key_value_heads = 1
    model = tiny_model(config).to(dtype)
    assert config.num_attention_heads > 1
    ids = torch.arange(3, 23)[None]
    with layout(torch.arange(20)[None], torch.arange(20)[None]):
        plain = model(ids, attention_mask=torch.ones_like(ids)).logits
        with by_groups(model):
            found = model(ids, attention_mask=torch.ones_like(ids)).logits
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found, plain, **({} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@torch.no_grad()
def test_tokens_of_whole_sequences_are_computed_without_later_columns(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_CHUNK", 8)
    model = tiny_model(tiny_config(kind, 50))
    ids = torch.arange(3, 23)[None].expand(2, -1)
    wanted = model(ids).logits
    usual, sizes = torch.nn.functional.scaled_dot_product_attention, set()

    def recorded(query, key, value, *rest, **named):
        sizes.add((query.shape[2], key.shape[2]))
        return usual(query, key, value, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    for first, chunks in (
        (0, {(8, 8), (8, 16), (4, 20)}),
        (1, {(20, 20)}),
    ):  # sequences, and others on the same columns
        positions = torch.arange(20)[None].expand(2, -1) * (1 - first) + torch.arange(20).flip(0) * first
        sizes.clear()
        with layout(positions, torch.arange(20)[None]):
            found = model(ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits
        if first:
            assert sizes == chunks
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
            assert sizes == ({(20, 20)} if kind == "llama" else chunks)  # without a mask, and with windows
