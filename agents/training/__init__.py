"""Training of weights: losses, advantages, the optimizer loop, checkpoints and run folders."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .advantages import (
        adapted_kl_coef,
        explained_variance,
        generalized_advantages,
        group_advantages,
        leave_one_out,
        mean_baseline,
        whiten,
    )
    from .checkpoints import load_checkpoint, save_checkpoint
    from .fine_tuning import FineTuneConfig, NothingToLearnError, fine_tune
    from .learner import Example, Learner, MicroBatch, NonFiniteError, OptimizerConfig, collate
    from .losses import clipped_surrogate, k1_divergence, k3_divergence, masked_aggregate, policy_gradient, value_error
    from .reference import Reference
    from .run_folder import RunFolder

__all__ = [
    "Example",
    "FineTuneConfig",
    "Learner",
    "MicroBatch",
    "NonFiniteError",
    "NothingToLearnError",
    "OptimizerConfig",
    "Reference",
    "RunFolder",
    "adapted_kl_coef",
    "clipped_surrogate",
    "collate",
    "explained_variance",
    "fine_tune",
    "generalized_advantages",
    "group_advantages",
    "k1_divergence",
    "k3_divergence",
    "leave_one_out",
    "load_checkpoint",
    "masked_aggregate",
    "mean_baseline",
    "policy_gradient",
    "save_checkpoint",
    "value_error",
    "whiten",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "advantages": (
            "adapted_kl_coef",
            "explained_variance",
            "generalized_advantages",
            "group_advantages",
            "leave_one_out",
            "mean_baseline",
            "whiten",
        ),
        "checkpoints": ("load_checkpoint", "save_checkpoint"),
        "fine_tuning": ("FineTuneConfig", "NothingToLearnError", "fine_tune"),
        "learner": (
            "Example",
            "Learner",
            "MicroBatch",
            "NonFiniteError",
            "OptimizerConfig",
            "collate",
        ),
        "losses": (
            "clipped_surrogate",
            "k1_divergence",
            "k3_divergence",
            "masked_aggregate",
            "policy_gradient",
            "value_error",
        ),
        "reference": ("Reference",),
        "run_folder": ("RunFolder",),
    },
)
