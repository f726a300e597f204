"""Grading of attempts, and the rewards that pay for them."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .base import (
        RUNNING,
        TERMINATED,
        TRUNCATED,
        AttemptReward,
        AttemptView,
        FinishedAttempt,
        ProblemLike,
        Reward,
        RewardError,
        Step,
        StepReward,
    )
    from .dense import DenseReward
    from .grading.latex import grade_free_form
    from .grading.numbers import Verdict, grade, normalize_number
    from .judged import JudgedReward
    from .outcome import OutcomeReward
    from .product import ProductReward
    from .registry import REWARDS, make_reward
    from .sparse import SparseReward
    from .sum import SumReward

__all__ = [
    "REWARDS",
    "RUNNING",
    "TERMINATED",
    "TRUNCATED",
    "AttemptReward",
    "AttemptView",
    "DenseReward",
    "FinishedAttempt",
    "JudgedReward",
    "OutcomeReward",
    "ProblemLike",
    "ProductReward",
    "Reward",
    "RewardError",
    "SparseReward",
    "Step",
    "StepReward",
    "SumReward",
    "Verdict",
    "grade",
    "grade_free_form",
    "make_reward",
    "normalize_number",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "base": (
            "RUNNING",
            "TERMINATED",
            "TRUNCATED",
            "AttemptReward",
            "AttemptView",
            "FinishedAttempt",
            "ProblemLike",
            "Reward",
            "RewardError",
            "Step",
            "StepReward",
        ),
        "dense": ("DenseReward",),
        "grading.latex": ("grade_free_form",),
        "grading.numbers": ("Verdict", "grade", "normalize_number"),
        "judged": ("JudgedReward",),
        "outcome": ("OutcomeReward",),
        "product": ("ProductReward",),
        "registry": ("REWARDS", "make_reward"),
        "sparse": ("SparseReward",),
        "sum": ("SumReward",),
    },
    moved={"Attempt": "tokengym.rewards:FinishedAttempt"},
)
