"""Base of agents that improve in rounds, each kept whole in the run's folder: expert iteration and DPO."""

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from ..envs.token_vector_env import TokenVectorEnv
from ..files import remove_folder
from ..models.engine.sampling import NonFiniteLogitsError
from .base import Agent, Callback
from .evaluation.evaluate import validate
from .training.fine_tuning import restore, snapshot
from .training.learner import NonFiniteError
from .training.memory import Work
from .training.rounds import Round
from .training.sharding import gathered, is_sharded

_SEED_DISTANCE = 1_000_003
"""Seeds of different rounds are so far apart that those of neighboring runs do not meet."""


class RoundsConfig(Protocol):
    """Settings that agents which improve in rounds share."""

    @property
    def rounds(self) -> int:
        """Largest number of rounds."""
        ...

    @property
    def samples_per_problem(self) -> int:
        """Attempts at each problem in a round."""
        ...

    @property
    def validation_problems(self) -> int:
        """Validation problems after each round."""
        ...

    @property
    def patience(self) -> int:
        """Rounds without a better validation after which learning stops."""
        ...


RoundsConfigT = TypeVar("RoundsConfigT", bound=RoundsConfig)


class RoundsAgent(Agent[RoundsConfigT]):
    """Base of agents that sample at many problems, train on what came of it, and do that again.

    Their configurations have `rounds`, `samples_per_problem`, `validation_problems` and `patience`. Round 0 is what
    comes before any sampling.

    A second call of `learn` continues after the last round of the first one, from the policy as it is: as many rounds
    or attempts again, with the base model and the best round of before; patience begins anew. After a call that was
    interrupted the next one begins where that one began, and reads the rounds that it has finished in a folder.
    """

    shardable = True
    takes_4bit = True
    follows_curriculum = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._done: _Done | None = None
        self._interrupted = False

    @classmethod
    def work(cls, config: Any, policy: PreTrainedModel) -> Work:
        # The weights before any round, those of the best one, and those of the newest.
        return replace(super().work(config, policy), copies=min(3, 1 + config.rounds))

    @abstractmethod
    def sample_round(self, number: int, episodes: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """Samples what round `number`, from 1, learns from; attempts that are in the folder are read.

        Args:
            number: Number of the round.
            episodes: Attempts of a round.
            metrics: Filled with what is to be logged.
            progress_bar: Show progress.
        """

    @abstractmethod
    def train_round(
        self, number: int, base: Mapping[str, Tensor], metrics: dict[str, float], progress_bar: bool
    ) -> None:
        """Trains on what round `number`, from 0, has to learn from.

        Args:
            number: Number of the round.
            base: Trainable weights before any round.
            metrics: Filled with what is to be logged.
            progress_bar: Show progress.
        """

    def learn_in_rounds(self, problems: int, budget: int | None, callback: Callback | None, progress_bar: bool) -> Self:
        """Runs rounds until the configured number, the budget or validation says stop; the best one's policy stays.

        What interrupts it leaves the policy of the best finished round, and unless the model is sharded in the folder,
        too.

        Args:
            problems: Problems that a round samples at; 0 if it samples none.
            budget: Attempts in all; `None` for no limit.
            callback: Function that is called with the agent and its newest metrics, as in `learn`.
            progress_bar: Show progress.

        Raises:
            ValueError: The budget does not cover one round.
        """
        config, episodes = self.config, problems * self.config.samples_per_problem
        if budget is not None and budget < episodes:
            raise ValueError(
                f"one round samples {problems} problems x {config.samples_per_problem} = {episodes} attempts, "
                f"more than total_episodes={budget}: raise it, or lower problems or samples_per_problem"
            )
        self.shard()
        validation = self.make_validation_env()
        validation.check_prompts(config.validation_problems)
        if self._done is None:
            self._done = _Done(-1, snapshot(self.model), None, self.num_attempts, self.num_tokens)
        done = self._done
        base, best, curriculum, newest = done.base, done.best, self.env.curriculum, done.newest
        if self._interrupted:
            restore(self.model, base if best is None else best.weights)
            self.num_attempts, self.num_tokens, self._interrupted = done.attempts, done.tokens, False
        first, before, patient_from = newest + 1, self.num_attempts, newest
        try:
            for number in range(first, first + config.rounds + (not first)):
                if number and budget is not None and self.num_attempts - before + episodes > budget:
                    break
                metrics: dict[str, float] = {}
                if number:
                    with _naming_the_round(number):
                        self.sample_round(number, episodes, metrics, progress_bar)
                going_on, current = True, Round.load(self.round_folder(number), number)
                if current is None:
                    step = self.num_attempts if episodes else number
                    if self.run is not None:
                        self.run.rewind(step - 1)  # what a killed process logged of this round
                    current = self._train_and_validate(number, base, validation, metrics, progress_bar)
                    going_on = self.log(metrics, callback, step)
                    self._keep(current)
                else:
                    restore(self.model, current.weights)
                newest = number
                if best is None or current.accuracy > best.accuracy:
                    best = current
                if not going_on or number - max(best.number, patient_from) >= config.patience:
                    break
        except BaseException:
            self._interrupted = True
            if self.run is not None and best is not None and not is_sharded(self.model):  # others may have ended
                restore(self.model, best.weights)
                self.save(self.run.path / "model")
            raise
        finally:
            self.env.curriculum = curriculum
            restore(self.model, base if best is None else best.weights)
        self._done = _Done(newest, base, best, self.num_attempts, self.num_tokens)
        self.keep_model()
        return self

    def _train_and_validate(
        self,
        number: int,
        base: Mapping[str, Tensor],
        validation: TokenVectorEnv,
        metrics: dict[str, float],
        progress_bar: bool,
    ) -> Round:
        """The round that training makes of what was sampled for it; fills `metrics` with what is to be logged."""
        self.train_round(number, base, metrics, progress_bar)
        started = time.perf_counter()
        with _naming_the_round(number):
            metrics |= validate(self.policy, validation, self.config.validation_problems, self.ranks)
        metrics |= {"time/eval_seconds": time.perf_counter() - started, "round": number}
        return Round(number, metrics["eval/maj@1"], snapshot(self.model))

    def round_folder(self, number: int) -> Path | None:
        """The folder of a round, if the run has one."""
        return None if self.run_path is None else self.run_path / f"round-{number}"

    def round_seed(self, number: int) -> int:
        """The seed of a round."""
        return self.seed + _SEED_DISTANCE * number

    def _keep(self, current: Round) -> None:
        folder = self.round_folder(current.number)
        if folder is None:
            return
        weights = gathered(current.weights, self.ranks.is_main)
        if self.ranks.is_main:
            replace(current, weights=weights).save(folder)
            remove_folder(folder / "training")


@dataclass(frozen=True, slots=True)
class _Done:
    """State after the calls of `learn` that came to their ends.

    Attributes:
        newest: Number of the newest round; -1 before any.
        base: Trainable weights before any round.
        best: Best round.
        attempts: Attempts sampled.
        tokens: Tokens sampled.
    """

    newest: int
    base: Mapping[str, Tensor]
    best: Round | None
    attempts: int
    tokens: int


@contextmanager
def _naming_the_round(number: int) -> Iterator[None]:
    """Says in which round a model's logits were not finite."""
    try:
        yield
    except NonFiniteLogitsError as error:
        raise NonFiniteError(f"round {number}: {error}") from error
