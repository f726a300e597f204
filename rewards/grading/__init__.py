"""Grading: whether an answer in text equals the reference. Imports no model code, and numpy neither."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .latex import grade_free_form
    from .numbers import Verdict, grade, normalize_number

__all__ = ["Verdict", "grade", "grade_free_form", "normalize_number"]

__getattr__, __dir__ = lazy_names(
    __name__, {"latex": ("grade_free_form",), "numbers": ("Verdict", "grade", "normalize_number")}
)
