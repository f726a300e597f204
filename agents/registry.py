"""Agents by name: the built-in ones, and those of other packages' entry points."""

from typing import TYPE_CHECKING, Any

from ..registry import Registry, attribute
from ..settings import check_kind

if TYPE_CHECKING:
    from pathlib import Path

    from .base import Agent
    from .rollouts.source import Environment

# Each agent's file, whose settings are in the file of that name in `configs`.
_BUILT_IN = {
    "ares": "ares:ARES",
    "backtranslation": "backtranslation:Backtranslation",
    "dpo": "dpo:DPO",
    "ei": "expert_iteration:ExpertIteration",
    "grpo": "grpo:GRPO",
    "mpo": "mpo:MPO",
    "orm": "outcome_models:ORM",
    "ppo": "ppo:PPO",
    "preference": "preference:PreferenceModel",
    "pretrain": "pretrain:Pretrain",
    "prm": "prm:PRM",
    "rcrl": "rcrl:RCRL",
    "reinforce": "reinforce:Reinforce",
    "rft": "expert_iteration:RFT",
    "sft": "sft:SFT",
    "sorm": "outcome_models:SORM",
    "star": "expert_iteration:STaR",
}

AGENTS: "Registry[type[Agent]]" = Registry(
    "agent",
    {name: f"{__package__}.{home}" for name, home in _BUILT_IN.items()},
    base=f"{__package__}.base:Agent",
    factories=False,
)
"""Agents by name; third parties join through the entry-point group `tokengym.agents`."""


def config_class(name: str) -> type:
    """The configuration class of the agent registered under `name`, without PyTorch for a built-in agent.

    Raises:
        UnknownNameError: No agent has that name.
        EntryPointError: The agent is another package's, and cannot be used.
    """
    if name in _BUILT_IN:
        return attribute(f"{__package__}.configs.{_BUILT_IN[name]}Config")
    return AGENTS.get(name).config_class


def make_agent(name: str, env: "Environment", model: "str | Path | None" = None, **config: Any) -> "Agent":
    """The agent registered under `name`, made of the arguments of `Agent` and the fields of its configuration.

    Raises:
        UnknownNameError: No agent has that name.
        TypeError: The name or an argument is of another kind, or unknown.
    """
    check_kind("name", name, str)
    return AGENTS.get(name)(env, model, **config)
