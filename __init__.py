"""Gymnasium environments and agents for teaching language models to reason with reinforcement learning.

Importing this registers the environments with Gymnasium; models, rewards and agents are imported when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .envs import register_envs

if TYPE_CHECKING:
    from . import agents, envs, models, rewards
    from .agents import make_agent

__all__ = ["agents", "envs", "make_agent", "models", "rewards"]

register_envs()


def __getattr__(name: str) -> Any:
    if name == "make_agent":
        from .agents import make_agent

        return make_agent
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
