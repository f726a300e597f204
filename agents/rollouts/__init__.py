"""Collection of attempts: policies, the rollout loop, continuations of prefixes."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .attempts import Attempt, AttemptFile, RolloutStatistics
    from .collect import Rollout, Start, collect_into, continue_from
    from .conditioned_policy import ConditionedPolicy, load_policy
    from .continuations import label_prefixes
    from .policy import CausalLMPolicy, PolicyState
    from .slots import make_rollout_env, make_vllm, make_vllm_servers

__all__ = [
    "Attempt",
    "AttemptFile",
    "CausalLMPolicy",
    "ConditionedPolicy",
    "PolicyState",
    "Rollout",
    "RolloutStatistics",
    "Start",
    "collect_into",
    "continue_from",
    "label_prefixes",
    "load_policy",
    "make_rollout_env",
    "make_vllm",
    "make_vllm_servers",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "attempts": ("Attempt", "AttemptFile", "RolloutStatistics"),
        "collect": ("Rollout", "Start", "collect_into", "continue_from"),
        "conditioned_policy": ("ConditionedPolicy", "load_policy"),
        "continuations": ("label_prefixes",),
        "policy": ("CausalLMPolicy", "PolicyState"),
        "slots": ("make_rollout_env", "make_vllm", "make_vllm_servers"),
    },
)
