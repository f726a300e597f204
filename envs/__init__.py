"""Problems as Markov decision processes: problem sources, token environments, curricula, registration, adapters."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .registration import IDS, make_vec_env, register_envs

if TYPE_CHECKING:
    from .arithmetic import Arithmetic
    from .curriculum import (
        CURRICULA,
        Backtracking,
        Batch,
        Curriculum,
        PrioritizedReplay,
        Sequential,
        Uniform,
        make_curriculum,
    )
    from .dataset import Dataset
    from .doctor import diagnose
    from .gsm8k import GSM8K
    from .math import MATH
    from .multiplication import Multiplication
    from .parity import Parity
    from .problems import PROBLEMS, Problem, ProblemList, ProblemSource, make_problems
    from .sb3 import SB3VecEnv
    from .svamp import SVAMP
    from .token_env import TokenEnv
    from .token_vector_env import TokenVectorEnv, slot_info

__all__ = [
    "CURRICULA",
    "GSM8K",
    "IDS",
    "MATH",
    "PROBLEMS",
    "SVAMP",
    "Arithmetic",
    "Backtracking",
    "Batch",
    "Curriculum",
    "Dataset",
    "Multiplication",
    "Parity",
    "PrioritizedReplay",
    "Problem",
    "ProblemList",
    "ProblemSource",
    "SB3VecEnv",
    "Sequential",
    "TokenEnv",
    "TokenVectorEnv",
    "Uniform",
    "diagnose",
    "make_curriculum",
    "make_problems",
    "make_vec_env",
    "register_envs",
    "slot_info",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "arithmetic": ("Arithmetic",),
        "curriculum": (
            "CURRICULA",
            "Backtracking",
            "Batch",
            "Curriculum",
            "PrioritizedReplay",
            "Sequential",
            "Uniform",
            "make_curriculum",
        ),
        "dataset": ("Dataset",),
        "doctor": ("diagnose",),
        "gsm8k": ("GSM8K",),
        "math": ("MATH",),
        "multiplication": ("Multiplication",),
        "parity": ("Parity",),
        "problems": ("PROBLEMS", "Problem", "ProblemList", "ProblemSource", "make_problems"),
        "sb3": ("SB3VecEnv",),
        "svamp": ("SVAMP",),
        "token_env": ("TokenEnv",),
        "token_vector_env": ("TokenVectorEnv", "slot_info"),
    },
)
