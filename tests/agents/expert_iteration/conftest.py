"""A language of letters, expert iteration on it, and what it was trained on."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import ExpertIteration, expert_iteration
from tokengym.agents import rounds as in_rounds
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id
VOCABULARY = len(LETTERS)


class Letters(ProblemList):
    """Correct is whatever begins with the answer, one letter: solutions are many, and easy to come by."""

    def __init__(self, questions: str = "a b ab ba aa bb", split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1], q[-1]) for q in questions.split()], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith(problem.answer)
        return Verdict(correct, "correct" if correct else "wrong", completion[:1] or None)


@pytest.fixture(scope="session")
def letters() -> type[Letters]:
    """Correct is whatever begins with the answer, one letter: solutions are many, and easy to come by."""
    return Letters


@pytest.fixture(scope="session")
def slots():
    """Makes a token environment of problems."""

    def slots(problems: ProblemList, num_envs: int = 16, **settings: Any) -> TokenVectorEnv:
        settings = {
            "tokenizer": LETTERS,
            "prompt": "{question}",
            "max_prompt_tokens": 8,
            "max_new_tokens": 3,
        } | settings
        return TokenVectorEnv(problems, num_envs, autoreset_mode="Disabled", copy=False, **settings)

    return slots


@pytest.fixture(scope="session")
def letters_folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("letters")
    ids = {"eos_token_id": EOS, "pad_token_id": LETTERS.pad_token_id}
    make_model("gpt2", vocab_size=VOCABULARY, **ids).save_pretrained(path)
    LETTERS.save_pretrained(path)
    return path


FAST = {
    "rounds": 3, "samples_per_problem": 12, "epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "save_steps": 2,
    "validation_problems": 6, "patience": 9, "demonstrations": 3,
}  # fmt: skip


@pytest.fixture(scope="session")
def fast() -> dict[str, Any]:
    """Settings of expert iteration that learn in seconds."""
    return FAST


@pytest.fixture
def make_agent(slots, letters_folder) -> Callable[..., ExpertIteration]:
    def make(cls: type[ExpertIteration] = ExpertIteration, source: ProblemList | None = None, **settings: Any):
        return cls(
            slots(source or Letters()),
            letters_folder,
            validation_env=slots(source or Letters(split="validation")),
            device="cpu",
            **(FAST | settings),
        )

    return make


@pytest.fixture(scope="session")
def saved():
    """Reads the weights that a run saved."""

    def saved(run: Path) -> dict[str, torch.Tensor]:
        return load_file(run / "model" / "model.safetensors")

    return saved


@pytest.fixture
def trainings(weights, monkeypatch) -> list[tuple[dict, list, dict]]:
    """Of each training: weights before, examples, weights after."""
    seen = []
    real = expert_iteration.fine_tune

    def spy(model, examples, *args, **options):
        before = weights(model)
        real(model, examples, *args, **options)
        seen.append((before, list(examples), weights(model)))

    monkeypatch.setattr(expert_iteration, "fine_tune", spy)
    return seen


@pytest.fixture(scope="session")
def texts():
    """Question and solution of each example; the end of sequence is checked on the way."""

    def texts(examples: list) -> list[tuple[str, str]]:
        assert all(example.completion[-1] == EOS for example in examples)
        return [
            (str(LETTERS.decode(example.prompt.tolist())), str(LETTERS.decode(example.completion[:-1].tolist())))
            for example in examples
        ]

    return texts


class Endless(Letters):
    """The same few questions under numbers without end."""

    size = None

    def __getitem__(self, index: int) -> Problem:
        question = super().__getitem__(index % 5).question
        return Problem(f"{index}-{question}", question, question[-2], question[-2])

    def find(self, problem_id: str) -> Problem:
        return self[int(problem_id.split("-")[0])]


@pytest.fixture(scope="session")
def endless() -> type[Endless]:
    """The same few questions under numbers without end."""
    return Endless


@pytest.fixture(scope="session")
def script():
    """Validation results, round by round, instead of measured ones."""

    def script(monkeypatch, accuracies: list[float]) -> None:
        values = iter(accuracies)

        monkeypatch.setattr(in_rounds, "validate", lambda *_: {"eval/maj@1": next(values)})

    return script


class Killed(BaseException):
    """As abrupt as Ctrl-C."""


@pytest.fixture(scope="session")
def killed() -> type[Killed]:
    """As abrupt as Ctrl-C."""
    return Killed


@pytest.fixture(scope="session")
def die_at():
    """Lets `owner.name` fail from its `call`-th call on."""

    def die_at(monkeypatch, owner: Any, name: str, call: int) -> None:
        real, calls = getattr(owner, name), itertools.count(1)

        def dying(*args, **options):
            if next(calls) >= call:
                raise Killed
            return real(*args, **options)

        monkeypatch.setattr(owner, name, dying)

    return die_at
