"""ExPO (Zheng et al. 2025, arXiv 2404.16792) with the distance chosen on validation problems.

A policy that was trained for a part of the updates, extrapolated away from the model that its training began from, can
reach or pass the one that was trained for all of them. How far is good is known by measuring alone, and responses tend
to grow with the distance.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ..envs.token_vector_env import TokenVectorEnv
from ..files import new_folder, write_json
from ..models.adapters import save_model
from ..models.extrapolation import extrapolate
from ..models.loading import no_progress_bars
from .evaluation.evaluate import Evaluation, evaluate
from .rollouts.conditioned_policy import ConditionedPolicy
from .rollouts.policy import CausalLMPolicy


def compare_alphas(
    weaker: PreTrainedModel,
    stronger: CausalLMPolicy,
    env: TokenVectorEnv,
    alphas: Sequence[float],
    *,
    problems: int,
    on_step: Callable[[int], object] | None = None,
) -> dict[float, Evaluation]:
    """Greedy evaluations of policies extrapolated by several distances.

    Args:
        weaker: Model that training began from.
        stronger: Policy that was trained from it.
        env: Token environment with `autoreset_mode` DISABLED, as a rule on the validation split.
        alphas: Distances; see `models.extrapolation.extrapolate`.
        problems: Problems to evaluate on, the split's first.
        on_step: Called with the number of attempts that ended, as they end.

    Returns:
        The evaluation of each alpha.

    Raises:
        ValueError: An argument that `extrapolate` or `evaluate` refuses.
    """
    return {
        alpha: evaluate(extrapolated(weaker, stronger, alpha), env, problems=problems, on_step=on_step)
        for alpha in alphas
    }


def best_alpha(results: dict[float, Evaluation]) -> float:
    """The alpha with the highest maj@1; of equal ones the nearest to the stronger model, which is 0."""
    return max(results, key=lambda alpha: (results[alpha].metrics["maj@1"].value, -abs(alpha)))


def extrapolated(weaker: PreTrainedModel, stronger: CausalLMPolicy, alpha: float) -> CausalLMPolicy:
    """The policy with extrapolated weights, and all else as in `stronger`; see `models.extrapolation.extrapolate`."""
    policy = copy.copy(stronger)
    policy.model = extrapolate(weaker, stronger.model, alpha)
    return policy


def save_policy(policy: CausalLMPolicy, folder: Path, record: dict[str, object]) -> None:
    """Writes a policy's model, tokenizer and labels, and `record` as `extrapolation.json`, all at once."""
    with new_folder(folder) as partial, no_progress_bars():
        save_model(policy.model, partial)
        if isinstance(policy, ConditionedPolicy):
            policy.labels.save(partial, policy.tokenizer)
        else:
            policy.tokenizer.save_pretrained(partial)
        write_json(partial / "extrapolation.json", record)
