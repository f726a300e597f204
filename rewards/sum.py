"""A weighted sum of rewards."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..arrays import FloatArray, IntArray
from .base import AttemptView, ProblemLike, Reward
from .grading.numbers import Verdict


class SumReward(Reward):
    """The weighted sum of several rewards, token by token.

    What each term paid an attempt, its weight included, is in the attempt's last info as `reward_components`.

    Args:
        terms: Terms, each with a unique name, a weight and a reward; a weight may be negative, for a penalty.

    Raises:
        ValueError: There is no term, a name is given twice, or a weight is not finite.
    """

    def __init__(self, terms: Iterable[tuple[str, float, Reward]]) -> None:
        self.terms = tuple(terms)
        if not self.terms:
            raise ValueError("a sum of rewards needs at least one term")
        names = [name for name, _, _ in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"each term of a sum needs a name of its own, got {', '.join(names)}")
        for name, weight, _ in self.terms:
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} must be a finite number, got {weight!r}")

    def bind(self, view: AttemptView) -> None:
        super().bind(view)
        self._paid = np.zeros((len(self.terms), view.num_envs))
        for _, _, reward in self.terms:
            reward.bind(view)

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        self._paid[:, slots] = 0
        for _, _, reward in self.terms:
            reward.begin(slots, problems, prefix_lengths)

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        paid = np.stack([weight * reward.score(lengths, ended, verdicts) for _, weight, reward in self.terms])
        # One addition after another, not in pairs: sums must not depend on how many tokens are taken at a time.
        self._paid = np.cumsum(np.concatenate((self._paid[:, :, None], paid), axis=2), axis=2)[:, :, -1]
        return np.cumsum(paid, axis=0)[-1]

    def components(self) -> Mapping[str, FloatArray]:
        return {name: paid for (name, _, _), paid in zip(self.terms, self._paid, strict=True)}
