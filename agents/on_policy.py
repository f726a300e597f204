"""Base of agents that alternate between sampling attempts and updates on them: REINFORCE, GRPO, PPO."""

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..envs.curriculum import Batch, Curriculum, Subset
from ..envs.token_vector_env import TokenVectorEnv
from ..models.engine.sampling import NonFiniteLogitsError, SamplingConfig
from ..models.kept_tokens import KeptTokens
from ..models.vocabulary import num_token_ids
from ..rewards.base import RewardError
from .base import Agent, Callback
from .configs.policy_gradient import PolicyGradientConfig
from .evaluation.evaluate import median_response_length, validate
from .rollouts.attempts import Attempt, AttemptFile, RolloutStatistics
from .rollouts.collect import collect
from .rollouts.groups import Groups, sample_groups
from .rollouts.pass_rates import PassRates
from .rollouts.source import Environment
from .training.advantages import overlong_penalty
from .training.alarms import Alarms
from .training.checkpoints import load_checkpoint, load_tensors, save_checkpoint
from .training.fine_tuning import restore, snapshot
from .training.learner import Learner, NonFiniteError, with_rate
from .training.losses import importance_weights, k3_divergence, log_ratios, masked_aggregate
from .training.memory import Work, check_held

_logger = logging.getLogger(__name__)

# Rate of policy gradients over that of fine-tuning: 1e-6 and 2e-5 in Havrilla et al. 2024.
RATE_RATIO = 0.05


PolicyGradientConfigT = TypeVar("PolicyGradientConfigT", bound=PolicyGradientConfig)


class PolicyGradientAgent(Agent[PolicyGradientConfigT]):
    """Base of agents that sample a batch of attempts with the newest policy, learn from it, and throw it away."""

    shardable = True
    takes_4bit = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.sampling.truncates and self._vllm is not None:
            raise ValueError(
                "top_k, top_p and min_p need the tokens that each action was drawn from, which vLLM does not say: "
                "leave them out, or sample without vLLM"
            )
        self._progress: Progress | None = None
        self._loaded: Path | None = None  # checkpoint that a loaded agent continues from
        self._interrupted = False  # within an iteration

    @classmethod
    def work(cls, config: PolicyGradientConfig, policy: PreTrainedModel) -> Work:
        return replace(
            super().work(config, policy),
            copies=int(config.keep_best),
            samples_per_prompt=config.samples_per_problem,
            keeps_optimizer=True,
        )

    @property
    def sampling(self) -> SamplingConfig:
        """The distribution that attempts are drawn from."""
        config = self.config
        return SamplingConfig(config.temperature, config.top_k, config.top_p, config.min_p)

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps that `improve` takes at most."""
        return 1

    @abstractmethod
    def improve(self, learner: Learner, attempts: Sequence[Attempt], iteration: int) -> dict[str, float]:
        """Updates the policy on a batch of attempts, K at each problem in a row; the metrics of it."""

    def make_learner(self, total_steps: int) -> Learner:
        """Makes the learner that updates the policy."""
        return Learner(self.model, self.learner_config(), total_steps, self.accelerator, num_token_ids(self.tokenizer))

    def learner_config(self) -> PolicyGradientConfig:
        """The configuration with a learning rate."""
        return with_rate(self.config, self.model, RATE_RATIO)

    def state(self) -> dict[str, Any]:
        """State that changes with learning besides weights, as JSON values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` gave."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that change with learning besides those that the learner updates."""
        return {}

    def kept_tensors(self) -> dict[str, Tensor]:
        """Result of `tensors`, with what a new agent would make of the policy as it is."""
        return self.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `tensors` gave."""

    def begin_anew(self) -> None:
        """Makes of the policy as it is what a new agent would."""

    def learn(
        self,
        total_episodes: int | None = None,
        callback: Callback | None = None,
        progress_bar: bool = False,
        *,
        reset: bool = False,
    ) -> Self:
        """Runs the configured iterations, or as many as the budget covers.

        A second call continues where the first has ended, with as many iterations or attempts again: problems, random
        streams, curriculum, optimizer, critic and counters continue; the learning-rate schedule and patience begin
        anew.

        The environment's curriculum chooses the problems, each for K attempts in a row, and is told of all attempts at
        the end of an iteration. Every iteration is a pure function of the policy, the curriculum, the seed and its
        number, so a run that continues from a checkpoint ends with the very weights of one that was never stopped.

        Args:
            total_episodes: Budget of attempts sampled by this call; the default is no limit but the iterations.
            callback: Function called with the agent and its newest metrics; returning False ends learning.
            progress_bar: Show progress.
            reset: Learn as a new agent with the policy as it is would: counters, optimizer and random streams begin
                anew, and the policy is the reference; PPO's critic stays. The default continues.

        Raises:
            ValueError: The budget does not cover one iteration, prompts exceed the environment's limit, `reset` would
                begin a run anew in a folder that holds one, or an earlier call was interrupted within an iteration.
            NonFiniteError: A reward, a loss or a gradient is infinite or NaN. The attempts of that iteration are
                written to the run's folder.
        """
        config = self.config
        iterations = self._iterations(total_episodes)
        if not reset:
            self._check_whole()
        self.env.check_prompts()
        self.shard()
        self._check_pass_rates(total_episodes, begins=reset or (self._progress is None and self._loaded is None))
        self._progress = progress = self._begin_or_extend(iterations, reset)
        if config.filters and progress.problems is None:
            progress.problems = self._filter(progress_bar)
        validation = self._validation_at_start(progress)
        episodes = config.problems_per_iteration * config.samples_per_problem
        budget = math.inf if total_episodes is None else progress.first_attempts + total_episodes
        curriculum, end = self.env.curriculum, progress.first + iterations
        chosen = curriculum if progress.problems is None else Subset(curriculum, progress.problems)
        try:
            with self.progress((end - progress.iteration) * episodes, self.name, progress_bar) as bar:
                for iteration in range(progress.iteration, end):
                    left = budget - self.num_attempts  # dynamic sampling spends it faster than iterations end
                    if progress.best.age == config.patience or left < episodes:
                        break
                    began = time.perf_counter()
                    self.env.curriculum = Batch(chosen, config.samples_per_problem)
                    self._interrupted = True
                    attempts, metrics = self._iterate(iteration, left, curriculum, bar.update)
                    last = iteration + 1 == end or budget - self.num_attempts < episodes
                    if validation is not None and (last or (iteration + 1) % config.validation_iterations == 0):
                        with self._kept_if_not_finite(attempts, iteration):
                            metrics |= self._validate(validation)
                    for part in ("rollout", "train"):
                        seconds = metrics[f"time/{part}_seconds"]
                        metrics[f"time/{part}_share"] = seconds / (time.perf_counter() - began)
                    metrics |= progress.alarms.watch(metrics, iteration)
                    progress.iteration = iteration + 1
                    self._interrupted = False
                    going_on = self.log(metrics, callback)
                    last = last or not going_on or progress.best.age == config.patience
                    if self._checkpoints is not None and (last or (iteration + 1) % config.save_iterations == 0):
                        self._save_progress(self._checkpoints)
                    if not going_on:
                        break
        finally:
            self.env.curriculum = curriculum
            restore(self.model, progress.best.weights)
        self.keep_model()
        return self

    def _check_whole(self) -> None:
        """Raises `ValueError` if learning was interrupted within an iteration, which may be half done."""
        if self._interrupted:
            remedy = "reset=True takes the policy as it is, and begins anew"
            if self.run_path is not None:
                remedy = f"make the agent again with run={str(self.run_path)!r} and resume=True"
            raise ValueError(
                f"this {self.name} agent was interrupted within an iteration, whose updates may be half made: {remedy}"
            )

    @property
    def _checkpoints(self) -> Path | None:
        """Folder of the run's checkpoint, if there is a run."""
        return None if self.run_path is None else self.run_path / "training"

    def _begin_or_extend(self, iterations: int, reset: bool) -> "Progress":
        """State of learning at the start of a call of `learn`: a new one, or that of the call before.

        Raises:
            ValueError: `reset` would begin a run anew in a folder that holds one.
        """
        folder = self._checkpoints
        if reset and folder is not None and folder.exists():
            raise ValueError(
                f"{self.run_path} holds what was learned: to begin anew, make an agent with another folder"
            )
        if reset and self._progress is not None:
            self.begin_anew()
        self._interrupted = False
        if reset or self._progress is None:
            return self._begin(iterations, reset)
        self._progress.extend(iterations, self.updates_per_iteration, self.num_attempts)
        if folder is not None:
            self._save_progress(folder)  # resumed, the run goes on to the end of this call
        return self._progress

    def _validation_at_start(self, progress: "Progress") -> TokenVectorEnv | None:
        """The environment to validate on, if any; a policy that may stay the best is validated before it learns."""
        config = self.config
        if not config.validation_problems:
            return None
        validation = self.make_validation_env()
        validation.check_prompts(config.validation_problems)
        if config.keep_best and progress.iteration == 0:  # learning may end where it began
            metrics = validate(self.policy, validation, config.validation_problems, self.ranks)
            progress.best.compare(metrics["eval/maj@1"], snapshot(self.model))
            self.log(metrics, None)
        return validation

    def _iterate(
        self, iteration: int, limit: float, curriculum: Curriculum, on_step: Callable[[int], object]
    ) -> tuple[list[Attempt], dict[str, float]]:
        """One iteration: at most `limit` attempts, of which the curriculum learns, and the updates on them.

        Returns:
            The attempts that updates were made on, and the metrics of it all.
        """
        metrics: dict[str, float] = {}
        own: list[Attempt] = []
        with self._kept_if_not_finite(own, iteration):
            groups = self._sample(iteration, limit, own, metrics, on_step)
            stage = curriculum.stage
            for attempt in groups.sampled:
                curriculum.ended(attempt.problem, attempt.is_success, stage)
            metrics |= {f"curriculum/{name}": value for name, value in curriculum.metrics().items()}
            started = time.perf_counter()
            self.model.eval()  # dropout would make the updated policy another than the one that acted
            found = self.improve(cast(Progress, self._progress).learner, groups.batch, iteration)
        metrics |= {f"train/{name}": value for name, value in found.items()}
        metrics["time/train_seconds"] = time.perf_counter() - started
        return groups.batch, metrics

    def _validate(self, validation: TokenVectorEnv) -> dict[str, float]:
        """Validates the policy and keeps it if it is the best so far; the metrics of it."""
        config, started = self.config, time.perf_counter()
        metrics = validate(self.policy, validation, config.validation_problems, self.ranks)
        best = cast(Progress, self._progress).best
        best.compare(metrics["eval/maj@1"], snapshot(self.model) if config.keep_best else {})
        return metrics | {"time/eval_seconds": time.perf_counter() - started}

    def _begin(self, iterations: int, reset: bool = False) -> "Progress":
        """Start of learning: the newest checkpoint of the run or, without `reset`, of the folder that was loaded."""
        learner = self.make_learner(iterations * self.updates_per_iteration)
        folder = None if self.run_path is None else self.run_path / "training"
        state = load_checkpoint(learner, folder)
        loaded = not (state or reset) and self._loaded is not None
        if loaded:
            folder = self._loaded
            state = load_checkpoint(learner, folder)
        begin, self.num_attempts, self.num_tokens = (state.get(name, 0) for name in ("iteration", "attempts", "tokens"))
        learner.first_step = state.get("first_step", 0)
        self.load_state(state.get("agent", {}))
        tensors = load_tensors(folder)
        self.load_tensors(_part(tensors, "agent/"))
        best = _Best(**state.get("best", {}), weights=_part(tensors, "best/"))
        self.env.curriculum.load_state_dict(state.get("curriculum", {}))
        progress = Progress(learner, best, begin, state.get("first", 0), state.get("first_attempts", 0))
        progress.problems = state.get("problems")
        progress.alarms.load_state_dict(state.get("alarms", {}))
        if loaded:
            progress.extend(iterations, self.updates_per_iteration, self.num_attempts)
        if self.run is not None:
            # What a killed process logged after its last checkpoint, or at all.
            self.run.rewind(self.num_attempts if begin else -1)
        return progress

    def _check_pass_rates(self, budget: int | None, begins: bool) -> None:
        """Raises `ValueError` if problems cannot be chosen by their pass rates, or for more attempts than allowed."""
        config = self.config
        if not config.filters:
            return
        pool = self._rated_problems() * config.pass_rate_attempts
        episodes = config.problems_per_iteration * config.samples_per_problem
        if begins and budget is not None and budget < pool + episodes:
            raise ValueError(
                f"pass rates take {pool} attempts and one iteration {episodes}, more than total_episodes={budget}: "
                "raise it, or lower pass_rate_problems, pass_rate_attempts or problems_per_iteration"
            )

    def _rated_problems(self) -> int:
        return self.count_problems(self.config.pass_rate_problems, "pass_rate_problems")

    def _filter(self, progress_bar: bool) -> list[int]:
        """Indices of the problems whose pass rates are within the bounds, by attempts of the policy as it is."""
        config, started, statistics = self.config, time.perf_counter(), RolloutStatistics()
        ours = self.collect_attempts(
            self.policy.with_sampling(**asdict(self.sampling)),
            self.env,
            self._rated_problems(),
            config.pass_rate_attempts,
            seed=self.seed,
            folder=None if self.run_path is None else self.run_path / "pass-rates",
            description="pass rates",
            progress_bar=progress_bar,
        )
        attempts = [attempt for part in self.ranks.gather(ours) for attempt in part]
        for attempt in attempts:
            statistics.add(attempt)
        self.num_attempts += statistics.attempts
        self.num_tokens += statistics.tokens
        rates = PassRates.of(attempts, config.pass_rate_attempts)
        problems = rates.between(config.min_pass_rate, config.max_pass_rate, self.env.problems)
        metrics = {
            "filter/attempts": float(statistics.attempts),
            "filter/problems": float(len(rates.rates)),
            "filter/kept": float(len(problems)),
            "filter/success_rate": float(np.mean(list(rates.rates.values()))),
            "time/filter_seconds": time.perf_counter() - started,
        }
        self.log(metrics, None)
        if self.ranks.is_main:
            _logger.info("%d of %d problems have a pass rate within the bounds", len(problems), len(rates.rates))
            if len(problems) < config.problems_per_iteration:
                _logger.warning(
                    "an iteration has %d problems, and only %d are left to train on: some come several times in each; "
                    "raise pass_rate_problems, widen min_pass_rate and max_pass_rate, or lower problems_per_iteration",
                    config.problems_per_iteration, len(problems),
                )  # fmt: skip
        return problems

    def _save_progress(self, folder: Path, further: Mapping[str, Tensor] | None = None) -> None:
        """Writes a checkpoint of all that learning continues from, with further tensors of the agent's."""
        progress, best = cast(Progress, self._progress), cast(Progress, self._progress).best
        curriculum = self.env.curriculum
        state = {"iteration": progress.iteration, "attempts": self.num_attempts, "tokens": self.num_tokens}
        state |= {"first": progress.first, "first_attempts": progress.first_attempts}
        state |= {"first_step": progress.learner.first_step, "agent": self.state()}
        state |= {"best": {"accuracy": best.accuracy, "age": best.age}}
        state |= {"problems": progress.problems, "alarms": progress.alarms.state_dict()}
        state |= {"curriculum": (curriculum.curriculum if isinstance(curriculum, Batch) else curriculum).state_dict()}
        tensors = {f"best/{name}": tensor for name, tensor in best.weights.items()}
        tensors |= {f"agent/{name}": tensor for name, tensor in {**self.tensors(), **(further or {})}.items()}
        save_checkpoint(progress.learner, folder, state, tensors)

    def save(self, path: str | Path, *, optimizer: bool = False) -> None:
        """Writes the agent as `Agent.save` does and, if wanted, all that learning continues from.

        Args:
            path: Folder to write.
            optimizer: Write the optimizer's state, the reference and the counters, too: `load` then gives an agent
                whose `learn` continues. The default writes what acts, and PPO's critic.

        Raises:
            ValueError: There is no state yet, an iteration was interrupted, or the state is of adapters, which are
                merged into what is saved.
        """
        if optimizer:
            self._check_whole()
        if optimizer and self._progress is None:
            raise ValueError("the optimizer has no state before learn: save without optimizer=True")
        if optimizer and hasattr(self.model, "disable_adapter"):
            raise ValueError(
                "adapters are merged into the weights that are saved, and the optimizer's state is of the adapters: "
                "give the agent a run folder, which resume continues, or save without optimizer=True"
            )
        with self._new_folder(Path(path)) as folder:
            if folder is not None:
                self._write(folder)
            if optimizer:
                self._save_progress((folder or Path(path)) / _TRAINING, self.kept_tensors())

    @classmethod
    def load(cls, path: str | Path, env: Environment | None = None, **settings: Any) -> Self:
        agent = super().load(path, env, **settings)
        if (Path(path) / _TRAINING).is_dir():
            agent._loaded = Path(path) / _TRAINING
        return agent

    def rewards(self, attempts: Sequence[Attempt]) -> Sequence[NDArray[np.floating]]:
        """Rewards `[T]` of each attempt's tokens as learning sees them: less what long attempts are fined."""
        config, limit = self.config, self.env.max_new_tokens
        if not config.overlong_buffer:
            return [attempt.rewards for attempt in attempts]
        problems = {attempt.problem.id: attempt.problem for attempt in attempts}
        prompts = {name: len(self.env.encode_prompt(problem)) for name, problem in problems.items()}
        # The beginning of a solution that the curriculum gave counts towards the limit.
        lengths = np.array(
            [len(attempt.prompt) + len(attempt.completion) - prompts[attempt.problem.id] for attempt in attempts]
        )
        fines = self.config.overlong_penalty * overlong_penalty(
            lengths, limit, max(1, round(self.config.overlong_buffer * limit))
        )
        rewards = [attempt.rewards.astype(np.float64) for attempt in attempts]
        for paid, fine in zip(rewards, fines, strict=True):
            paid[-1] += fine
        return rewards

    def returns(self, attempts: Sequence[Attempt]) -> NDArray[np.float64]:
        """Undiscounted returns `[N, K]`, K attempts at each of N problems."""
        returns = np.array([float(rewards.sum()) for rewards in self.rewards(attempts)])
        return returns.reshape(-1, self.config.samples_per_problem)

    def learnable(self, attempts: Sequence[Attempt]) -> NDArray[np.bool_]:
        """Bool `[A]`, true for attempts that may have a loss: all, or those that ended by themselves."""
        return np.array([attempt.terminated or self.config.truncated != "mask" for attempt in attempts])

    def corrected(
        self, values: Tensor, before: Tensor, sampled: Tensor, mask: Tensor, actions: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss corrected for what sampling computes otherwise than training does, and the size of that mismatch.

        Args:
            values: `[B, T]` loss of each action.
            before: `[B, T]` log-probabilities of the actions by training's forward pass, before any update.
            sampled: `[B, T]` log-probabilities of the actions at sampling time.
            mask: `[B, T]` bool, true at actions.
            actions: Number of actions in the whole batch.
        """
        config, ratios = self.config, log_ratios(before, sampled, mask)
        metrics = {
            "mismatch": masked_aggregate(ratios.abs(), mask, actions),
            "mismatch_max": ratios.abs().max(),
            "mismatch_kl": masked_aggregate(k3_divergence(sampled, before, mask), mask, actions),
        }
        if config.importance == "none":
            return values, metrics
        weights = importance_weights(ratios, mask, config.importance, config.importance_floor, config.importance_cap)
        return values * weights, metrics | {"importance": masked_aggregate(weights, mask, actions)}

    @contextmanager
    def _kept_if_not_finite(self, attempts: Sequence[Attempt], iteration: int) -> Iterator[None]:
        """Writes the iteration's attempts to the run's folder when a reward, a loss or a gradient is not finite."""
        try:
            yield
        except (NonFiniteError, NonFiniteLogitsError, RewardError) as error:
            update = cast(Progress, self._progress).learner.steps + 1
            message = f"iteration {iteration}, before update {update}: {error}"
            if self.run is not None:
                path = self.run.path / f"not-finite-{iteration}.jsonl"
                path.unlink(missing_ok=True)
                with AttemptFile(path) as file:
                    for attempt in attempts:
                        file.write(attempt)
                message += f"; the attempts are in {path}"
            raise NonFiniteError(message) from error

    def _iterations(self, budget: int | None) -> int:
        config = self.config
        episodes = config.problems_per_iteration * config.samples_per_problem
        check_held(episodes, "attempts", "`problems_per_iteration` or `samples_per_problem`")
        if budget is not None and budget < episodes:
            raise ValueError(
                f"one iteration samples {config.problems_per_iteration} problems x {config.samples_per_problem} = "
                f"{episodes} attempts, more than total_episodes={budget}: raise it, or lower problems_per_iteration"
            )
        return config.iterations if budget is None else min(config.iterations, budget // episodes)

    def _sample(
        self,
        iteration: int,
        limit: float,
        attempts: list[Attempt],
        metrics: dict[str, float],
        on_step: Callable[[int], object],
    ) -> Groups:
        """All attempts of an iteration, at most `limit`; this rank puts its own into `attempts` as they come."""
        config, started = self.config, time.perf_counter()
        seed = self.seed + _ITERATION_SEED * (iteration + 1)
        groups = sample_groups(
            lambda numbers: self._collect(seed, numbers, attempts, on_step),
            config.problems_per_iteration, config.samples_per_problem, config.dynamic_sampling, limit,
        )  # fmt: skip
        sampled = groups.sampled
        self.env.seek(seed, len(sampled))  # on all ranks alike, the curriculum is where all attempts have brought it
        statistics = RolloutStatistics()
        for attempt in sampled:
            statistics.add(attempt)
        metrics |= self.count(statistics, time.perf_counter() - started)
        metrics["rollout/median_response_length"] = median_response_length(sampled)
        # The mean of -log pi over sampled tokens: unbiased for the entropy of the policy where it was.
        metrics["rollout/entropy"] = -sum(float(attempt.logprobs.sum()) for attempt in sampled) / statistics.tokens
        if self.sampling.truncates:
            metrics["rollout/kept_tokens"] = sum(len(cast(KeptTokens, attempt.kept).tokens) for attempt in sampled)
            metrics["rollout/kept_tokens"] /= statistics.tokens
        if config.samples_per_problem > 1:
            metrics["rollout/uniform_groups"] = groups.uniform / config.problems_per_iteration
        if config.dynamic_sampling:
            metrics["rollout/replaced_groups"] = float(groups.replaced)
            metrics["rollout/unreplaced_groups"] = float(groups.uniform - groups.replaced)
        return groups

    def _collect(
        self, seed: int, numbers: range, attempts: list[Attempt], on_step: Callable[[int], object]
    ) -> list[Attempt]:
        """Attempts with some numbers, in order; this rank puts its own into `attempts` as they come."""
        sampling = self.sampling
        policy = self.policy.with_sampling(**asdict(sampling))
        share = self.ranks.share(len(numbers))
        start, stop = numbers.start + share.start, numbers.start + share.stop
        own: list[Attempt] = []
        sample = collect(
            policy, self.env, stop, seed=seed, start=start, on_step=on_step, record_kept=sampling.truncates
        )
        for attempt in sample:
            attempts.append(attempt)
            own.append(attempt)
            _check_rewards(attempt)
        return [attempt for part in self.ranks.gather(own) for attempt in part]


@dataclass(slots=True)
class Progress:
    """State of learning: what a second call of `learn` continues from, and what checkpoints hold.

    Attributes:
        learner: Learner with the optimizer's state.
        best: Best policy so far.
        iteration: Iterations done.
        first: Iterations done before the newest call of `learn`.
        first_attempts: Attempts sampled before it.
        problems: Indices of the problems to train on, if they were chosen before training.
        alarms: Warnings given, and what they compare with.
    """

    learner: Learner
    best: "_Best"
    iteration: int = 0
    first: int = 0
    first_attempts: int = 0
    problems: list[int] | None = None
    alarms: Alarms = field(default_factory=Alarms)

    def extend(self, iterations: int, updates: int, attempts: int) -> None:
        """Begins another call of `learn`."""
        self.first, self.first_attempts, self.best.age = self.iteration, attempts, 0
        self.learner.begin_schedule(iterations * updates)


_TRAINING = "training"
"""Folder inside of a saved agent with what learning continues from."""


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


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_rewards(attempt: Attempt) -> None:
    broken = attempt.rewards[~np.isfinite(attempt.rewards)]
    if len(broken):
        raise NonFiniteError(f"an attempt at problem {attempt.problem.id!r} was paid a reward of {broken[0]}")


# Seeds of different iterations are so far apart that those of neighbouring runs do not meet.
_ITERATION_SEED = 1_000_003
