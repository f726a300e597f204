"""GRPO: attempts at one problem are each other's baseline; clipped ratio, optional KL penalty (Shao et al. 2024)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import AGENTS
from .on_policy import PolicyGradientAgent, PolicyGradientConfig
from .rollouts.attempts import Attempt
from .training.advantages import group_advantages
from .training.learner import Example, Learner, Loss, MicroBatch
from .training.losses import clipped, clipped_surrogate, k3_divergence, masked_aggregate
from .training.reference import Reference, TokenValues, evaluate_as_trained, shuffled


@dataclass(frozen=True)
class GRPOConfig(PolicyGradientConfig):
    """Settings of `GRPO`; what Tsilivis et al. 2025 leave open is by Shao et al. 2024 where nothing else is said.

    Attributes:
        samples_per_problem: the size of a group; 16 [choice].
        clip: how far the ratio to the policy that acted may count; 0.2.
        kl_coef: weight of the k3 penalty against the model as it was before learning; 0, no reference [choice].
        scale_by_std: divide advantages by their group's standard deviation.
        length_normalization: average over each attempt's tokens, so that all attempts weigh the same, or else add them
            up, which is the policy gradient proper (Liu et al. 2025) and the choice where length itself is the subject.
        epochs: passes over each batch of attempts; 1.
        minibatches: updates per pass; 1 [choice]. With one of both, the ratio is 1 and nothing is ever clipped.
    """

    samples_per_problem: int = 16
    clip: float = 0.2
    kl_coef: float = 0.0
    scale_by_std: bool = True
    length_normalization: bool = True
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_problem < 2:
            raise ValueError(f"samples_per_problem is {self.samples_per_problem}: a group of one has no advantages")
        if self.clip <= 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must be at least 0, got {self.kl_coef}")
        episodes = self.problems_per_iteration * self.samples_per_problem
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 1 <= self.minibatches <= episodes:
            raise ValueError(f"minibatches must be between 1 and the {episodes} attempts, got {self.minibatches}")


@AGENTS.register("grpo")
class GRPO(PolicyGradientAgent):
    """Group relative policy optimisation (GRPO): PPO's clipped loss with the group's mean for a value function."""

    name = "grpo"
    config_class = GRPOConfig
    config: GRPOConfig

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._reference = Reference(self.model) if self.config.kl_coef else None

    @property
    def updates_per_iteration(self) -> int:
        return self.config.epochs * self.config.minibatches

    def improve(self, learner: Learner, attempts: Sequence[Attempt], iteration: int) -> dict[str, float]:
        config, count = self.config, len(attempts)
        advantages = group_advantages(self.returns(attempts), config.scale_by_std).ravel()
        examples = [Example(attempt.prompt, attempt.completion) for attempt in attempts]
        # Without a penalty, an attempt without an advantage has no gradient: only the denominators count it.
        trained = advantages != 0 if not config.kl_coef else np.ones(count, bool)
        seed, group = [self.seed, iteration], config.samples_per_problem
        parts = shuffled(count, config.epochs, config.minibatches, seed, group)
        minibatches = [(rows[trained[rows]], len(rows)) for rows in parts]
        first = [rows for rows, _ in minibatches[: config.minibatches]]
        # A single update needs no pass for the old log-probabilities: they are its own.
        old: TokenValues | None = None
        if len(minibatches) > 1 and trained.any():
            (old,) = evaluate_as_trained(lambda batch: learner.evaluate(batch, config.temperature), examples, first)
        reference: TokenValues | None = None
        if (policy := self._reference) is not None:
            (reference,) = evaluate_as_trained(
                lambda batch: (policy.logprobs(learner, batch, config.temperature),), examples, first
            )

        found: dict[str, list[float]] = defaultdict(list)
        for rows, size in minibatches:
            if len(rows):
                batch = [examples[i] for i in rows]
                loss = self._loss(batch, advantages[rows], size, _at(old, rows), _at(reference, rows))
                for name, value in learner.update(batch, loss, self.seed, config.temperature).items():
                    found[name].append(value)
        means = {name: float(np.mean(values)) for name, values in found.items()}
        return {"trained_attempts": float(trained.sum()), **means}

    def _loss(
        self,
        examples: Sequence[Example],
        advantages: NDArray[np.float64],
        size: int,
        old: TokenValues | None,
        reference: TokenValues | None,
    ) -> Loss:
        """The loss of a minibatch of `size` attempts, of which `examples` are those with something to learn from."""
        config, device = self.config, self.model.device
        actions = sum(len(example.completion) for example in examples)
        lengths = [len(example.completion) if config.length_normalization else 1 for example in examples]
        weights = 1 / torch.tensor(lengths, dtype=torch.float32, device=device)
        signals = torch.from_numpy(advantages).float().to(device)

        def loss(batch: MicroBatch, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            mask = batch.action_mask
            before = logprobs.detach() if old is None else batch.spread(old)
            values = clipped_surrogate(logprobs, before, signals[batch.rows, None], mask, config.clip)
            now = logprobs.detach()
            further = {
                "clip_fraction": masked_aggregate(clipped(now, before, mask, config.clip).float(), mask, actions),
                "approx_kl": masked_aggregate(k3_divergence(before, now, mask), mask, actions),
            }
            if reference is not None:
                penalty = k3_divergence(logprobs, batch.spread(reference), mask)
                values = values + config.kl_coef * penalty
                further["reference_kl"] = masked_aggregate(penalty, mask, actions)
            return masked_aggregate(values * weights[batch.rows, None], mask, size), further

        return loss


def _at(values: TokenValues | None, rows: NDArray[np.int64]) -> TokenValues | None:
    return None if values is None else [values[i] for i in rows]
