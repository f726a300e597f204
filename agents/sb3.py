"""Stable-Baselines3 as a peer: its own algorithms on the same model and the same environment.

    from stable_baselines3 import PPO
    env = SB3VecEnv(gym.make_vec("tokengym/Arithmetic-v0", 8, autoreset_mode="SameStep"))
    PPO(SB3CausalLMPolicy, env, policy_kwargs={"model": "tokengym/tiny"}).learn(10_000)

This is the slow, independent cross-check of our own agents, and the example for bringing other algorithms. SB3 knows no
sequences, so every token costs a forward pass over all that come before it, when it is sampled and at every update.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from gymnasium import spaces
from torch import Tensor
from transformers import PreTrainedModel

from ..extras import missing_extra
from ..lazy import lazy_names
from ..models.critics import ActorCritic, make_critic
from ..models.forward import logits_of
from ..models.loading import load
from ..models.vocabulary import num_token_ids
from .training.masters import MasterAdamW

try:
    from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
except ModuleNotFoundError as error:
    raise missing_extra("sb3", "SB3CausalLMPolicy") from error


class SB3CausalLMPolicy(ActorCriticPolicy):
    """A causal language model with a critic, as a policy of Stable-Baselines3's on-policy algorithms.

    Dropout stays off in updates, too: the policy that is updated is the one that acted.

    Args:
        observation_space: Observation space of a token environment: `input_ids` and `attention_mask`.
        action_space: Action space of a token environment: its tokens.
        lr_schedule: Function from the remaining share of training to the learning rate.
        model: Model, anything that `models.load` takes, or a language model, which is then trained in place.
        temperature: Temperature of the distribution that actions are drawn from.
        critic: Kind of critic: "branch", "head" or "model"; see `models.critics`.
        critic_layers: Number of layers of a branch.
        optimizer_class: Class of the optimizer; by default AdamW, with float32 master weights for weights in bfloat16.
        optimizer_kwargs: Arguments of the optimizer.
        use_sde: State-dependent exploration of SB3, which is for continuous actions: must be False.

    Raises:
        ValueError: The spaces are not those of a token environment, the model has another vocabulary or no such branch,
            or another optimizer is to train weights that are not in float32.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        model: str | Path | PreTrainedModel = "tokengym/tiny",
        temperature: float = 1.0,
        critic: Literal["branch", "head", "model"] = "head",
        critic_layers: int = 4,
        optimizer_class: type[torch.optim.Optimizer] = MasterAdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        named = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        if not {"input_ids", "attention_mask"} <= set(named) or not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"a language model needs the spaces of a token environment, not {observation_space}")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            use_sde=use_sde,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs or {},
        )
        self._settings = {"model": model, "temperature": temperature, "critic": critic, "critic_layers": critic_layers}
        if isinstance(model, PreTrainedModel):
            language_model, size = model, int(model.config.get_text_config().vocab_size)
            fits = action_space.n <= size < 2 * action_space.n  # models have columns without a token, but not that many
        else:
            language_model, tokenizer = load(model, device="cpu")
            size = num_token_ids(tokenizer)
            fits = size == action_space.n
        if not fits:
            raise ValueError(
                f"the model has {size} tokens and the environment {action_space.n}: make the environment with "
                "tokenizer=... of the model"
            )
        self.actor_critic = ActorCritic(language_model, make_critic(critic, language_model, critic_layers))
        self.temperature = temperature
        low = next((weight.dtype for weight in self.parameters() if weight.dtype != torch.float32), None)
        if low is not None and optimizer_class is not MasterAdamW:
            raise ValueError(
                f"{optimizer_class.__name__} would round its steps away in weights of {low}: load the model in "
                "float32, or leave out optimizer_class"
            )
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # pyright: ignore[reportCallIssue]

    def _build(self, lr_schedule: Schedule) -> None:
        """Nothing: SB3's networks are not used."""

    def _get_constructor_parameters(self) -> dict[str, Any]:
        spaces_ = {"observation_space": self.observation_space, "action_space": self.action_space}
        optimizer = {"optimizer_class": self.optimizer_class, "optimizer_kwargs": self.optimizer_kwargs}
        return {**spaces_, **optimizer, **self._settings, "lr_schedule": self._dummy_schedule}

    def set_training_mode(self, mode: bool) -> None:
        self.eval()

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        distribution, values = self._evaluate(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        distribution, values = self._evaluate(obs)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        return self._evaluate(obs)[0]

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        return self._evaluate(obs)[1]

    def _evaluate(self, obs: PyTorchObs) -> tuple[CategoricalDistribution, Tensor]:
        """The distribution of the next token, and the values `[N, 1]`, after the observed tokens."""
        assert isinstance(obs, dict)  # noqa: S101  # the observation space says so
        lengths = obs["attention_mask"].sum(1).long()
        width = int(lengths.max())
        ids, mask = obs["input_ids"][:, :width].long(), obs["attention_mask"][:, :width].long()
        states, values = self.actor_critic(ids, mask, torch.arange(width, device=ids.device) == lengths[:, None] - 1)
        logits = logits_of(self.actor_critic.policy, states)[:, : self.action_space.n].float() / self.temperature  # pyright: ignore[reportAttributeAccessIssue]
        return CategoricalDistribution(logits.shape[1]).proba_distribution(logits), values[:, None]


__getattr__, __dir__ = lazy_names(__name__, {}, moved={"CausalLMPolicy": "tokengym.agents.sb3:SB3CausalLMPolicy"})
