"""One-digit sums as a token environment, and a reward that shows each token's place."""

import itertools

import numpy as np
import pytest

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.rewards import Reward, Verdict

TOKENIZER = load_tokenizer("chars:0123456789+=#\n")
EOS = TOKENIZER.eos_token_id
VOCABULARY = len(TOKENIZER)


class Sums(ProblemList):
    """0+0= to 9+9=, graded by equality."""

    def __init__(self) -> None:
        pairs = itertools.product(range(10), repeat=2)
        super().__init__([Problem(f"sum-{a}{b}", f"{a}+{b}=", str(a + b), f"{a + b}") for a, b in pairs])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion == problem.answer
        return Verdict(correct, "correct" if correct else "wrong", completion)


@pytest.fixture(scope="session")
def sums() -> type[Sums]:
    """0+0= to 9+9=, graded by equality."""
    return Sums


class EveryToken(Reward):
    """Pays each token a number of its own, so that a payment in the wrong place or a lost one shows."""

    def score(self, lengths, ended, verdicts):
        rewards = np.zeros((len(lengths), max(1, lengths.max())))
        for slot, length in enumerate(lengths):
            completion = self.view.completion(slot)
            for i in range(length):
                position = len(completion) - length + i
                rewards[slot, i] = 0.1 * completion[position] + 0.01 * position
            if ended[slot]:
                rewards[slot, length - 1] += 0.3 * ended[slot] + verdicts[slot].correct
        return rewards


@pytest.fixture(scope="session")
def every_token() -> type[EveryToken]:
    """Pays each token a number of its own, so that a payment in the wrong place or a lost one shows."""
    return EveryToken


@pytest.fixture(scope="session")
def make():
    """Makes a token environment of one-digit sums."""

    def make(num_envs=1, problems=None, **settings) -> TokenVectorEnv:
        settings = {
            "tokenizer": TOKENIZER,
            "prompt": "{question}",
            "max_prompt_tokens": 5,
            "max_new_tokens": 4,
        } | settings
        return TokenVectorEnv(problems or Sums(), num_envs, **settings)

    return make


@pytest.fixture(scope="session")
def tokens_of():
    """Encodes a text."""

    def tokens_of(text: str) -> list[int]:
        return TOKENIZER(text, add_special_tokens=False)["input_ids"]

    return tokens_of


@pytest.fixture(scope="session")
def play():
    """Steps an environment by one row of actions after the other."""

    def play(env: TokenVectorEnv, actions) -> list[tuple]:
        return [env.step(row) for row in actions]

    return play


@pytest.fixture(scope="session")
def random_actions():
    """Draws actions `[steps, num_envs]`, a quarter of them the end of sequence."""

    def random_actions(seed: int, steps: int, num_envs: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        actions = rng.integers(VOCABULARY, size=(steps, num_envs))
        return np.where(rng.random(actions.shape) < 0.25, EOS, actions)

    return random_actions
