"""Labels of prefixes: how often continuations succeed, counted once for each prefix, resumed where they stopped."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from tokengym.agents.rollouts import continuations as prefix_labels
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.continuations import label_prefixes
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.envs.curriculum import Sequential
from tokengym.models import load_tokenizer
from tokengym.rewards import Verdict

LINES = load_tokenizer("chars:yz\n?")
EOS, (NEWLINE,) = LINES.eos_token_id, LINES.encode("\n", add_special_tokens=False)
BUDGET = 5


class EvenlyMany(ProblemList):
    """Correct is a completion with an even number of the question's letter."""

    def __init__(self) -> None:
        super().__init__([Problem(q, q + "?", q, q) for q in "yz"])

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.count(problem.answer) % 2 == 0
        return Verdict(correct, "correct" if correct else "wrong", completion)


def slots(num_envs: int = 8) -> TokenVectorEnv:
    settings = {"prompt": "{question}", "max_prompt_tokens": 4, "max_new_tokens": BUDGET}
    return TokenVectorEnv(
        EvenlyMany(),
        num_envs,
        tokenizer=LINES,
        autoreset_mode="Disabled",
        curriculum=Sequential(repeats=12),
        **settings,
    )


@pytest.fixture(scope="module")
def policy(make_model) -> CausalLMPolicy:
    return CausalLMPolicy(make_model(vocab_size=len(LINES), eos_token_id=EOS, pad_token_id=EOS), LINES)


@pytest.fixture(scope="module")
def attempts(policy) -> list[Attempt]:
    return list(collect(policy, slots(), 60, seed=3))


def ends(attempt: Attempt) -> list[int]:
    """Where the attempt's steps end, token by token."""
    found, line = [], ""
    for position, token in enumerate(attempt.completion.tolist()):
        if token in (NEWLINE, EOS):
            if line.strip():
                found.append(position)
            line = ""
        else:
            line += str(LINES.decode([token], skip_special_tokens=True))
    return found


def chance(policy: CausalLMPolicy, attempt: Attempt, end: int) -> float:
    """The chance that a continuation after token `end` succeeds, summed over all continuations."""
    prompt, prefix = attempt.prompt.tolist(), attempt.completion[: end + 1].tolist()
    letter = LINES.encode(attempt.problem.answer, add_special_tokens=False)[0]
    total, open_ = 0.0, {(): 1.0}
    for _ in range(BUDGET - len(prefix)):
        longer = {}
        for tokens, probability in open_.items():
            with torch.no_grad():
                logits = policy.model(torch.tensor([[*prompt, *prefix, *tokens]])).logits[0, -1, : len(LINES)]
            for token, p in enumerate(logits.double().softmax(-1).tolist()):
                if token != EOS:
                    longer[(*tokens, token)] = probability * p
                elif (*prefix, *tokens).count(letter) % 2 == 0:
                    total += probability * p
        open_ = longer
    return total


def test_counts_are_binomial_with_the_enumerated_chance_and_the_last_step_is_the_outcome(policy, attempts) -> None:
    samples = 300
    counts = label_prefixes(policy, slots(64), attempts, samples, seed=8)
    chances = {}
    for attempt, found in zip(attempts, counts, strict=True):
        assert found.shape == (len(ends(attempt)),)
        for end, count in zip(ends(attempt), found.tolist(), strict=True):
            if end == len(attempt.completion) - 1:
                assert count == samples * attempt.is_success
                continue
            prefix = attempt.problem.id, tuple(attempt.completion[: end + 1])
            p = chances[prefix] if prefix in chances else chances.setdefault(prefix, chance(policy, attempt, end))
            assert abs(count - samples * p) < 4.5 * np.sqrt(samples * p * (1 - p)) + 1e-9
    assert len(chances) > 8


def test_a_shared_prefix_is_continued_once_and_slots_change_nothing(policy, attempts, tmp_path) -> None:
    counts = label_prefixes(policy, slots(5), attempts, 4, seed=1, stem=tmp_path / "labels")
    lines = [json.loads(line) for line in (tmp_path / "labels-0.jsonl").read_text().splitlines()]
    wanted = [(a.problem.id, *a.completion[: e + 1].tolist()) for a in attempts for e in ends(a)
              if e < len(a.completion) - 1]  # fmt: skip
    assert [(line["problem_id"], *line["prefix"]) for line in lines] == list(dict.fromkeys(wanted))
    assert len(lines) < len(wanted)
    again = label_prefixes(policy, slots(11), attempts, 4, seed=1)
    assert [c.tolist() for c in counts] == [c.tolist() for c in again]
    other = label_prefixes(policy, slots(11), attempts, 4, seed=2)
    assert [c.tolist() for c in counts] != [c.tolist() for c in other]


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_labelling_that_was_cut_short_goes_on_where_it_stopped(policy, attempts, tmp_path, monkeypatch, stop) -> None:
    whole = label_prefixes(policy, slots(), attempts, 3, seed=1, stem=tmp_path / "whole")
    path, told = tmp_path / "labels-0.jsonl", Counter()
    lines = (tmp_path / "whole-0.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:stop]) + lines[stop][:-5])  # killed in the middle of a line
    real = prefix_labels.continue_from

    def spy(policy, env, starts, **options):
        told["asked for"] = len(starts) - options["start"]
        return real(policy, env, starts, **options)

    monkeypatch.setattr(prefix_labels, "continue_from", spy)
    counts = label_prefixes(
        policy, slots(), attempts, 3, seed=1, stem=tmp_path / "labels",
        on_step=lambda n, t: told.update(done=n, tokens=t),
    )  # fmt: skip
    assert [c.tolist() for c in counts] == [c.tolist() for c in whole]
    assert path.read_text() == (tmp_path / "whole-0.jsonl").read_text()
    sampled = sum(json.loads(line)["tokens"] for line in lines)
    assert told == {"asked for": 3 * (len(lines) - stop), "done": len(lines), "tokens": sampled}
    assert sampled > 3 * len(lines) / 2


def test_another_number_of_processes_continues_the_labels(policy, attempts, tmp_path, monkeypatch) -> None:
    """Two processes were killed after three labels each; one, then two do the rest, none of them twice."""
    whole = label_prefixes(policy, slots(), attempts, 3, seed=1)
    shares = [[a for a in attempts if a.problem.id == name] for name in "yz"]
    assert all(shares)

    def kill(_: int, tokens: int, calls: Counter[str]) -> None:
        calls["labels"] += 1
        if calls["labels"] == 3:
            raise KeyboardInterrupt

    for rank, share in enumerate(shares):
        calls = Counter[str]()
        with pytest.raises(KeyboardInterrupt):
            label_prefixes(
                policy, slots(), share, 3, seed=1, stem=tmp_path / "a", rank=rank,
                on_step=partial(kill, calls=calls),
            )  # fmt: skip
    for rank in (0, 1):
        (tmp_path / f"b-{rank}.jsonl").write_text((tmp_path / f"a-{rank}.jsonl").read_text())
    counts = label_prefixes(policy, slots(), attempts, 3, seed=1, stem=tmp_path / "a")
    assert [c.tolist() for c in counts] == [c.tolist() for c in whole]
    for rank, share in enumerate(shares):
        found = label_prefixes(policy, slots(), share, 3, seed=1, stem=tmp_path / "b", rank=rank)
        assert [c.tolist() for c in found] == [c.tolist() for a, c in zip(attempts, whole, strict=True) if a in share]
    for stem in "ab":
        lines = [line for file in tmp_path.glob(f"{stem}-*") for line in file.read_text().splitlines()]
        assert len(lines) == len(set(lines)) == len({(a.problem.id, *a.completion[: e + 1].tolist())
            for a in attempts for e in ends(a) if e < len(a.completion) - 1})  # fmt: skip


def test_inconsistent_continuations_do_not_count(policy, attempts, monkeypatch) -> None:
    monkeypatch.setattr(prefix_labels, "uses_results", lambda prefix, continuation: len(continuation) % 2)
    plain = label_prefixes(policy, slots(), attempts, 40, seed=1)
    strict = label_prefixes(policy, slots(), attempts, 40, seed=1, consistent=True)
    pairs = [pair for both in zip(plain, strict, strict=True) for pair in zip(*both, strict=True)]
    assert all(less <= more for more, less in pairs)
    assert any(0 < less < more for more, less in pairs)


def test_labels_of_something_else_are_not_mistaken_for_these(policy, attempts, tmp_path) -> None:
    stem = tmp_path / "labels"
    label_prefixes(policy, slots(), attempts, 3, seed=1, stem=stem)
    for others, samples in ((attempts[::-1], 3), (attempts, 2), (attempts[:2], 3)):
        with pytest.raises(ValueError, match=r"labels-0\.jsonl holds labels of other prefixes"):
            label_prefixes(policy, slots(), others, samples, seed=1, stem=stem)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        label_prefixes(policy, slots(), attempts, 0, seed=1)
    assert label_prefixes(policy, slots(), [], 3, seed=1) == []


def test_the_attempts_above_end_in_every_way(attempts) -> None:
    assert {(len(ends(a)) > 1, a.terminated, a.is_success) for a in attempts} >= {
        (True, True, True), (False, True, True), (False, True, False), (False, False, False), (True, False, False)
    }  # fmt: skip
