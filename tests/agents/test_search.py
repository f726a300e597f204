"""Search: closed forms on a process whose steps are good by known chances, and attempts that are the policy's own."""

import json
import math
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokengym.agents import ExpertIteration, evaluate
from tokengym.agents.configs.search import KEEPING, RULES
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.searches import SearchCost
from tokengym.agents.search import Search, SearchConfig
from tokengym.agents.search_rules import (
    Candidate,
    first_candidates,
    log_tilted_weights,
    resampled,
    selected,
    shares,
    systematic,
)
from tokengym.envs import Problem, ProblemList, TokenVectorEnv, make_vec_env
from tokengym.models import OutcomeModel, load, load_tokenizer
from tokengym.registry import UnknownNameError
from tokengym.rewards import Verdict

STEPS = load_tokenizer("chars:gb\n?")
GOOD, NEWLINE, BAD = (STEPS.convert_tokens_to_ids(sign) for sign in "g\nb")
DEPTH = 3


class Steps(ProblemList):
    """Right is what consists of good steps alone."""

    def __init__(self, count: int = 1) -> None:
        super().__init__([Problem(f"p{i}", "?", "g") for i in range(count)])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.split() == ["g"] * DEPTH
        return Verdict(correct, "correct" if correct else "wrong", completion)


class Decoder:
    """Draws a step of two tokens, good with a chance of its depth, and ends after `DEPTH` steps."""

    def __init__(self, chances: list[float]) -> None:
        self.chances, self.slots, self.rows = chances, np.empty(0, np.int64), {}

    def begin(self, slots, sequences, keys) -> None:
        for slot, sequence, key in zip(slots.tolist(), sequences, keys, strict=True):
            self.rows[slot] = [list(sequence[1:]), np.random.default_rng(abs(int(key)))]
        self.slots = np.array(sorted(self.rows))

    def retire(self, slots) -> None:
        for slot in slots.tolist():
            del self.rows[slot]
        self.slots = np.array(sorted(self.rows), np.int64)

    def finish(self, slots) -> None:
        pass

    def step(self, sampling):
        tokens = []
        for slot in self.slots.tolist():
            written, rng = self.rows[slot]
            if len(written) >= 2 * DEPTH:
                token = STEPS.eos_token_id
            elif len(written) % 2:
                token = NEWLINE
            else:
                token = GOOD if rng.random() < self.chances[len(written) // 2] else BAD
            written.append(token)
            tokens.append(token)
        return np.array(tokens), np.zeros(len(tokens), np.float32)


def policy(chances: list[float]) -> Any:
    made = SimpleNamespace(tokenizer=STEPS, sampling=None, rollout_decoder=lambda env: Decoder(chances))
    made.with_sampling = lambda **changes: made
    return made


def slots(width: int, problems: int = 1, **settings) -> TokenVectorEnv:
    return TokenVectorEnv(
        Steps(problems), width, tokenizer=STEPS, prompt="{question}", max_prompt_tokens=2, max_new_tokens=2 * DEPTH + 1,
        autoreset_mode="Disabled", **settings,
    )  # fmt: skip


def perfect(chances: list[float]):
    """The chance of success from each prefix."""

    def judge(problems, completions, prompts):
        values = []
        for tokens in completions:
            letters = [token for token in tokens.tolist() if token in (GOOD, BAD)]
            values.append(0.0 if BAD in letters else math.prod(chances[len(letters) :]))
        return np.array(values)

    return judge


def attempts_of(search: Any, problem: int, seed: int) -> list[Any]:
    (found,) = search([problem], seed)
    return found.attempts


def success(chances: list[float], config: SearchConfig, judge, runs: int) -> float:
    search = Search(policy(chances), slots(16 * config.width, runs), judge, config)
    return float(np.mean([attempt.is_success for found in search(range(runs), 0) for attempt in found.attempts]))


@pytest.mark.parametrize("width", [2, 4])
def test_a_perfect_judge_with_one_beam_has_the_closed_form(width: int) -> None:
    """F5: success = prod (1 - (1 - q)^K)."""
    chances = [0.5, 0.3, 0.7]
    config = SearchConfig("beam", width=width, keep=1)
    expected = math.prod(1 - (1 - q) ** width for q in chances)
    search = Search(policy(chances), slots(16 * width, 600), perfect(chances), config)
    # The last step's candidates end apart: the best of them is the beam.
    found = [one.attempts[int(np.argmax(one.scores))].is_success for one in search(range(600), 0)]
    assert abs(np.mean(found) - expected) < 4 * math.sqrt(expected * (1 - expected) / 600)


@pytest.mark.parametrize("rule", ["best_of_n", "resample"])
def test_a_judge_that_knows_nothing_leaves_plain_sampling(rule: str) -> None:
    chances = [0.8, 0.7, 0.9]
    constant = lambda problems, completions, prompts: np.full(len(completions), 0.5)  # noqa: E731
    found = success(chances, SearchConfig(rule, width=4), constant, 300)
    expected = math.prod(chances)
    assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / 600)


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_resampling_comes_to_the_policy_that_is_optimal_under_the_penalty(temperature: float) -> None:
    """F1: success = p0 e^(1/lambda) / w(root)."""
    chances = [0.65, 0.65, 0.65]
    p = math.prod(chances)
    expected = p * math.exp(1 / temperature - log_tilted_weights(np.array([p]), temperature)[0])
    found = success(chances, SearchConfig("resample", width=64, judge_temperature=temperature), perfect(chances), 40)
    assert abs(found - expected) < 0.06
    assert expected > p + 0.1


def test_without_a_penalty_resampling_draws_in_proportion_to_success() -> None:
    """Lambda to 0: e^(1/lambda), and w with it, is beyond all numbers."""
    config = SearchConfig("resample", width=10, judge_temperature=1e-4)
    candidates = first_candidates(config, 0.5)
    for number, one in enumerate(candidates):
        one.tokens, one.score = [number], [0.0, 0.2, 0.8, 1.0][number % 4]
    drawn = [one.score for one in resampled(candidates, config, np.random.default_rng(0))]
    shares = {0.0: 0.0, 0.2: 0.6 / 4.2, 0.8: 1.6 / 4.2, 1.0: 2.0 / 4.2}
    assert all(abs(drawn.count(score) - 10 * share) <= 1 for score, share in shares.items())
    assert drawn.count(0.0) == 0


@pytest.mark.parametrize("rule", ["dvts", "rebase"])
def test_the_other_rules_do_better_than_sampling(rule: str) -> None:
    chances = [0.5, 0.5, 0.5]
    found = success(chances, SearchConfig(rule, width=8), perfect(chances), 60)
    assert found > math.prod(chances) + 0.15


@pytest.mark.parametrize("rule", ["beam", "tot"])
def test_a_tree_of_thoughts_keeps_thoughts_that_differ(rule: str) -> None:
    """Where both letters are drawn in the first step, both go on, however often one of them was drawn."""
    kept: list[int] = []

    def first_letters(problems, completions, prompts):
        if len(completions[0]) == 4:  # two letters, a newline behind each
            kept.append(len({int(tokens[0]) for tokens in completions}))
        return np.full(len(completions), 0.5)

    search = Search(policy([0.5] * DEPTH), slots(16), first_letters, SearchConfig(rule, width=16, keep=2))
    for seed in range(30):
        attempts_of(search, 0, seed)
    assert min(kept) == (2 if rule == "tot" else 1)


def test_equal_thoughts_have_one_share_where_too_few_differ() -> None:
    live = [Candidate([letter]) for letter in (1, 2, 1, 3)]
    following = selected(live, 12, SearchConfig("tot", width=16, keep=4))
    assert Counter(one.tokens[0] for one in following) == {1: 4, 2: 4, 3: 4}


def test_a_candidate_ends_where_the_environment_has_it_end() -> None:
    chances = [0.5, 0.5, 0.5]
    search = Search(policy(chances), slots(4, stop=["b\n"]), perfect(chances), SearchConfig("beam", width=4, keep=2))
    attempts = [attempt for seed in range(8) for attempt in attempts_of(search, 0, seed)]
    texts = {STEPS.decode(attempt.completion.tolist(), skip_special_tokens=True) for attempt in attempts}
    assert "b\n" in texts
    assert all(text.find("b\n") in (-1, len(text) - 2) for text in texts)
    assert all(attempt.terminated for attempt in attempts)


@pytest.mark.parametrize("num_envs", [4, 13])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_found_at_a_problem_and_its_cost_do_not_depend_on_the_others(rule: str, num_envs: int) -> None:
    """Problems end after different numbers of steps, and 13 slots have room for three searches and a rest."""
    chances = [0.4, 0.4, 0.4]
    make = lambda count: Search(  # noqa: E731
        policy(chances), slots(count, 7, stop=["g\ng\ng"]), perfect(chances), SearchConfig(rule, width=4)
    )
    together = make(num_envs)
    found = list(together(range(7), 3))
    cost = SearchCost()
    for index, ours in enumerate(found):
        (alone,) = make(4)([f"p{index}"], 3)
        assert [one.problem.id for one in ours.attempts] == [f"p{index}"] * 4
        for mine, theirs in zip(ours.attempts, alone.attempts, strict=True):
            np.testing.assert_array_equal(mine.completion, theirs.completion)
            assert (mine.number, mine.verdict, mine.terminated) == (theirs.number, theirs.verdict, theirs.terminated)
        np.testing.assert_array_equal(ours.scores, alone.scores)
        assert ours.cost == alone.cost
        cost.add(ours.cost)
    assert together.cost == cost
    assert len({len(one.completion) for ours in found for one in ours.attempts}) > 1


def test_slots_are_filled_with_several_problems() -> None:
    """Almost all of 40 problems' tokens are drawn in passes that are nearly full."""
    chances = [0.5, 0.5, 0.5]
    decoder = Decoder(chances)
    acting = policy(chances)
    acting.rollout_decoder = lambda env: decoder
    drawn: list[int] = []
    step = decoder.step
    decoder.step = lambda sampling: drawn.append(len(decoder.slots)) or step(sampling)
    search = Search(acting, slots(32, 40), perfect(chances), SearchConfig("beam", width=4, keep=2))
    assert len(list(search(range(40), 0))) == 40
    assert search.cost.policy_tokens / (32 * len(drawn)) > 0.75


def test_shares_and_systematic_resampling_add_up() -> None:
    assert shares(np.log([1.0, 1.0, 2.0]), 8).tolist() == [2, 2, 4]
    assert shares(np.array([0.0, 0.0, 0.0]), 4).tolist() == [2, 1, 1]
    assert shares(np.array([-1e9, 0.0]), 5).tolist() == [0, 5]
    drawn = systematic(np.array([1.0, 0.0, 3.0, 0.0]), np.random.default_rng(0))
    assert np.bincount(drawn, minlength=4).tolist() == [1, 0, 3, 0]


def test_slots_left_over_go_to_the_largest_remainders_and_the_first_of_equal_ones() -> None:
    for weights, total, expected in (
        ([0.5, 0.3, 0.2], 3, [1, 1, 1]),  # 1.5, 0.9 and 0.6
        ([0.75, 0.125, 0.125], 4, [3, 1, 0]),
        ([1.0, 1.0, 1.0, 1.0], 6, [2, 2, 1, 1]),
    ):
        assert shares(np.log(weights), total).tolist() == expected


def test_what_a_search_ends_with_are_the_policys_own_attempts() -> None:
    """With a real model: log-probabilities are the model's, verdicts the environment's, and a seed repeats."""
    model, tokenizer = load("tokengym/tiny")
    orm = OutcomeModel.from_causal_lm(model, tokenizer, "orm", 0)
    acting = CausalLMPolicy(model, tokenizer)
    env = make_vec_env(
        "tokengym/Arithmetic-v0", 8, tokenizer=tokenizer, autoreset_mode="Disabled", max_new_tokens=48, steps=1
    )
    search = Search(acting, env, orm, SearchConfig("beam", width=4, keep=2))
    (found,) = search([3], 0)
    attempts, scores = found.attempts, found.scores
    assert len(attempts) == len(scores) == 4
    assert ((scores > 0) & (scores < 1)).all()
    for attempt in attempts:
        ids = torch.from_numpy(attempt.tokens)[None]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1, : len(tokenizer)].log_softmax(-1)
        theirs = logits.gather(-1, ids[0, 1:, None])[len(attempt.prompt) - 1 :, 0]
        np.testing.assert_allclose(attempt.logprobs, theirs, atol=1e-3)
        if attempt.terminated:
            text = env.decode(attempt.completion)
            assert env.problems.grade(text, attempt.problem).correct == attempt.is_success
    again = attempts_of(Search(acting, env, orm, SearchConfig("beam", width=4, keep=2)), 3, 0)
    assert [a.completion.tolist() for a in again] == [a.completion.tolist() for a in attempts]
    assert search.cost.policy_tokens >= sum(len(a.completion) for a in attempts) / 2
    assert search.cost.judged_tokens > 0

    result = evaluate(acting, env, problems=2, n=4, search=search)
    assert {"maj@1", "maj@4", "rerank@4", "pass@4"} <= result.metrics.keys()
    assert "pass@2" not in result.metrics
    assert result.temperature == 1.0, "the search's, not the argument's default"
    with pytest.raises(ValueError, match="set n to its width"):
        evaluate(acting, env, problems=1, n=8, search=search)
    with pytest.raises(ValueError, match="set n to its width"):
        evaluate(acting, env, problems=1, search=search)  # or it would not be searched at all


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "bean"}, "did you mean 'beam'"),
        ({"width": 1}, "a width of at least 2"),
        ({"width": 6, "keep": 4}, "keep must divide the width of 6"),
        ({"rule": "rebase", "keep": 2}, "keep is 2, but it counts only with the search rules"),
        ({"judge_temperature": 0.5}, "judge_temperature is 0.5, but it counts only with the search rules"),
        ({"judge_temperature": 0.0}, "judge_temperature must be above 0"),
    ],
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(LookupError if "mean" in words else ValueError, match=words):
        SearchConfig(**settings)


@pytest.mark.parametrize("score", [-0.5, 1.25])
def test_scores_that_are_no_probabilities_are_refused_where_draws_are_by_them(score: float) -> None:
    judge = lambda problems, completions, prompts: np.full(len(completions), score)  # noqa: E731
    with pytest.raises(ValueError, match=re.escape(f"between 0 and 1, and the judge gave {score:g}")):
        attempts_of(Search(policy([1.0] * DEPTH), slots(2), judge, SearchConfig("resample", width=2)), 0, 0)
    for rule in sorted({*RULES} - {"resample"}):
        keep = {"keep": 1} if rule in KEEPING else {}
        found = attempts_of(Search(policy([1.0] * DEPTH), slots(2), judge, SearchConfig(rule, width=2, **keep)), 0, 0)
        assert [attempt.is_success for attempt in found] == [True, True]


def test_bad_surroundings() -> None:
    with pytest.raises(ValueError, match="needs as many slots, and the env has 2: raise `num_envs` to 4"):
        Search(policy([1.0]), slots(2), perfect([1.0]), SearchConfig(width=4))
    for answer, shown in (
        (np.zeros(1), r"array\(\[0\.\]\)"),
        (np.zeros(200), r"array\(\[0\., [^\n]*\.\.\. \(200 items\)"),
        (None, "None"),
        (["good"] * 4, "'good'"),
        ([[1.0], [1.0, 2.0]], r"\[\[1\.0\], \[1\.0, 2\.0\]\]"),
        ([0.5, 0.5, 0.5, math.nan], "nan"),
    ):

        def confused(problems, completions, prompts, answer=answer):
            return answer

        words = f"confused must give 4 finite scores, one for each completion, and gave [^\n]*{shown}[^\n]*$"
        with pytest.raises(ValueError, match=words):
            next(Search(policy([1.0] * 3), slots(4), confused, SearchConfig(width=4))([0], 0))
    nobody: Any = "reference"
    with pytest.raises(TypeError, match=r"a judge is an OutcomeModel or a function of .*, not 'reference'"):
        Search(policy([1.0]), slots(4), nobody, SearchConfig(width=4))
    model, tokenizer = load("tokengym/tiny")
    with pytest.raises(ValueError, match=r"another tokenizer, of 979 tokens, than .*: id \d+ is .* Train an outcome"):
        Search(policy([1.0]), slots(4), OutcomeModel.from_causal_lm(model, tokenizer, "orm", 0), SearchConfig(width=4))


# ------------------------------------------------------------------------------------------------ search as the expert


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Any:
    """A folder with a small random policy, and an untrained outcome model in it."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    ids = {"eos_token_id": STEPS.eos_token_id, "pad_token_id": STEPS.pad_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(STEPS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.3, **ids,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    STEPS.save_pretrained(folder)
    OutcomeModel.from_causal_lm(model, STEPS, "orm", seed=1).save(folder / "orm")
    return folder


class Begins(Steps):
    """Right is what begins with a good step."""

    def __init__(self) -> None:
        super().__init__(3)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith("g")
        return Verdict(correct, "correct" if correct else "wrong", completion)


def expert(folder, **settings) -> ExpertIteration:
    make = lambda: TokenVectorEnv(  # noqa: E731
        Begins(), 8, tokenizer=STEPS, prompt="{question}", max_prompt_tokens=2, max_new_tokens=6,
        autoreset_mode="Disabled",
    )  # fmt: skip
    fast = {"rounds": 1, "samples_per_problem": 8, "demonstrations": 0, "epochs": 1, "validation_problems": 2,
            "search": "beam", "search_orm": str(folder / "orm")}  # fmt: skip
    return ExpertIteration(make(), folder, validation_env=make(), device="cpu", **(fast | settings))


def test_expert_iteration_learns_from_what_a_search_finds_and_counts_all_tokens(
    start, tmp_path, kill_at_attempt
) -> None:
    whole = expert(start, run=tmp_path / "whole")
    policy = whole.policy.with_sampling(temperature=1.0)
    judge = OutcomeModel.load(start / "orm", STEPS, "cpu")
    search = Search(policy, whole.make_env(), judge, SearchConfig("beam", 8, 4, 1.0))
    expected = [one for found in search(range(3), whole.round_seed(1)) for one in found.attempts]
    told: list[dict[str, float]] = []
    whole.learn(callback=lambda _, metrics: told.append(metrics))
    path = tmp_path / "whole" / "round-1" / "attempts-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["completion"] for line in lines] == [one.completion.tolist() for one in expected]
    assert [line["number"] for line in lines] == list(range(24))
    assert told[-1]["search/policy_tokens"] == search.cost.policy_tokens >= sum(len(one.completion) for one in expected)
    assert told[-1]["search/judged_tokens"] == search.cost.judged_tokens
    assert whole.num_tokens == search.cost.policy_tokens + search.cost.judged_tokens
    assert whole.num_attempts == 24
    assert told[-1]["rollout/kept"] == sum(one.is_success for one in expected) > 0

    # in the middle of the second problem
    kill_at_attempt(13, lambda: expert(start, run=tmp_path / "cut").learn())
    cut = expert(start, run=tmp_path / "cut", resume=True).learn()
    assert (cut.num_tokens, cut.num_attempts) == (whole.num_tokens, whole.num_attempts)
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, dict(cut.model.named_parameters())[name])
    assert (tmp_path / "cut" / "round-1" / "attempts-0.jsonl").read_text() == path.read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search_orm": None}, "set search and search_orm together"),
        ({"search": None}, "set search and search_orm together"),
        ({"search_generations": 2}, 'search_generations is 2, but it counts only with search="evolution"'),
        ({"search": "rebase", "search_keep": 2}, "search_keep is 2, but it counts only with"),
        ({"search": "greedy"}, "unknown search rule 'greedy'"),
        ({"search_keep": 3}, "keep must divide the width of 8, got 3"),
    ],
)
def test_searches_that_cannot_be_the_expert(start, settings: dict, words: str) -> None:
    with pytest.raises((ValueError, UnknownNameError), match=words):
        expert(start, **settings)


def test_a_search_that_is_wider_than_the_slots_is_named_before_anything_is_done(start, tmp_path) -> None:
    agent = expert(start, samples_per_problem=16, demonstrations=2, run=tmp_path / "run")
    with pytest.raises(ValueError, match="a search of width 16 needs as many slots, and the env has 8: raise"):
        agent.learn()
    assert not list((tmp_path / "run").glob("round-*"))
