"""A bandit and a language of letters, and PPO agents that are tried on them."""

from typing import Any

import pytest
import torch

from tokengym.agents.ppo import PPO
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.collect import collect
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.curriculum import Uniform
from tokengym.models import load_tokenizer
from tokengym.models.critics import ActorCritic
from tokengym.rewards import Verdict

LETTERS = load_tokenizer("chars:ab?")


class Bandit(ProblemList):
    """One question, one right completion among all: "b"."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem("bandit", "?", "b", "b")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion == "b", "correct" if completion == "b" else "wrong", completion)


@pytest.fixture(scope="session")
def bandit() -> type[Bandit]:
    """One question, one right completion among all: "b"."""
    return Bandit


@pytest.fixture(scope="session")
def slots():
    """Makes a token environment of problems."""

    def slots(problems: ProblemList, num_envs: int = 16, **settings: Any) -> TokenVectorEnv:
        settings = {"autoreset_mode": "Disabled", "max_new_tokens": 4} | settings
        return TokenVectorEnv(
            problems, num_envs, tokenizer=LETTERS, prompt="{question}", max_prompt_tokens=8,
            copy=False, eos_token_ids=[LETTERS.pad_token_id], **settings,
        )  # fmt: skip

    return slots


FAST = {
    "iterations": 4, "problems_per_iteration": 6, "samples_per_problem": 4, "minibatch_size": 10, "epochs": 2,
    "learning_rate": 3e-3, "validation_problems": 0, "save_iterations": 2, "critic_layers": 1,
}  # fmt: skip


@pytest.fixture
def make(letters, slots, letters_folders):
    def make(problems: type[ProblemList] = letters, architecture: str = "gpt2", reward: Any = "sparse", **settings):
        return PPO(
            slots(problems(), reward=reward),
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
def attempts_of():
    """Samples the attempts of one iteration."""

    def attempts_of(agent: PPO, seed: int = 0) -> list[Attempt]:
        config = agent.config
        agent.env.curriculum = Uniform(repeats=config.samples_per_problem)
        policy = agent.policy.with_sampling(temperature=config.temperature)
        return list(collect(policy, agent.env, config.problems_per_iteration * config.samples_per_problem, seed=seed))

    return attempts_of


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
