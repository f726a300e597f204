"""Agents: what learns, and how what was learnt is measured."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import AGENTS, Agent, make_agent
    from .evaluation import Evaluation, evaluate
    from .expert_iteration import RFT, ExpertIteration, STaR
    from .policy import CausalLMPolicy
    from .rollouts import Attempt, collect
    from .sft import SFT

__all__ = [
    "AGENTS",
    "RFT",
    "SFT",
    "Agent",
    "Attempt",
    "CausalLMPolicy",
    "Evaluation",
    "ExpertIteration",
    "STaR",
    "collect",
    "evaluate",
    "make_agent",
]

_HOMES = {
    "AGENTS": "base",
    "RFT": "expert_iteration",
    "SFT": "sft",
    "Agent": "base",
    "Attempt": "rollouts",
    "CausalLMPolicy": "policy",
    "Evaluation": "evaluation",
    "ExpertIteration": "expert_iteration",
    "STaR": "expert_iteration",
    "collect": "rollouts",
    "evaluate": "evaluation",
    "make_agent": "base",
}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: only whoever uses an agent waits for them.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
