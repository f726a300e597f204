"""Next-token pretraining on demonstrations that never repeat (Tsilivis et al. 2025)."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..envs.registration import make_vec_env
from ..models.new_model import new_model
from ..models.vocabulary import num_token_ids
from .base import Agent, Callback
from .configs.lora import LoRA
from .configs.pretrain import PretrainConfig
from .evaluation.evaluate import validate
from .training.checkpoints import load_checkpoint, save_checkpoint
from .training.fine_tuning import nll
from .training.learner import Example, Learner
from .training.memory import Work, check_held

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW = "new"


class Pretrain(Agent[PretrainConfig]):
    """Next-token prediction on the environment's demonstrations, from random weights unless a model is given.

    Step i trains on the demonstrations i B to (i + 1) B - 1 of the environment's source: online samples, where it is
    endless; a finite source is gone through again and again, in order. Loss falls on the responses alone. [choice]
    With a run folder, `checkpoints/step-<n>` holds the model after n steps, for agents that start from there.
    """

    name = "pretrain"
    config_class = PretrainConfig
    default_model = NEW
    follows_curriculum = False

    @classmethod
    def work(cls, config: PretrainConfig, policy: "PreTrainedModel") -> Work:
        return replace(super().work(config, policy), keeps_optimizer=True)

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if str(model) != NEW:
            return super()._load_model(model, device, dtype, lora)
        if lora.rank is not None or dtype != "float32":
            raise ValueError(
                "a new model is trained in float32 and as a whole: leave out dtype and lora_rank, or set bf16"
            )
        env, config = make_vec_env(self._source, 1), self.config
        made = new_model(
            env.tokenizer,
            config.architecture,
            depth=config.depth,
            width=config.width,
            heads=config.heads,
            positions=env.max_prompt_tokens + env.max_new_tokens,
            seed=self.seed,
        )
        return made.to(device), env.tokenizer  # pyright: ignore[reportArgumentType]  # a device by its name works

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Trains for the configured number of steps; it samples no attempts, so it needs no budget of them.

        A run that continues from a checkpoint ends with the very weights of one that was never stopped. The callback is
        called with each line of metrics; returning False ends learning.

        Raises:
            ValueError: `total_episodes` is given, a problem has no solution, or a sequence is longer than the model's
                positions.
        """
        if total_episodes is not None:
            raise ValueError("pretraining samples no attempts: set steps and batch_size, not total_episodes")
        config = self.config
        check_held(config.batch_size, "demonstrations", "`batch_size`")
        learner = Learner(self.model, config, config.steps, self.accelerator, num_token_ids(self.tokenizer))
        training = None if self.run_path is None else self.run_path / "training"
        load_checkpoint(learner, training)
        if self.run is not None:
            self.run.rewind(learner.steps)  # what a killed process logged behind its last checkpoint
        validation = self.make_validation_env() if config.validation_problems else None
        going_on = True
        with self.progress(config.steps - learner.steps, self.name, progress_bar) as bar:
            while going_on and learner.steps < config.steps:
                batch = self._batch(learner.steps)
                self.model.train()
                loss = functools.partial(nll, denominator=sum(len(example.completion) for example in batch))
                found = learner.update(batch, loss, self.seed + learner.steps)
                self.model.eval()
                bar.update()
                due = learner.steps % config.save_steps == 0 or learner.steps == config.steps
                if due or learner.steps % config.log_steps == 0:
                    metrics = {f"train/{name}": value for name, value in found.items()}
                    metrics["train/demonstrations"] = learner.steps * config.batch_size
                    if due and validation is not None:
                        metrics |= validate(self.policy, validation, config.validation_problems, self.ranks)
                    going_on = self.log(metrics, callback, learner.steps)
                if (due or not going_on) and self.run is not None and training is not None:
                    self.save(self.run.path / "checkpoints" / f"step-{learner.steps}")
                    save_checkpoint(learner, training)
        self.keep_model()
        return self

    def _batch(self, step: int) -> list[Example]:
        problems, size = self.env.problems, self.env.size
        first = step * self.config.batch_size
        indices = range(first, first + self.config.batch_size)
        chosen = [problems[index if size is None else index % size] for index in indices]
        return [Example(self.env.encode_prompt(problem), self.env.encode_solution(problem)) for problem in chosen]
