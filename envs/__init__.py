"""Problems as Markov decision processes: problem sources, token environments, curricula, registration, adapters."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names
from .registration import IDS, make_vec_env, register_envs

if TYPE_CHECKING:
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
    from .doctor import diagnose
    from .infos import slot_info
    from .problems.arithmetic import Arithmetic
    from .problems.base import PROBLEMS, Problem, ProblemList, ProblemSource, make_problems
    from .problems.competition_math import MATH
    from .problems.dataset import Dataset
    from .problems.gsm8k import GSM8K
    from .problems.multiplication import Multiplication
    from .problems.parity import Parity
    from .problems.svamp import SVAMP
    from .sb3 import SB3VecEnv
    from .token_env import TokenEnv
    from .token_vector_env import TokenVectorEnv

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
        "problems.arithmetic": ("Arithmetic",),
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
        "problems.dataset": ("Dataset",),
        "doctor": ("diagnose",),
        "problems.gsm8k": ("GSM8K",),
        "problems.competition_math": ("MATH",),
        "problems.multiplication": ("Multiplication",),
        "problems.parity": ("Parity",),
        "problems.base": ("PROBLEMS", "Problem", "ProblemList", "ProblemSource", "make_problems"),
        "sb3": ("SB3VecEnv",),
        "problems.svamp": ("SVAMP",),
        "token_env": ("TokenEnv",),
        "infos": ("slot_info",),
        "token_vector_env": ("TokenVectorEnv",),
    },
)
