"""A weighted sum of rewards."""

import math
import numbers
from collections.abc import Iterable, Sequence

import numpy as np

from ..arrays import FloatArray, IntArray
from ..settings import kinds_checked
from .base import Reward
from .grading.numbers import Verdict
from .terms import TermsReward


class SumReward(TermsReward):
    """The weighted sum of several rewards, token by token.

    What each term paid an attempt, its weight included, is in the attempt's last info as `reward_components`.

    Args:
        terms: Terms, each with a unique name, a weight and a reward; a weight may be negative, for a penalty.

    Raises:
        ValueError: There is no term, a name is given twice, or a weight is not finite.
    """

    @kinds_checked
    def __init__(self, terms: Iterable[tuple[str, float, Reward]]) -> None:
        self.terms = tuple(terms)
        if not self.terms:
            raise ValueError("a sum of rewards needs at least one term")
        super().__init__("sum", [name for name, _, _ in self.terms], [reward for _, _, reward in self.terms])
        for name, weight, _ in self.terms:
            if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be a finite number, got {weight!r}")

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        paid = self.score_terms(lengths, ended, verdicts, [weight for _, weight, _ in self.terms])
        return np.cumsum(paid, axis=0)[-1]  # term after term, too
