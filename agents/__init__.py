"""Agents: what learns, and how what was learned is measured.

The text of a setting ends with the source of its default in brackets: a work, [Havrilla et al. 2024] for instance, or
[choice] where it is our own. [Yu et al. 2025: 10] names a value other than the default. Works that recur are:

- Eisenstein et al. 2023, "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking"
  (arXiv 2312.09244)
- Havrilla et al. 2024, "Teaching Large Language Models to Reason with Reinforcement Learning" (arXiv 2403.04642)
- Havrilla et al. 2024, GLoRe, "GLoRe: When, Where, and How to Improve LLM Reasoning via Global and Local Refinements"
  (arXiv 2402.10963)
- Lightman et al. 2023, "Let's Verify Step by Step" (arXiv 2305.20050)
- Pang et al. 2024, "Iterative Reasoning Preference Optimization" (arXiv 2404.19733)
- Rafailov et al. 2023, "Direct Preference Optimization" (arXiv 2305.18290)
- Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347)
- Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300)
- Tsilivis et al. 2025, "How Reinforcement Learning After Next-Token Prediction Facilitates Learning" (arXiv 2510.11495)
- Wang et al. 2024, "Math-Shepherd: Verify and Reinforce LLMs Step-by-step without Human Annotations" (arXiv 2312.08935)
- Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" (arXiv 2503.14476)
- Yuan et al. 2023, "Scaling Relationship on Learning Mathematical Reasoning with Large Language Models"
  (arXiv 2308.01825)
- trlx, the library of Havrilla et al. 2024
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .ares import ARES
    from .backtranslation import Backtranslation
    from .base import Agent
    from .dpo import DPO
    from .evaluation.evaluate import Evaluation, evaluate
    from .expert_iteration import RFT, ExpertIteration, STaR
    from .grpo import GRPO
    from .mpo import MPO
    from .outcome_models import ORM, SORM
    from .ppo import PPO
    from .preference import PreferenceModel
    from .pretrain import Pretrain
    from .prm import PRM
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
    "ARES",
    "DPO",
    "GRPO",
    "MPO",
    "ORM",
    "PPO",
    "PRM",
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
    "PreferenceModel",
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
        "ares": ("ARES",),
        "backtranslation": ("Backtranslation",),
        "base": ("Agent",),
        "dpo": ("DPO",),
        "rollouts.conditioned_policy": ("ConditionedPolicy", "load_policy"),
        "evaluation.evaluate": ("Evaluation", "evaluate"),
        "expert_iteration": ("RFT", "ExpertIteration", "STaR"),
        "grpo": ("GRPO",),
        "mpo": ("MPO",),
        "outcome_models": ("ORM", "SORM"),
        "rollouts.policy": ("CausalLMPolicy",),
        "ppo": ("PPO",),
        "preference": ("PreferenceModel",),
        "pretrain": ("Pretrain",),
        "prm": ("PRM",),
        "rcrl": ("RCRL",),
        "registry": ("AGENTS", "make_agent"),
        "reinforce": ("Reinforce",),
        "rollouts.attempts": ("Attempt",),
        "rollouts.collect": ("collect",),
        "sft": ("SFT",),
    },
)
