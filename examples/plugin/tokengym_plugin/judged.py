"""Rewards by a judge's prior: shifted by what it thinks of each step (LMGT, arXiv 2409.04744)."""

from collections.abc import Callable, Sequence

from tokengym.rewards import StepReward
from tokengym.rewards.base import Step

Judge = Callable[[Step], float]


def has_an_equation(step: Step) -> float:
    """1 for a step with an equation that no earlier step has, 0 for one without, and -1 for a copy."""
    if step.text in step.previous:
        return -1.0
    return float("=" in step.text)


class JudgedReward(StepReward):
    """Each step is paid `shift` times a judge's opinion of it, in [-1, 1], beside whatever else is summed.

    Args:
        shift: Weight of the opinion; LMGT's delta, whose value the paper leaves open. [choice]
        judge: Function that returns the opinion: a language model asked for it, an outcome model, or as here a rule.
    """

    def __init__(self, shift: float = 0.1, judge: Judge = has_an_equation) -> None:
        super().__init__()
        if not shift >= 0:
            raise ValueError(f"shift must be at least 0, got {shift}")
        self.shift, self.judge = shift, judge

    def step_rewards(self, steps: Sequence[Step]) -> list[float]:
        """One reward for each of `steps`."""
        opinions = [self.judge(step) for step in steps]
        if any(not -1 <= opinion <= 1 for opinion in opinions):
            raise ValueError(f"a judge's opinion lies in [-1, 1], got {opinions}")
        return [self.shift * opinion for opinion in opinions]
