"""What agents share that alternate between sampling attempts and updates on them: REINFORCE, GRPO, PPO."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from ..envs.curriculum import Batch
from ..models.engine.sampling import SamplingConfig
from ..rewards.base import RewardError
from .base import Agent, Callback
from .evaluation.evaluate import median_response_length, validate
from .rollouts.attempts import Attempt, AttemptFile, RolloutStatistics
from .rollouts.collect import collect
from .training.advantages import uniform_groups
from .training.checkpoints import load_checkpoint, load_tensors, save_checkpoint
from .training.fine_tuning import restore, snapshot
from .training.learner import Learner, NonFiniteError, OptimizerConfig


@dataclass(frozen=True)
class PolicyGradientConfig(OptimizerConfig):
    """Settings that policy-gradient agents share.

    Attributes:
        iterations: of sampling and updating; 20 bring parity from chance to certainty [paper].
        problems_per_iteration: N, problems drawn anew in each iteration; [choice].
        samples_per_problem: K, attempts at each of them.
        temperature: of sampling, and of the log-probabilities in the update, so that it is the sampling policy whose
            gradient is taken; 1, and 0.75 and 1.5 in comparisons [paper].
        learning_rate: 1e-4 [choice, for models of some million parameters; pretrained ones need 1e-6 or so].
        min_learning_rate_ratio: 1, a constant rate [choice].
        warmup_ratio: 0 [choice].
        validation_problems: problems of the validation split for maj@1, pass@1 and length; 0 for none; [choice].
        validation_iterations: iterations between validations; there is one after the last, too; [choice].
        save_iterations: iterations between checkpoints, in runs that have a folder; [choice].
        keep_best: end with the policy of the best validation maj@1, or else with the newest; [choice].
        patience: validations without a better one after which learning stops; `None` goes on [choice].
    """

    iterations: int = 20
    problems_per_iteration: int = 64
    samples_per_problem: int = 1
    temperature: float = 1.0
    learning_rate: float | None = 1e-4
    min_learning_rate_ratio: float = 1.0
    warmup_ratio: float = 0.0
    validation_problems: int = 200
    validation_iterations: int = 5
    save_iterations: int = 5
    keep_best: bool = False
    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("iterations", "problems_per_iteration", "samples_per_problem")
        for name in (*counts, "validation_iterations", "save_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.validation_problems < 0:
            raise ValueError(f"validation_problems must be at least 0, got {self.validation_problems}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, or None to go on, got {self.patience}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0 to explore, got {self.temperature}")
        SamplingConfig(self.temperature)


class PolicyGradientAgent(Agent):
    """Base of agents that sample a batch of attempts with the newest policy, learn from it, and throw it away."""

    @property
    def updates_per_iteration(self) -> int:
        """Optimiser steps that `improve` takes at most."""
        return 1

    @abstractmethod
    def improve(self, learner: Learner, attempts: Sequence[Attempt], iteration: int) -> dict[str, float]:
        """Updates the policy on a batch of attempts, K at each problem in a row; the metrics of it."""

    def make_learner(self, total_steps: int) -> Learner:
        """What updates the policy."""
        return Learner(self.model, self.config, total_steps, self.accelerator, len(self.tokenizer))

    def state(self) -> dict[str, Any]:
        """What changes with learning besides weights, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` gave."""

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Runs the configured iterations, or as many as the budget covers.

        The environment's curriculum chooses the problems, each for K attempts in a row, and is told of all attempts at
        the end of an iteration. Every iteration is a pure function of the policy, the curriculum, the seed and its
        number, so a run that goes on from a checkpoint ends with the very weights of one that was never stopped.

        Raises:
            ValueError: the budget does not cover one iteration.
            NonFiniteError: a reward, a loss or a gradient is infinite or not a number. The attempts of that iteration
                are then written to the run's folder.
        """
        config: PolicyGradientConfig = self.config
        iterations = self._iterations(total_episodes)
        learner = self.make_learner(iterations * self.updates_per_iteration)
        checkpoints = None if self.run_path is None else self.run_path / "training"
        state = load_checkpoint(learner, checkpoints)
        begin, self.num_attempts, self.num_tokens = (state.get(name, 0) for name in ("iteration", "attempts", "tokens"))
        self.load_state(state.get("agent", {}))
        best = _Best(**state.get("best", {}), weights=load_tensors(checkpoints))
        if self.run is not None:
            self.run.rewind(self.num_attempts)  # what a killed process logged behind its last checkpoint
        validation = self.make_validation_env() if config.validation_problems else None
        episodes = config.problems_per_iteration * config.samples_per_problem
        curriculum = self.env.curriculum
        curriculum.load_state_dict(state.get("curriculum", {}))
        try:
            with self.progress((iterations - begin) * episodes, self.name, progress_bar) as bar:
                for iteration in range(begin, iterations):
                    if best.age == config.patience:
                        break
                    began = time.perf_counter()
                    metrics: dict[str, float] = {}
                    self.env.curriculum = Batch(curriculum, config.samples_per_problem)
                    attempts: list[Attempt] = []
                    with self._kept_if_not_finite(attempts, iteration, learner):
                        attempts = self._sample(iteration, episodes, attempts, metrics, bar.update)
                        for attempt in attempts:
                            curriculum.ended(attempt.problem, attempt.is_success)
                        metrics |= {f"curriculum/{name}": value for name, value in curriculum.metrics().items()}
                        started = time.perf_counter()
                        self.model.eval()  # dropout would make the updated policy another than the one that acted
                        found = self.improve(learner, attempts, iteration)
                    metrics |= {f"train/{name}": value for name, value in found.items()}
                    metrics["time/train_seconds"] = time.perf_counter() - started
                    last = iteration + 1 == iterations
                    if validation is not None and (last or (iteration + 1) % config.validation_iterations == 0):
                        started = time.perf_counter()
                        metrics |= validate(self, validation, config.validation_problems)
                        best.compare(metrics["eval/maj@1"], snapshot(self.model) if config.keep_best else {})
                        metrics["time/eval_seconds"] = time.perf_counter() - started
                    for part in ("rollout", "train"):
                        seconds = metrics[f"time/{part}_seconds"]
                        metrics[f"time/{part}_share"] = seconds / (time.perf_counter() - began)
                    going_on = self.log(metrics, callback)
                    last = last or not going_on or best.age == config.patience
                    due = last or (iteration + 1) % config.save_iterations == 0
                    if checkpoints is not None and due and self.accelerator.is_main_process:
                        state = {"iteration": iteration + 1, "attempts": self.num_attempts, "tokens": self.num_tokens}
                        state |= {"best": {"accuracy": best.accuracy, "age": best.age}, "agent": self.state()}
                        state |= {"curriculum": curriculum.state_dict()}
                        save_checkpoint(learner, checkpoints, state, best.weights)
                    if not going_on:
                        break
        finally:
            self.env.curriculum = curriculum
            restore(self.model, best.weights)
        self.keep_model()
        return self

    def returns(self, attempts: Sequence[Attempt]) -> NDArray[np.float64]:
        """Undiscounted returns `[N, K]`, K attempts at each of N problems."""
        returns = np.array([attempt.total_reward for attempt in attempts])
        return returns.reshape(-1, self.config.samples_per_problem)

    @contextmanager
    def _kept_if_not_finite(self, attempts: Sequence[Attempt], iteration: int, learner: Learner) -> Iterator[None]:
        """Writes the iteration's attempts to the run's folder when a reward, a loss or a gradient is not finite."""
        try:
            yield
        except (NonFiniteError, RewardError) as error:
            message = f"iteration {iteration}, before update {learner.steps + 1}: {error}"
            if self.run is not None:
                path = self.run.path / f"not-finite-{iteration}.jsonl"
                path.unlink(missing_ok=True)
                with AttemptFile(path) as file:
                    for attempt in attempts:
                        file.write(attempt)
                message += f"; the attempts are in {path}"
            raise NonFiniteError(message) from error

    def _iterations(self, budget: int | None) -> int:
        config: PolicyGradientConfig = self.config
        episodes = config.problems_per_iteration * config.samples_per_problem
        if budget is not None and budget < episodes:
            raise ValueError(
                f"one iteration samples {config.problems_per_iteration} problems x {config.samples_per_problem} = "
                f"{episodes} attempts, more than total_episodes={budget}: raise it, or lower problems_per_iteration"
            )
        return config.iterations if budget is None else min(config.iterations, budget // episodes)

    def _sample(
        self,
        iteration: int,
        episodes: int,
        attempts: list[Attempt],
        metrics: dict[str, float],
        on_step: Callable[[int], object],
    ) -> list[Attempt]:
        """All attempts of an iteration; those of this rank are put into `attempts`, too, as they come."""
        started = time.perf_counter()
        policy = self.policy.with_sampling(temperature=self.config.temperature)
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        start, stop = episodes * rank // ranks, episodes * (rank + 1) // ranks
        seed = self.seed + _ITERATION_SEED * (iteration + 1)
        for attempt in collect(policy, self.env, stop, seed=seed, start=start, on_step=on_step):
            attempts.append(attempt)
            _check_rewards(attempt)
        if ranks > 1:
            attempts = [attempt for part in gather_object([attempts]) for attempt in part]
        self.env.seek(seed, episodes)  # on all ranks alike, the curriculum is where the whole batch has brought it
        statistics = RolloutStatistics()
        for attempt in attempts:
            statistics.add(attempt)
        self.num_attempts += statistics.attempts
        self.num_tokens += statistics.tokens
        metrics |= statistics.metrics(time.perf_counter() - started)
        returns = self.returns(attempts)
        metrics["rollout/median_response_length"] = median_response_length(attempts)
        # The mean of -log pi over sampled tokens: unbiased for the entropy of the policy where it was.
        metrics["rollout/entropy"] = -sum(float(attempt.logprobs.sum()) for attempt in attempts) / statistics.tokens
        if self.config.samples_per_problem > 1:
            metrics["rollout/uniform_groups"] = float(uniform_groups(returns).mean())
        return attempts


@dataclass(slots=True)
class _Best:
    """The best validation so far, how many there were since, and the trainable weights then, if they are kept."""

    accuracy: float = -1.0
    age: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def compare(self, accuracy: float, weights: dict[str, Tensor]) -> None:
        if accuracy > self.accuracy:
            self.accuracy, self.age, self.weights = accuracy, 0, weights
        else:
            self.age += 1


def _check_rewards(attempt: Attempt) -> None:
    broken = attempt.rewards[~np.isfinite(attempt.rewards)]
    if len(broken):
        raise NonFiniteError(f"an attempt at problem {attempt.problem.id!r} was paid a reward of {broken[0]}")


# Seeds of different iterations are so far apart that those of neighbouring runs do not meet.
_ITERATION_SEED = 1_000_003
