"""The sparse reward of paper 1, section 1.2: +1 for a correct final answer, 0 for everything else."""

from .base import AttemptReward, FinishedAttempt


class SparseReward(AttemptReward):
    """+1 at the last token of an attempt that was graded correct."""

    def attempt_reward(self, attempt: FinishedAttempt) -> float:
        return float(attempt.verdict.correct)
