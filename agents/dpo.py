"""Direct preference optimization (Rafailov et al. 2023) on a policy's own right and wrong attempts, in rounds.

With the chosen completion's likelihood in the loss it is Iterative RPO (Pang et al. 2024, arXiv 2404.19733), whose
authors call that term crucial for reasoning: without it the likelihood of right attempts falls, too, only more slowly
than that of wrong ones.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..rewards.grading.solutions import equation_sequence
from .base import Callback
from .on_policy import RATE_RATIO
from .rollouts.attempts import Attempt, RolloutStatistics
from .rollouts.pools import pool_files, read_pool
from .rounds import RoundsAgent
from .training.fine_tuning import NothingToLearnError, run_epochs, updates
from .training.learner import Example, FineTuneConfig, Learner, Loss, MicroBatch, with_rate
from .training.losses import PREFERENCE_LOSSES, masked_aggregate, preference_loss
from .training.memory import Work
from .training.pairs import Pair, make_pairs


@dataclass(frozen=True)
class DPOConfig(FineTuneConfig):
    """Settings of `DPO`.

    Attributes:
        rounds: Rounds of sampling and training; each starts from the last round's policy, which is its reference. 1 is
            plain DPO. [Pang et al. 2024]
        samples_per_problem: Attempts at each problem in a round. [Pang et al. 2024]
        pairs_per_problem: Largest number of pairs from one problem in a round. [Pang et al. 2024]
        temperature: Sampling temperature of the attempts. [choice]
        problems: Number of problems that attempts are sampled at, the first of the split; `None` uses all.
        pool: Attempts of an earlier run to learn from instead of sampling (offline DPO, in one round): a file or the
            folder of a run.
        beta: Weight of the divergence from the reference. [Rafailov et al. 2023]
        loss: Preference loss: "sigmoid" (DPO), or "ipo" (Azar et al. 2024), which averages log-ratios over
            tokens. [Rafailov et al. 2023]
        label_smoothing: Assumed share of pairs that are labeled the wrong way round, for the "sigmoid" loss (cDPO,
            Mitchell 2023).
        nll_coef: Weight of the negative log-likelihood per token of the chosen completion; 0 is plain
            DPO. [Pang et al. 2024]
        learning_rate: Peak learning rate; `None` uses a twentieth of the model's `recommended_learning_rate` if it has
            one, else 1e-6. [choice]
        epochs: Passes over the pairs of a round. [choice]
        batch_size: Pairs per optimizer step. [Rafailov et al. 2023]
        validation_problems: Validation problems that maj@1 is measured on before the first round and after
            each. [choice]
        patience: Stop after this many rounds without a better validation maj@1. [choice]
    """

    rounds: int = 4
    samples_per_problem: int = 30
    pairs_per_problem: int = 10
    temperature: float = 1.0
    problems: int | None = None
    pool: str | None = None
    beta: float = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    nll_coef: float = 1.0
    learning_rate: float | None = None
    epochs: int = 1
    batch_size: int = 64
    validation_problems: int = 200
    patience: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("rounds", 1), ("samples_per_problem", 2), ("pairs_per_problem", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.validation_problems < 1:
            raise ValueError(f"validation_problems must be at least 1, got {self.validation_problems}")
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")
        if not self.nll_coef >= 0:
            raise ValueError(f"nll_coef must be at least 0, got {self.nll_coef}")
        if self.loss not in PREFERENCE_LOSSES:
            raise ValueError(f"loss must be one of {', '.join(PREFERENCE_LOSSES)}, got {self.loss!r}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {self.label_smoothing}")
        if self.label_smoothing and self.loss == "ipo":
            raise ValueError('label_smoothing is for loss="sigmoid": leave it out with "ipo"')
        if self.pool is not None and self.rounds != 1:
            raise ValueError(f"a pool is learned from in one round: set rounds=1, not {self.rounds}")


class DPO(RoundsAgent[DPOConfig]):
    """Direct preference optimization (DPO) on the policy's own right and wrong attempts, in rounds."""

    name = "dpo"
    config_class = DPOConfig

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pairs: list[Pair] = []
        if self.config.pool is not None:
            pool_files(self.config.pool)  # before anything is done

    @classmethod
    def work(cls, config: Any, policy: PreTrainedModel) -> Work:
        return replace(super().work(config, policy), samples_per_prompt=2)

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Runs rounds until the configured number, the budget or validation says stop; the best one's policy stays.

        With a run folder every finished round is kept, and learning continues after the last one, in the middle of its
        sampling or its training too.

        Raises:
            ValueError: The problems never end and `problems` is not set, the budget does not cover one round, or the
                pool has other problems or another tokenizer.
            NothingToLearnError: No problem has both a right and a wrong attempt.
        """
        problems = self.count_problems(self.config.problems) if self.config.pool is None else 0
        return self.learn_in_rounds(problems, total_episodes, callback, progress_bar)

    def sample_round(self, number: int, episodes: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """Samples K attempts at every problem, or reads the pool, and makes pairs of them, the same on every rank."""
        config, started = self.config, time.perf_counter()
        statistics = RolloutStatistics()
        if config.pool is not None:
            groups = read_pool(config.pool, self.env, config.problems, config.samples_per_problem)
            attempts = [attempt for group in groups.values() for attempt in group]
        else:
            own = self.collect_attempts(
                self.policy.with_sampling(temperature=config.temperature),
                self.env,
                episodes // config.samples_per_problem,
                config.samples_per_problem,
                seed=self.round_seed(number),
                folder=self.round_folder(number),
                description=f"round {number}: sampling",
                progress_bar=progress_bar,
            )
            attempts = [attempt for part in self.ranks.gather(own) for attempt in part]
            for attempt in attempts:
                statistics.add(attempt)
            self.num_attempts += statistics.attempts
            self.num_tokens += statistics.tokens
            metrics |= statistics.metrics(time.perf_counter() - started)
        self._pairs = make_pairs(attempts, self._key, config.pairs_per_problem, self.round_seed(number))
        metrics["rollout/pairs"] = float(len(self._pairs))
        if not self._pairs:
            raise NothingToLearnError(
                f"none of {len(attempts)} attempts make a pair: no problem has both a right and a wrong one that ended "
                "within its token budget. Raise samples_per_problem or temperature, or choose other problems"
            )

    def _key(self, attempt: Attempt) -> str:
        """Key by which two attempts at a problem are the same: their equations, or their text if there are none."""
        text = self.env.decode(attempt.completion)
        return f"{equation_sequence(text)}\n{attempt.answer}" if equation_sequence(text) else text

    def train_round(
        self, number: int, base: Mapping[str, Tensor], metrics: dict[str, float], progress_bar: bool
    ) -> None:
        """One round's updates; the policy as it is now is their reference."""
        if not number:
            return
        config, pairs, started = self.config, self._pairs, time.perf_counter()
        learner = Learner(
            self.model,
            with_rate(config, self.model, RATE_RATIO),
            updates(len(pairs), config),
            self.accelerator,
            len(self.tokenizer),
        )
        self.model.eval()  # dropout would make the policy another than the one whose log-ratios are compared
        examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
        reference = _sums(learner, examples)
        folder = self.round_folder(number)

        def update(rows: NDArray[np.int64], seed: int) -> dict[str, float]:
            both = (2 * rows[:, None] + np.arange(2)).ravel()
            return update_on_pairs(learner, [examples[i] for i in both], reference[both], config, seed)

        with self.progress(learner.total_steps, f"round {number}: training", progress_bar) as bar:

            def on_step(step: int, total: int, newest: dict[str, float]) -> None:
                bar.update()
                metrics.update({f"train/{name}": value for name, value in newest.items()})

            run_epochs(
                learner,
                len(pairs),
                config,
                update,
                seed=self.round_seed(number),
                checkpoints=None if folder is None else folder / "training",
                on_step=on_step,
            )
        metrics["time/train_seconds"] = time.perf_counter() - started


def update_on_pairs(
    learner: Learner, examples: Sequence[Example], reference: NDArray[np.float64], config: DPOConfig, seed: int
) -> dict[str, float]:
    """One optimizer step on pairs.

    The loss couples the two completions of a pair, which may lie in different micro-batches. So its derivative by each
    completion's log-probability is computed first, without a graph of the model; the update then weighs
    log-probabilities with it, which has the same gradient.

    Args:
        learner: Learner of the policy.
        examples: Chosen and rejected completions in turns.
        reference: `[2P]` log-probabilities of the completions under the reference.
        config: Loss and its weights.
        seed: Seed of the update.

    Returns:
        What `Learner.update` returns, with the `loss` of the pairs, the `accuracy` with which the chosen one is
        preferred, the mean `margin` of the implicit rewards beta log(pi / pi_ref), and those of both,
        `chosen_reward` and `rejected_reward`.
    """
    device, lengths = learner.base.device, np.array([len(example.completion) for example in examples])
    ratios = torch.from_numpy(_sums(learner, examples) - reference).requires_grad_()
    scaled = ratios / torch.from_numpy(lengths) if config.loss == "ipo" else ratios
    margins = scaled[0::2] - scaled[1::2]
    preference = preference_loss(margins, config.beta, config.loss, config.label_smoothing).mean()
    (slopes,) = torch.autograd.grad(preference, ratios)
    likelihood = np.zeros(len(examples))
    likelihood[0::2] = config.nll_coef / (len(examples) // 2 * lengths[0::2])
    weights = (slopes - torch.from_numpy(likelihood)).float().to(device)

    metrics = learner.update(examples, _weighted(weights), seed)
    rewards = config.beta * ratios.detach()
    nll = -(likelihood * (ratios.detach().numpy() + reference)).sum()
    return metrics | {
        "loss": preference.item() + float(nll),
        "accuracy": (margins > 0).double().mean().item(),
        "margin": config.beta * margins.mean().item(),
        "chosen_reward": rewards[0::2].mean().item(),
        "rejected_reward": rewards[1::2].mean().item(),
    }


def _weighted(weights: Tensor) -> Loss:
    """The sum of all tokens' log-probabilities, each attempt's with a weight of its own."""

    def loss(batch: MicroBatch, logprobs: Tensor) -> Tensor:
        return masked_aggregate(weights[batch.rows, None] * logprobs, batch.action_mask, 1)

    return loss


def _sums(learner: Learner, examples: Sequence[Example]) -> NDArray[np.float64]:
    """Log-probabilities `[A]` of whole completions."""
    return np.array([values.sum(dtype=np.float64) for values in learner.logprobs(examples)])
