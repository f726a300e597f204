"""Against a language that can be enumerated whole: frequencies, and success that does not fall."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from tokengym.agents import ExpertIteration
from tokengym.agents.rollouts.collect import collect
from tokengym.envs import Problem, ProblemList
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

LETTERS = load_tokenizer("chars:ab?")
EOS = LETTERS.eos_token_id
VOCABULARY = len(LETTERS)


class Bandit(ProblemList):
    """One question, and two right completions among all."""

    RIGHT = ("ab", "ba")

    def __init__(self) -> None:
        super().__init__([Problem("bandit", "?", "ab", "ab")])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(completion in self.RIGHT, "correct" if completion in self.RIGHT else "wrong", completion)


def completions(model: torch.nn.Module, prompt: list[int], limit: int) -> dict[tuple[int, ...], float]:
    """The probability of every completion of at most `limit` tokens, by a full forward pass for every prefix."""
    found: dict[tuple[int, ...], float] = {}
    open_ = {(): 1.0}
    for _ in range(limit):
        longer = {}
        for prefix, probability in open_.items():
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1, :VOCABULARY]
            for token, p in enumerate(logits.double().softmax(-1).tolist()):
                (found if token == EOS else longer)[(*prefix, token)] = probability * p
        open_ = longer
    return found | open_


def chances(model: torch.nn.Module) -> list[float]:
    """The probability of each right completion."""
    table = completions(model, LETTERS("?", add_special_tokens=False)["input_ids"], 3)
    return [table[(*LETTERS(text, add_special_tokens=False)["input_ids"], EOS)] for text in Bandit.RIGHT]


def test_sampled_frequencies_are_the_enumerated_probabilities(slots, make_agent) -> None:
    agent = make_agent(source=Bandit())
    table = completions(agent.model, LETTERS("?", add_special_tokens=False)["input_ids"], 3)
    assert len(table) == 1 + 4 + 16 + 64
    assert sum(table.values()) == pytest.approx(1, abs=1e-6)
    attempts = list(collect(agent.policy, slots(Bandit(), 64), 6000, seed=0))
    counts = Counter(tuple(attempt.completion.tolist()) for attempt in attempts)
    assert set(counts) <= set(table)
    chi_square = sum((counts[tokens] - 6000 * p) ** 2 / (6000 * p) for tokens, p in table.items())
    assert chi_square < 140  # 84 degrees of freedom: exceeded once in 10,000
    for attempt in attempts[:200]:
        tokens = tuple(attempt.completion.tolist())
        assert np.exp(attempt.logprobs.sum()) == pytest.approx(table[tokens], rel=1e-3)
        assert attempt.terminated == (tokens[-1] == EOS)


@pytest.mark.parametrize("restart", ["base", "previous"])
def test_expected_success_does_not_fall_and_the_bandit_is_solved(slots, make_model, tmp_path, restart: str) -> None:
    make_model("llama", vocab_size=VOCABULARY, eos_token_id=EOS, pad_token_id=EOS).save_pretrained(tmp_path)
    LETTERS.save_pretrained(tmp_path)
    agent = ExpertIteration(
        slots(Bandit(), 256), tmp_path, validation_env=slots(Bandit(), 1), device="cpu", demonstrations=0, rounds=4,
        samples_per_problem=500, epochs=60, learning_rate=1e-2, restart=restart, patience=4, validation_problems=1,
    )  # fmt: skip
    curve = [chances(agent.model)]
    agent.learn(callback=lambda learning, _: curve.append(chances(learning.model)))
    success = [sum(pair) for pair in curve]
    assert success[1] == success[0] < 0.1  # round 0 has nothing to train on
    assert all(after >= before - 0.01 for before, after in itertools.pairwise(success)), curve
    assert success[-1] > 0.95, curve
    assert min(curve[-1]) > 0.2, curve  # both solutions stay: imitation of what was found, not collapse onto one
    assert sum(chances(agent.model)) > 0.95
