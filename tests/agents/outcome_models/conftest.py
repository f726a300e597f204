"""A language of two letters in lines, a policy, and outcome models of its attempts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.agents import ORM
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

LINES = load_tokenizer("chars:yz\n?")
EOS, (NEWLINE,) = LINES.eos_token_id, LINES.encode("\n", add_special_tokens=False)
BUDGET = 5


class Even(ProblemList):
    """Correct is a completion with an even number of the question's letter."""

    def __init__(self, split: str = "train", questions: str = "y z yz zy") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1], q[-1]) for q in questions.split()], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.count(problem.answer) % 2 == 0
        return Verdict(correct, "correct" if correct else "wrong", completion)


@pytest.fixture(scope="session")
def even() -> type[Even]:
    """Correct is a completion with an even number of the question's letter."""
    return Even


@pytest.fixture(scope="session")
def slots():
    """Makes a token environment of problems."""

    def slots(problems: ProblemList | None = None, num_envs: int = 16, budget: int = BUDGET) -> TokenVectorEnv:
        return TokenVectorEnv(
            problems or Even(), num_envs, tokenizer=LINES, autoreset_mode="Disabled", prompt="{question}",
            max_prompt_tokens=4, max_new_tokens=budget,
        )  # fmt: skip

    return slots


@pytest.fixture(scope="session")
def policy_folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    make_model(vocab_size=len(LINES), eos_token_id=EOS, pad_token_id=EOS).save_pretrained(path)
    LINES.save_pretrained(path)
    return path


FAST = {"samples_per_problem": 12, "validation_problems": 2, "epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture(scope="session")
def fast() -> dict[str, Any]:
    """Settings of outcome models that learn in seconds."""
    return FAST


@pytest.fixture
def make_agent(slots, policy_folder):
    def make(cls: type[ORM] = ORM, env: TokenVectorEnv | None = None, **settings: Any) -> ORM:
        validation = settings.pop("validation_env", None) or slots(Even("validation", "yy zz y"))
        return cls(env or slots(), policy_folder, validation_env=validation, device="cpu", **(FAST | settings))

    return make


@pytest.fixture(scope="session")
def same():
    """Compares weights by name, bit for bit."""

    def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())

    return same


@pytest.fixture(scope="session")
def records():
    """Reads the lines of a JSON-lines file."""

    def records(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    return records


@pytest.fixture(scope="session")
def attempt():
    """Makes an attempt with a text and an outcome."""

    def attempt(problem_id: str, text: str, is_success: bool, terminated: bool = True) -> Attempt:
        tokens = np.array([*LINES.encode(text, add_special_tokens=False), *[EOS] * terminated], np.int32)
        empty = np.zeros(len(tokens), np.float32)
        problem = Problem(problem_id, "y?", "y", "y")
        return Attempt(problem, 0, np.array([0, 3]), tokens, empty, empty, is_success, "", None, terminated)

    return attempt


class Killed(BaseException):
    """As abrupt as Ctrl-C."""


@pytest.fixture(scope="session")
def killed() -> type[Killed]:
    """As abrupt as Ctrl-C."""
    return Killed
