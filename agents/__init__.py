"""Agents: what learns, and how what was learnt is measured.

Every default of a configuration says where it comes from: [paper] is Havrilla et al. 2024, "Teaching Large Language
Models to Reason with Reinforcement Learning" (arXiv 2403.04642), or in `pretrain`, `reinforce` and `grpo` Tsilivis et
al. 2025, "How Reinforcement Learning After Next-Token Prediction Facilitates Learning" (arXiv 2510.11495); [choice] is
ours where the paper does not say.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .backtranslation import Backtranslation
    from .base import Agent
    from .dpo import DPO
    from .evaluation.evaluate import Evaluation, evaluate
    from .expert_iteration import RFT, ExpertIteration, STaR
    from .grpo import GRPO
    from .outcome_models import ORM, SORM
    from .ppo import PPO
    from .pretrain import Pretrain
    from .rcrl import RCRL
    from .registry import AGENTS, make_agent
    from .reinforce import Reinforce
    from .rollouts.attempts import Attempt
    from .rollouts.collect import collect
    from .rollouts.conditioned_policy import ConditionedPolicy, load_policy
    from .rollouts.policy import CausalLMPolicy
    from .sft import SFT

__all__ = [
    "AGENTS",
    "DPO",
    "GRPO",
    "ORM",
    "PPO",
    "RCRL",
    "RFT",
    "SFT",
    "SORM",
    "Agent",
    "Attempt",
    "Backtranslation",
    "CausalLMPolicy",
    "ConditionedPolicy",
    "Evaluation",
    "ExpertIteration",
    "Pretrain",
    "Reinforce",
    "STaR",
    "collect",
    "evaluate",
    "load_policy",
    "make_agent",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "backtranslation": ("Backtranslation",),
        "base": ("Agent",),
        "dpo": ("DPO",),
        "rollouts.conditioned_policy": ("ConditionedPolicy", "load_policy"),
        "evaluation.evaluate": ("Evaluation", "evaluate"),
        "expert_iteration": ("RFT", "ExpertIteration", "STaR"),
        "grpo": ("GRPO",),
        "outcome_models": ("ORM", "SORM"),
        "rollouts.policy": ("CausalLMPolicy",),
        "ppo": ("PPO",),
        "pretrain": ("Pretrain",),
        "rcrl": ("RCRL",),
        "registry": ("AGENTS", "make_agent"),
        "reinforce": ("Reinforce",),
        "rollouts.attempts": ("Attempt",),
        "rollouts.collect": ("collect",),
        "sft": ("SFT",),
    },
)
