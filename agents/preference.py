"""A preference model: rewards that put right attempts above wrong ones at the same problem (Bradley and Terry 1952).

The loss of a pair is -log sigmoid(r(right) - r(wrong)). With an ORM's labels and all pairs at each problem its optimum
is the logit of the ORM's optimum plus a constant of the problem: such a model gains nothing from knowing which problems
are hard, and learns only what tells attempts at one problem apart. So its scores, the sigmoid of the reward, compare
attempts at one problem, and are no probabilities of success.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import Callback
from .configs.preference import PreferenceModelConfig
from .outcome_models import OutcomeLearner, OutcomeModelAgent
from .training.fine_tuning import NothingToLearnError
from .training.learner import Example, MicroBatch
from .training.losses import masked_aggregate, pairwise_loss
from .training.outcome_labels import Labelled


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Attempts at one problem, right and wrong ones.

    Attributes:
        examples: N attempts.
        is_success: `[N]` bool, true for right attempts; at least one is true and one false.
    """

    examples: list[Example]
    is_success: NDArray[np.bool_]

    @property
    def pairs(self) -> int:
        """Number of pairs of a right and a wrong attempt."""
        return int(self.is_success.sum() * (~self.is_success).sum())


class PreferenceModel(OutcomeModelAgent[PreferenceModelConfig]):
    """Preference model: learns from pairs of attempts at one problem which of them is right."""

    name = "preference"
    config_class = PreferenceModelConfig

    def _train(
        self, labelled: Sequence[Labelled], metrics: dict[str, float], callback: Callback | None, progress_bar: bool
    ) -> int:
        groups, left_out = mixed_groups(labelled)
        metrics["labels/one_sided_problems"] = left_out
        if not groups:
            raise NothingToLearnError(
                f"none of {left_out} problems has both a right and a wrong attempt, so there are no pairs to learn "
                "from: raise samples_per_problem or temperature, or choose other problems"
            )
        metrics |= {
            "train/problems": len(groups),
            "train/attempts": sum(len(group.examples) for group in groups),
            "train/pairs": sum(group.pairs for group in groups),
        }

        def update(learner: OutcomeLearner, rows: NDArray[np.int64], seed: int) -> dict[str, float]:
            return update_on_groups(learner, [groups[row] for row in rows], self.config.center_coef, seed)

        return self._optimize(len(groups), update, progress_bar)


def mixed_groups(labelled: Iterable[Labelled]) -> tuple[list[Group], int]:
    """Attempts by problem, where there are right and wrong ones, and the number of problems where there are not.

    An attempt that was cut off by its token budget is wrong, as for an ORM.
    """
    found: dict[str, list[Labelled]] = {}
    for item in labelled:
        found.setdefault(item.attempt.problem.id, []).append(item)
    groups = [
        Group(
            [Example(item.attempt.prompt, item.attempt.completion) for item in items],
            np.array([item.attempt.is_success for item in items]),
        )
        for items in found.values()
    ]
    mixed = [group for group in groups if group.pairs]
    return mixed, len(groups) - len(mixed)


def update_on_groups(
    learner: OutcomeLearner, groups: Sequence[Group], center_coef: float, seed: int
) -> dict[str, float]:
    """One optimizer step on all pairs of some problems' attempts.

    The loss couples attempts that may lie in different micro-batches. So its derivative by each attempt's reward is
    computed first, without a graph of the model; the update then weighs rewards with it, which has the same gradient,
    and each attempt goes through the model once however many pairs it is in.

    Args:
        learner: Learner of the outcome model.
        groups: Attempts at each problem; every problem counts the same.
        center_coef: Weight of the mean squared sum of the rewards of a pair.
        seed: Seed of the update.

    Returns:
        What `Learner.update` returns, with the `loss` of the pairs, the `accuracy`, the mean over problems of the share
        of pairs whose right attempt has the higher reward, and the mean `margin` of the rewards.
    """
    examples = [example for group in groups for example in group.examples]
    rewards = torch.tensor([float(values[-1]) for values in learner.evaluate(examples)[0]], dtype=torch.float64)
    rewards.requires_grad_()
    losses: list[Tensor] = []
    margins: list[Tensor] = []
    for group, own in zip(groups, rewards.split([len(group.examples) for group in groups]), strict=True):
        is_success = torch.from_numpy(group.is_success)
        right, wrong = own[is_success], own[~is_success]
        losses.append(pairwise_loss(right, wrong, center_coef))
        margins.append((right[:, None] - wrong).detach())
    loss = torch.stack(losses).mean()
    (slopes,) = torch.autograd.grad(loss, rewards)
    weights = [np.zeros(len(example.completion), np.float32) for example in examples]
    for weight, slope in zip(weights, slopes.tolist(), strict=True):
        weight[-1] = slope

    def weighted(batch: MicroBatch, logits: Tensor) -> Tensor:
        return masked_aggregate(batch.spread(weights) * logits, batch.action_mask, 1)

    ordered = [(margin > 0).double() + 0.5 * (margin == 0).double() for margin in margins]
    return learner.update(examples, weighted, seed) | {
        "loss": loss.item(),
        "accuracy": float(np.mean([part.mean().item() for part in ordered])),
        "margin": float(np.mean([margin.mean().item() for margin in margins])),
    }
