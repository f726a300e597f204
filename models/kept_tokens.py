"""Tokens that a truncated distribution keeps, of which each action was drawn."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class KeptTokens:
    """The tokens that top-k, top-p or min-p sampling left to choose from, for each of A draws.

    They are stored as they are, 4 bytes each, because they cannot be computed again: another forward pass rounds
    otherwise, and a token at the edge would fall in or out.

    Attributes:
        counts: `[A]` int64 numbers of tokens kept.
        tokens: Tokens in int32, those of the first draw, then those of the second, and so on.
    """

    counts: NDArray[np.int64]
    tokens: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, kept: Tensor) -> Self:
        """The tokens of a mask.

        Args:
            kept: `[A, V]` bool, true at the tokens that are kept.
        """
        return cls(kept.sum(1).cpu().numpy(), kept.nonzero()[:, 1].to(torch.int32).cpu().numpy())

    @classmethod
    def join(cls, parts: "Iterable[KeptTokens]") -> Self:
        """All draws of the parts, in order."""
        parts = list(parts)
        return cls(np.concatenate([part.counts for part in parts]), np.concatenate([part.tokens for part in parts]))

    def rows(self) -> list[NDArray[np.int32]]:
        """The tokens of each draw."""
        return np.split(self.tokens, np.cumsum(self.counts))[:-1]

    def split(self, size: int) -> "list[KeptTokens]":
        """Parts of `size` draws each; the last may have fewer."""
        starts = np.arange(0, len(self), size)
        ends = np.append(0, np.cumsum(self.counts))
        return [
            KeptTokens(self.counts[start : start + size], self.tokens[ends[start] : ends[start : start + size + 1][-1]])
            for start in starts
        ]

    def contain(self, actions: NDArray[np.integer]) -> bool:
        """True if each action `[A]` is among the tokens of its draw."""
        if len(actions) != len(self):
            return False
        draws = np.repeat(np.arange(len(self)), self.counts)
        return bool(np.bincount(draws[self.tokens == actions[draws]], minlength=len(self)).all())

    def padded(self, device: torch.device) -> Tensor:
        """The tokens as `[A, K]` int64, a row for each draw, with -1 behind those that keep fewer than K."""
        padded = np.full((len(self), int(self.counts.max(initial=1))), -1)
        padded[np.arange(padded.shape[1]) < self.counts[:, None]] = self.tokens
        return torch.from_numpy(padded).to(device)
