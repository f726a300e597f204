"""Which tokens the slots' cache computes, and which it copies."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokengym.models.engine.cache import _owners


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
