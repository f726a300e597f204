"""Supervised fine-tuning on reference solutions: baseline and starting point of Havrilla et al. 2024."""

from typing import Self

from ..models.vocabulary import num_token_ids
from .base import Agent, Callback
from .configs.sft import SFTConfig
from .evaluation.evaluate import evaluate
from .training.fine_tuning import fine_tune


class SFT(Agent[SFTConfig]):
    """Supervised fine-tuning on the environment's reference solutions."""

    name = "sft"
    config_class = SFTConfig
    shardable = True
    takes_4bit = True
    follows_curriculum = False

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Fine-tunes the model; it samples no attempts, so it needs no budget of them. A finished run is left as it is.

        Raises:
            ValueError: `total_episodes` is given, there are no demonstrations, or this agent has learned already.
        """
        if total_episodes is not None:
            raise ValueError("SFT samples no attempts: set epochs and demonstrations, not total_episodes")
        self.check_learns_once()
        self.shard()
        examples = list(self.demonstrations(self.config.demonstrations, progress_bar).values())
        finished = self.run_path is not None and (self.run_path / "model").exists()
        with self.progress(None, "fine-tuning", progress_bar) as bar:

            def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
                if finished:
                    return
                if bar.total is None and self.run is not None:
                    self.run.rewind(step - 1)  # what a killed process logged behind its last checkpoint
                bar.total = total
                bar.update()
                named = {f"train/{name}": value for name, value in metrics.items()}
                self.log(named, callback if step == total else None, step)

            steps = fine_tune(
                self.model,
                examples,
                self.config,
                accelerator=self.accelerator,
                seed=self.seed,
                vocab_size=num_token_ids(self.tokenizer),
                checkpoints=self.run_path / "training" if self.run_path is not None else None,
                on_step=on_step,
            )
        self._learned = True
        if finished:
            return self
        if self.config.validation_problems:
            result = evaluate(self, self.make_validation_env(), problems=self.config.validation_problems)
            self.log({"eval/maj@1": result.metrics["maj@1"].value}, callback, steps)
        self.keep_model()
        return self
