"""GRPO: attempts at one problem are each other's baseline (Shao et al. 2024), with the choices of its successors.

Presets by name, each a published recipe, are in `presets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..models.vocabulary import num_token_ids
from .configs.grpo import GRPOConfig
from .proximal import EntropyLearner, ProximalAgent, at, summarize
from .rollouts.attempts import Attempt
from .training.advantages import AGGREGATIONS, group_advantages
from .training.learner import Example, Learner, Loss, MicroBatch
from .training.losses import (
    DIVERGENCES,
    clipped_importance,
    clipped_surrogate,
    k3_divergence,
    log_ratios,
    masked_aggregate,
    sequence_log_ratios,
)
from .training.memory import Work
from .training.reference import Reference, TokenValues, evaluate_as_trained, shuffled


class GRPO(ProximalAgent[GRPOConfig]):
    """Group relative policy optimization (GRPO): PPO's clipped loss with the group's mean for a value function."""

    name = "grpo"
    config_class = GRPOConfig

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._reference = Reference(self.model) if self.config.kl_coef else None

    @property
    def updates_per_iteration(self) -> int:
        return self.config.epochs * self.config.minibatches

    @classmethod
    def work(cls, config: Any, policy: PreTrainedModel) -> Work:
        make = lambda accelerator, vocab_size: _make_learner(policy, config, 1, accelerator, vocab_size)  # noqa: E731
        return replace(super().work(config, policy), make_learner=make)

    def make_learner(self, total_steps: int) -> EntropyLearner:
        return _make_learner(
            self.model, self.learner_config(), total_steps, self.accelerator, num_token_ids(self.tokenizer)
        )

    def improve(self, learner: Learner, attempts: Sequence[Attempt], iteration: int) -> dict[str, float]:
        config, count = self.config, len(attempts)
        examples = [Example(attempt.prompt, attempt.completion, attempt.kept) for attempt in attempts]
        learnable, returns = self.learnable(attempts), self.returns(attempts)
        advantages = group_advantages(returns, config.scale).ravel()
        # Nothing but a penalty or a bonus gives an attempt without an advantage a gradient: else denominators count it.
        trained = learnable & ((advantages != 0) | (config.kl_coef + config.entropy_coef > 0))
        seed, group = [self.seed, iteration], config.samples_per_problem
        parts = shuffled(count, config.epochs, config.minibatches, seed, group)
        minibatches = [(rows[trained[rows]], rows) for rows in parts]
        first = [rows for rows, _ in minibatches[: config.minibatches]]
        penalized = config.kl_coef > 0 and config.kl_in == "reward"
        if penalized:
            first.append(np.flatnonzero(~learnable))  # masked attempts are part of their group's mean
        # A single update needs no pass for the old log-probabilities: they are its own.
        old: TokenValues | None = None
        if (len(minibatches) > 1 or penalized) and trained.any():
            old = evaluate_as_trained(lambda batch: learner.evaluate(batch, config.temperature), examples, first)[0]
        reference = self.reference_logprobs(learner, examples, first, iteration)
        if penalized and old is not None and reference is not None:
            penalty = np.array([values.sum() for values in self.penalties(old, reference)]).reshape(returns.shape)
            advantages = group_advantages(returns - config.kl_coef * penalty, config.scale).ravel()

        lengths = np.array([len(attempt.completion) for attempt in attempts]) * learnable
        constant = config.length_constant or self.env.max_new_tokens
        updates: list[dict[str, float]] = []
        for rows, part in minibatches:
            if len(rows):
                weights = np.zeros(count)
                weights[part] = AGGREGATIONS[config.aggregation](lengths[part], constant)
                batch = [examples[i] for i in rows]
                sampled = [attempts[i].logprobs for i in rows]
                signals = Signals(advantages[rows], weights[rows], sampled, at(old, rows), at(reference, rows))
                updates.append(learner.update(batch, self._loss(signals), self.seed, config.temperature))
        return {"trained_attempts": float(trained.sum()), **summarize(updates)}

    def _loss(self, signals: "Signals") -> Loss:
        """The loss of a minibatch."""
        config, device = self.config, self.model.device
        actions = sum(len(values) for values in signals.sampled)
        advantages_of, weights_of = (
            torch.from_numpy(values).float().to(device)[:, None] for values in (signals.advantages, signals.weights)
        )

        def loss(batch: MicroBatch, output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs, entropies = output if isinstance(output, tuple) else (output, None)
            mask, advantages, weights = batch.action_mask, advantages_of[batch.rows], weights_of[batch.rows]
            before = logprobs.detach() if signals.old is None else batch.spread(signals.old)
            ratios = log_ratios(logprobs, before, mask)
            if config.ratio == "sequence":
                ratios = sequence_log_ratios(ratios, mask)
            if config.surrogate == "cispo":
                values = clipped_importance(logprobs, ratios, advantages, mask, config.clip, config.upper_clip)
            else:
                values = clipped_surrogate(ratios, advantages, mask, config.clip, config.upper_clip, config.dual_clip)
            values, metrics = self.corrected(values, before, batch.spread(signals.sampled), mask, actions)
            if signals.reference is not None:
                reference = batch.spread(signals.reference)
                distance = k3_divergence(logprobs.detach(), reference, mask)
                metrics["reference_kl"] = masked_aggregate(distance, mask, actions)
                if config.kl_in == "loss":
                    values = values + config.kl_coef * DIVERGENCES[config.kl_estimator](logprobs, reference, mask)
            total = masked_aggregate(values * weights, mask, 1)
            if entropies is not None:
                metrics["entropy"] = masked_aggregate(entropies, mask, actions)
                total = total - config.entropy_coef * metrics["entropy"]
            return total, metrics | self.ratio_metrics(ratios, logprobs, before, mask, actions)

        return loss


def _make_learner(model: PreTrainedModel, config: Any, *arguments: Any) -> EntropyLearner:
    learner = EntropyLearner(model, config, *arguments)
    learner.entropy = config.entropy_coef > 0
    return learner


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """Training signals of the attempts `[A]` of a minibatch.

    Attributes:
        advantages: `[A]` advantage of each attempt.
        weights: `[A]` weight in the loss of each token of an attempt.
        sampled: Log-probabilities `[T]` of each attempt's tokens at sampling time.
        old: Log-probabilities `[T]` of the tokens by training's forward pass before any update; `None` if the update is
            the first.
        reference: Log-probabilities `[T]` of the tokens under the reference, if there is one.
    """

    advantages: NDArray[np.float64]
    weights: NDArray[np.float64]
    sampled: TokenValues
    old: TokenValues | None
    reference: TokenValues | None
