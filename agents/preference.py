"""A preference model: rewards that put right attempts above wrong ones at the same problem (Bradley and Terry 1952).

The loss of a pair is -log sigmoid(r(right) - r(wrong)). With an ORM's labels and all pairs at each problem its optimum
is the logit of the ORM's optimum plus a constant of the problem: such a model gains nothing from knowing which problems
are hard, and learns only what tells attempts at one problem apart. So its scores, the sigmoid of the reward, compare
attempts at one problem, and are no probabilities of success.

Pairs may also be of single steps that follow the same beginning, see `training.step_pairs`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays import IntArray
from ..envs.token_vector_env import TokenVectorEnv
from .base import Callback
from .configs.preference import PreferenceModelConfig
from .outcome_models import CONTINUATION_SEED, OutcomeLearner, OutcomeModelAgent
from .rollouts.attempts import Attempt
from .training.fine_tuning import NothingToLearnError
from .training.learner import Example, MicroBatch
from .training.losses import masked_aggregate, pairwise_loss
from .training.outcome_labels import Labelled, check_exact
from .training.pairs import Group, more_pairs
from .training.step_pairs import label_next_steps, step_groups


class PreferenceModel(OutcomeModelAgent[PreferenceModelConfig]):
    """Preference model: learns from pairs of attempts at one problem which of them is right."""

    name = "preference"
    config_class = PreferenceModelConfig

    def _labels(self, progress_bar: bool, metrics: dict[str, float]) -> tuple[list[Labelled], list[Labelled]]:
        if self.config.step_labels == "exact":  # before anything is sampled
            check_exact(self.env, "step_labels", '"mean"')
        return super()._labels(progress_bar, metrics)

    def _label(self, name: str, env: TokenVectorEnv, attempts: Sequence[Attempt], progress_bar: bool) -> list[Labelled]:
        """Labels of steps to learn from, if pairs are of steps; reports are about whole attempts."""
        config, folder = self.config, self.run_path
        if config.pairs == "attempts" or name != "train":
            return super()._label(name, env, attempts, progress_bar)

        def count(attempts: Sequence[Attempt], ends: Sequence[IntArray]) -> list[IntArray]:
            counts, cost = self.count_successes(
                self.policy.with_sampling(temperature=config.temperature),
                env,
                attempts,
                config.rollouts_per_step,
                seed=self.seed + CONTINUATION_SEED,
                ends=ends,
                stem=None if folder is None else folder / name / "prefixes",
                progress_bar=progress_bar,
            )
            self.num_attempts += cost["attempts"]
            self.num_tokens += cost["tokens"]
            return counts

        return label_next_steps(attempts, env, config.step_labels, config.rollouts_per_step, count)

    def _train(
        self, labelled: Sequence[Labelled], metrics: dict[str, float], callback: Callback | None, progress_bar: bool
    ) -> int:
        if self.config.pairs == "steps":
            groups = step_groups(labelled, self.tokenizer, self.config.step_margin)
            if not groups:
                raise NothingToLearnError(
                    f"no two steps that follow the same beginning of {len(labelled)} attempts have labels that differ "
                    f"by step_margin={self.config.step_margin}: lower it, or {more_pairs(self.config.pool)}"
                )
        else:
            groups, left_out = mixed_groups(labelled)
            metrics["labels/one_sided_problems"] = left_out
            if not groups:
                raise NothingToLearnError(
                    f"none of {left_out} problems has both a right and a wrong attempt, so there are no pairs to learn "
                    f"from: {more_pairs(self.config.pool)}"
                )
        metrics |= {
            "train/problems": len({group.problem_id for group in groups}),
            f"train/{self.config.pairs}": sum(len(group.examples) for group in groups),
            "train/pairs": sum(len(group.pairs) for group in groups),
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
            np.array([float(item.attempt.is_success) for item in items]),
            problem_id,
        )
        for problem_id, items in found.items()
    ]
    mixed = [group for group in groups if len(group.pairs)]
    return mixed, len(groups) - len(mixed)


def update_on_groups(
    learner: OutcomeLearner, groups: Sequence[Group], center_coef: float, seed: int
) -> dict[str, float]:
    """One optimizer step on all pairs of some groups of completions.

    The loss couples completions that may lie in different micro-batches. So its derivative by each one's reward is
    computed first, without a graph of the model; the update then weighs rewards with it, which has the same gradient,
    and each completion goes through the model once however many pairs it is in.

    Args:
        learner: Learner of the outcome model.
        groups: Completions of each prompt; every group counts the same.
        center_coef: Weight of the mean squared sum of the rewards of a pair.
        seed: Seed of the update.

    Returns:
        What `Learner.update` returns, with the `loss` of the pairs, the `accuracy`, the mean over groups of the share
        of pairs whose better one has the higher reward, and the mean `margin` of the rewards.
    """
    examples = [example for group in groups for example in group.examples]
    rewards = torch.tensor([float(values[-1]) for values in learner.evaluate(examples)[0]], dtype=torch.float64)
    rewards.requires_grad_()
    losses: list[Tensor] = []
    margins: list[Tensor] = []
    for group, own in zip(groups, rewards.split([len(group.examples) for group in groups]), strict=True):
        right, wrong = own[torch.from_numpy(group.pairs)].T
        losses.append(pairwise_loss(right, wrong, center_coef))
        margins.append((right - wrong).detach())
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
