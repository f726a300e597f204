"""Rewards by a judge's prior: shifted by what it thinks of each step (LMGT, arXiv 2409.04744)."""

from collections.abc import Sequence

from tokengym.rewards import JudgedReward, Step


def has_an_equation(steps: Sequence[Step]) -> list[float]:
    """1 for a step with an equation that no earlier step has, 0 for one without, and -1 for a copy."""
    return [-1.0 if step.text in step.previous else float("=" in step.text) for step in steps]


def lmgt(shift: float = 0.1) -> JudgedReward:
    """Each step is paid `shift` times a judge's opinion of it, in [-1, 1], beside whatever else is summed.

    Args:
        shift: Weight of the opinion; LMGT's delta, whose value the paper leaves open. [choice]
    """
    return JudgedReward(has_an_equation, weight=shift)
