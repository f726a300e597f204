"""Problem sources: where the questions, answers and solutions come from."""

from .base import PROBLEMS, SPLITS, Problem, ProblemList, ProblemSource, make_problems

__all__ = ["PROBLEMS", "SPLITS", "Problem", "ProblemList", "ProblemSource", "make_problems"]
