"""A bandit and a language of letters, and the policy-gradient agents that are tried on them."""

from typing import Any

import numpy as np
import pytest
import torch

from tokengym.agents import GRPO, Reinforce
from tokengym.agents.on_policy import PolicyGradientAgent
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.envs import ProblemList
from tokengym.models import load_tokenizer

LETTERS = load_tokenizer("chars:ab?")


@pytest.fixture(scope="session")
def bandit(make_bandit) -> type[ProblemList]:
    return make_bandit("ba")


FAST = {
    "iterations": 4,
    "problems_per_iteration": 6,
    "learning_rate": 3e-3,
    "validation_problems": 0,
    "save_iterations": 2,
}

AGENTS: dict[str, tuple[type[PolicyGradientAgent], dict[str, Any]]] = {
    "reinforce": (Reinforce, {"samples_per_problem": 2}),
    "mean": (Reinforce, {"samples_per_problem": 2, "baseline": "mean"}),
    "rloo": (Reinforce, {"samples_per_problem": 4, "baseline": "rloo"}),
    "grpo": (GRPO, {"samples_per_problem": 4}),
    "grpo-all": (GRPO, {"samples_per_problem": 4, "epochs": 2, "minibatches": 3, "kl_coef": 0.1, "temperature": 0.75}),
}


@pytest.fixture(params=AGENTS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each agent in turn."""
    return request.param


@pytest.fixture(scope="session")
def make(letters, slots, letters_folders):
    def make(
        kind: str = "grpo-all", problems: type[ProblemList] = letters, architecture: str = "gpt2", num_slots: int = 16,
        **settings,
    ):  # fmt: skip
        cls, own = AGENTS[kind]
        return cls(
            slots(problems(), num_slots),
            letters_folders[architecture],
            validation_env=slots(problems("validation")),
            device="cpu",
            **(FAST | own | settings),
        )

    return make


@pytest.fixture(scope="session")
def plain_gradient():
    """Of the mean over attempts of -signal log pi, every attempt alone, no padding, nothing shared."""

    def plain_gradient(
        agent: PolicyGradientAgent, attempts: list[Attempt], signals: np.ndarray, top_p: float = 1.0
    ) -> torch.Tensor:
        total = torch.zeros(())
        for attempt, signal in zip(attempts, signals.ravel().tolist(), strict=True):
            ids = torch.from_numpy(np.concatenate([attempt.prompt, attempt.completion]))
            logits = agent.model(ids[None]).logits[0, :, : len(LETTERS)] / agent.config.temperature
            if top_p < 1:
                chances, tokens = logits.softmax(-1).sort(descending=True)
                outside = torch.empty_like(logits, dtype=torch.bool)
                logits = logits.masked_fill(
                    outside.scatter(-1, tokens, chances.cumsum(-1) - chances >= top_p), -torch.inf
                )
            at = torch.arange(len(attempt.prompt) - 1, len(ids) - 1)
            total = total - signal * logits.log_softmax(-1)[at, ids[at + 1]].sum()
        agent.model.zero_grad()
        (total / len(attempts)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in agent.model.parameters()])  # pyright: ignore

    return plain_gradient


class Killed(Exception):
    pass


@pytest.fixture(scope="session")
def killed() -> type[Killed]:
    """As abrupt as a killed process."""
    return Killed
