"""Attempts that no one would write: of nothing, of one token, cut in the middle of a character; by every reward."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.problems.base import ProblemSource
from tokengym.models import load_tokenizer

TOKENIZER: Any = load_tokenizer("tokengym/tiny")
EOS: int = TOKENIZER.eos_token_id
PROBLEM = Problem("p", "q", "42", "2*3=6\n6*7=42\n#### 42")
REWARDS: list[Any] = [
    "sparse",
    "dense",
    {"name": "dense", "match": "equation", "shaping": "potential"},
    {"name": "dense", "match": "exact_text"},
    {"name": "sum", "terms": [[0.5, "sparse"], [0.5, "dense"]]},
    {"name": "sum", "terms": [[1, "sparse"], [1, {"name": "judged", "shaping": "potential"}]]},
]
BUDGET = 200


NUMBERS, FREE_FORM = ProblemList([PROBLEM]), ProblemList([PROBLEM], answer_format="boxed")


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def cut(text: str) -> list[int]:
    """The tokens of a text but for the last byte of its last character."""
    tokens = encode(text)
    assert "\ufffd" in TOKENIZER.decode(tokens[:-1])
    return tokens[:-1]


def play(tokens: list[int], reward: Any, problems: ProblemSource = NUMBERS) -> tuple[float, str, list[float]]:
    """The return, the verdict and the rewards of an attempt, token by token and, equally, all at once."""
    outcomes = []
    for width in (1, len(tokens)):
        env = TokenVectorEnv(problems, 1, tokenizer=TOKENIZER, reward=reward, max_new_tokens=BUDGET)
        env.reset(seed=0)
        rewards, infos = [], {}
        for i in range(0, len(tokens), width):
            _, paid, terminated, truncated, infos = env.step_tokens([tokens[i : i + width]], [width])
            rewards.extend(paid[0].tolist())
        assert terminated[0] or truncated[0]
        assert infos["episode_return"][0] == pytest.approx(sum(rewards))
        outcomes.append((sum(rewards), infos["verdict"][0], rewards))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


@pytest.mark.parametrize("reward", REWARDS, ids=str)
@pytest.mark.parametrize("problems", [NUMBERS, FREE_FORM], ids=["numbers", "free form"])
class TestEveryReward:
    def test_nothing(self, reward: Any, problems: ProblemSource) -> None:
        assert play([EOS], reward, problems) == (0, "no_answer", [0])

    @pytest.mark.parametrize("token", ["\n", "4", "#", " ", "=", "\\", "{"])
    def test_one_token_over_and_over(self, reward: Any, problems: ProblemSource, token: str) -> None:
        (one,) = encode(token)
        assert play([one] * BUDGET, reward, problems) == (0, "truncated", [0] * BUDGET)
        total, verdict, _ = play([*[one] * (BUDGET - 1), EOS], reward, problems)
        assert total == 0
        assert verdict == "no_answer"

    def test_a_special_token_over_and_over(self, reward: Any, problems: ProblemSource) -> None:
        assert play([TOKENIZER.pad_token_id] * BUDGET, reward, problems)[:2] == (0, "truncated")

    @pytest.mark.parametrize("character", ["é", "あ", "💥"])
    def test_a_cut_character_alone(self, reward: Any, problems: ProblemSource, character: str) -> None:
        assert play([*cut(character), EOS], reward, problems)[:2] == (0, "no_answer")
        assert play((cut(character) * BUDGET)[:BUDGET], reward, problems)[:2] == (0, "truncated")


@pytest.mark.parametrize("character", ["é", "あ", "💥"])
def test_a_cut_character_spoils_the_answer_that_holds_it_and_no_other(character: str) -> None:
    for problems, answer in ((NUMBERS, "#### 42"), (FREE_FORM, r"\boxed{42")):
        end = encode("}") if problems is FREE_FORM else []
        assert play([*cut(answer + character), *end, EOS], "sparse", problems)[:2] == (0, "unparsed")
        assert play([*cut("so " + character), *encode("\n" + answer), *end, EOS], "sparse", problems)[:2] == (
            1,
            "correct",
        )


@pytest.mark.parametrize("character", ["é", "あ", "💥"])
def test_a_cut_character_spoils_the_step_that_holds_it_by_its_text_alone(character: str) -> None:
    spoilt = [*cut("2*3=6 " + character), *encode("\n6*7=42\n"), EOS]
    for match, steps in (("result", 2), ("equation", 2), ("exact_text", 1)):
        reward = {"name": "dense", "match": match}
        assert play(spoilt, reward)[0] == pytest.approx(steps * 0.25)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60), st.sampled_from(REWARDS))
def test_any_tokens_at_all(tokens: list[int], reward: Any) -> None:
    tokens = [token for token in tokens if token != EOS]
    total, _, rewards = play([*tokens, EOS], reward)
    assert np.isfinite(rewards).all()
    assert 0 <= total <= 1.5
