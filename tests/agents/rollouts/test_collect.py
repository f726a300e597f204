"""Rollouts: the same attempts in the same order, whatever the slots, the start and the refills."""

import itertools
import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokengym.agents.rollouts.attempts import Attempt, AttemptFile, RolloutStatistics, read_attempts
from tokengym.agents.rollouts.collect import Start, collect, collect_into, continue_from
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.curriculum import Sequential
from tokengym.models.engine.sampling import stream_key, uniforms
from tokengym.rewards import Verdict


@pytest.fixture(scope="module")
def policy(make_model, tokenizer) -> CausalLMPolicy:
    return CausalLMPolicy(make_model(), tokenizer)


def same(a: Attempt, b: Attempt) -> bool:
    return (
        a.problem == b.problem
        and a.index == b.index
        and a.prompt.tolist() == b.prompt.tolist()
        and a.completion.tolist() == b.completion.tolist()
        and a.rewards.tolist() == b.rewards.tolist()
        and (a.is_success, a.verdict, a.answer, a.terminated) == (b.is_success, b.verdict, b.answer, b.terminated)
    )


def one_by_one(
    policy: CausalLMPolicy, env, episodes: int, seed: int, starts: list[Start] | None = None
) -> list[tuple[str, int, list[int]]]:
    """The attempts without engine, cache or batch: a full forward pass per token, and the inverse of its cumulative."""
    env.seek(seed)
    done = []
    for number in range(episodes):
        start = starts[number] if starts else None
        _, infos = env.reset(options={"problem_id": start.problem_id, "prefix": [start.prefix]} if start else None)
        problem, index, given = env.problem(0), int(infos["attempt"][0]), len(env.completion(0))
        key = torch.tensor([stream_key(seed, problem.id, index)])
        ended = False
        while not ended:
            ids = np.concatenate([env.prompt(0), env.completion(0)])
            with torch.no_grad():
                logits = policy.model(torch.from_numpy(ids)[None]).logits[0, -1].double()
            cumulative = (logits / policy.sampling.temperature).softmax(-1).cumsum(-1)
            uniform = uniforms(key, torch.tensor([len(env.completion(0)) - given]))
            token = int((cumulative <= uniform).sum())
            _, _, terminations, truncations, _ = env.step([token])
            ended = bool(terminations[0] | truncations[0])
        done.append((problem.id, index, env.completion(0)[given:].tolist()))
    return done


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_attempts_equal_those_made_one_by_one_without_the_engine(
    make_model, make_sums, tokenizer, architecture: str
) -> None:
    policy = CausalLMPolicy(make_model(architecture), tokenizer).with_sampling(temperature=0.8)
    expected = one_by_one(policy, make_sums(1), 40, seed=3)
    ours = [(a.problem.id, a.index, a.completion.tolist()) for a in collect(policy, make_sums(7), 40, seed=3)]
    assert ours == expected


@pytest.mark.parametrize("kind", ["slots", "rows"])
def test_attempts_say_what_each_token_was_drawn_from(make_model, make_sums, tokenizer, monkeypatch, kind: str) -> None:
    """The smallest set of most likely tokens that reaches top-p, by a full forward pass, and the chances among it."""
    monkeypatch.setattr("tokengym.agents.rollouts.policy.decoding", lambda model: kind)
    policy = CausalLMPolicy(make_model(), tokenizer).with_sampling(temperature=0.8, top_p=0.9)
    sizes = set()
    for attempt in collect(policy, make_sums(5), 12, seed=2, record_kept=True):
        with torch.no_grad():
            logits = policy.model(torch.from_numpy(attempt.tokens)[None]).logits[0, len(attempt.prompt) - 1 : -1]
        assert attempt.kept is not None
        chances = zip(logits.double() / 0.8, attempt.kept.rows(), attempt.completion, attempt.logprobs, strict=True)
        for scores, choices, token, logprob in chances:
            ordered, tokens = scores.softmax(-1).sort(descending=True)
            count = int((ordered.cumsum(-1) < 0.9).sum()) + 1
            assert choices.tolist() == sorted(tokens[:count].tolist())
            assert logprob == pytest.approx((scores[token] - scores[choices].logsumexp(-1)).item(), abs=1e-5)
            sizes.add(count)
    assert len(sizes) > 3
    plain = collect(policy, make_sums(5), 12, seed=2)
    assert {attempt.kept for attempt in plain} == {None}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_envs=st.integers(1, 12), episodes=st.integers(0, 30), start=st.integers(0, 30), repeats=st.integers(1, 5))
def test_attempts_depend_on_neither_slots_nor_start(
    policy, make_sums, num_envs: int, episodes: int, start: int, repeats: int
) -> None:
    """Fewer attempts than slots, as many, more, and no multiple."""
    whole = list(collect(policy, make_sums(3, curriculum=Sequential(repeats)), 30, seed=1))
    env = make_sums(num_envs, curriculum=Sequential(repeats))
    part = list(collect(policy, env, episodes, seed=1, start=start))
    assert len(part) == max(0, episodes - start)
    assert all(map(same, part, whole[start:episodes]))


@pytest.mark.parametrize("patience", [1, 5, 64])
@pytest.mark.parametrize("num_envs", [1, 2, 24])
def test_attempts_that_wait_for_their_verdicts_are_no_others(
    policy, make_sums, monkeypatch, patience: int, num_envs: int
) -> None:
    monkeypatch.setattr("tokengym.agents.rollouts.collect.PATIENCE", patience)
    policy = policy.with_sampling(top_k=12)
    slots = make_sums(4, reward="dense", curriculum=Sequential(2))
    expected = list(collect(policy, slots, 90, seed=2, record_kept=True))
    env = make_sums(num_envs, reward="dense", curriculum=Sequential(2))

    def begin_grading(completion: str, problem: Problem) -> Verdict | Future[Verdict]:
        verdict = env.problems.grade(completion, problem)
        if len(completion) % 3 == 0:
            return verdict
        later: Future[Verdict] = Future()
        later.set_result(verdict)
        return later

    monkeypatch.setattr(env.problems, "begin_grading", begin_grading)
    counts: list[int] = []
    attempts = list(collect(policy, env, 90, seed=2, on_step=counts.append, record_kept=True))
    assert sum(attempt.terminated for attempt in attempts) > 10
    assert all(map(same, attempts, expected))
    for attempt, other in zip(attempts, expected, strict=True):
        assert attempt.kept is not None
        assert other.kept is not None
        assert np.array_equal(attempt.kept.tokens, other.kept.tokens)
        assert np.array_equal(attempt.kept.counts, other.kept.counts)
    assert sum(counts) == len(attempts) == 90


def test_sequential_attempts_each_problem_exactly_k_times_in_order(policy, make_sums) -> None:
    env = make_sums(5, curriculum=Sequential(4), num_problems=6)
    attempts = list(collect(policy, env, 24, seed=0))
    ids = [env.problems[i].id for i in range(6) for _ in range(4)]
    assert [attempt.problem.id for attempt in attempts] == ids
    assert [attempt.index for attempt in attempts] == [0, 1, 2, 3] * 6
    # Attempts at one problem draw from streams of their own.
    assert len({tuple(attempt.completion) for attempt in attempts[:4]}) > 1


def test_seed_decides_what_is_drawn(policy, make_sums) -> None:
    env = make_sums(5, curriculum="sequential")
    a, b, c = (
        [tuple(x.completion) for x in collect(policy, env, 20, seed=s, on_step=None)] for s in (0, 1, 0)
    )  # fmt: skip
    assert a == c
    assert a != b


@pytest.fixture(scope="module")
def starts(make_sums, tokenizer) -> list[Start]:
    """Three problems' first two prefixes of a solution, each continued four times."""
    sums = make_sums(1).problems
    texts = ["", "1", "12"]
    return [
        Start(sums[i].id, np.array(tokenizer.encode(text, add_special_tokens=False), np.int64))
        for i in range(3)
        for text in texts
        for _ in range(4)
    ]


def test_attempts_that_continue_prefixes_equal_those_made_one_by_one(policy, make_sums, starts) -> None:
    expected = one_by_one(policy, make_sums(1), len(starts), seed=3, starts=starts)
    attempts = list(continue_from(policy, make_sums(7), starts, seed=3))
    assert [(a.problem.id, a.index, a.completion.tolist()) for a in attempts] == expected
    for attempt, start in zip(attempts, starts, strict=True):
        prompt = make_sums(1).encode_prompt(attempt.problem)
        assert attempt.prompt.tolist() == [*prompt, *start.prefix]
    assert len({tuple(a.completion) for a in attempts[:4]}) > 1


@pytest.mark.parametrize("begun", [0, 1, 17, 36])
def test_continuing_can_be_taken_up_again(policy, make_sums, starts, begun: int) -> None:
    whole = list(continue_from(policy, make_sums(5), starts, seed=1))
    rest = list(continue_from(policy, make_sums(4), starts, seed=1, start=begun))
    assert len(rest) == len(starts) - begun
    assert all(map(same, rest, whole[begun:]))


def test_prefixes_of_one_problem_are_computed_once(policy, make_sums, starts) -> None:
    """With a slot for each start, the prompt and the longest prefix are all that is ever computed of a problem."""
    env = make_sums(len(starts))
    rollout = continue_from(policy, env, starts, seed=0)
    list(rollout)
    longest = [starts[i + 8] for i in (0, 12, 24)]
    tokens = [len(env.encode_prompt(env.problems.find(s.problem_id))) + len(s.prefix) - 1 for s in longest]
    assert rollout.prefill_tokens == sum(tokens)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start("no such problem", np.empty(0, np.int64)), "no such problem"),
        (Start("arithmetic-train-0-0", np.array([3, 3, 3, 3])), "max_new_tokens"),
    ],
)
def test_starts_that_cannot_be(policy, make_sums, start: Start, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(continue_from(policy, make_sums(2), [start], seed=0))


class CountsTwos(ProblemList):
    """Correct are the completions with a 2; the verdict's answer is the text."""

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict("2" in completion, "correct" if "2" in completion else "wrong", completion)


def test_statistics_add_up_over_processes(policy, tokenizer) -> None:
    reward = {"name": "sum", "terms": [[2.0, "sparse"], [0.5, {"name": "sparse"}]]}
    source = CountsTwos([Problem(f"p{i}", f"{i}+{i}=", "2") for i in range(5)])
    env = TokenVectorEnv(source, 6, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=4, max_new_tokens=12,
                         autoreset_mode="Disabled", reward=reward)  # fmt: skip
    attempts = list(collect(policy, env, 60, seed=0))
    parts = [RolloutStatistics(), RolloutStatistics()]
    for i, attempt in enumerate(attempts):
        parts[i % 2].add(attempt)
    parts[0].merge(parts[1])
    metrics = parts[0].metrics(seconds=2.0)
    success = np.mean([a.is_success for a in attempts])
    tokens = sum(len(a.completion) for a in attempts)
    assert (parts[0].attempts, parts[0].tokens) == (60, tokens)
    assert metrics["rollout/success_rate"] == metrics["rollout/verdict/correct"] == pytest.approx(success)
    assert metrics["rollout/mean_reward"] == pytest.approx(2.5 * success)
    assert metrics["rollout/reward/sparse-1"] == pytest.approx(2 * success)
    assert metrics["rollout/reward/sparse-2"] == pytest.approx(0.5 * success)
    assert sum(value for name, value in metrics.items() if "verdict" in name) == pytest.approx(1)
    assert metrics["rollout/mean_length"] == tokens / 60
    assert metrics["time/tokens_per_second"] == tokens / 2


def test_outcomes_are_the_environments_and_rewards_sit_on_the_end_of_sequence(policy, tokenizer) -> None:
    source = CountsTwos([Problem(f"p{i}", f"{i}+{i}=", "2") for i in range(5)])
    env = TokenVectorEnv(source, 6, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=4, max_new_tokens=12,
                         autoreset_mode="Disabled")  # fmt: skip
    attempts = list(collect(policy, env, 200, seed=0))
    eos = tokenizer.eos_token_id
    for attempt in attempts:
        tokens = attempt.completion.tolist()
        assert attempt.prompt.tolist() == env.encode_prompt(attempt.problem).tolist()
        assert attempt.terminated == (tokens[-1] == eos)
        assert eos not in tokens[:-1]
        assert attempt.terminated or len(tokens) == 12
        assert attempt.is_success == (attempt.terminated and 2 in tokens)
        assert attempt.rewards.tolist() == [0.0] * (len(tokens) - 1) + [float(attempt.is_success)]
        assert attempt.verdict == (
            "truncated" if not attempt.terminated else "correct" if attempt.is_success else "wrong"
        )
        assert attempt.answer == (tokenizer.decode(tokens[:-1]) if attempt.terminated else None)
        assert attempt.total_reward == attempt.is_success
        assert len(attempt.logprobs) == len(tokens)
        assert (attempt.logprobs < 0).all()
    assert {attempt.verdict for attempt in attempts} == {"correct", "wrong", "truncated"}


def test_attempts_are_yielded_as_they_come_and_told_as_they_end(policy, make_sums) -> None:
    told = []
    attempts = collect(policy, make_sums(4), 50, seed=0, on_step=told.append)
    for _ in range(4):
        next(attempts)
    assert 4 <= sum(told) <= 12  # and not all 50 before the first
    assert len(list(attempts)) == 46
    assert sum(told) == 50
    assert min(told) > 0


def test_the_model_sees_live_slots_only(policy, make_sums) -> None:
    """Slots beyond the attempts never join the batch, and those without a next attempt leave it."""
    rows = []
    hook = policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        assert len(list(collect(policy, make_sums(64), 5, seed=0))) == 5
        assert max(rows) == 5
        rows.clear()
        attempts = list(collect(policy, make_sums(4), 40, seed=0))
    finally:
        hook.remove()
    assert max(rows) == 4
    # One row for each token and, at most, one for each prompt: of so few slots none waits for others to refill with.
    assert sum(rows) <= sum(len(attempt.completion) + 1 for attempt in attempts)


def test_an_attempt_holds_its_own_tokens_and_no_observation(policy, make_sums) -> None:
    attempts = list(collect(policy, make_sums(8, curriculum=Sequential(16), copy=False), 64, seed=0))
    for attempt in attempts:
        arrays = [attempt.completion, attempt.logprobs, attempt.rewards]
        assert [array.dtype for array in arrays] == [np.int32, np.float32, np.float32]
        # A view would hold the whole buffer that it looks into.
        assert all(array.base is None for array in [*arrays, attempt.prompt])
        assert len(attempt.prompt) <= 6
    # Attempts at one problem that were resident together share their prompt.
    assert len({id(attempt.prompt) for attempt in attempts}) < len(attempts) / 2


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_an_environment_that_resets_itself_is_refused(policy, make_sums, mode: str) -> None:
    with pytest.raises(ValueError, match="Disabled"):
        next(collect(policy, make_sums(2, autoreset_mode=mode), 3, seed=0))


def test_skipped_prompts_take_no_attempts(policy, tokenizer) -> None:
    source = CountsTwos([Problem(f"p{i}", "1" * (3 + 4 * (i % 2)) + f"+{i}=", "2") for i in range(6)])
    env = TokenVectorEnv(source, 4, tokenizer=tokenizer, prompt="{question}", max_prompt_tokens=8, max_new_tokens=3,
                         autoreset_mode="Disabled", on_long_prompt="skip", curriculum=Sequential(3))  # fmt: skip
    assert env.size == 3
    attempts = list(collect(policy, env, 9, seed=0))
    assert [attempt.problem.id for attempt in attempts] == ["p0"] * 3 + ["p2"] * 3 + ["p4"] * 3


# --------------------------------------------------------------------------------------------------------- AttemptFile


def test_attempts_come_back_from_their_file(policy, make_sums, tmp_path) -> None:
    env = make_sums(4)
    attempts = list(collect(policy, env, 9, seed=0))
    attempts[0].rewards[:] = np.linspace(0.1, 1, len(attempts[0].rewards), dtype=np.float32)
    record = AttemptFile(tmp_path / "attempts.jsonl")
    assert list(record.read(env)) == []
    with record:
        for number, attempt in enumerate(attempts):
            record.write(attempt)
            assert len((tmp_path / "attempts.jsonl").read_text().splitlines()) == number + 1  # on disk at once
    back = list(AttemptFile(tmp_path / "attempts.jsonl").read(make_sums(2)))
    assert all(map(same, back, attempts))
    assert [attempt.number for attempt in back] == list(range(9))
    assert all(np.isnan(attempt.logprobs).all() for attempt in back)


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_a_line_that_a_killed_process_left_is_cut_off_and_written_again(policy, make_sums, tmp_path, lost) -> None:
    env, path = make_sums(4), tmp_path / "attempts-0.jsonl"
    attempts = list(collect(policy, env, 6, seed=0))
    with AttemptFile(path) as record:
        for attempt in attempts[:4]:
            record.write(attempt)
    path.write_bytes(path.read_bytes()[:-lost])
    assert len(list(AttemptFile(path).read(env))) == 3
    assert all(map(same, collect_into(tmp_path, policy, env, range(6), seed=0), attempts))
    assert all(map(same, AttemptFile(path).read(env), attempts))
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [a.index for a in attempts]


def written(folder: Path) -> list[int]:
    """The numbers of all attempts that are in the files, sorted."""
    return sorted(json.loads(line)["number"] for file in folder.iterdir() for line in file.read_text().splitlines())


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_another_number_of_processes_continues_a_collection(policy, make_sums, tmp_path, before, ranks) -> None:
    """Every attempt is there once, and is the one that a single process would have sampled."""
    env, total = make_sums(4), 11
    attempts = list(collect(policy, env, total, seed=0))

    def share(count: int, rank: int) -> range:
        return range(total * rank // count, total * (rank + 1) // count)

    for rank in range(before):  # each is killed in its third attempt
        list(itertools.islice(collect_into(tmp_path, policy, env, share(before, rank), seed=0, rank=rank), 2))
    assert len(written(tmp_path)) == 2 * before
    told: list[int] = []
    found = [
        attempt
        for rank in range(ranks)
        for attempt in collect_into(tmp_path, policy, env, share(ranks, rank), seed=0, rank=rank, on_step=told.append)
    ]
    assert len(found) == total
    assert all(map(same, found, attempts))
    assert written(tmp_path) == list(range(total))
    assert sum(told) == total
    assert all(map(same, read_attempts(tmp_path, env), attempts))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"completion": [10**6]}, "its completion is not of this tokenizer's tokens"),
        ({"completion": [-1]}, "its completion is not of this tokenizer's tokens"),
        ({"completion": ["1"]}, "its completion is not of this tokenizer's tokens"),
        ({"completion": []}, "its completion is not of this tokenizer's tokens"),
        ({"completion": None}, "completion must be a list, got None"),
        ({"rewards": [[999], [1.0]]}, "its rewards are not at positions"),
        ({"rewards": [[0], []]}, "its rewards are not at positions"),
        ({"problem_id": 5}, "problem_id must be text, got 5"),
        ({"verdict": None}, "verdict must be text, got None"),
        ({"answer": 5}, "answer must be text or None, got 5"),
        ({"terminated": "yes"}, "terminated must be true or false, got 'yes'"),
        ({"reward_components": []}, "reward_components must be a mapping"),
        (None, "the line must be a mapping"),
    ],
)
def test_an_attempt_with_other_values_than_attempts_have_is_named_and_sampled_again(
    policy, make_sums, tmp_path, values, message: str
) -> None:
    env, path = make_sums(2), tmp_path / "attempts-0.jsonl"
    attempts = list(collect_into(tmp_path, policy, env, range(2), seed=0))
    first, second = path.read_text().splitlines(keepends=True)
    damaged = [first] if values is None else {**json.loads(second), **values}
    path.write_text(first + json.dumps(damaged) + "\n")
    with pytest.raises(ValueError, match=rf"attempts-0\.jsonl, line 2 is no attempt at a problem here: {message}"):
        list(AttemptFile(path).read(env))
    assert all(map(same, collect_into(tmp_path, policy, env, range(2), seed=0), attempts))


def test_a_damaged_line_is_named_and_its_attempt_sampled_again(policy, make_sums, tmp_path, caplog) -> None:
    env, path = make_sums(4), tmp_path / "attempts-0.jsonl"
    attempts = list(collect_into(tmp_path, policy, env, range(6), seed=0))
    lines = path.read_text().splitlines(keepends=True)
    lines[2], lines[4] = lines[2][:30] + "\0" * 9 + lines[2][39:], "\n"
    path.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"attempts-0\.jsonl, line 3 is no attempt at a problem here"):
        list(AttemptFile(path).read(env))
    assert all(map(same, collect_into(tmp_path, policy, env, range(6), seed=0), attempts))
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}, line {number} cannot be read: that attempt is sampled again" for number in (3, 5)
    ]
