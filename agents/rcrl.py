"""Return-conditioned reinforcement learning: learn what good and bad steps look like, then ask for good ones.

Offline, in the manner of decision transformers (Havrilla et al. 2024): attempts are sampled once, each step gets a
label by how often attempts that continue from it succeed, and the base model is fine-tuned to write steps after labels.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..arrays import FloatArray, IntArray
from ..models.condition_tokens import BAD, GOOD, Labels, add_labels
from ..models.loading import load, with_lora
from ..models.outcome import OutcomeModel, check_probability, is_outcome_model, saved_kind
from ..models.positions import check_length
from ..models.tokenizers import load_tokenizer
from ..rewards.steps import newline_tokens, step_ends
from .base import Agent, Callback
from .configs.lora import LoRA
from .configs.rcrl import RCRLConfig
from .evaluation.evaluate import validate
from .rollouts.attempts import Attempt, RolloutStatistics, read_attempts
from .rollouts.conditioned_policy import ConditionedPolicy, check_takes_labels
from .rollouts.policy import CausalLMPolicy
from .training.fine_tuning import fine_tune, report_to
from .training.learner import Example
from .training.memory import Work
from .training.return_labels import Judged, balanced, labelled, quantile_edges

# Continuations draw other numbers than the attempts that they continue.
_LABEL_SEED = 500_009


class RCRL(Agent[RCRLConfig]):
    """Return-conditioned RL (RCRL): fine-tune on good and bad steps, each after its label, and ask for good ones.

    `model` is the policy that attempts are sampled from; what is trained is `base`, and from then on the agent's policy
    is that model under its best label.
    """

    name = "rcrl"
    config_class = RCRLConfig
    follows_curriculum = False
    labels: Labels | None
    """Labels of the model as it is now; `None` before it has learned any."""

    @classmethod
    def work(cls, config: RCRLConfig, policy: PreTrainedModel) -> Work:
        return replace(super().work(config, policy), always_decodes=True)  # it acts under labels

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        self.labels = Labels.load(model)
        self._device, self._dtype, self._lora = device, dtype, lora
        loaded = self._load(model)
        self._check_further(loaded[1])
        return loaded

    def _check_further(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises an error if `base` or `orm` cannot be what they are to be, before anything is sampled."""
        config = self.config
        if config.base is not None and is_outcome_model(config.base):
            raise ValueError(
                f"base={config.base!r} is an outcome model: give the model that the policy was trained from"
            )
        if config.base is not None and load_tokenizer(config.base).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"the base model {config.base!r} has another tokenizer than the policy, whose attempts it is to learn "
                "from: give the model that the policy was trained from"
            )
        if config.orm is not None:
            kind, _ = saved_kind(config.orm, tokenizer)
            if kind != config.label_source:
                check_probability(kind, config.orm, "label_source")
                raise ValueError(f"{config.orm!r} is an {kind}: set label_source={kind!r}")

    def _load(self, model: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model that can be given labels, and its tokenizer."""
        loaded = load(model, device=self._device, dtype=self._dtype, attn=self._attn)
        check_takes_labels(loaded[0])
        return loaded

    @property
    def policy(self) -> CausalLMPolicy:
        """The policy as it is now: under the best label once it has learned."""
        if self.labels is None:
            return super().policy
        return ConditionedPolicy(self.model, self.tokenizer, self.labels, seed=self.seed).with_half(self._half_copy())

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Samples a pool of attempts, labels it, and fine-tunes the base model on it.

        With a run folder each stage continues where a killed process left it, and the pool can serve other runs.

        Raises:
            ValueError: The budget does not cover the pool, an attempt with a label may be longer than the model's
                positions, no attempt has a step boundary, all labels are the same, or this agent has learned already.
        """
        self.check_learns_once()
        longest = self.env.max_prompt_tokens + self.env.max_new_tokens + 1  # before anything is sampled
        advice = ". Lower max_prompt_tokens or max_new_tokens, or take a model with more positions"
        check_length(self.model.config, longest, "an attempt with a label", advice)
        config, metrics = self.config, dict[str, float]()
        finished = self.run_path is not None and (self.run_path / "model").exists()
        self._ends_step = newline_tokens(self.tokenizer)
        attempts = self._sample(total_episodes, metrics, progress_bar)
        judged = self._judge(attempts, metrics, progress_bar)
        self.model, labels = self._base(*self._scale(judged))
        self.labels = labels
        examples = self._examples(judged, labels, metrics)
        self._fine_tune(examples, labels, metrics, progress_bar)
        self._learned = True
        if finished:
            return self
        if config.validation_problems:
            metrics |= validate(self.policy, self.make_validation_env(), config.validation_problems, self.ranks)
        if self.run is not None:
            self.run.rewind(self.num_attempts - 1)  # logged by a process killed before it saved the model
        self.log(metrics, callback)
        self.keep_model()
        return self

    # ------------------------------------------------------------------------------------------------------- the pool

    @property
    def _pool(self) -> Path | None:
        """The folder of attempts and what is known of their steps."""
        if self.config.pool is not None:
            return Path(self.config.pool)
        return None if self.run_path is None else self.run_path / "pool"

    def _sample(self, budget: int | None, metrics: dict[str, float], progress_bar: bool) -> list[Attempt]:
        """The pool's attempts, in order."""
        started, statistics = time.perf_counter(), RolloutStatistics()
        attempts = self._collect_pool() if self.config.pool is not None else self._collect_new(budget, progress_bar)
        for attempt in attempts:
            statistics.add(attempt)
        metrics |= self.count(statistics, time.perf_counter() - started)
        return attempts

    def _collect_pool(self) -> list[Attempt]:
        """The attempts of an earlier run's pool."""
        folder = Path(self.config.pool or "")
        attempts = read_attempts(folder, self.env)
        if not attempts:
            raise ValueError(f"{folder} holds no attempts: give the `pool` folder of a run of this agent")
        return attempts

    def _collect_new(self, budget: int | None, progress_bar: bool) -> list[Attempt]:
        """Newly sampled attempts, of all ranks."""
        config = self.config
        problems = self.count_problems(config.problems)
        episodes = problems * config.samples_per_problem
        if budget is not None and budget < episodes:
            raise ValueError(
                f"the pool takes {problems} problems x {config.samples_per_problem} = {episodes} attempts, more than "
                f"total_episodes={budget}: raise it, or lower problems or samples_per_problem"
            )
        ours = self.collect_attempts(
            self.policy.with_sampling(temperature=config.temperature),
            self.env,
            problems,
            config.samples_per_problem,
            seed=self.seed,
            folder=self._pool,
            progress_bar=progress_bar,
        )
        return [attempt for part in self.ranks.gather(ours) for attempt in part]

    # ----------------------------------------------------------------------------------------------------- the labels

    def _judge(self, attempts: Sequence[Attempt], metrics: dict[str, float], progress_bar: bool) -> list[Judged]:
        """Values of each attempt's steps, or of it as a whole; attempts without a step are left out."""
        config, started = self.config, time.perf_counter()
        if config.granularity == "attempt":
            ends = [np.array([len(attempt.completion) - 1]) for attempt in attempts]
        else:
            completions, terminated = [a.completion for a in attempts], [a.terminated for a in attempts]
            ends = step_ends(completions, terminated, self.tokenizer)
            metrics["labels/attempts_without_steps"] = sum(not len(steps) for steps in ends)
            if not any(len(steps) for steps in ends):
                raise ValueError(
                    f"none of the {len(attempts)} attempts has a step boundary, a newline or an end of its own: allow "
                    'more max_new_tokens, or label attempts as a whole with granularity="attempt"'
                )
        # The attempts at a problem stay together: their continuations draw from streams that count them.
        order = {problem: number for number, problem in enumerate(dict.fromkeys(a.problem.id for a in attempts))}
        share = self.ranks.share(len(order))
        ours = [i for i, a in enumerate(attempts) if order[a.problem.id] in share]
        values = self._values([attempts[i] for i in ours], [ends[i] for i in ours], metrics, progress_bar)
        found = {
            i: value for part in self.ranks.gather(dict(zip(ours, values, strict=True))) for i, value in part.items()
        }
        values = [found[i] for i in range(len(attempts))]
        metrics["time/label_seconds"] = time.perf_counter() - started
        return [Judged(*parts) for parts in zip(attempts, ends, values, strict=True) if len(parts[1])]

    def _values(
        self, attempts: Sequence[Attempt], ends: Sequence[IntArray], metrics: dict[str, float], progress_bar: bool
    ) -> list[FloatArray]:
        """Values of each step, by the source that is configured."""
        if self.config.label_source != "monte_carlo":
            return self._scores(attempts, ends)
        if self.config.granularity == "attempt":
            return [np.array([attempt.total_reward]) for attempt in attempts]
        return self._success_rates(attempts, metrics, progress_bar)

    def _success_rates(
        self, attempts: Sequence[Attempt], metrics: dict[str, float], progress_bar: bool
    ) -> list[FloatArray]:
        """The share of K continuations of each step that succeed."""
        samples = self.config.rollouts_per_step
        stem = None if self._pool is None else self._pool / f"labels-{samples}-rollouts"
        counts, cost = self.count_successes(
            self.policy.with_sampling(temperature=self.config.temperature),
            self.env,
            attempts,
            samples,
            seed=self.seed + _LABEL_SEED,
            stem=stem,
            description="labeling",
            progress_bar=progress_bar,
        )
        metrics["labels/rollouts"] = cost["attempts"]
        self.num_attempts += cost["attempts"]
        self.num_tokens += cost["tokens"]
        return [count / samples for count in counts]

    def _scores(self, attempts: Sequence[Attempt], ends: Sequence[IntArray]) -> list[FloatArray]:
        """Scores of each step, or of each whole attempt, by an outcome model; an attempt that was cut off scores 0."""
        config = self.config
        judge = OutcomeModel.load(config.orm or "", self.tokenizer, device=str(self.model.device))
        sequences = [np.append(attempt.prompt, attempt.completion).astype(np.int64) for attempt in attempts]
        positions = [len(attempt.prompt) + steps for attempt, steps in zip(attempts, ends, strict=True)]
        scores = judge.score(sequences, positions, config.micro_batch_tokens)
        if config.granularity == "step":
            return scores
        return [score * attempt.terminated for score, attempt in zip(scores, attempts, strict=True)]

    def _scale(self, judged: Sequence[Judged]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The labels, worst first, and the values that divide them."""
        config = self.config
        if config.return_edges is None and config.return_buckets is None:
            return (BAD, GOOD), (config.threshold,)
        values = np.concatenate([item.values for item in judged])
        edges = config.return_edges or quantile_edges(values, config.return_buckets or 2)
        return tuple(f"[RETURN {i}]" for i in range(len(edges) + 1)), edges

    def _examples(self, judged: Sequence[Judged], labels: Labels, metrics: dict[str, float]) -> list[Example]:
        """Training sequences of the attempts that are chosen, labels in place."""
        config = self.config
        kept = balanced(np.array([item.attempt.is_success for item in judged]), config.positive_ratio, self.seed)
        if config.training_attempts is not None and len(kept) > config.training_attempts:
            kept = np.sort(np.random.default_rng(self.seed).choice(kept, config.training_attempts, replace=False))
        pairs = [labelled(judged[i], labels, self._ends_step) for i in kept]
        counts = np.bincount(np.concatenate([chosen for _, chosen in pairs]), minlength=len(labels.tokens))
        if np.count_nonzero(counts) < 2:
            raise ValueError(
                f"all {counts.sum()} labels are {labels.tokens[int(counts.argmax())]}, which leaves nothing to tell "
                "apart: set another threshold (or return_edges), or take attempts that differ more"
            )
        metrics["labels/count"] = int(counts.sum())
        for token, count in zip(labels.tokens, counts / counts.sum(), strict=True):
            metrics[f"labels/share/{token.strip('[]').lower().replace(' ', '_')}"] = float(count)
        metrics["train/success_rate"] = float(np.mean([judged[i].attempt.is_success for i in kept]))
        return [example for example, _ in pairs]

    # ----------------------------------------------------------------------------------------------------- training

    def _base(self, tokens: tuple[str, ...], edges: tuple[float, ...]) -> tuple[PreTrainedModel, Labels]:
        """The model to train, fresh from where it is stored, with the labels added, and these."""
        config, base = self.config, self.config.base or self.model_name
        model, tokenizer = self._load(base)
        if hasattr(model, "merge_and_unload"):  # labels change embeddings, which the adapters were not trained on
            model = cast(Any, model).merge_and_unload().requires_grad_()
        before = Labels.load(base)
        if before is None:
            first = add_labels(model, tokenizer, tokens, self.seed)
        elif before.tokens == tokens:
            first = before.first
        else:
            raise ValueError(
                f"the base model {base!r} has other labels already, {', '.join(before.tokens)}: train from the model "
                "that it was made of"
            )
        labels = Labels(tokens, first, config.granularity, edges, config.train_labels)
        if (rank := self._lora.rank) is not None:
            ids = list(range(labels.first, labels.stop))
            lora = self._lora
            model = with_lora(
                model, rank, lora.alpha, lora.targets, self.seed, rank_stabilized=lora.rank_stabilized,
                trainable_tokens=ids,
            )  # fmt: skip
        return model, labels

    def _fine_tune(
        self, examples: Sequence[Example], labels: Labels, metrics: dict[str, float], progress_bar: bool
    ) -> None:
        started = time.perf_counter()
        with self.progress(None, "fine-tuning", progress_bar) as bar:
            fine_tune(
                self.model,
                examples,
                self.config,
                accelerator=self.accelerator,
                seed=self.seed,
                vocab_size=labels.stop,
                input_only=None if self.config.train_labels else labels.first,
                checkpoints=self.run_path / "training" if self.run_path is not None else None,
                on_step=report_to(bar, metrics),
            )
        metrics["train/examples"] = len(examples)
        metrics["time/train_seconds"] = time.perf_counter() - started

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        if self.labels is not None:
            self.labels.save(folder, self.tokenizer)
