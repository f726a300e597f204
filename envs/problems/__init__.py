"""Problem sources: where the questions, answers and solutions come from."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .arithmetic import Arithmetic
    from .base import (
        PROBLEMS,
        SPLITS,
        FiniteSource,
        MissingSplitError,
        Problem,
        ProblemList,
        ProblemSource,
        PublishedSource,
        make_problems,
    )
    from .competition_math import MATH
    from .dataset import Dataset
    from .gsm8k import GSM8K
    from .multiplication import Multiplication
    from .parity import Parity
    from .procedural import Draws, ProceduralSource
    from .prompts import render_prompt
    from .svamp import SVAMP

__all__ = [
    "GSM8K",
    "MATH",
    "PROBLEMS",
    "SPLITS",
    "SVAMP",
    "Arithmetic",
    "Dataset",
    "Draws",
    "FiniteSource",
    "MissingSplitError",
    "Multiplication",
    "Parity",
    "Problem",
    "ProblemList",
    "ProblemSource",
    "ProceduralSource",
    "PublishedSource",
    "make_problems",
    "render_prompt",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "arithmetic": ("Arithmetic",),
        "base": (
            "PROBLEMS",
            "SPLITS",
            "FiniteSource",
            "MissingSplitError",
            "Problem",
            "ProblemList",
            "ProblemSource",
            "PublishedSource",
            "make_problems",
        ),
        "competition_math": ("MATH",),
        "dataset": ("Dataset",),
        "gsm8k": ("GSM8K",),
        "multiplication": ("Multiplication",),
        "parity": ("Parity",),
        "procedural": ("Draws", "ProceduralSource"),
        "prompts": ("render_prompt",),
        "svamp": ("SVAMP",),
    },
)
