"""Outcome models: p(correct | question, prefix), learned from a policy's own attempts (Havrilla et al. 2024).

An ORM learns from final outcomes: every prefix of an attempt bears the attempt's label, so it estimates the value of
the policy that sampled them. A stepwise ORM (SORM; GLoRe, arXiv 2402.10963) learns whether the answer can still be
reached: a prefix is positive if any of K continuations succeeds, so it approximates the value of the best policy. The
two differ in their labels and in how these are balanced, and in nothing else.
"""

import functools
import itertools
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from ..arrays import IntArray
from ..envs.token_vector_env import TokenVectorEnv
from ..files import read_json, write_json
from ..models.forward import compute_dtype
from ..models.loading import load
from ..models.outcome import OutcomeModel, is_outcome_model
from ..models.token_scorer import TokenScorer
from ..models.tokenizers import TINY, TINY_ORM
from ..models.vocabulary import num_token_ids
from ..registry import unknown_name
from .base import Agent, Callback
from .configs.lora import LoRA
from .configs.optimizer import OptimizerConfig
from .configs.outcome_models import ORMConfig, OutcomeModelConfig, SORMConfig
from .evaluation.outcome_report import OutcomeReport
from .rollouts.attempts import Attempt, RolloutStatistics
from .rollouts.pools import pool_files, read_pool
from .training.fine_tuning import run_epochs, updates
from .training.learner import Example, Learner, Loss, MicroBatch
from .training.losses import masked_aggregate
from .training.memory import ScoreLearner, Work
from .training.outcome_labels import (
    Labelled,
    balanced_lengths,
    balanced_problems,
    label_statistics,
    monotone,
    outcome_labels,
    spread,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OutcomeModelConfigT = TypeVar("OutcomeModelConfigT", bound=OutcomeModelConfig)
ORMConfigT = TypeVar("ORMConfigT", bound=ORMConfig)
SORMConfigT = TypeVar("SORMConfigT", bound=SORMConfig)


class OutcomeModelAgent(Agent[OutcomeModelConfigT]):
    """Base of agents that train an outcome model on a policy's attempts and report on held-out ones.

    `model` is the policy, which stays as it is; what is trained is `outcome_model`, a copy of it with a head of one
    logit. `save` writes the outcome model, and `OutcomeModel.load` reads it.

    Held-out attempts are at problems of the validation split: neither the outcome model nor, as a rule, the policy has
    been trained on them, so they look like those that the model will judge. A share of the training problems would not:
    there the policy knows demonstrations by heart.
    """

    takes_lora = False
    follows_curriculum = False
    outcome_model: OutcomeModel
    """Trained outcome model, after `learn`."""
    reports: dict[str, OutcomeReport]
    """Held-out reports after `learn`: on the model, by its kind, and on others by their path."""

    @property
    def kind(self) -> str:
        """Kind of the outcome model, see `models.outcome.KINDS`."""
        return self.name

    @classmethod
    def work(cls, config: OutcomeModelConfig, policy: "PreTrainedModel") -> Work:
        scorer = TokenScorer._from_config(policy.config, dtype=policy.dtype)
        make = lambda accelerator, vocab_size: ScoreLearner(scorer, config, 1, accelerator, vocab_size)  # noqa: E731
        return Work(policy, scorer, make, samples_per_prompt=config.samples_per_problem)

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if lora.rank is not None:
            raise ValueError("an outcome model is trained as a whole: leave out lora_rank")
        policy, tokenizer = super()._load_model(model, device, dtype, lora)
        self._compared: dict[str, OutcomeModel] = {}
        self.outcome_model = self._untrained(policy, tokenizer, device, dtype)
        if self.config.pool is not None:
            pool_files(self.config.pool)  # before anything is sampled
        return policy, tokenizer

    def _untrained(
        self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", device: str, dtype: str
    ) -> OutcomeModel:
        """The outcome model that training starts from."""
        base = self.config.base
        if base is None:
            return OutcomeModel.from_causal_lm(policy, tokenizer, self.kind, self.seed)
        if is_outcome_model(base):
            trained = OutcomeModel.load(base, tokenizer, device, dtype)
            return OutcomeModel(trained.model, tokenizer, self.kind)
        if base.startswith("tokengym/") and base != TINY and not Path(base).exists():
            raise unknown_name("base", base, (TINY, TINY_ORM))
        model, other = load(base, device=device, dtype=dtype, attn=self._attn)
        if other.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"the tokenizers of base={base!r} and of the policy {policy.name_or_path!r} differ")
        return OutcomeModel.from_causal_lm(model, tokenizer, self.kind, self.seed)

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Samples attempts, labels them, trains on them and reports on held-out ones.

        With a run folder the attempts, their labels and the training can be interrupted and taken up again; a finished
        run is left as it is.

        Raises:
            ValueError: `total_episodes` is given, the pool has other problems or another tokenizer, or there is nothing
                to learn because all labels are equal.
        """
        if total_episodes is not None:
            raise ValueError(f"{self.name} samples by problems and samples_per_problem: set these")
        if self._finished():
            return self
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        labelled, held_out = self._labels(progress_bar, metrics)
        metrics |= {f"labels/{name}": value for name, value in label_statistics(labelled).items()}
        metrics["time/label_seconds"] = time.perf_counter() - started

        started = time.perf_counter()
        steps = self._train(labelled, metrics, callback, progress_bar)
        metrics["time/train_seconds"] = time.perf_counter() - started
        judges = {self.name: self.outcome_model, **self._compared}
        self.reports = {name: OutcomeReport.of(model, held_out) for name, model in judges.items()}
        for name, report in self.reports.items():
            values = report.metrics()
            metrics |= values if name == self.name else {f"compare/{key}": value for key, value in values.items()}
        self.keep_model()
        if self.num_attempts:
            metrics["rollout/attempts"] = self.num_attempts  # the steps of its lines count updates
        self.log(metrics, callback, steps)
        if self.run is not None:
            write_json(self.run.path / "report.json", {name: asdict(report) for name, report in self.reports.items()})
        return self

    def _write(self, folder: Path) -> None:
        self.outcome_model.save(folder)

    def _finished(self) -> bool:
        """True if the run folder holds a finished run, which is then read."""
        report = None if self.run_path is None else self.run_path / "report.json"
        if report is None or not report.exists():
            return False
        self.outcome_model = OutcomeModel.load(report.parent / "model", device=str(self.model.device))
        self.reports = {name: OutcomeReport.from_dict(values) for name, values in read_json(report).items()}
        return True

    # ------------------------------------------------------------------------------------------------------- attempts

    def _training_attempts(self, progress_bar: bool, metrics: dict[str, float]) -> list[Attempt]:
        """The attempts to learn from, as far as they are this rank's share."""
        if self.config.pool is not None:
            config = self.config
            return self._share(read_pool(self.config.pool, self.env, config.problems, config.samples_per_problem))
        problems, started = self.count_problems(self.config.problems), time.perf_counter()
        attempts = self._collect_split("train", self.env, problems, progress_bar)
        ours, statistics = RolloutStatistics(), RolloutStatistics()
        for attempt in attempts:
            ours.add(attempt)
        for part in self.ranks.gather(ours):
            statistics.merge(part)
        self.num_attempts, self.num_tokens = statistics.attempts, statistics.tokens
        metrics |= statistics.metrics(time.perf_counter() - started)
        return attempts

    def _collect_split(self, name: str, env: TokenVectorEnv, problems: int, progress_bar: bool) -> list[Attempt]:
        """K attempts at each of the first problems, this rank's share, kept in the `<name>` folder of the run."""
        return self.collect_attempts(
            self.policy.with_sampling(temperature=self.config.temperature),
            env,
            problems,
            self.config.samples_per_problem,
            seed=self.seed,
            folder=None if self.run_path is None else self.run_path / name,
            description=f"{name}: sampling",
            progress_bar=progress_bar,
        )

    def _share(self, groups: dict[str, list[Attempt]]) -> list[Attempt]:
        """The attempts that are this rank's share, all those at a problem together."""
        share = self.ranks.share(len(groups))
        return list(itertools.chain.from_iterable(list(groups.values())[share.start : share.stop]))

    def _gather_labels(self, labelled: list[Labelled]) -> list[Labelled]:
        """The labeled attempts of all ranks, in their order."""
        return [item for part in self.ranks.gather(labelled) for item in part]

    # --------------------------------------------------------------------------------------------------------- labels

    def _labels(self, progress_bar: bool, metrics: dict[str, float]) -> tuple[list[Labelled], list[Labelled]]:
        """Labeled attempts of all ranks to learn from, and those to report on."""
        attempts = self._training_attempts(progress_bar, metrics)
        labelled = self._gather_labels(self._label("train", self.env, attempts, progress_bar))
        validation, wanted = self.make_validation_env(), self.config.validation_problems
        held_out = self._collect_split("validation", validation, min(wanted, validation.size or wanted), progress_bar)
        return labelled, self._gather_labels(self._label("validation", validation, held_out, progress_bar))

    def _label(self, name: str, env: TokenVectorEnv, attempts: Sequence[Attempt], progress_bar: bool) -> list[Labelled]:
        """Every step bears the outcome of its attempt; one that was cut off by its token budget has failed."""
        return outcome_labels(attempts, self.tokenizer)

    # ------------------------------------------------------------------------------------------------------- training

    @abstractmethod
    def _train(
        self, labelled: Sequence[Labelled], metrics: dict[str, float], callback: Callback | None, progress_bar: bool
    ) -> int:
        """Trains the outcome model; returns the number of optimizer steps."""

    def _optimize(
        self,
        count: int,
        update: "Callable[[OutcomeLearner, NDArray[np.int64], int], dict[str, float]]",
        progress_bar: bool,
    ) -> int:
        """Runs the epochs of a training on `count` items; returns the number of optimizer steps.

        Args:
            count: Number of items that the batches are made of.
            update: Function that makes one optimizer step on the items with the given numbers, with a seed, and returns
                its metrics.
            progress_bar: Show progress.
        """
        config = self.config
        learner = OutcomeLearner(self.outcome_model, config, updates(count, config), self.accelerator)
        with self.progress(None, "training", progress_bar) as bar:

            def on_step(step: int, total: int, newest: dict[str, float]) -> None:
                if bar.total is None and self.run is not None:
                    self.run.rewind(step - 1)  # what a killed process logged behind its last checkpoint
                bar.total = total
                bar.update()
                self.log({f"train/{key}": value for key, value in newest.items()}, None, step)

            run_epochs(
                learner,
                count,
                config,
                functools.partial(update, learner),
                seed=self.seed,
                checkpoints=None if self.run_path is None else self.run_path / "training",
                on_step=on_step,
            )
        return learner.total_steps


class ORM(OutcomeModelAgent[ORMConfigT]):
    """Outcome reward model (ORM): learns from a policy's own attempts how likely a prefix is to end correctly."""

    name = "orm"
    config_class = ORMConfig

    def _balanced(self, labelled: Sequence[Labelled]) -> list[Labelled]:
        return balanced_problems(labelled, self.seed)

    def _train(
        self, labelled: Sequence[Labelled], metrics: dict[str, float], callback: Callback | None, progress_bar: bool
    ) -> int:
        labelled = [item for item in labelled if not np.isnan(item.labels).all()]
        if self.config.balance:
            labelled = self._balanced(labelled)
        labels = label_statistics(labelled)
        if labels["positive"] in (0.0, 1.0) or not labels["count"]:
            raise ValueError(
                f"nothing can be learned from {labels['count']:.0f} labels, {labels['positive']:.0%} of them positive: "
                "sample more attempts, at a higher temperature or by a better policy"
            )
        metrics |= {"train/attempts": len(labelled), "train/labels": labels["count"]}
        examples = [Example(item.attempt.prompt, item.attempt.completion) for item in labelled]
        targets = [spread(item) for item in labelled]

        def update(learner: OutcomeLearner, rows: NDArray[np.int64], seed: int) -> dict[str, float]:
            return learner.update([examples[row] for row in rows], bce([targets[row] for row in rows]), seed)

        return self._optimize(len(examples), update, progress_bar)


class SORM(ORM[SORMConfigT]):
    """Stepwise ORM (SORM): learns from continuations of prefixes whether the correct answer can still be reached."""

    name = "sorm"
    config_class = SORMConfig

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        policy, tokenizer = super()._load_model(model, device, dtype, lora)
        compare = self.config.compare
        if compare is not None:
            self._compared = {compare: OutcomeModel.load(compare, tokenizer, device)}
        return policy, tokenizer

    def _label(self, name: str, env: TokenVectorEnv, attempts: Sequence[Attempt], progress_bar: bool) -> list[Labelled]:
        labelled = outcome_labels(attempts, self.tokenizer)
        for item, found in zip(labelled, self._successes(name, env, attempts, progress_bar), strict=True):
            item.labels[: len(found)] = found > 0
            item.labels[:] = monotone(item.labels)
        return labelled

    def _successes(
        self, name: str, env: TokenVectorEnv, attempts: Sequence[Attempt], progress_bar: bool
    ) -> list[IntArray]:
        """Successful ones among the `rollouts_per_step` continuations of each step of each attempt."""
        folder = None if self.run_path is None else self.run_path / name
        counts, cost = self.count_successes(
            self.policy.with_sampling(temperature=self.config.temperature),
            env,
            attempts,
            self.config.rollouts_per_step,
            seed=self.seed + CONTINUATION_SEED,
            consistent=self.config.consistent,
            stem=None if folder is None else folder / "prefixes",
            description=f"{name}: continuing prefixes",
            progress_bar=progress_bar,
        )
        if name == "train":  # what held-out reports take is no cost of learning
            self.num_attempts += cost["attempts"]
            self.num_tokens += cost["tokens"]
        return counts

    def _balanced(self, labelled: Sequence[Labelled]) -> list[Labelled]:
        return balanced_lengths(labelled, self.seed)


CONTINUATION_SEED = 1_000_003
"""Distance of the seed of continuations from that of attempts, so that they draw from other streams."""


# ----------------------------------------------------------------------------------------------------------- learning


class OutcomeLearner(Learner):
    """Optimizes an outcome model.

    Args:
        outcome_model: Outcome model to train, in place.
        config: Settings of optimizer and batches.
        total_steps: Length of the learning-rate schedule in optimizer steps.
        accelerator: Device and data parallelism.
    """

    read_after = True

    def __init__(
        self, outcome_model: OutcomeModel, config: OptimizerConfig, total_steps: int, accelerator: Accelerator
    ) -> None:
        super().__init__(outcome_model.model, config, total_steps, accelerator, num_token_ids(outcome_model.tokenizer))
        self.outcome_model = outcome_model

    def forward(self, batch: MicroBatch, temperature: float) -> Tensor:
        """The logit of p(correct) after each token of the completions, `[B, T]`."""
        inputs = batch.inputs.arguments(compute_dtype(self.base))
        return batch.scatter(self.outcome_model.logits(select=batch.inputs.read, model=self.model, **inputs))


def bce(targets: Sequence[NDArray[np.float32]]) -> Loss:
    """Binary cross-entropy, averaged over the labels of a batch, as a loss for `Learner.update`.

    Args:
        targets: Labels `[T]` at the tokens of each example; NaN where there is none.
    """
    count = sum(int((~np.isnan(target)).sum()) for target in targets)

    def loss(batch: MicroBatch, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = batch.spread(targets)
        read = batch.action_mask & ~wanted.isnan()
        wanted = wanted.nan_to_num()
        losses = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        right = ((logits > 0) == (wanted > 0.5)).float()
        return masked_aggregate(losses, read, count), {"accuracy": masked_aggregate(right, read, count)}

    return loss
