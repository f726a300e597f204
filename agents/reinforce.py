"""REINFORCE: the policy gradient itself, with a choice of baselines (Williams 1992; RLOO, Kool et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .on_policy import PolicyGradientAgent, PolicyGradientConfig
from .rollouts.attempts import Attempt
from .training.advantages import leave_one_out, mean_baseline
from .training.learner import Example, Learner, MicroBatch
from .training.losses import masked_aggregate, policy_gradient

BASELINES = {"none": lambda returns: returns, "mean": mean_baseline, "rloo": leave_one_out}


@dataclass(frozen=True)
class ReinforceConfig(PolicyGradientConfig):
    """Settings of `Reinforce`.

    Attributes:
        problems_per_iteration: Problems drawn anew in each iteration; one attempt at each makes updates of 1024
            attempts. [choice]
        baseline: Value that returns are compared with: "none", the gradient of E[r log pi]; "mean", the batch's mean
            return; or "rloo", the mean of the other attempts at the same problem, which
            needs `samples_per_problem` >= 2. [Tsilivis et al. 2025]
    """

    problems_per_iteration: int = 1024
    baseline: Literal["none", "mean", "rloo"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {self.baseline!r}")
        if self.baseline == "rloo" and self.samples_per_problem < 2:
            raise ValueError('baseline="rloo" compares attempts at one problem: set samples_per_problem to 2 or more')


class Reinforce(PolicyGradientAgent[ReinforceConfig]):
    """REINFORCE: one step along the policy gradient per batch of attempts; RLOO by `baseline="rloo"`."""

    name = "reinforce"
    config_class = ReinforceConfig

    def improve(self, learner: Learner, attempts: Sequence[Attempt], iteration: int) -> dict[str, float]:
        advantages = BASELINES[self.config.baseline](self.returns(attempts)).ravel() * self.learnable(attempts)
        # An attempt without an advantage has no gradient: only the denominator counts it.
        trained = np.flatnonzero(advantages).tolist()
        metrics = {"trained_attempts": float(len(trained))}
        if not len(trained):
            return metrics
        examples = [Example(attempts[i].prompt, attempts[i].completion) for i in trained]
        weights = torch.from_numpy(advantages[trained]).float().to(self.model.device)

        sampled = [attempts[i].logprobs for i in trained]
        actions = sum(map(len, sampled))

        def loss(batch: MicroBatch, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            mask = batch.action_mask
            values = policy_gradient(logprobs, weights[batch.rows, None], mask)
            values, found = self.corrected(values, logprobs.detach(), batch.spread(sampled), mask, actions)
            return masked_aggregate(values, mask, len(attempts)), found

        return metrics | learner.update(examples, loss, seed=self.seed, temperature=self.config.temperature)
