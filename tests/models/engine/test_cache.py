"""Which tokens the slots' cache computes, and which it copies."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokengym.models.engine.cache import SlotCache, _owners


@given(st.lists(st.lists(st.integers(-1, 300), max_size=6).map(lambda tokens: tokens[:4]), min_size=1, max_size=12))
def test_only_prefixes_that_no_other_begins_with_are_computed(sequences: list[list[int]]) -> None:
    owner = _owners([np.array(tokens, np.int64) for tokens in sequences])
    for i, tokens in enumerate(sequences):
        assert sequences[owner[i]][: len(tokens)] == tokens
        assert owner[owner[i]] == owner[i]
    maximal = {
        tuple(a) for a in sequences if not any(len(b) > len(a) and b[: len(a)] == a for b in sequences)
    }  # fmt: skip
    assert sorted(tuple(sequences[i]) for i in set(owner.tolist())) == sorted(maximal)


def test_models_are_told_the_tokens_before_a_pass_and_the_columns_that_it_reads() -> None:
    """As transformers asks every cache: some models place tokens and masks by it."""
    cache, rows = SlotCache(1, 2), torch.arange(2)
    for before, new in ((0, 3), (3, 1), (4, 2)):
        cache.place(slice(2), rows, torch.arange(before, before + new).expand(2, -1), before + new)
        assert cache.get_seq_length() == before
        keys, values = cache.update(torch.ones(2, 1, new, 8), torch.ones(2, 1, new, 5), 0)
        assert (keys.shape, values.shape) == ((2, 1, before + new, 8), (2, 1, before + new, 5))
        assert cache.get_mask_sizes(new, 0) == (before + new, 0)


def test_a_growing_cache_keeps_what_it_holds_and_shows_no_memory_that_was_never_written() -> None:
    """New memory is filled with NaN, and masked columns enter sums with a weight of 0."""
    cache, rows = SlotCache(1, 2), torch.arange(2)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        for before, new in ((0, 3), (3, 60), (63, 1), (64, 1), (65, 190), (255, 1), (256, 300), (556, 1)):
            cache.place(slice(2), rows, torch.arange(before, before + new).expand(2, -1)[:, -2:], before + new)
            tokens = min(new, 2)
            keys, values = cache.update(torch.ones(2, 1, tokens, 8), torch.full((2, 1, tokens, 5), 2.0), 0)
            assert keys[:, :, -tokens:].eq(1).all()
            assert values[:, :, -tokens:].eq(2).all()
            assert keys.isfinite().all()
            assert values.isfinite().all()
            assert keys[:, :, 1:3].eq(1).all()
        assert keys.sum() == 8 * 2 * (2 + 2 + 1 + 1 + 2 + 1 + 2 + 1)
    finally:
        torch.use_deterministic_algorithms(deterministic)
