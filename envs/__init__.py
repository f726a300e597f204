"""Problems as Markov decision processes: problem sources, token environments, curricula, registration, adapters."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .curriculum import (
        CURRICULA,
        Backtracking,
        Batch,
        Curriculum,
        PrioritizedReplay,
        Sequential,
        Subset,
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
    from .prompt_encoder import PromptEncoder
    from .registration import IDS, make_vec_env, register_envs
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
    "PromptEncoder",
    "SB3VecEnv",
    "Sequential",
    "Subset",
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
        "curriculum": (
            "CURRICULA",
            "Backtracking",
            "Batch",
            "Curriculum",
            "PrioritizedReplay",
            "Sequential",
            "Subset",
            "Uniform",
            "make_curriculum",
        ),
        "doctor": ("diagnose",),
        "infos": ("slot_info",),
        "problems.arithmetic": ("Arithmetic",),
        "problems.base": ("PROBLEMS", "Problem", "ProblemList", "ProblemSource", "make_problems"),
        "problems.competition_math": ("MATH",),
        "problems.dataset": ("Dataset",),
        "problems.gsm8k": ("GSM8K",),
        "problems.multiplication": ("Multiplication",),
        "problems.parity": ("Parity",),
        "problems.svamp": ("SVAMP",),
        "prompt_encoder": ("PromptEncoder",),
        "registration": ("IDS", "make_vec_env", "register_envs"),
        "sb3": ("SB3VecEnv",),
        "token_env": ("TokenEnv",),
        "token_vector_env": ("TokenVectorEnv",),
    },
)
