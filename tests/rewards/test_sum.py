"""Weighted sums and products of rewards."""

import json
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.registry import UnknownNameError
from tokengym.rewards import AttemptReward, FinishedAttempt, ProductReward, SparseReward, SumReward, make_reward

TOKENIZER = load_tokenizer("chars:0123456789+=#\n ")
EOS = TOKENIZER.eos_token_id


class Length(AttemptReward):
    def attempt_reward(self, attempt: FinishedAttempt) -> float:
        return len(attempt.tokens)


def make(reward, num_envs=1, **settings) -> TokenVectorEnv:
    problems = ProblemList([Problem("only", "1+2=", "6", "1+2=3\n3+3=6\n#### 6")])
    return TokenVectorEnv(problems, num_envs, tokenizer=TOKENIZER, prompt="{question}", reward=reward, **settings)


def finish(env: TokenVectorEnv, attempt: str):
    tokens = [*TOKENIZER(attempt, add_special_tokens=False)["input_ids"], EOS]
    return env.step_tokens([tokens], [len(tokens)])


def test_weights_and_components_by_hand():
    env = make({"name": "sum", "terms": [[np.int64(2), "sparse"], [0.5, "dense"], [-0.01, Length()]]})
    env.reset()
    for _ in range(2):  # components start from nothing with each attempt
        attempt = "1+2=3\n#### 6"
        _, rewards, _, _, infos = finish(env, attempt)
        expected = np.zeros(len(attempt) + 1)
        expected[5] = 0.5 * 0.5 / 2
        expected[-1] = 2 + 0.5 - 0.01 * len(expected)
        np.testing.assert_allclose(rewards[0], expected, atol=1e-12)
        components = {k: v[0] for k, v in infos["reward_components"].items() if not k.startswith("_")}
        assert components == pytest.approx({"sparse": 2, "dense": 0.125 + 0.5, "Length": -0.13})
        assert sum(components.values()) == pytest.approx(infos["episode_return"][0])
        env.reset()


def test_rewards_that_are_no_sums_tell_no_components():
    env = make("sparse")
    env.reset()
    assert "reward_components" not in finish(env, "1")[-1]


def test_terms_of_one_name_are_numbered():
    equation = {"name": "dense", "match": "equation"}
    env = make({"name": "sum", "terms": [[1, "dense"], [1, equation], [1, {"name": "sum", "terms": [[1, "sparse"]]}]]})
    env.reset()
    infos = finish(env, "3\n#### 6")[-1]
    components = {k: v[0] for k, v in infos["reward_components"].items() if not k.startswith("_")}
    assert components == {"dense-1": 1.25, "dense-2": 1, "sum": 1}


def test_a_sum_survives_the_specs_json_and_the_single_environment():
    terms = [[0.5, "sparse"], [0.5, {"name": "dense", "shaping": "potential"}]]
    arguments = {"style": "equation", "tokenizer": "chars:0123456789+-*/=", "prompt": "{question}", "max_new_tokens": 1}
    env = gym.make("tokengym/Arithmetic-v0", reward={"name": "sum", "terms": terms}, **arguments)
    again = gym.make(EnvSpec.from_json(json.dumps(json.loads(env.spec.to_json()))))
    again.reset(seed=0)
    *_, truncated, info = again.step(5)
    assert truncated
    assert info["reward_components"] == {"sparse": 0, "dense": 0}


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ([], ValueError, "at least one term"),
        ("sparse", ValueError, "reward 'sum': terms must be a list, got 'sparse'"),
        ({"sparse": 1}, ValueError, r"terms must be a list, got \{.sparse.: 1\}"),
        ([[1, "sparse", 2]], ValueError, "a list of pairs"),
        (["sparse"], ValueError, "a list of pairs"),
        ([["sparse", 1]], ValueError, "a reward is a name, a mapping"),
        ([[math.nan, "sparse"]], ValueError, "weight of 'sparse' must be a finite number, got nan"),
        ([["1", "sparse"]], ValueError, "weight of 'sparse' must be a finite number, got '1'"),
        ([[1, "spares"]], UnknownNameError, "did you mean 'sparse'"),
    ],
)
def test_bad_terms_name_themselves(terms, error, message):
    with pytest.raises(error, match=message):
        make_reward({"name": "sum", "terms": terms})


def test_names_of_terms_are_their_own():
    with pytest.raises(ValueError, match="a name of its own, got a, a"):
        SumReward([("a", 1, SparseReward()), ("a", 1, SparseReward())])


@pytest.mark.parametrize("attempt", ["1+2=3\n3+3=6\n#### 6", "1+2=3\n#### 6", "#### 6", "1+2=3\n3+3=6\n#### 7"])
def test_a_product_pays_at_the_end_what_its_terms_pay_in_all(attempt: str) -> None:
    """The dense reward pays along the way, and the sparse one is a factor of 0 where the answer is wrong."""
    terms = ["dense", "sparse", Length()]
    whole, single = make({"name": "product", "terms": terms}), make({"name": "product", "terms": ["dense", "sparse"]})
    whole.reset()
    _, rewards, _, _, infos = finish(whole, attempt)
    parts = {k: v[0] for k, v in infos["reward_components"].items() if not k.startswith("_")}
    dense = 0.5 * sum(line in attempt for line in ("1+2=3", "3+3=6")) / 2 + attempt.endswith("6")
    sparse = float(attempt.endswith("6"))
    assert parts == pytest.approx({"dense": dense, "sparse": sparse, "Length": len(attempt) + 1})
    assert rewards[0, :-1].tolist() == [0.0] * len(attempt)
    assert rewards[0, -1] == pytest.approx(dense * sparse * (len(attempt) + 1))
    # Token by token, and for the second attempt in a slot, it is the same.
    for _ in range(2):
        single.reset()
        steps = [
            single.step([token])[1][0] for token in [*TOKENIZER(attempt, add_special_tokens=False)["input_ids"], EOS]
        ]
        assert steps == pytest.approx([0.0] * len(attempt) + [dense * sparse])


def test_products_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="a product of rewards needs at least two terms, got 1"):
        make_reward({"name": "product", "terms": ["sparse"]})
    with pytest.raises(ValueError, match="terms of a product are a list of rewards"):
        make_reward({"name": "product", "terms": [[1.0, "sparse"], [1.0, "dense"]]})
    with pytest.raises(ValueError, match="each term of a product needs a name of its own, got a, a"):
        ProductReward([("a", SparseReward()), ("a", SparseReward())])


def test_one_reward_cannot_be_two_terms() -> None:
    reward = Length()
    with pytest.raises(ValueError, match="this Length is given twice in one environment"):
        make(SumReward([("a", 1.0, reward), ("b", 1.0, ProductReward([("c", reward), ("d", SparseReward())]))]))
