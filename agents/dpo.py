"""Direct preference optimization (Rafailov et al. 2023) on a policy's own right and wrong attempts, in rounds.

With the chosen completion's likelihood in the loss it is Iterative RPO (Pang et al. 2024, arXiv 2404.19733), whose
authors call that term crucial for reasoning: without it the likelihood of right attempts falls, too, only more slowly
than that of wrong ones.

Pairs may also be of single steps that follow the same beginning, as in Step-DPO, see `training.step_pairs`.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..arrays import IntArray
from ..models.vocabulary import num_token_ids
from ..rewards.grading.solutions import equation_sequence
from .base import Callback
from .configs.dpo import DPOConfig
from .on_policy import RATE_RATIO
from .rollouts.attempts import Attempt, RolloutStatistics
from .rollouts.pools import pool_files, read_pool
from .rounds import RoundsAgent
from .training.fine_tuning import NothingToLearnError, run_epochs, updates
from .training.learner import Example, Learner, Loss, MicroBatch, with_rate
from .training.losses import masked_aggregate, preference_loss
from .training.memory import Work
from .training.outcome_labels import check_exact
from .training.pairs import Pair, make_pairs, more_pairs
from .training.step_pairs import label_next_steps, make_step_pairs, step_groups


class DPO(RoundsAgent[DPOConfig]):
    """Direct preference optimization (DPO) on the policy's own right and wrong attempts, in rounds."""

    name = "dpo"
    config_class = DPOConfig

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._pairs: list[Pair] = []
        self._pool: list[list[Attempt]] = []
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
        sampling or its training too. A second call runs as many rounds again, see `RoundsAgent`.

        Raises:
            ValueError: The budget does not cover one round, the pool has other problems or another tokenizer, or exact
                labels of steps are asked of problems that have none.
            NothingToLearnError: No problem has both a right and a wrong attempt, or no two steps make a pair.
        """
        if self.config.step_labels == "exact":
            check_exact(self.env, "step_labels", '"mean"')
        problems = self.count_problems(self.config.problems) if self.config.pool is None else 0
        self._read_pool()
        return self.learn_in_rounds(problems, total_episodes, callback, progress_bar)

    def _read_pool(self) -> None:
        """Reads the pool, if there is one, before the policy is validated.

        Raises:
            NothingToLearnError: Pairs are of attempts, and there are none.
        """
        config = self.config
        if config.pool is None:
            return
        groups = list(read_pool(config.pool, self.env, config.problems, config.samples_per_problem).values())
        outcomes = ({attempt.is_success for attempt in group if attempt.terminated} for group in groups)
        if config.pairs == "attempts" and not any(len(found) > 1 for found in outcomes):
            raise self._no_pairs(sum(map(len, groups)))
        self._pool = groups

    def _no_pairs(self, attempts: int) -> NothingToLearnError:
        config = self.config
        lack = "no problem has both a right and a wrong one that ended within its token budget:"
        if config.pairs == "steps":
            lack = (
                "no two different steps that follow the same beginning have labels that differ by "
                f"step_margin={config.step_margin}: lower it, or"
            )
        return NothingToLearnError(f"none of {attempts} attempts make a pair: {lack} {more_pairs(config.pool)}")

    def sample_round(self, number: int, episodes: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """Samples K attempts at every problem, or reads the pool, and makes pairs of them, the same on every rank."""
        config, started = self.config, time.perf_counter()
        statistics = RolloutStatistics()
        if config.pool is not None:
            groups, self._pool = self._pool, []
            share = self.ranks.share(len(groups))
            own = list(itertools.chain.from_iterable(groups[share.start : share.stop]))
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
        if config.pool is None:
            for attempt in attempts:
                statistics.add(attempt)
            metrics |= self.count(statistics, time.perf_counter() - started)
        if config.pairs == "steps":
            pairs = self._step_pairs(number, own, metrics, progress_bar)
        else:
            pairs = make_pairs(attempts, self._key, config.pairs_per_problem, self.round_seed(number))
        if not pairs:
            raise self._no_pairs(len(attempts))
        self._pairs = self.choose_pairs(pairs)
        metrics["rollout/pairs"] = float(len(self._pairs))

    def _step_pairs(
        self, number: int, own: Sequence[Attempt], metrics: dict[str, float], progress_bar: bool
    ) -> list[Pair]:
        """Pairs of steps of the attempts of all ranks, of which `own` are this one's."""
        config, folder = self.config, self.round_folder(number)

        def count(attempts: Sequence[Attempt], ends: Sequence[IntArray]) -> list[IntArray]:
            counts, cost = self.count_successes(
                self.policy.with_sampling(temperature=config.temperature),
                self.env,
                attempts,
                config.rollouts_per_step,
                seed=self.round_seed(number) + _CONTINUATION_SEED,
                ends=ends,
                stem=None if folder is None else folder / "prefixes",
                description=f"round {number}: continuing steps",
                progress_bar=progress_bar,
            )
            self.num_attempts += cost["attempts"]
            self.num_tokens += cost["tokens"]
            metrics["labels/attempts"], metrics["labels/tokens"] = float(cost["attempts"]), float(cost["tokens"])
            return counts

        labelled = label_next_steps(own, self.env, config.step_labels, config.rollouts_per_step, count)
        everywhere = list(itertools.chain.from_iterable(self.ranks.gather(labelled)))
        groups = step_groups(everywhere, self.tokenizer, config.step_margin)
        return make_step_pairs(groups, config.pairs_per_problem, self.round_seed(number))

    def choose_pairs(self, pairs: list[Pair]) -> list[Pair]:
        """The pairs to train on; all, unless a subclass chooses."""
        return pairs

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
            num_token_ids(self.tokenizer),
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
        preferred, the mean `margin` of the implicit rewards beta log(pi / pi_ref), per token for the loss "ipo", and
        those of both, `chosen_reward` and `rejected_reward`.
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
    rewards = config.beta * scaled.detach()
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


# Seeds of continuations lie between those of this round and of the next.
_CONTINUATION_SEED = 500_009
