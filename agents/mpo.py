"""Mixed preference optimization: DPO on easy pairs, then PPO on the problems of hard ones (arXiv 2403.19443).

A reward model tells easy pairs from hard ones: where it puts the chosen attempt far above the rejected one, the label
can be relied on, and DPO learns from it. Elsewhere, so also where labels are flipped, the label says little; there PPO
samples anew, is paid by the environment, and is held near the policy that DPO has made. TRL's recipe of the same name
is of another paper (arXiv 2411.10442).
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from ..arrays import FloatArray
from ..models.outcome import OutcomeModel
from .base import Callback
from .configs.lora import LoRA
from .configs.mpo import MPOConfig
from .configs.optimizer import OptimizerConfig
from .dpo import DPO
from .on_policy import Progress
from .ppo import PPO
from .training.fine_tuning import NothingToLearnError, restore, snapshot
from .training.learner import Example
from .training.pairs import Pair
from .training.rounds import Round

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EasyPairs(DPO):
    """DPO on the pairs whose rewards differ by at least a threshold."""

    follows_curriculum = True  # not here, but in PPO afterwards
    judge: OutcomeModel
    threshold: float | None
    hard: list[str]
    """Ids of the problems that have a pair which is not easy, after `learn`."""
    trained: Mapping[str, Tensor] | None = None
    """Weights that the easy pairs have made, whether or not they validate better than those before."""

    def train_round(
        self, number: int, base: Mapping[str, Tensor], metrics: dict[str, float], progress_bar: bool
    ) -> None:
        super().train_round(number, base, metrics, progress_bar)
        if number:
            self.trained = snapshot(self.model)

    def choose_pairs(self, pairs: list[Pair]) -> list[Pair]:
        gaps = reward_gaps(self.judge, pairs)
        easy = gaps >= (np.median(gaps) if self.threshold is None else self.threshold)
        self.hard = list(dict.fromkeys(pair.problem_id for pair, own in zip(pairs, easy, strict=True) if not own))
        chosen = [pair for pair, own in zip(pairs, easy, strict=True) if own]
        if not chosen:
            raise NothingToLearnError(f"none of {len(pairs)} pairs is easy")
        return chosen


def reward_gaps(judge: OutcomeModel, pairs: Sequence[Pair]) -> FloatArray:
    """Rewards of chosen attempts less those of rejected ones, `[P]`, in logits of the judge's scores."""
    examples = {_key(one): one for pair in pairs for one in (pair.chosen, pair.rejected)}
    sequences = [np.concatenate([one.prompt, one.completion]).astype(np.int64) for one in examples.values()]
    scores = np.array([found[0] for found in judge.score(sequences, [np.array([len(one) - 1]) for one in sequences])])
    scores = scores.clip(1e-12, 1 - 1e-12)
    rewards = dict(zip(examples, np.log(scores) - np.log1p(-scores), strict=True))
    return np.array([rewards[_key(pair.chosen)] - rewards[_key(pair.rejected)] for pair in pairs])


def _key(example: Example) -> tuple[bytes, bytes]:
    return example.prompt.tobytes(), example.completion.tobytes()


class MPO(PPO):
    """Mixed preference optimization (MPO): DPO on easy pairs of attempts, then PPO on the problems of hard ones."""

    name = "mpo"
    config_class = MPOConfig
    shardable = False
    takes_lora = False
    preferences_class = EasyPairs
    """The DPO that learns from the easy pairs."""
    config: MPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.preferences: EasyPairs | None = None
        """DPO on the easy pairs, after `learn`."""

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if self.config.orm is None:
            raise ValueError("mpo splits pairs by the rewards of an outcome model or preference model: give one by orm")
        if lora.rank is not None:
            raise ValueError("mpo begins PPO from the model that DPO trained, as a whole: leave out lora_rank")
        policy, tokenizer = super()._load_model(model, device, dtype, lora)
        self._judge = OutcomeModel.load(self.config.orm, tokenizer, self.device)
        return policy, tokenizer

    def learn(
        self,
        total_episodes: int | None = None,
        callback: Callback | None = None,
        progress_bar: bool = False,
        *,
        reset: bool = False,
    ) -> Self:
        """Trains on easy pairs by DPO, then on the problems of hard ones, if there are any, by PPO; see `PPO.learn`.

        Args:
            total_episodes: Budget of attempts sampled by this call, those that pairs are made of included.
            callback: Function called with the agent and its newest metrics; returning False ends learning.
            progress_bar: Show progress.
            reset: Learn by PPO as a new agent with the policy as it is would.

        Raises:
            NothingToLearnError: No problem has both a right and a wrong attempt.
            ValueError: The budget does not cover the pairs and one iteration, or any reason that `PPO.learn` has.
        """
        config = self.config
        if self.preferences is None and self._loaded is None:
            if config.pool is None:
                cost = self.count_problems(config.pair_problems, "pair_problems") * config.pair_samples
                if total_episodes is not None and total_episodes <= cost:
                    raise ValueError(f"pairs take {cost} attempts, and total_episodes={total_episodes} leaves none")
                total_episodes = None if total_episodes is None else total_episodes - cost
            self.preferences = self._prefer(progress_bar)
        if self.preferences is not None and not self.preferences.hard:
            self.num_attempts, self.num_tokens = self.preferences.num_attempts, self.preferences.num_tokens
            self.keep_model()
            return self
        return super().learn(total_episodes, callback, progress_bar, reset=reset)

    def _prefer(self, progress_bar: bool) -> EasyPairs:
        """DPO on the easy pairs, whose policy becomes this agent's, and PPO's reference."""
        config = self.config
        shared = {item.name: getattr(config, item.name) for item in fields(OptimizerConfig)}
        shared |= {item.name: item.default for item in fields(DPO.config_class) if item.name in _OF_DPO}
        stage = self.preferences_class(
            self._source,
            self.model_name,
            validation_env=self._validation_env,
            num_envs=self.num_envs,
            seed=self.seed,
            run=None if self.run_path is None else self.run_path / "dpo",
            resume="auto",
            device=self.device,
            dtype=str(self.model.dtype).removeprefix("torch."),
            attn=self._attn,
            **shared
            | {
                "rounds": 1,
                "samples_per_problem": config.pair_samples,
                "pairs_per_problem": config.pairs_per_problem,
                "temperature": config.pair_temperature,
                "problems": config.pair_problems,
                "pool": config.pool,
                "beta": config.beta,
                "nll_coef": config.nll_coef,
                "learning_rate": config.dpo_learning_rate,
                "epochs": config.dpo_epochs,
                "batch_size": config.dpo_batch_size,
                "validation_problems": max(1, config.validation_problems),
            },
        )
        stage.judge, stage.threshold, stage.hard = self._judge, config.threshold, []
        try:
            stage.learn(progress_bar=progress_bar)
        except NothingToLearnError:
            if not stage.hard:
                raise
        if stage.trained is None and (done := Round.load(stage.round_folder(1), 1)) is not None:
            stage.trained = done.weights  # by an earlier process
        if stage.trained is not None:
            restore(self.model, stage.trained)
            self.begin_from_policy()
        return stage

    def _begin(self, iterations: int, reset: bool = False) -> Progress:
        progress = super()._begin(iterations, reset)
        stage = self.preferences
        if stage is not None and progress.problems is None:
            hard, problems, index = set(stage.hard), [], 0
            while hard:
                if (found := self.env.problems[index].id) in hard:
                    hard.remove(found)
                    problems.append(index)
                index += 1
            progress.problems = problems
            self.num_attempts, self.num_tokens = stage.num_attempts, stage.num_tokens
            progress.first_attempts = self.num_attempts
        return progress


# Settings of the schedule that PPO and DPO have by the same names, and that are DPO's own in its stage.
_OF_DPO = ("min_learning_rate_ratio", "warmup_ratio", "betas", "weight_decay")
