"""Rewards that are made of other rewards, their terms."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays import FloatArray, IntArray
from .base import AttemptView, ProblemLike, Reward, as_scores
from .grading.numbers import Verdict


class TermsReward(Reward):
    """Base of rewards that put together what several others pay, and tell it apart in `reward_components`.

    Args:
        kind: Kind of reward for messages: "sum" or "product".
        names: Name of each term, unique.
        rewards: Reward of each term.

    Raises:
        ValueError: A name is given twice.
        TypeError: A term is no reward.
    """

    def __init__(self, kind: str, names: Sequence[str], rewards: Sequence[Reward]) -> None:
        if len(set(names)) < len(names):
            raise ValueError(f"each term of a {kind} needs a name of its own, got {', '.join(names)}")
        for name, reward in zip(names, rewards, strict=True):
            if not isinstance(reward, Reward):
                raise TypeError(f"the term {name!r} must be a Reward, got {reward!r}: give an instance")
        self._names, self._rewards = names, rewards

    def bind(self, view: AttemptView) -> None:
        super().bind(view)
        self._paid = np.zeros((len(self._rewards), view.num_envs))
        for reward in self._rewards:
            reward.bind(view)

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        self._paid[:, slots] = 0
        for reward in self._rewards:
            reward.begin(slots, problems, prefix_lengths)

    def score_terms(
        self, lengths: IntArray, ended: IntArray, verdicts: Sequence[Verdict | None], weights: Sequence[float]
    ) -> FloatArray:
        """What each of M terms pays, times its weight: `[M, N, max(1, max(lengths))]`, see `Reward.score`.

        It is added to what each term has paid each slot since its attempt began, `_paid` `[M, N]`.

        Raises:
            RewardError: A term returned no numbers, or another shape; the message names it.
        """
        shape = (len(lengths), max(1, int(lengths.max())))
        scores = (as_scores(reward.score(lengths, ended, verdicts), shape, reward) for reward in self._rewards)
        paid = np.stack([weight * score for weight, score in zip(weights, scores, strict=True)])
        # One addition after another, not in pairs: rewards must not depend on how many tokens are taken at a time.
        self._paid = np.cumsum(np.concatenate((self._paid[:, :, None], paid), axis=2), axis=2)[:, :, -1]
        return paid

    def components(self) -> Mapping[str, FloatArray]:
        return dict(zip(self._names, self._paid, strict=True))
