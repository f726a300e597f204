"""Kept tokens: stored one behind the other, and the same after any cut."""

import numpy as np
import torch

from tokengym.models.kept_tokens import KeptTokens

MASK = torch.rand(11, 6, generator=torch.Generator().manual_seed(0)) < 0.5
MASK[3] = False
ROWS = [row.nonzero()[:, 0].tolist() for row in MASK]


def test_rows_parts_and_padding_hold_the_mask() -> None:
    kept = KeptTokens.of(MASK)
    assert [row.tolist() for row in kept.rows()] == ROWS
    for size in (1, 4, 11, 50):
        parts = kept.split(size)
        assert [len(part) for part in parts] == [min(size, 11 - start) for start in range(0, 11, size)]
        assert [row.tolist() for part in parts for row in part.rows()] == ROWS
        assert [row.tolist() for row in KeptTokens.join(parts).rows()] == ROWS
    padded = kept.padded(torch.device("cpu"))
    assert padded.shape == (11, max(map(len, ROWS)))
    assert [[token for token in row if token >= 0] for row in padded.tolist()] == ROWS


def test_no_draws_have_no_rows() -> None:
    assert KeptTokens.of(MASK[:0]).rows() == []


def test_actions_are_found_among_what_was_kept() -> None:
    kept, actions = KeptTokens.of(MASK[:3]), np.array([row[0] for row in ROWS[:3]])
    assert kept.contain(actions)
    assert not kept.contain(actions[:2])
    assert not KeptTokens.of(MASK[1:4]).contain(np.array([ROWS[1][0], ROWS[2][0], 0]))  # nothing was kept
    dropped = next(token for token in range(6) if token not in ROWS[2])
    assert not kept.contain(np.array([*actions[:2], dropped]))
