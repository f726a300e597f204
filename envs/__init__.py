"""Problems as Markov decision processes: problem sources, token environments, curricula, registration, adapters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import IDS, make_vec_env, register_envs

if TYPE_CHECKING:
    from .arithmetic import Arithmetic
    from .curriculum import CURRICULA, Curriculum, Sequential, Uniform, make_curriculum
    from .dataset import Dataset
    from .doctor import diagnose
    from .gsm8k import GSM8K
    from .problems import PROBLEMS, Problem, ProblemList, ProblemSource, make_problems
    from .sb3 import SB3VecEnv
    from .svamp import SVAMP
    from .token_env import TokenEnv
    from .token_vector_env import TokenVectorEnv, slot_info

__all__ = [
    "CURRICULA",
    "GSM8K",
    "IDS",
    "PROBLEMS",
    "SVAMP",
    "Arithmetic",
    "Curriculum",
    "Dataset",
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

_HOMES = {
    "arithmetic": ("Arithmetic",),
    "curriculum": ("CURRICULA", "Curriculum", "Sequential", "Uniform", "make_curriculum"),
    "dataset": ("Dataset",),
    "doctor": ("diagnose",),
    "gsm8k": ("GSM8K",),
    "problems": ("PROBLEMS", "Problem", "ProblemList", "ProblemSource", "make_problems"),
    "sb3": ("SB3VecEnv",),
    "svamp": ("SVAMP",),
    "token_env": ("TokenEnv",),
    "token_vector_env": ("TokenVectorEnv", "slot_info"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # `import tokengym` registers the environments and stays light: what they are made of is imported when it is used.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "PROBLEMS":
        from . import arithmetic, dataset, gsm8k, svamp  # noqa: F401 - they register themselves
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
