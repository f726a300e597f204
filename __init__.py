"""Gymnasium environments and agents for teaching language models to reason with reinforcement learning.

Importing this registers the environments, with the import of Gymnasium if that comes later. Models, rewards and agents
are imported when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .lazy import after_import, lazy_names

if TYPE_CHECKING:
    from . import agents, envs, models, rewards
    from .agents import evaluate, make_agent
    from .envs import make_vec_env
    from .models import load
    from .rewards import grade

__version__ = "0.1.0"
__all__ = ["agents", "envs", "evaluate", "grade", "load", "make_agent", "make_vec_env", "models", "rewards"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "": ("agents", "envs", "models", "rewards"),
        "agents": ("evaluate", "make_agent"),
        "envs": ("make_vec_env",),
        "models": ("load",),
        "rewards": ("grade",),
    },
)
after_import("gymnasium", lambda: import_module(".envs.registration", __name__))
