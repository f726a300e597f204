"""Agents: what learns, and how what was learnt is measured.

Every default of a configuration says where it comes from: [paper] is Havrilla et al. 2024, "Teaching Large Language
Models to Reason with Reinforcement Learning" (arXiv 2403.04642); [choice] is ours where the paper does not say.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "base": ("AGENTS", "Agent", "make_agent"),
        "evaluation": ("Evaluation", "evaluate"),
        "expert_iteration": ("RFT", "ExpertIteration", "STaR"),
        "policy": ("CausalLMPolicy",),
        "rollouts": ("Attempt", "collect"),
        "sft": ("SFT",),
    },
)
