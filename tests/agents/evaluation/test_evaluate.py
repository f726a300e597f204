"""Evaluation: estimators against enumeration, and one pool behind all of them."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokengym.agents.evaluation.evaluate import (
    best_is_correct,
    best_scored,
    bootstrap,
    distinct_solutions,
    evaluate,
    majority_is_correct,
    majority_vote,
    median_response_length,
    pass_at_k,
)
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.curriculum import Sequential
from tokengym.models.outcome import OutcomeModel
from tokengym.rewards import Verdict

ANSWERS = st.lists(st.sampled_from([None, "1", "2", "3"]), max_size=9)


def attempt(answer: str | None, is_success: bool = False) -> Attempt:
    empty = np.empty(0)
    return Attempt(Problem("p", "", "1"), 0, empty, empty, empty, empty, is_success, "", answer, True)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_equals_enumeration_over_all_subsets(outcomes: list[bool], data: st.DataObject) -> None:
    n, c = len(outcomes), sum(outcomes)
    k = data.draw(st.integers(1, n))
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(c, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_grows_with_k_from_the_mean_to_any(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    curve = [pass_at_k(c, n, k) for k in range(1, n + 1)]
    assert curve[0] == pytest.approx(c / n)
    assert all(a <= b for a, b in itertools.pairwise(curve))
    assert curve[-1] == (c > 0)


@pytest.mark.parametrize(("c", "n", "k"), [(0, 4, 0), (0, 4, 5), (5, 4, 1), (-1, 4, 1)])
def test_pass_at_k_outside_its_range_is_an_error(c: int, n: int, k: int) -> None:
    with pytest.raises(ValueError, match="k <= n"):
        pass_at_k(c, n, k)


@given(ANSWERS)
def test_the_majority_is_the_most_frequent_answer_and_the_first_seen_of_several(answers: list[str | None]) -> None:
    votes = [answer for answer in answers if answer is not None]
    expected = None
    for answer in votes:  # in the order seen: a later one has to have more votes
        if expected is None or votes.count(answer) > votes.count(expected):
            expected = answer
    assert majority_vote(answers) == expected


def test_majority_ties_and_abstentions() -> None:
    assert majority_vote(["2", "1", "1", "2"]) == "2"
    assert majority_vote([None, None, None, "7"]) == "7"
    assert majority_vote([None, None]) is None
    assert majority_vote([]) is None


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.5], [1.0, float("nan")], [[1.0, 2.0]]])
def test_weights_that_say_nothing_are_an_error(weights: Any) -> None:
    with pytest.raises(ValueError, match="2 answers need as many finite weights, none below 0"):
        majority_vote(["1", "2"], weights)


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.integers(0, 4)), max_size=8))
def test_a_whole_weight_is_as_many_votes(pool: list[tuple[str | None, int]]) -> None:
    answers, weights = [answer for answer, _ in pool], [weight for _, weight in pool]
    repeated = [answer for answer, weight in pool for _ in range(weight)]
    winner = majority_vote(answers, weights)
    if all(answer is None for answer in repeated):
        assert winner == next((answer for answer in answers if answer is not None), None)
    else:
        most = max(repeated.count(answer) for answer in repeated if answer is not None)
        assert winner == next(a for a in answers if a is not None and repeated.count(a) == most)
    assert majority_vote(answers, [1] * len(answers)) == majority_vote(answers)


@given(ANSWERS)
def test_the_majority_is_right_if_its_answer_is_and_never_without_a_success(answers: list[str | None]) -> None:
    attempts = [attempt(answer, answer == "1") for answer in answers]
    assert majority_is_correct(attempts) == (majority_vote(answers) == "1")


# Few distinct scores and answers, so that there are ties and attempts without an answer.
SCORED = st.lists(st.tuples(st.sampled_from(["1", "2", None]), st.sampled_from([0.1, 0.5, 0.9])), max_size=6)


@given(SCORED)
def test_the_best_scored_by_enumeration_over_all_subsets(pool: list[tuple[str | None, float]]) -> None:
    """No other candidate of the subset scores higher, and those that score the same come later."""
    for size in range(len(pool) + 1):
        for subset in itertools.combinations(pool, size):
            best = best_scored([answer for answer, _ in subset], [score for _, score in subset])
            candidates = [i for i, (answer, _) in enumerate(subset) if answer is not None]
            if not candidates:
                assert best is None
                continue
            assert best in candidates
            for i in candidates:
                assert subset[i][1] < subset[best][1] or (subset[i][1] == subset[best][1] and i >= best)


@given(SCORED)
def test_what_is_reranked_is_right_only_if_an_attempt_is(pool: list[tuple[str | None, float]]) -> None:
    attempts = [attempt(answer, is_success=answer == "1") for answer, _ in pool]
    right = best_is_correct(attempts, [score for _, score in pool])
    assert right <= any(a.is_success for a in attempts)
    highest = max((score for answer, score in pool if answer is not None), default=None)
    tied = [answer for answer, score in pool if score == highest and answer is not None]
    assert right == (tied[:1] == ["1"])


def test_where_problems_do_not_differ_the_interval_is_wilsons() -> None:
    """Shares of 0 and 1 as by `scipy.stats.binomtest(count, n).proportion_ci(level, "wilson")`."""
    assert bootstrap([0.0] * 50) == pytest.approx((0.0, 0.0, 0.0713476), abs=1e-6)
    assert bootstrap([1.0] * 5) == pytest.approx((1.0, 0.5655175, 1.0), abs=1e-6)
    assert bootstrap([1.0] * 5, level=0.8) == pytest.approx((1.0, 0.752737, 1.0), abs=1e-5)
    assert str(bootstrap([True, True])) == "1.000 [0.342, 1.000]"
    assert bootstrap([0.0] * 50, bounds=(-1.0, 1.0)) == pytest.approx((0.0, -0.0713476, 0.0713476), abs=1e-6)
    assert bootstrap([0.5] * 4) == pytest.approx((0.5, 0.010, 0.990), abs=1e-3)
    assert bootstrap([7.0] * 4) == (7.0, 7.0, 7.0)  # no share


def test_bootstrap_has_the_mean_and_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap(values)
    assert interval.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(values) == interval
    narrow = bootstrap(values, level=0.5)
    assert interval.low < narrow.low < narrow.value < narrow.high < interval.high
    with pytest.raises(ValueError, match="no problems"):
        bootstrap([])


@pytest.fixture(scope="module")
def policy(make_model, tokenizer) -> CausalLMPolicy:
    return CausalLMPolicy(make_model(seed=5), tokenizer)


class CountsThrees(ProblemList):
    """Correct are completions with a 3: even a model that knows nothing has its successes."""

    def __init__(self) -> None:
        super().__init__([Problem(f"p{i}", f"{i}+{i}=", "3") for i in range(30)])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = "3" in completion
        return Verdict(correct, "correct" if correct else "wrong", "3" if correct else completion[:1] or None)


def make_threes(tokenizer, num_envs: int) -> TokenVectorEnv:
    return TokenVectorEnv(CountsThrees(), num_envs, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=6,
                          max_new_tokens=20, autoreset_mode="Disabled")  # fmt: skip


def test_everything_comes_from_one_greedy_pass_and_one_pool(policy, tokenizer) -> None:
    env = make_threes(tokenizer, 7)
    result = evaluate(policy, env, problems=30, n=12, temperature=1.1, seed=4)
    env.curriculum = Sequential()
    greedy = list(collect(policy.with_sampling(temperature=0.0), env, 30, seed=4))
    env.curriculum = Sequential(12)
    pool = list(collect(policy.with_sampling(temperature=1.1), env, 360, seed=4))
    groups = [pool[i * 12 : (i + 1) * 12] for i in range(30)]
    assert all(len({attempt.problem.id for attempt in group}) == 1 for group in groups)
    successes = [sum(attempt.is_success for attempt in group) for group in groups]
    assert 20 < sum(successes) < 340
    assert 0 < sum(map(majority_is_correct, groups)) < sum(c > 0 for c in successes)
    expected = {"maj@1": np.mean([attempt.is_success for attempt in greedy])}
    expected["maj@12"] = np.mean([majority_is_correct(group) for group in groups])
    for k in (1, 2, 4, 8, 12):
        expected[f"pass@{k}"] = np.mean([pass_at_k(c, 12, k) for c in successes])
    expected["diversity"] = np.mean([len(distinct_solutions(group, env)) for group in groups])
    assert {name: interval.value for name, interval in result.metrics.items()} == pytest.approx(expected)
    assert all(interval.low <= interval.value <= interval.high for interval in result.metrics.values())
    assert result.metrics["pass@12"].value >= result.metrics["maj@12"].value

    assert result.verdicts == Counter(attempt.verdict for attempt in pool)
    texts = [[token for token in attempt.completion if token != tokenizer.eos_token_id] for attempt in greedy]
    assert result.median_response_length == np.median([len(text) for text in texts])
    assert (result.problems, result.n, result.temperature, result.seed) == (30, 12, 1.1, 4)
    assert result.episodes == 390
    assert result.tokens == sum(len(attempt.completion) for attempt in greedy + pool)
    record = result.to_dict()
    assert record["metrics"]["maj@1"] == list(result.metrics["maj@1"])
    assert set(record) == {
        "metrics", "verdicts", "median_response_length", "problems", "n", "temperature", "seed", "episodes", "tokens",
        "seconds", "problem_ids", "by_problem", "top_k", "top_p", "min_p"
    }  # fmt: skip
    assert result.problem_ids == [group[0].problem.id for group in groups]
    assert {name: np.mean(values) for name, values in result.by_problem.items()} == pytest.approx(expected)
    assert all(len(values) == 30 for values in result.by_problem.values())


def test_the_length_of_a_response_leaves_out_its_end_of_sequence_alone() -> None:
    lengths = ((5, True), (7, False), (2, True))
    made = [replace(attempt("1"), completion=np.arange(size), terminated=ended) for size, ended in lengths]
    assert median_response_length(made) == np.median([4, 7, 1])
    assert median_response_length(made[:1]) == 4
    assert median_response_length(made[1:2]) == 7


def test_only_correct_solutions_are_diverse_and_equal_equations_are_one(tokenizer) -> None:
    env = make_threes(tokenizer, 1)
    texts = {"1+2=3": True, "1 + 2 = 3": True, "4-1=3": True, "2+2=4": False, "5+5=10": False}
    made = [replace(attempt("3", right), completion=env.encoder.encode(text)) for text, right in texts.items()]
    assert len({env.decode(one.completion) for one in made}) == len(made)
    assert len(distinct_solutions(made, env)) == 2
    assert distinct_solutions(made[3:], env) == set()


def test_the_greedy_pass_alone(policy, tokenizer) -> None:
    env = make_threes(tokenizer, 5)
    curriculum, told = env.curriculum, []
    result = evaluate(policy, env, problems=20, on_step=told.append)
    assert set(result.metrics) == {"maj@1"}
    assert result.episodes == sum(told) == 20
    assert sum(result.verdicts.values()) == 20
    assert env.curriculum is curriculum
    assert result.metrics == evaluate(policy, make_threes(tokenizer, 3), problems=20).metrics


def test_one_sample_has_no_majority_and_a_small_split_ends(policy, make_sums) -> None:
    result = evaluate(policy, make_sums(4, num_problems=3), problems=50, n=1)
    assert result.problems == 3
    assert set(result.metrics) == {"maj@1", "pass@1", "diversity"}
    assert result.episodes == 6


@pytest.fixture(scope="module")
def reranker(policy) -> OutcomeModel:
    """Untrained: how it scores does not matter."""
    return OutcomeModel.from_causal_lm(policy.model, policy.tokenizer, "orm", seed=1)


def test_reranking_takes_the_answers_of_the_same_pool(policy, tokenizer, reranker) -> None:
    env = make_threes(tokenizer, 7)
    settings: dict[str, Any] = {"problems": 30, "n": 12, "temperature": 1.1, "seed": 4}
    result = evaluate(policy, env, reranker=reranker, **settings)
    plain = evaluate(policy, env, **settings)
    assert list(result.metrics)[:4] == ["maj@1", "maj@12", "rerank@12", "weighted_maj@12"]
    own = ("rerank@12", "weighted_maj@12")
    assert {name: value for name, value in result.metrics.items() if name not in own} == plain.metrics
    assert result.metrics["pass@12"].value >= result.metrics["rerank@12"].value
    env.curriculum = Sequential(12)
    pool = list(collect(policy.with_sampling(temperature=1.1), env, 360, seed=4))
    right = by_weight = 0
    for i in range(0, 360, 12):
        scored, weights = [], Counter[str]()
        for item in pool[i : i + 12]:
            with torch.no_grad():
                ids = torch.tensor([[*item.prompt, *item.completion]])
                logit = reranker.model(ids).logits[0, -1, 0].item()
            if item.answer is not None:
                scored.append((logit, item.is_success))
                weights[item.answer] += 1 / (1 + np.exp(-logit))
        by_weight += bool(weights) and max(weights, key=lambda answer: weights[answer]) == "3"
        right += max(scored, key=lambda pair: pair[0], default=(0, False))[1]
    assert result.metrics["rerank@12"].value == pytest.approx(right / 30)
    assert 0 < right < 30
    assert result.metrics["weighted_maj@12"].value == pytest.approx(by_weight / 30)


@pytest.mark.parametrize("n", [0, 1])
def test_there_is_nothing_to_rerank_among_less_than_two(policy, make_sums, reranker, n: int) -> None:
    with pytest.raises(ValueError, match=f"n must be at least 2, got {n}"):
        evaluate(policy, make_sums(1), problems=1, n=n, reranker=reranker)


@pytest.mark.parametrize(("problems", "n"), [(0, 1), (1, -1)])
def test_bad_sizes_are_errors(policy, make_sums, problems: int, n: int) -> None:
    with pytest.raises(ValueError, match="problems >= 1 and n >= 0"):
        evaluate(policy, make_sums(1), problems=problems, n=n)
