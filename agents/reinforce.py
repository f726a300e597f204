"""REINFORCE: the policy gradient itself, with a choice of baselines (Williams 1992; RLOO, Kool et al. 2019)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .configs.reinforce import ReinforceConfig
from .on_policy import PolicyGradientAgent
from .rollouts.attempts import Attempt
from .training.advantages import leave_one_out, mean_baseline
from .training.learner import Example, Learner, MicroBatch
from .training.losses import masked_aggregate, policy_gradient

BASELINES = {"none": lambda returns: returns, "mean": mean_baseline, "rloo": leave_one_out}


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
        examples = [Example(attempts[i].prompt, attempts[i].completion, attempts[i].kept) for i in trained]
        weights = torch.from_numpy(advantages[trained]).float().to(self.model.device)

        sampled = [attempts[i].logprobs for i in trained]
        actions = sum(map(len, sampled))

        def loss(batch: MicroBatch, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            mask = batch.action_mask
            values = policy_gradient(logprobs, weights[batch.rows, None], mask)
            values, found = self.corrected(values, logprobs.detach(), batch.spread(sampled), mask, actions)
            return masked_aggregate(values, mask, len(attempts)), found

        return metrics | learner.update(examples, loss, seed=self.seed, temperature=self.config.temperature)
