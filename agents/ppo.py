"""PPO: token-level proximal policy optimization with a critic (Schulman et al. 2017; Havrilla et al. 2024)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..files import read_tensors
from ..models.critics import ActorCritic, Critic, make_critic
from ..models.forward import Entropy, action_logprobs, compute_dtype
from ..models.layers import train_top_layers
from ..models.positions import check_length
from ..models.vocabulary import num_token_ids
from .configs.ppo import PPOConfig
from .proximal import ProximalAgent, at, summarize
from .rollouts.attempts import Attempt
from .rollouts.source import Environment
from .training.advantages import adapted_kl_coef, explained_variance, generalized_advantages, whiten
from .training.learner import Example, Learner, Loss, MicroBatch
from .training.losses import DIVERGENCES, clipped_surrogate, k3_divergence, log_ratios, masked_aggregate, value_error
from .training.memory import Work
from .training.reference import Reference, TokenValues, evaluate_as_trained, shuffled
from .training.sharding import whole

# A critic that is new has more to learn than its policy, and nothing to forget.
CRITIC_RATE_RATIO = 10
_CRITIC = "critic.safetensors"


class PPOLearner(Learner):
    """Updates a policy and its critic: losses get log-probabilities, values and entropies, `[B, T]` each.

    Outside of updates there are no entropies.
    """

    entropy: Entropy = "value"
    """Entropies that updates compute; a bonus for entropy needs its "gradient"."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        config, critic = cast(PPOConfig, self.config), cast(ActorCritic, self.base).critic
        own = {id(parameter) for parameter in critic.parameters()}
        ratio = CRITIC_RATE_RATIO
        if config.critic_learning_rate is not None:
            if not self.learning_rate:
                raise ValueError("critic_learning_rate needs a learning_rate above 0, whose schedule it follows")
            ratio = config.critic_learning_rate / self.learning_rate
        return [
            {"params": [p for p in self.parameters if id(p) not in own], "ratio": 1.0},
            {"params": [p for p in self.parameters if id(p) in own], "ratio": ratio},
        ]

    def train_policy(self, trained: bool) -> None:
        """Lets updates step the policy, or only the critic."""
        self.optimizer.param_groups[0]["ratio"] = float(trained)

    def forward(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, ...]:
        inputs = batch.inputs.arguments(compute_dtype(self.base))
        states, values = self.model(select=batch.inputs.read, **inputs)
        policy, actions = cast(ActorCritic, self.base).policy, batch.actions[batch.action_mask]
        entropy = self.entropy if torch.is_grad_enabled() else "none"
        logprobs, entropies = action_logprobs(
            policy, states, actions, self.vocab_size, temperature, entropy, batch.kept
        )
        found = (logprobs, values) if entropies is None else (logprobs, values, entropies)
        return tuple(map(batch.scatter, found))


@dataclass(frozen=True, slots=True)
class Experience:
    """Attempts as they were before any update on them: one value for each of their tokens, `[T]` of each attempt.

    Attributes:
        sampled: Log-probabilities of the tokens at sampling time.
        logprobs: Log-probabilities of the tokens by training's forward pass.
        reference: Log-probabilities of the tokens under the reference, if there is one.
        values: Values that the critic predicted before each token.
        advantages: Advantages of the tokens, whitened if `whiten` is set.
        returns: Targets of the critic's values.
    """

    sampled: TokenValues
    logprobs: TokenValues
    reference: TokenValues | None
    values: TokenValues
    advantages: TokenValues
    returns: TokenValues

    def of(self, rows: NDArray[np.int64]) -> "Experience":
        """Selects some attempts."""
        return Experience(*(cast(Any, at(getattr(self, item.name), rows)) for item in fields(self)))


class PPO(ProximalAgent[PPOConfig]):
    """Proximal policy optimization (PPO) with a critic: every token is an action with an advantage of its own."""

    name = "ppo"
    config_class = PPOConfig

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        config = self.config
        if config.trained_layers is not None:
            if hasattr(self.model, "disable_adapter"):
                raise ValueError("trained_layers and lora_rank are two ways to train less: choose one")
            train_top_layers(self.model, config.trained_layers)
        self.begin_from_policy()
        if config.bootstrap_truncated:
            # The critic reads the state after the last token.
            check_length(self.model.config.get_text_config(), self.env.max_prompt_tokens + self.env.max_new_tokens + 1)
        self.kl_coef = config.kl_coef

    def begin_from_policy(self) -> None:
        """Makes the critic, and makes the policy as it is the reference."""
        config = self.config
        self.critic = make_critic(config.critic, self.model, config.critic_layers)
        if config.critic_from is not None:
            load_critic(self.critic, Path(config.critic_from) / _CRITIC)
        self._reference = Reference(self.model) if config.kl_coef else None

    @property
    def updates_per_iteration(self) -> int:
        return self.config.epochs * self.config.minibatches

    @classmethod
    def work(cls, config: Any, policy: PreTrainedModel) -> Work:
        work = super().work(config, policy)
        if config.trained_layers is not None:
            train_top_layers(policy, config.trained_layers)
        both = ActorCritic(policy, make_critic(config.critic, policy, config.critic_layers))
        make = lambda accelerator, vocab_size: _make_learner(both, config, 1, accelerator, vocab_size)  # noqa: E731
        return replace(work, trained=both, make_learner=make)

    def make_learner(self, total_steps: int) -> PPOLearner:
        model = ActorCritic(self.model, self.critic)
        return _make_learner(model, self.learner_config(), total_steps, self.accelerator, num_token_ids(self.tokenizer))

    def modules(self) -> list[nn.Module]:
        return [*super().modules(), self.critic]

    def _gather(self) -> None:
        super()._gather()
        whole(self.critic)

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        weights = whole(self.critic).state_dict()
        save_file({name: value.contiguous().cpu() for name, value in weights.items()}, folder / _CRITIC)

    @classmethod
    def load(cls, path: str | Path, env: Environment | None = None, **settings: Any) -> Self:
        if (Path(path) / _CRITIC).exists():
            settings.setdefault("critic_from", str(path))
        return super().load(path, env, **settings)

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.kl_coef = state.get("kl_coef", self.config.kl_coef)

    def improve(self, learner: Learner, attempts: Sequence[Attempt], iteration: int) -> dict[str, float]:
        config = self.config
        attempts = self._best(attempts)
        learnable = self.learnable(attempts)
        numbers = np.cumsum(learnable) - 1  # among those that are learned from
        attempts = [attempts[i] for i in np.flatnonzero(learnable)]
        metrics = {"trained_attempts": float(len(attempts)), "updates": 0.0}
        if not attempts:
            return metrics
        examples = [Example(attempt.prompt, attempt.completion, attempt.kept) for attempt in attempts]
        seed = [self.seed, iteration]
        parts = shuffled(len(learnable), config.epochs, config.minibatches, seed, config.kept)
        parts = [numbers[rows[learnable[rows]]] for rows in parts]
        reference = self.reference_logprobs(learner, examples, parts[: config.minibatches], iteration)
        experience, found = self._experience(learner, attempts, examples, reference, parts[: config.minibatches])
        learns = iteration >= config.critic_warmup
        cast(PPOLearner, learner).train_policy(learns)

        def accept(update: Mapping[str, float]) -> bool:
            return config.target_kl is None or update["approx_kl"] <= 1.5 * config.target_kl

        updates: list[dict[str, float]] = []
        before = learner.steps
        for rows in parts:
            if len(rows):
                loss = self._loss(experience.of(rows), learns)
                batch = [examples[i] for i in rows]
                updates.append(learner.update(batch, loss, self.seed, config.temperature, accept))
                if not accept(updates[-1]):
                    break
        if config.adaptive_kl is not None:  # of the next iteration: this one is penalized as it is logged
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, found["reference_kl_per_attempt"], config.adaptive_kl, len(attempts), config.kl_horizon
            )
        return metrics | found | summarize(updates) | {"updates": float(learner.steps - before)}

    def _best(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The K best attempts at each problem, in their order; the earlier of equal ones."""
        if self.config.best_of is None:
            return list(attempts)
        returns = self.returns(attempts)
        best = np.sort(np.argsort(-returns, axis=1, kind="stable")[:, : self.config.best_of], axis=1)
        numbers = best + np.arange(len(returns))[:, None] * returns.shape[1]
        return [attempts[i] for i in numbers.ravel()]

    def _experience(
        self,
        learner: Learner,
        attempts: Sequence[Attempt],
        examples: Sequence[Example],
        reference: TokenValues | None,
        minibatches: Sequence[NDArray[np.int64]],
    ) -> tuple[Experience, dict[str, float]]:
        """Rewards less the KL penalty, and what follows from them, with metrics of it."""
        config = self.config
        old_logprobs, old_values = evaluate_as_trained(
            lambda batch: learner.evaluate(batch, config.temperature), examples, minibatches
        )
        lengths = np.array([len(row) for row in old_values])
        mask = np.arange(lengths.max()) < lengths[:, None]
        rewards = _padded(self.rewards(attempts), mask).clip(-config.reward_clip, config.reward_clip)
        metrics = {"kl_coef": self.kl_coef}
        if reference is not None:
            penalties = _padded(self.penalties(old_logprobs, reference), mask)
            if config.kl_in == "reward":
                rewards -= self.kl_coef * penalties
            pair = [torch.from_numpy(array) for array in (_padded(old_logprobs, mask), _padded(reference, mask), mask)]
            metrics["reference_kl"] = float(k3_divergence(pair[0], pair[1], pair[2]).sum() / mask.sum())
            metrics["reference_kl_per_attempt"] = float((pair[0] - pair[1]).sum(1).mean())
        if config.bootstrap_truncated:
            cut = [i for i, attempt in enumerate(attempts) if not attempt.terminated]
            rewards[cut, lengths[cut] - 1] += config.gamma * self._expected_after(learner, [examples[i] for i in cut])
        values = _padded(old_values, mask)
        advantages = generalized_advantages(rewards, values, mask, config.gamma, config.gae_lambda)
        returns = advantages + values
        if config.critic_lambda is not None:
            returns = values + generalized_advantages(rewards, values, mask, config.gamma, config.critic_lambda)
        metrics["explained_variance"] = explained_variance(values[mask], returns[mask])
        metrics["mean_return"] = float(rewards.sum(1).mean())
        if config.whiten:
            advantages = whiten(advantages, mask)
        sampled = [attempt.logprobs for attempt in attempts]
        ragged = _ragged(advantages, lengths), _ragged(returns, lengths)
        return Experience(sampled, old_logprobs, reference, old_values, *ragged), metrics

    def _expected_after(self, learner: Learner, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Values of the critic, `[A]`, after the last token of each example."""
        if not examples:
            return np.zeros(0)
        further = [Example(example.prompt, np.append(example.completion, 0)) for example in examples]
        _, values = learner.evaluate(further, self.config.temperature)
        return np.array([row[-1] for row in values], np.float64)

    def _loss(self, experience: Experience, learns: bool) -> Loss:
        """The loss of a minibatch: averages over its tokens, of the critic alone unless the policy learns."""
        config, actions = self.config, sum(len(row) for row in experience.values)

        def loss(batch: MicroBatch, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs, values, entropies = output
            mask, old_logprobs = batch.action_mask, batch.spread(experience.logprobs)
            ratios, advantages = log_ratios(logprobs, old_logprobs, mask), batch.spread(experience.advantages)
            surrogate = clipped_surrogate(ratios, advantages, mask, config.clip, config.upper_clip, config.dual_clip)
            sampled = batch.spread(experience.sampled)
            surrogate, metrics = self.corrected(surrogate, old_logprobs, sampled, mask, actions)
            policy_loss = masked_aggregate(surrogate, mask, actions)
            old_values, returns = batch.spread(experience.values), batch.spread(experience.returns)
            value_loss = masked_aggregate(
                value_error(values, old_values, returns, mask, config.value_clip), mask, actions
            )
            entropy = masked_aggregate(entropies, mask, actions)
            total = policy_loss * learns + config.value_coef * value_loss
            if config.entropy_coef and learns:
                total = total - config.entropy_coef * entropy
            if experience.reference is not None and config.kl_in == "loss" and learns:
                penalty = DIVERGENCES[config.kl_estimator](logprobs, batch.spread(experience.reference), mask)
                total = total + self.kl_coef * masked_aggregate(penalty, mask, actions)
            metrics |= {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
            return total, metrics | self.ratio_metrics(ratios, logprobs, old_logprobs, mask, actions)

        return loss


def _make_learner(model: ActorCritic, config: Any, *arguments: Any) -> PPOLearner:
    learner = PPOLearner(model, config, *arguments)
    learner.entropy = "gradient" if config.entropy_coef else "value"
    return learner


def load_critic(critic: Critic, path: Path) -> None:
    """Gives a critic the weights in a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds a critic of another kind or shape.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no critic: PPO saves {path.name} beside its model")
    saved, own = read_tensors(path), critic.state_dict()
    for name in sorted(saved.keys() | own.keys()):
        shapes = [str(tuple(part[name].shape)) if name in part else "nothing" for part in (saved, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} is of another critic: {name} is {shapes[0]} there and {shapes[1]} here; give the `critic` and "
                "`critic_layers` that it was trained with"
            )
    critic.load_state_dict(saved)


def _padded(rows: Sequence[NDArray[np.floating]], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values `[T]` of each attempt as `[B, T]`."""
    padded = np.zeros(mask.shape)
    padded[mask] = np.concatenate(rows)
    return padded


def _ragged(values: NDArray[np.float64], lengths: NDArray[np.int64]) -> TokenValues:
    return [row[:length].astype(np.float32) for row, length in zip(values, lengths, strict=True)]
