"""A bandit and a language of letters, and PPO agents that are tried on them."""

from typing import Any

import pytest
import torch

from tokengym.agents.ppo import PPO
from tokengym.envs import ProblemList
from tokengym.models import load_tokenizer
from tokengym.models.critics import ActorCritic

LETTERS = load_tokenizer("chars:ab?")


@pytest.fixture(scope="session")
def bandit(make_bandit) -> type[ProblemList]:
    return make_bandit("b")


FAST = {
    "iterations": 4, "problems_per_iteration": 6, "samples_per_problem": 4, "minibatch_size": 10, "epochs": 2,
    "learning_rate": 3e-3, "validation_problems": 0, "save_iterations": 2, "critic_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def make(letters, slots, letters_folders):
    def make(
        problems: type[ProblemList] = letters, architecture: str = "gpt2", reward: Any = "sparse", num_slots: int = 16,
        **settings,
    ):  # fmt: skip
        return PPO(
            slots(problems(), num_slots, reward=reward),
            letters_folders[architecture],
            validation_env=slots(problems("validation")),
            device="cpu",
            **(FAST | settings),
        )

    return make


@pytest.fixture(scope="session")
def weights():
    """Copies the trainable weights of an agent."""

    def weights(agent: PPO) -> dict[str, torch.Tensor]:
        pair = ActorCritic(agent.model, agent.critic)
        return {name: parameter.detach().clone() for name, parameter in pair.named_parameters()}

    return weights


@pytest.fixture(scope="session")
def disturb():
    """Moves policy and critic, so that values are not zero and the reference is another policy."""

    def disturb(agent: PPO, scale: float = 0.05) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (*agent.model.parameters(), *agent.critic.parameters()):
                if parameter.requires_grad:
                    parameter += scale * torch.randn(parameter.shape, generator=generator)

    return disturb
