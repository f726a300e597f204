"""A product of rewards."""

from collections.abc import Iterable, Sequence

import numpy as np

from ..arrays import FloatArray, IntArray
from ..settings import kinds_checked
from .base import RUNNING, Reward, no_rewards
from .grading.numbers import Verdict
from .terms import TermsReward


class ProductReward(TermsReward):
    """The product of what several rewards pay an attempt in all, paid at the attempt's last token.

    WizardMath (Luo et al. 2023) multiplies a reward of the instruction and one of the solution's steps so: where any
    term is 0 nothing is paid, however large the others are. What each term would have paid is in the attempt's last
    info as `reward_components`.

    Args:
        terms: Terms, each with a unique name and a reward, which should not pay less than 0: two losses would make a
            gain.

    Raises:
        ValueError: There are fewer than two terms, or a name is given twice.
    """

    @kinds_checked
    def __init__(self, terms: Iterable[tuple[str, Reward]]) -> None:
        self.terms = tuple(terms)
        if len(self.terms) < 2:
            raise ValueError(f"a product of rewards needs at least two terms, got {len(self.terms)}")
        super().__init__("product", [name for name, _ in self.terms], [reward for _, reward in self.terms])

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        self.score_terms(lengths, ended, verdicts, [1] * len(self.terms))
        rewards = no_rewards(lengths)
        slots = np.flatnonzero((ended != RUNNING) & (lengths > 0))
        rewards[slots, lengths[slots] - 1] = self._paid[:, slots].prod(0)
        return rewards
