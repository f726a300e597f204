"""ARES: PPO paid for each step by a judge, and fine-tuning on corrections, in turns (arXiv 2407.00087).

A judge scores each step, and PPO is paid the score less one half, nothing for a repeated step and nothing for the
answer but what the judge thinks of its line. Then attempts are sampled and corrected: repeated steps go, the steps
before the first wrong one stay, token for token, and the rest is the reference solution's, or a proposer's that is
right. A right attempt is its own correction. The policy is fine-tuned on all of them, and the next round begins with it
as the reference, and with a new critic.

In the source a language model is judge and corrector at once. Here wrong steps are found exactly where the problems can
tell right steps from wrong ones, and elsewhere by the judge's scores below one half.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from gymnasium.envs.registration import EnvSpec
from torch import Tensor
from transformers import PreTrainedModel

from ..arrays import IntArray
from ..envs.token_vector_env import TokenVectorEnv
from ..files import read_json, remove_folder, write_json
from ..models import load
from ..models.vocabulary import num_token_ids
from ..rewards.judged import JudgedReward
from .base import Callback
from .configs.ares import ARESConfig
from .configs.lora import LoRA
from .configs.optimizer import FineTuneConfig, OptimizerConfig
from .configs.ppo import PPOConfig
from .ppo import PPO
from .rollouts.attempts import Attempt, RolloutStatistics
from .rollouts.policy import CausalLMPolicy
from .rounds import RoundsAgent
from .training.corrections import by_proposer, by_reference, is_right, make_drafts, rest_of_reference
from .training.fine_tuning import fine_tune, report_to
from .training.learner import Example
from .training.memory import Work
from .training.rounds import Round

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)


class JudgedPPO(PPO):
    """The first stage of a round: PPO on the model and the environment of another agent."""

    def __init__(self, owner: "ARES", **settings: Any) -> None:
        self.owner = owner
        super().__init__(owner._source, owner.model_name, **settings)

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        return self.owner.model, self.owner.tokenizer

    def make_env(self, **settings: Any) -> TokenVectorEnv:
        return self.owner.make_env(**settings)


class ARES(RoundsAgent[ARESConfig]):
    """ARES: PPO paid for each step by a judge, and fine-tuning on corrected attempts, in turns."""

    name = "ares"
    config_class = ARESConfig
    shardable = False
    takes_vllm = False
    follows_curriculum = True  # in the stage of PPO

    def __init__(self, *args: Any, **settings: Any) -> None:
        if settings.get("vllm_memory") is not None or settings.get("vllm_servers"):
            raise ValueError("ares samples with the built-in decoder: leave out vllm_memory and vllm_servers")
        super().__init__(*args, **settings)
        reward = self.env.reward
        if not isinstance(reward, JudgedReward) or reward.form != "centered" or reward.shaping or reward.weight <= 0:
            raise ValueError(
                "ares is paid for each step by a judge: leave out the environment's reward and set judge, or give "
                '{"name": "judged", "form": "centered"} or a reward registered under a name that makes such a '
                "JudgedReward, without shaping"
            )
        try:
            self.env.problems.check_steps([], self.env.problems[0])
            self._exact = True
        except NotImplementedError:
            self._exact = False
        self._proposer = None
        if self.config.proposer is not None:
            model, tokenizer = load(self.config.proposer, device=self.device)
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ValueError(
                    f"the tokenizers of proposer={self.config.proposer!r} and of the policy differ: give a model of "
                    "the policy's tokenizer"
                )
            self._proposer = CausalLMPolicy(model.eval(), tokenizer).with_sampling(temperature=self.config.temperature)
        elif self.config.sft_epochs:
            rest_of_reference(self.env.problems[0], (), self.env)
        self._corrections: list[Example] = []

    @classmethod
    def work(cls, config: Any, policy: PreTrainedModel) -> Work:
        work = PPO.work(config, policy)
        return replace(work, copies=work.copies + min(3, 1 + config.rounds))

    def make_env(self, **settings: Any) -> TokenVectorEnv:
        """The agent's environment, whose steps `ARESConfig.judge` is paid for if it names no reward of its own."""
        if isinstance(self._source, EnvSpec) and "reward" not in self._source.kwargs:
            settings = {"reward": {"name": "judged", "form": "centered", "judge": self.config.judge}, **settings}
        return super().make_env(**settings)

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Runs rounds until the configured number, the budget or validation says stop; the best one's policy stays.

        With a run folder every finished round is kept, and learning continues after the last one, in the middle of PPO,
        of sampling and of fine-tuning too. A second call runs as many rounds again, see `RoundsAgent`.

        Raises:
            ValueError: The budget does not cover one round, or problems have no solution and there is no proposer.
        """
        config = self.config
        corrected = self.count_problems(config.problems) if config.sft_epochs else 0
        problems = config.iterations * config.problems_per_iteration + corrected
        return self.learn_in_rounds(problems, total_episodes, callback, progress_bar)

    def sample_round(self, number: int, episodes: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """Trains by PPO, then samples attempts and corrects them; a finished round is only counted."""
        folder, before = self.round_folder(number), (self.num_attempts, self.num_tokens)
        record = None if folder is None else folder / "sampled.json"
        if folder is not None and record is not None and Round.is_finished(folder):
            sampled = read_json(record)
            self.num_attempts += sampled["attempts"]
            self.num_tokens += sampled["tokens"]
            return
        self._train_by_ppo(number, episodes, progress_bar)
        if self.config.sft_epochs:
            self._correct(number, metrics, progress_bar)
        if record is not None and self.ranks.is_main:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, {"attempts": self.num_attempts - before[0], "tokens": self.num_tokens - before[1]})

    def _train_by_ppo(self, number: int, episodes: int, progress_bar: bool) -> None:
        config, folder = self.config, self.round_folder(number)
        shared = {item.name: getattr(config, item.name) for item in fields(PPOConfig)}
        stage = JudgedPPO(
            self,
            validation_env=self._validation_env,
            num_envs=self.num_envs,
            seed=self._stage_seed(number),
            run=None if folder is None else folder / "ppo",
            resume="auto",
            device=self.device,
            dtype=str(self.model.dtype).removeprefix("torch."),
            attn=self._attn,
            compile_decoder=self._compiled,
            cuda_graphs=self._graphs,
            **shared | {"patience": None, "validation_problems": config.validation_problems * config.keep_best},
        )
        attempts = config.iterations * config.problems_per_iteration * config.samples_per_problem
        stage.learn(attempts, progress_bar=progress_bar)  # no more where dynamic sampling draws again
        self.num_attempts += stage.num_attempts
        self.num_tokens += stage.num_tokens

    def _correct(self, number: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """Samples K attempts at each problem, and corrects them, the same on every rank."""
        config, started = self.config, time.perf_counter()
        folder, seed = self.round_folder(number), self._stage_seed(number)
        own = self.collect_attempts(
            self.policy.with_sampling(temperature=config.temperature),
            self.env,
            self.count_problems(config.problems),
            config.samples_per_problem,
            seed=seed + _CORRECTED,
            folder=folder,
            description=f"round {number}: sampling",
            progress_bar=progress_bar,
        )
        drafts = make_drafts(own, self.env, self._exact)
        others = [one for one in drafts if not one.is_whole]
        if self._proposer is None:
            found = [by_reference(one, self.env) for one in others]
        else:
            found = by_proposer(others, self.env, self._proposer, config.proposals, seed + _PROPOSED)
        completed = iter(found)
        mine: list[tuple[Attempt, int, IntArray | None]] = []
        for one in drafts:
            choices = [one.tokens] if one.is_whole else next(completed)
            right = (it for it in choices if is_right(one.attempt.problem, it, self.env, self._exact))
            mine.append((one.attempt, len(one.steps), next(right, None)))
        everything = [item for part in self.ranks.gather(mine) for item in part]

        statistics, examples = RolloutStatistics(), dict[tuple[str, bytes], Example]()
        for attempt, _, completion in everything:
            statistics.add(attempt)
            if completion is not None:
                key = attempt.problem.id, completion.tobytes()
                examples[key] = Example(attempt.prompt, completion.astype(np.int32))
        metrics |= self.count(statistics, time.perf_counter() - started)
        self._corrections = list(examples.values())
        metrics |= {
            "corrections/examples": float(len(examples)),
            "corrections/failed": float(sum(completion is None for *_, completion in everything)),
            "corrections/right_steps": float(np.mean([steps for _, steps, _ in everything])),
        }
        if not examples and self.ranks.is_main:
            _logger.warning(
                "round %d: none of %d attempts could be corrected, so PPO alone trains it: raise proposals, or choose "
                "another proposer", number, len(everything),
            )  # fmt: skip

    def train_round(
        self, number: int, base: Mapping[str, Tensor], metrics: dict[str, float], progress_bar: bool
    ) -> None:
        """Fine-tunes the policy that PPO has trained on the corrections, if there are any."""
        examples, config, started = self._corrections, self.config, time.perf_counter()
        if not number or not config.sft_epochs or not examples:
            return
        folder = self.round_folder(number)
        settings = {item.name: getattr(config, item.name) for item in fields(OptimizerConfig)}
        settings |= {item.name: item.default for item in fields(FineTuneConfig) if item.name in _OF_FINE_TUNING}
        settings |= {"learning_rate": config.sft_learning_rate}
        settings |= {"epochs": config.sft_epochs, "batch_size": config.sft_batch_size}
        with self.progress(None, f"round {number}: fine-tuning", progress_bar) as bar:
            fine_tune(
                self.model,
                examples,
                FineTuneConfig(**settings),
                accelerator=self.accelerator,
                seed=self._stage_seed(number),
                vocab_size=num_token_ids(self.tokenizer),
                checkpoints=None if folder is None else folder / "training",
                on_step=report_to(bar, metrics),
            )
        metrics["time/train_seconds"] = time.perf_counter() - started

    def _keep(self, current: Round) -> None:
        super()._keep(current)
        folder = self.round_folder(current.number)
        if folder is not None and self.ranks.is_main:
            for part in ("training", "model"):  # PPO's own, which the round's weights replace
                remove_folder(folder / "ppo" / part)

    def _stage_seed(self, number: int) -> int:
        """The seed of a round's PPO, of fine-tuning and, with a distance, of other sampling."""
        return self.seed + _STAGE_SEED * (number - 1)


_STAGE_SEED = 15_485_863
"""Distance of the seeds of rounds, no multiple of that of PPO's iterations."""
_CORRECTED, _PROPOSED = 500_009, 700_001
# Settings of the schedule that PPO and fine-tuning have by the same names, and that are fine-tuning's own in its stage.
_OF_FINE_TUNING = ("min_learning_rate_ratio", "warmup_ratio", "betas", "weight_decay")
