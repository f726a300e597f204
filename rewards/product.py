"""A product of rewards."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..arrays import FloatArray, IntArray
from .base import RUNNING, AttemptView, ProblemLike, Reward, no_rewards
from .grading.numbers import Verdict


class ProductReward(Reward):
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

    def __init__(self, terms: Iterable[tuple[str, Reward]]) -> None:
        self.terms = tuple(terms)
        if len(self.terms) < 2:
            raise ValueError(f"a product of rewards needs at least two terms, got {len(self.terms)}")
        names = [name for name, _ in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"each term of a product needs a name of its own, got {', '.join(names)}")

    def bind(self, view: AttemptView) -> None:
        super().bind(view)
        self._paid = np.zeros((len(self.terms), view.num_envs))
        for _, reward in self.terms:
            reward.bind(view)

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        self._paid[:, slots] = 0
        for _, reward in self.terms:
            reward.begin(slots, problems, prefix_lengths)

    def score(self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None]) -> FloatArray:
        paid = np.stack([reward.score(lengths, ended, verdicts) for _, reward in self.terms])
        # One addition after another, not in pairs: products must not depend on how many tokens are taken at a time.
        self._paid = np.cumsum(np.concatenate((self._paid[:, :, None], paid), axis=2), axis=2)[:, :, -1]
        rewards = no_rewards(lengths)
        slots = np.flatnonzero((ended != RUNNING) & (lengths > 0))
        rewards[slots, lengths[slots] - 1] = self._paid[:, slots].prod(0)
        return rewards

    def components(self) -> Mapping[str, FloatArray]:
        return {name: paid for (name, _), paid in zip(self.terms, self._paid, strict=True)}
