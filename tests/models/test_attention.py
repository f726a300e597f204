"""Masks between positions, against a plain pass over each sequence on its own."""

import numpy as np
import pytest
import torch

from tokengym.benchmarks.studies.tiny_architectures import tiny_config, tiny_model
from tokengym.models.attention import layout


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
