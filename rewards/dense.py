"""The dense heuristic reward of Havrilla et al. 2024: pay for steps of the reference solution on the way to the answer.

The paper pays for intermediate steps that match the reference solution's, on top of +1 for the correct answer; how a
step matches, and what it is worth, is chosen here.

**What is paid.** A step is a line; the answer's line ("#### 72", a box, ...) is none. Each step states one thing at
most: its result, its equation, or its text, whatever else the line holds. `weight` is shared equally among the
different things that the reference states, each of which is paid once. A step is paid when it makes the longest
order-preserving match between attempt and reference longer, so that all payments together are `weight` times the
fraction of the reference that the attempt goes through in the reference's order (a longest common subsequence).

**Why it cannot be farmed.** What has been stated is not counted again, so repeating steps, in whatever words, earns
nothing. Steps in the wrong order earn no more than the longest part of them that is in order. And an attempt has one
guess for each reference step: after as many different statements as the reference has, nothing more is paid. Without
that limit, the lines 0 to 999 would earn 65 % of the weight on GSM8K's training problems, where results mostly grow;
with it 4 %, which is what the first few of these lines are worth.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from numpy.typing import ArrayLike

from ..arrays import IntArray
from ..registry import check_known
from ..settings import kinds_checked
from .base import AttemptView, ProblemLike, Step, StepReward, check_shaping
from .grading import solutions

Match = Literal["result", "equation", "exact_text"]

_READERS: Mapping[str, Callable[[str], str | None]] = {
    "result": solutions.result,
    "equation": solutions.equation,
    "exact_text": solutions.exact_text,
}


class DenseReward(StepReward):
    """+1 at the end of a correct attempt, and `weight` shared among the reference's steps as they are matched.

    By the rules at the top of this module. Payments are made at a step's last token; steps that a reset prefix gave
    count as stated and are not paid. A reference without any step pays for the answer alone.

    Args:
        match: Property that a step and a reference step must share: `"result"`, the value on the right of the last
            equation or else the last number; `"equation"`, the last equation; `"exact_text"`, the text with white space
            folded. A line without the first or the second is not a step. [choice]
        weight: Reward of all steps of the reference together. [choice]
        shaping: Shaping by potential, or `None`: with `"potential"` the reward of the steps is taken back at the
            attempt's last token. The potential of a state is the matched fraction, 0 at the start and at the end (Ng et
            al. 1999), for a discount of 1: returns are those of the sparse reward, so the optimal policy is unchanged,
            and only the credit comes earlier. An attempt that is cut off by its token budget ends in this sense too.

    Raises:
        UnknownNameError: There is no such `match` or `shaping`.
        ValueError: `weight` is negative or not finite, or a problem that starts has no solution.
    """

    @kinds_checked
    def __init__(
        self, match: Match = "result", weight: float = 0.5, shaping: Literal["potential"] | None = None
    ) -> None:
        _check_match(match)
        check_shaping(shaping)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be finite and not negative, got {weight}")
        self.match: Match = match
        self.weight = weight
        self.shaping = shaping

    def bind(self, view: AttemptView) -> None:
        super().bind(view)
        self._matcher = ReferenceMatcher(view, self.match)

    def begin(self, slots: IntArray, problems: Sequence[ProblemLike], prefix_lengths: IntArray) -> None:
        super().begin(slots, problems, prefix_lengths)
        for slot, problem in zip(slots.tolist(), problems, strict=True):
            self._matcher.begin(slot, problem, self._progress[slot].steps)

    def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
        rewards: list[float] = []
        for step in steps:
            reward = self._matcher.add(step.slot, step.text) * self.weight / self._matcher.size(step.slot)
            if step.verdict is not None:
                reward += step.verdict.correct
                if self.shaping == "potential":
                    reward -= self._matcher.matched(step.slot) * self.weight / self._matcher.size(step.slot)
            rewards.append(reward)
        return rewards


class ReferenceMatcher:
    """Matches steps of the attempts in an environment's slots with the reference solution's.

    By the rules at the top of this module.

    Args:
        view: Environment of the attempts.
        match: Property that a step and a reference step must share, see `DenseReward`.

    Raises:
        UnknownNameError: There is no such `match`.
    """

    def __init__(self, view: AttemptView, match: Match = "result") -> None:
        _check_match(match)
        self._view = view
        self._reader = _READERS[match]
        self._alignments: dict[int, _Alignment] = {}

    def begin(self, slot: int, problem: ProblemLike, given: Sequence[str]) -> None:
        """An attempt begins in a slot, whose steps `given` by a reset prefix count as stated.

        Raises:
            ValueError: The problem has no solution.
        """
        alignment = self._alignments[slot] = _Alignment(self._reference(problem))
        for step in given:
            alignment.add(self._read(step))
        alignment.paid = 0

    def add(self, slot: int, step: str) -> int:
        """The attempt takes a step: returns 1 if that makes the match with the reference longer, and else 0."""
        return self._alignments[slot].add(self._read(step))

    def size(self, slot: int) -> int:
        """Number of different statements of the reference; at least 1."""
        return self._alignments[slot].size

    def matched(self, slot: int) -> int:
        """Growth of the match since the attempt began."""
        return self._alignments[slot].paid

    def _reference(self, problem: ProblemLike) -> list[str]:
        """Statements of the steps of the problem's solution, each once, in order."""
        if problem.solution is None:
            raise ValueError(
                f"matching steps needs a solution, and the problem {problem.question[:60]!r} has none: choose another "
                "reward or judge, or data with solutions"
            )
        # Where a data set marks no answer, a line of nothing but the answer is the answer's line.
        steps = [step for step in solutions.steps(problem.solution) if step != problem.answer]
        return list(dict.fromkeys(key for step in steps if (key := self._read(step)) is not None))

    def _read(self, step: str) -> str | None:
        """Statement of a step; None for the answer's line and for no text at all."""
        return None if not step or self._view.is_answer(step) else self._reader(step)


def _check_match(match: str) -> None:
    check_known("match", (match,), _READERS)


class _Alignment:
    """The longest order-preserving match between a reference and what an attempt has stated so far."""

    def __init__(self, reference: Sequence[str]) -> None:
        self.size = max(1, len(reference))
        self.paid = 0
        """Growth of the match since the attempt began."""
        self._positions = {key: position for position, key in enumerate(reference)}
        self._stated: set[str] = set()
        self._tails: list[int] = []
        """Lowest reference position at which a match of each length ends."""

    def add(self, key: str | None) -> int:
        """The attempt states `key`: returns 1 if that makes the match longer, and else 0."""
        if key is None or key in self._stated or len(self._stated) == len(self._positions):
            return 0
        self._stated.add(key)
        position = self._positions.get(key)
        if position is None:
            return 0
        length = bisect_left(self._tails, position)
        if length < len(self._tails):
            self._tails[length] = position
            return 0
        self._tails.append(position)
        self.paid += 1
        return 1
