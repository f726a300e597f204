"""Problems as Markov decision processes: problem sources, token environments, curricula, registration, adapters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import IDS, make_vec_env, register_envs

if TYPE_CHECKING:
    from .curriculum import CURRICULA, Curriculum, Sequential, Uniform, make_curriculum
    from .problems import PROBLEMS, Problem, ProblemList, ProblemSource, make_problems
    from .sb3 import SB3VecEnv
    from .token_env import TokenEnv
    from .token_vector_env import TokenVectorEnv, slot_info

__all__ = [
    "CURRICULA",
    "IDS",
    "PROBLEMS",
    "Curriculum",
    "Problem",
    "ProblemList",
    "ProblemSource",
    "SB3VecEnv",
    "Sequential",
    "TokenEnv",
    "TokenVectorEnv",
    "Uniform",
    "make_curriculum",
    "make_problems",
    "make_vec_env",
    "register_envs",
    "slot_info",
]

_HOMES = {
    "curriculum": ("CURRICULA", "Curriculum", "Sequential", "Uniform", "make_curriculum"),
    "problems": ("PROBLEMS", "Problem", "ProblemList", "ProblemSource", "make_problems"),
    "sb3": ("SB3VecEnv",),
    "token_env": ("TokenEnv",),
    "token_vector_env": ("TokenVectorEnv", "slot_info"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # `import tokengym` registers the environments and stays light: what they are made of is imported when it is used.
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
