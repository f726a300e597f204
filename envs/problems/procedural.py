"""Endless problem sources: problems drawn from random streams, each split with contents of its own."""

import copy
import operator
from abc import abstractmethod
from hashlib import blake2b
from typing import Any, ClassVar, Self, SupportsIndex

import numpy as np

from ...settings import kinds_checked
from .base import SPLITS, Problem, ProblemSource, check_split

MAX_TRIES = 10_000
"""Draws after which a split counts as empty; one that holds 0.3 % of all draws is missed once in 10^13 problems."""

# Of ten buckets of content, one is validation, one is test, and the others are train.
BUCKETS = ("validation", "test", *("train",) * 8)


def split_of(content: str) -> str:
    """The only split that a problem with this content may appear in."""
    return BUCKETS[int.from_bytes(blake2b(content.encode(), digest_size=8).digest()) % len(BUCKETS)]


class Draws:
    """Random integers from the stream of one (seed, split, index), in raw blocks: scalar draws cost too much."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        # Two words per number, always: SeedSequence itself would run numbers of different widths together.
        low = 0xFFFFFFFF
        entropy = [seed & low, seed >> 32, SPLITS.index(split), index & low, index >> 32]
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))
        self._block: list[int] = []

    def word(self) -> int:
        """Uniform in [0, 2**64)."""
        if not self._block:
            self._block = self._bits.random_raw(32).tolist()
        return self._block.pop()

    def below(self, bound: int) -> int:
        """Uniform in [0, bound); the bias of the remainder is under 2^-43 for every bound under 2^21."""
        return self.word() % bound

    def between(self, low: int, high: int) -> int:
        """Uniform in [low, high], both included."""
        return low + self.below(high - low + 1)

    def bits(self, count: int) -> int:
        """Uniform in [0, 2**count)."""
        number = 0
        for done in range(0, count, 64):
            number |= self.word() >> max(0, 64 - (count - done)) << done
        return number

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.word() >> 11 < probability * 2**53


class ProceduralSource(ProblemSource):
    """Base of endless sources: every problem is a pure function of (arguments, seed, split, index).

    A hash of a problem's content puts eight tenths of all contents into train and one tenth each into validation and
    test, whatever the seeds and the other arguments: no problem is in two splits. Candidates are drawn from the stream
    of (seed, split, index) until one belongs to the split. Within a split, problems repeat when the arguments leave
    room for few.

    Args:
        split: Split of the problems: "train", "validation" or "test".
        seed: Seed in [0, 2**63), which chooses among endless streams of problems.

    Raises:
        UnknownNameError: There is no such split.
        ValueError: The seed is out of range.
    """

    name: ClassVar[str]
    """Name that the source is registered under; its problems' ids begin with it."""
    remedy: ClassVar[str] = "widen what is drawn"
    """Advice for arguments that leave no problem for a split."""

    @kinds_checked
    def __init__(self, split: str = "train", seed: int = 0) -> None:
        self.split = check_split(split)
        self.seed = operator.index(seed)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), not {seed}")

    @abstractmethod
    def draw(self, draws: Draws) -> tuple[str, Any] | None:
        """A candidate: the content that decides on its split, and what `tell` makes the problem of; or None."""

    @abstractmethod
    def tell(self, draws: Draws, drawn: Any) -> tuple[str, str, str]:
        """Question, answer and solution of a candidate."""

    def with_split(self, split: str) -> Self:
        other = copy.copy(self)
        other.split = check_split(split)
        return other

    @property
    def size(self) -> None:
        return None

    def __getitem__(self, index: SupportsIndex) -> Problem:
        position = operator.index(index)
        if not 0 <= position < 2**63:
            raise IndexError(f"{self}: index {position} is outside [0, 2**63)")
        draws = Draws(self.seed, self.split, position)
        for _ in range(MAX_TRIES):
            candidate = self.draw(draws)
            if candidate is not None and split_of(candidate[0]) == self.split:
                return Problem(f"{self._id_prefix}{position}", *self.tell(draws, candidate[1]))
        raise ValueError(f"{self}: none of {MAX_TRIES:,} draws is a {self.split} problem; {self.remedy}")

    def find(self, problem_id: str) -> Problem:
        digits = problem_id.removeprefix(self._id_prefix)
        if digits != problem_id and digits.isascii() and digits.isdecimal() and len(digits) <= 19:
            position = int(digits)
            if position < 2**63 and str(position) == digits:
                return self[position]
        raise ValueError(f"{self} has no problem {problem_id!r}; its ids look like '{self._id_prefix}0'")

    @property
    def _id_prefix(self) -> str:
        return f"{self.name}-{self.split}-{self.seed}-"
