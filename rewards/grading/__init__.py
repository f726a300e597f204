"""Grading: whether an answer in text equals the reference. Imports no model code."""

from .latex import grade_free_form
from .numbers import Verdict, grade, normalize_number

__all__ = ["Verdict", "grade", "grade_free_form", "normalize_number"]
