"""Evolutionary search: an archive worked out by hand, plain sampling as its first generation, and expert iteration."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokengym.__main__ import main
from tokengym.agents import ExpertIteration, evaluate
from tokengym.agents.configs.search import EvolutionConfig
from tokengym.agents.evolution import Archive, Evolution
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.searches import search_into
from tokengym.envs import Problem, ProblemList, TokenVectorEnv, make_vec_env
from tokengym.envs.curriculum import Sequential
from tokengym.models import load, load_tokenizer
from tokengym.registry import UnknownNameError
from tokengym.rewards import Verdict

STEPS = load_tokenizer("chars:gb\n?")
EOS = STEPS.eos_token_id


class Begins(ProblemList):
    """Right is what begins with a good step."""

    def __init__(self) -> None:
        super().__init__([Problem(f"p{i}", "?", "g") for i in range(3)])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.startswith("g")
        return Verdict(correct, "correct" if correct else "wrong", completion)


def slots(num_envs: int = 8, budget: int = 8) -> TokenVectorEnv:
    return TokenVectorEnv(
        Begins(), num_envs, tokenizer=STEPS, prompt="{question}", max_prompt_tokens=2, max_new_tokens=budget,
        autoreset_mode="Disabled",
    )  # fmt: skip


class Script:
    """Writes given texts, one for each attempt that begins, each with a log-probability of its own."""

    kept, prefill_tokens = None, 0

    def __init__(self, texts: list[str], begun: list[str]) -> None:
        self.texts, self.begun = texts, begun
        self.slots, self.rows = np.empty(0, np.int64), {}

    def begin(self, slots, sequences, keys) -> None:
        for slot, sequence in zip(slots.tolist(), sequences, strict=True):
            number = len(self.begun)
            self.begun.append(STEPS.decode(sequence.tolist()))
            written = [*STEPS.encode(self.texts[number], add_special_tokens=False), EOS]
            self.rows[slot] = iter([(token, -1.0 - number) for token in written])
        self.slots = np.array(sorted(self.rows))

    def retire(self, slots) -> None:
        for slot in slots.tolist():
            self.rows.pop(slot, None)
        self.slots = np.array(sorted(self.rows), np.int64)

    finish = retire

    def step(self, sampling):
        drawn = [next(self.rows[slot]) for slot in self.slots.tolist()]
        return np.array([token for token, _ in drawn]), np.array([value for _, value in drawn], np.float32)


def scripted(texts: list[str]) -> tuple[Any, list[str]]:
    begun: list[str] = []
    policy = SimpleNamespace(tokenizer=STEPS, sampling=None, rollout_decoder=lambda env: Script(texts, begun))
    policy.with_sampling = lambda **changes: policy
    return policy, begun


def attempts_of(search: Evolution, problem: int, seed: int) -> list[Attempt]:
    (found,) = search([problem], seed)
    return found.attempts


def text(attempt: Attempt) -> str:
    return STEPS.decode(attempt.completion.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("num_envs", [2, 8])
def test_the_archive_and_the_visits_are_those_worked_out_by_hand(num_envs: int) -> None:
    """Every parent has one place to be cut, after `g`, so that only which parent is drawn depends on chance."""
    policy, begun = scripted(["g\nb", "g\nb", "g", "b", "b\nb", "g"])
    search = Evolution(policy, slots(num_envs), EvolutionConfig(width=6, generations=3))
    (found,) = search(["p1"], 0)
    attempts = found.attempts
    assert found.scores is None
    assert [one.partition("?")[2] for one in begun] == ["", "", "g\n", "g\n", "g\n", "g\n"]
    assert list(map(text, attempts)) == ["g\nb", "g\nb", "g\ng", "g\nb", "g\nb\nb", "g\ng"]
    assert [attempt.index for attempt in attempts] == list(range(6))
    assert all(attempt.is_success and attempt.terminated and attempt.problem.id == "p1" for attempt in attempts)
    assert attempts[2].logprobs.tolist() == [-1, -1, -3, -3]
    assert search.cost.policy_tokens == 4 + 4 + 2 + 2 + 4 + 2
    assert search.cost.judged_tokens == 0
    members = search.archive.members
    assert [text(member.attempt) for member in members.values()] == ["g\nb", "g\ng", "g\nb\nb"]
    assert [member.cuts.tolist() for member in members.values()] == [[2], [2], [2, 4]]
    visits = [member.visits for member in members.values()]
    assert visits[0] >= 2, "the second generation has one parent to draw"
    assert sum(visits[:2]) == 4
    assert visits[2] == 0, "what the last generation finds is no parent any more"
    expected = np.array([1 / (1 + visits[0]), 1 / (1 + visits[1]), 1.0])
    np.testing.assert_allclose(search.archive.weights(), expected / expected.sum())


def test_parents_are_drawn_inversely_to_their_visits_and_cut_anywhere() -> None:
    policy, _ = scripted(["g\nb\nb", "b"])
    attempts = attempts_of(Evolution(policy, slots(), EvolutionConfig(width=2, generations=1)), 0, 0)
    first, second, cuts = [], [], []
    for seed in range(1500):
        archive, rng = Archive(STEPS), np.random.default_rng(seed)
        for attempt in attempts:
            archive.add(attempt)
        drawn = [archive.draw(rng) for _ in range(2)]
        first.append(drawn[0][0] is attempts[0])
        second.append(drawn[1][0] is drawn[0][0])
        cuts += [cut for parent, cut in drawn if parent is attempts[0]]
        assert all(cut == 0 for parent, cut in drawn if parent is attempts[1])
    tolerance = 4 * (0.25 / 1500) ** 0.5
    assert np.mean(first) == pytest.approx(1 / 2, abs=tolerance)
    assert np.mean(second) == pytest.approx(1 / 3, abs=tolerance)  # 1/2 beside 1
    assert set(cuts) == {2, 4}
    assert np.mean(np.array(cuts) == 2) == pytest.approx(1 / 2, abs=tolerance)


def test_where_nothing_ends_by_itself_the_next_generation_begins_anew() -> None:
    policy, begun = scripted(["gggg", "gggg", "g\nb", "g"])
    search = Evolution(policy, slots(budget=4), EvolutionConfig(width=4, generations=2))
    attempts = attempts_of(search, 0, 0)
    assert [one.partition("?")[2] for one in begun] == ["", "", "", ""]
    assert [attempt.terminated for attempt in attempts] == [False, False, True, True]
    assert [text(member.attempt) for member in search.archive.members.values()] == ["g\nb", "g"]


def test_the_first_generation_is_plain_sampling_and_later_ones_are_the_policys_own() -> None:
    model, tokenizer = load("tokengym/tiny")
    acting = CausalLMPolicy(model, tokenizer)
    env = make_vec_env(
        "tokengym/Arithmetic-v0", 4, tokenizer=tokenizer, autoreset_mode="Disabled", max_new_tokens=48, steps=1
    )
    env.curriculum = Sequential(repeats=4)
    plain = list(collect(acting, env, 16, seed=5, start=12))
    attempts = attempts_of(Evolution(acting, env, EvolutionConfig(width=4, generations=1)), 3, 5)
    for ours, theirs in zip(attempts, plain, strict=True):
        assert (ours.problem.id, ours.index) == (theirs.problem.id, theirs.index)
        np.testing.assert_array_equal(ours.completion, theirs.completion)
        np.testing.assert_array_equal(ours.logprobs, theirs.logprobs)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        assert (ours.verdict, ours.answer, ours.terminated) == (theirs.verdict, theirs.answer, theirs.terminated)

    search = Evolution(acting, env, EvolutionConfig(width=4, generations=2))
    evolved = attempts_of(search, 3, 5)
    for ours, theirs in zip(evolved[:2], plain[:2], strict=True):
        np.testing.assert_array_equal(ours.completion, theirs.completion)
    assert search.cost.policy_tokens < sum(len(attempt.completion) for attempt in evolved)
    for number, attempt in enumerate(evolved):
        ids = torch.from_numpy(attempt.tokens)[None]
        with torch.no_grad():
            logits = model(ids).logits[0, :-1, : len(tokenizer)].log_softmax(-1)
        theirs = logits.gather(-1, ids[0, 1:, None])[len(attempt.prompt) - 1 :, 0]
        np.testing.assert_allclose(attempt.logprobs, theirs, atol=1e-3)
        if number >= 2:
            first = text_of(env, attempt).split("\n")[0]
            assert any(text_of(env, parent).split("\n")[0] == first for parent in evolved[:2])

    plain, before = evaluate(acting, env, problems=1), search.cost.policy_tokens
    result = evaluate(acting, env, problems=1, n=4, search=search)
    assert result.tokens == plain.tokens + search.cost.policy_tokens - before
    assert {"maj@4", "pass@4"} <= result.metrics.keys()
    assert "rerank@4" not in result.metrics
    longest = lambda group: np.array([len(one.completion) for one in group])  # noqa: E731
    assert "rerank@4" in evaluate(acting, env, problems=1, n=4, search=search, reranker=longest).metrics


def test_searches_pass_over_prompts_that_are_too_long(tmp_path) -> None:
    problems = [Problem(f"p{i}", "?" * (9 if i in (0, 2) else 1), "1") for i in range(6)]
    env = TokenVectorEnv(
        ProblemList(problems), 4, tokenizer=STEPS, prompt="{question}", max_prompt_tokens=2, max_new_tokens=8,
        on_long_prompt="skip", autoreset_mode="Disabled",
    )  # fmt: skip
    search = Evolution(scripted(["b", "gb"] * 4)[0], env, EvolutionConfig(width=2, generations=1))
    found = list(search_into(tmp_path, search, range(1, 3), seed=0))
    assert [(one.problem.id, one.number) for one in found] == [("p3", 2), ("p3", 3), ("p4", 4), ("p4", 5)]
    again = list(search_into(tmp_path, search, range(1, 3), seed=0))
    assert [one.problem.id for one in again] == [one.problem.id for one in found]
    assert env.indices(9) == [1, 3, 4, 5]
    assert env.size == 4
    env.problems = ProblemList(problems[:3])
    assert env.size == 1


def text_of(env: TokenVectorEnv, attempt: Attempt) -> str:
    return env.decode(attempt.completion)


# ------------------------------------------------------------------------------------------------------------- expert


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A folder with a small random policy."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(5)
    ids = {"eos_token_id": EOS, "pad_token_id": STEPS.pad_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(STEPS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.3, **ids,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    STEPS.save_pretrained(folder)
    return folder


def expert(folder: Path, **settings: Any) -> ExpertIteration:
    fast = {"rounds": 1, "samples_per_problem": 16, "demonstrations": 0, "epochs": 1, "validation_problems": 2,
            "search": "evolution", "search_generations": 4}  # fmt: skip
    return ExpertIteration(slots(), folder, validation_env=slots(), device="cpu", **(fast | settings))


def test_expert_iteration_learns_from_an_evolution_and_a_killed_run_takes_it_up(
    start, tmp_path, kill_at_attempt
) -> None:
    whole = expert(start, run=tmp_path / "whole")
    search = Evolution(whole.policy, whole.make_env(), EvolutionConfig(16, 4))
    expected = [one for found in search(range(3), whole.round_seed(1)) for one in found.attempts]
    whole.learn()
    path = tmp_path / "whole" / "round-1" / "attempts-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["completion"] for line in lines] == [one.completion.tolist() for one in expected]
    assert [line["number"] for line in lines] == list(range(48))
    assert whole.num_tokens == search.cost.policy_tokens < sum(len(one.completion) for one in expected)
    assert whole.num_attempts == 48

    # in the middle of the second problem
    kill_at_attempt(21, lambda: expert(start, run=tmp_path / "cut").learn())
    cut = expert(start, run=tmp_path / "cut", resume=True).learn()
    assert (cut.num_tokens, cut.num_attempts) == (whole.num_tokens, whole.num_attempts)
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, dict(cut.model.named_parameters())[name])
    assert (tmp_path / "cut" / "round-1" / "attempts-0.jsonl").read_text() == path.read_text()


def test_what_is_found_at_a_problem_and_its_cost_do_not_depend_on_the_others(start) -> None:
    policy = CausalLMPolicy(*load(start, device="cpu"))
    together = Evolution(policy, slots(2), EvolutionConfig(width=8, generations=4))  # room for two problems at a time
    found = list(together(range(3), 5))
    for index, ours in enumerate(found):
        (alone,) = Evolution(policy, slots(), EvolutionConfig(width=8, generations=4))([f"p{index}"], 5)
        for mine, theirs in zip(ours.attempts, alone.attempts, strict=True):
            assert (mine.problem.id, mine.index, mine.number) == (theirs.problem.id, theirs.index, theirs.number)
            np.testing.assert_array_equal(mine.completion, theirs.completion)
        assert ours.cost == alone.cost
    assert together.cost.policy_tokens == sum(ours.cost.policy_tokens for ours in found)


def test_evolutions_that_cannot_be(start, capsys) -> None:
    with pytest.raises(ValueError, match="generations must divide the width of 16, got 3"):
        expert(start, search_generations=3)
    with pytest.raises(ValueError, match="leave out search_orm"):
        expert(start, search_orm="x")
    with pytest.raises(UnknownNameError, match="did you mean 'evolution'"):
        expert(start, search="evolutoin")
    with pytest.raises(ValueError, match="autoreset_mode='Disabled'"):
        Evolution(scripted([])[0], make_vec_env("tokengym/Arithmetic-v0", 1), EvolutionConfig())
    assert main(["eval", "--search", "evolution", "--n", "6", "--problems", "1", "--device", "cpu"]) == 1
    assert "--search-generations must divide the n of 6, got 4" in capsys.readouterr().err
