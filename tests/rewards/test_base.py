"""The reward base classes, seen through a small stand-in for the environment."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokengym.arrays import FloatArray, IntArray
from tokengym.registry import UnknownNameError
from tokengym.rewards import (
    REWARDS,
    RUNNING,
    TERMINATED,
    TRUNCATED,
    AttemptReward,
    FinishedAttempt,
    Reward,
    SparseReward,
    Step,
    StepReward,
    Verdict,
    make_reward,
)
from tokengym.rewards.steps import newline_tokens, step_ends

TEXTS = ["<eos>", "\n", "a", "b c", " ", "a\n", "\n\n", "b\na", "7"]
EOS, NEWLINE, A, B_C, SPACE, A_NEWLINE, TWO_NEWLINES, NEWLINE_WITHIN, SEVEN = range(len(TEXTS))
CORRECT, WRONG, CUT = Verdict(True, "correct", "7"), Verdict(False, "wrong", "8"), Verdict(False, "truncated", None)


def word_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({text: i for i, text in enumerate(TEXTS)}, unk_token="<eos>"))
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


TOKENIZER = word_tokenizer()


@dataclass(frozen=True)
class Sum:
    question: str = "3+4"
    answer: str = "7"
    solution: str | None = None


class Slots:
    """Stands in for the environment: appends tokens to slots and asks the reward to score them."""

    tokenizer: PreTrainedTokenizerBase = TOKENIZER

    def is_answer(self, line: str) -> bool:
        return "####" in line

    def cut(self, text: str) -> str:
        return text

    def __init__(self, reward: Reward, num_envs: int) -> None:
        self.num_envs = num_envs
        self.tokens: list[list[int]] = [[] for _ in range(num_envs)]
        self.reward = reward
        reward.bind(self)

    def completion(self, slot: int) -> IntArray:
        return np.array(self.tokens[slot], dtype=np.int64)

    def begin(self, problems: dict[int, Sum], prefixes: dict[int, list[int]] | None = None) -> None:
        for slot in problems:
            self.tokens[slot] = list((prefixes or {}).get(slot, []))
        lengths = np.array([len(self.tokens[slot]) for slot in problems], dtype=np.int64)
        self.reward.begin(np.array(list(problems), dtype=np.int64), list(problems.values()), lengths)

    def step(self, appended: dict[int, list[int]], verdicts: dict[int, Verdict] | None = None) -> FloatArray:
        verdicts = verdicts or {}
        lengths, ended = np.zeros((2, self.num_envs), dtype=np.int64)
        for slot, tokens in appended.items():
            self.tokens[slot] += tokens
            lengths[slot] = len(tokens)
        for slot, verdict in verdicts.items():
            ended[slot] = TRUNCATED if verdict is CUT else TERMINATED
        return self.reward.score(lengths, ended, [verdicts.get(slot) for slot in range(self.num_envs)])


class Recorder(StepReward):
    """Pays a number that tells the step, and remembers what it was shown and how often it decoded."""

    def __init__(self) -> None:
        self.batches: list[list[Step]] = []
        self.decoded = 0

    def decode(self, tokens: IntArray) -> str:
        self.decoded += 1
        return super().decode(tokens)

    def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
        self.batches.append(list(steps))
        return [payment(step.previous, step.text, step.verdict) for step in steps]


def payment(previous: tuple[str, ...], text: str, verdict: Verdict | None) -> float:
    return 1 + len(text) + 10 * len(previous) + 1000 * len("".join(previous)) + (0.5 if verdict else 0)


def test_sparse_pays_one_at_the_last_token_of_a_correct_attempt_and_nothing_else() -> None:
    slots = Slots(SparseReward(), 4)
    slots.begin({i: Sum() for i in range(4)})
    running = slots.step({0: [A], 1: [A], 2: [A], 3: [A]})
    assert running.dtype == np.float64
    np.testing.assert_array_equal(running, np.zeros((4, 1)))
    rewards = slots.step({0: [SEVEN, EOS], 1: [EOS], 2: [A, A, A]}, {0: CORRECT, 1: WRONG, 2: CUT})
    np.testing.assert_array_equal(rewards, [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_a_slot_that_was_not_stepped_earns_nothing() -> None:
    for reward in (SparseReward(), Recorder()):
        slots = Slots(reward, 2)
        slots.begin({0: Sum(), 1: Sum()})
        slots.step({0: [A], 1: [EOS]}, {1: CORRECT})
        np.testing.assert_array_equal(slots.step({0: [A]}, {1: CORRECT}), [[0], [0]])
        np.testing.assert_array_equal(slots.step({}), [[0], [0]])


def test_an_attempt_reward_sees_the_whole_attempt() -> None:
    class Brevity(AttemptReward):
        def attempt_reward(self, attempt: FinishedAttempt) -> float:
            seen.append((attempt.slot, attempt.problem, self.decode(attempt.tokens), attempt.verdict))
            return attempt.verdict.correct - 0.1 * len(attempt.tokens)

    seen: list[object] = []
    slots = Slots(Brevity(), 3)
    first, second = Sum("1+6"), Sum("2+5")
    slots.begin({2: first, 0: second}, {0: [A]})
    rewards = slots.step({0: [SEVEN, EOS], 2: [SEVEN, NEWLINE, A]}, {0: CORRECT, 2: CUT})
    np.testing.assert_allclose(rewards, [[0, 0.7, 0], [0, 0, 0], [0, 0, -0.3]])
    assert seen == [(0, second, "a7", CORRECT), (2, first, "7\na", CUT)]
    third = Sum("3+4")
    slots.begin({2: third})
    slots.step({2: [EOS]}, {2: WRONG})
    assert seen[2] == (2, third, "", WRONG)


def test_an_error_inside_a_reward_says_where() -> None:
    class Careless(AttemptReward):
        def attempt_reward(self, attempt: FinishedAttempt) -> float:
            return float(attempt.verdict.reason)

    class CarelessSteps(StepReward):
        def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
            return [float(step.text) for step in steps]

    for reward, method in ((Careless(), "attempt_reward"), (CarelessSteps(), "step_rewards")):
        slots = Slots(reward, 1)
        slots.begin({0: Sum()})
        with pytest.raises(ValueError, match="could not convert string to float") as raised:
            slots.step({0: [A, EOS]}, {0: WRONG})
        (note,) = raised.value.__notes__
        assert re.fullmatch(rf"raised by {type(reward).__name__}\.{method} \(.*test_base\.py, line \d+\)", note)


def test_a_step_reward_is_paid_at_the_last_token_of_each_step() -> None:
    reward = Recorder()
    slots = Slots(reward, 3)
    slots.begin({i: Sum(str(i)) for i in range(3)})
    slots.step({0: [A], 1: [B_C], 2: [A]})
    assert reward.decoded == 0
    assert not reward.batches
    rewards = slots.step({0: [A_NEWLINE], 1: [A], 2: [NEWLINE]})
    np.testing.assert_array_equal(rewards, [[3], [0], [2]])
    assert [[(s.slot, s.problem.question, s.previous, s.text) for s in batch] for batch in reward.batches] == [
        [(0, "0", (), "aa"), (2, "2", (), "a")]
    ]
    slots.step({0: [SEVEN, NEWLINE, A, EOS], 1: [EOS], 2: [EOS]}, {0: CORRECT, 1: WRONG, 2: WRONG})
    assert [(s.slot, s.previous, s.text, s.verdict) for s in reward.batches[1]] == [
        (0, ("aa",), "7", None),
        (0, ("aa", "7"), "a", CORRECT),
        (1, (), "b ca", WRONG),
        (2, ("a",), "", WRONG),
    ]
    assert [s.tokens.tolist() for s in reward.batches[1][:2]] == [
        [A, A_NEWLINE, SEVEN, NEWLINE],
        [A, A_NEWLINE, SEVEN, NEWLINE, A, EOS],
    ]


def test_blank_lines_are_no_steps_and_a_line_cut_off_is_unfinished() -> None:
    reward = Recorder()
    slots = Slots(reward, 1)
    slots.begin({0: Sum()})
    rewards = slots.step({0: [NEWLINE, TWO_NEWLINES, SPACE, NEWLINE, A, TWO_NEWLINES, NEWLINE, B_C]}, {0: CUT})
    assert [(s.previous, s.text, s.verdict) for s in reward.batches[0]] == [((), "a", None), (("a",), "", CUT)]
    np.testing.assert_array_equal(rewards, [[0, 0, 0, 0, 0, 2, 0, 1 + 10 + 1000 + 0.5]])


def test_steps_of_a_reset_prefix_come_before_and_its_unfinished_line_is_continued() -> None:
    reward = Recorder()
    slots = Slots(reward, 2)
    slots.begin({1: Sum()}, {1: [A, NEWLINE, NEWLINE, SEVEN, NEWLINE, B_C]})
    assert not reward.batches
    slots.step({1: [A_NEWLINE]})
    assert [(s.previous, s.text) for s in reward.batches[0]] == [(("a", "7"), "b ca")]
    slots.begin({1: Sum()})
    slots.step({1: [EOS]}, {1: WRONG})
    assert [(s.previous, s.text) for s in reward.batches[1]] == [((), "")]


def test_text_after_a_newline_within_a_token_belongs_to_the_next_step() -> None:
    reward = Recorder()
    slots = Slots(reward, 1)
    slots.begin({0: Sum()})
    slots.step({0: [A, NEWLINE_WITHIN, NEWLINE_WITHIN, SEVEN, EOS]}, {0: CORRECT})
    assert [s.text for s in reward.batches[0]] == ["ab", "ab", "a7"]


def expected_rewards(tokens: list[int], prefix_length: int, verdict: Verdict) -> list[float]:
    """The payments of `Recorder` for one attempt, read off its text token by token."""
    rewards, steps, line = [0.0] * len(tokens), [], ""
    for position, token in enumerate(tokens):
        line += TEXTS[token] if token != EOS else ""
        text, last = "", position == len(tokens) - 1
        if last and token == EOS:
            text = line.strip()
        elif "\n" in TEXTS[token]:
            *lines, line = line.split("\n")
            text = "\n".join(lines).strip()
        if position >= prefix_length and (text or last):
            rewards[position] = payment(tuple(steps), text, verdict if last else None)
        if text:
            steps.append(text)
    return rewards[prefix_length:]


WORDS = st.integers(1, len(TEXTS) - 1)
ATTEMPTS = st.tuples(
    st.lists(WORDS, max_size=5),  # a reset prefix
    st.lists(WORDS, max_size=12),
    st.one_of(st.tuples(st.just(EOS), st.sampled_from([CORRECT, WRONG])), st.tuples(WORDS, st.just(CUT))),
)


@given(st.lists(ATTEMPTS, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_rewards_do_not_depend_on_how_many_tokens_are_taken_at_a_time(
    attempts: list[tuple[list[int], list[int], tuple[int, Verdict]]], seed: int
) -> None:
    rng = random.Random(seed)
    slots = Slots(Recorder(), len(attempts))
    slots.begin({i: Sum() for i in range(len(attempts))}, {i: prefix for i, (prefix, _, _) in enumerate(attempts)})
    paid: list[list[float]] = [[] for _ in attempts]
    left = [[*tokens, last] for _, tokens, (last, _) in attempts]
    while any(left):
        counts = [min(len(tokens), rng.choice([0, 1, 1, 2, 5])) for tokens in left]
        appended = {i: left[i][:n] for i, n in enumerate(counts) if n}
        left = [tokens[n:] for tokens, n in zip(left, counts, strict=True)]
        rewards = slots.step(appended, {i: attempts[i][2][1] for i in appended if not left[i]})
        assert rewards.shape == (len(attempts), max(1, *counts))
        for i, n in enumerate(counts):
            paid[i] += rewards[i, :n].tolist()
            assert not rewards[i, n:].any()
    for (prefix, tokens, (last, verdict)), rewards in zip(attempts, paid, strict=True):
        assert rewards == expected_rewards([*prefix, *tokens, last], len(prefix), verdict)


@given(st.lists(ATTEMPTS, max_size=4))
def test_step_ends_are_where_a_step_reward_is_paid_for_a_step_with_text(
    attempts: list[tuple[list[int], list[int], tuple[int, Verdict]]],
) -> None:
    completions = [np.array([*tokens, last]) for _, tokens, (last, _) in attempts]
    ends = step_ends(completions, [last == EOS for _, _, (last, _) in attempts], TOKENIZER)
    for completion, found, (_, _, (_, verdict)) in zip(completions, ends, attempts, strict=True):
        reward = Recorder()
        slots = Slots(reward, 1)
        slots.begin({0: Sum()})
        slots.step({0: completion.tolist()}, {0: verdict})
        assert found.tolist() == [len(step.tokens) - 1 for batch in reward.batches for step in batch if step.text]


def test_newline_tokens() -> None:
    assert newline_tokens(TOKENIZER).tolist() == ["\n" in text for text in TEXTS]


def test_newline_tokens_are_looked_for_again_only_where_tokens_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer()
    found = newline_tokens(tokenizer)
    tokenizer.add_tokens(["c\n"])
    assert newline_tokens(tokenizer).tolist() == [*found.tolist(), True]
    monkeypatch.setattr(tokenizer, "batch_decode", None)
    assert newline_tokens(tokenizer) is newline_tokens(tokenizer)
    with pytest.raises(ValueError, match="read-only"):  # all who ask share it
        newline_tokens(tokenizer)[0] = True


@pytest.mark.parametrize(
    "returned", [[1.0, 2.0], 1.0, [float("nan")], [float("inf")], torch.ones(1, requires_grad=True)]
)
def test_a_step_reward_that_returns_no_finite_number_per_step_is_an_error(returned: ArrayLike) -> None:
    class Broken(StepReward):
        def step_rewards(self, steps: Sequence[Step]) -> ArrayLike:
            return returned

    slots = Slots(Broken(), 1)
    slots.begin({0: Sum()})
    with pytest.raises(ValueError, match=r"Broken returned .* expected finite numbers of shape \(1,\)"):
        slots.step({0: [A, NEWLINE]})


def test_an_attempt_reward_that_is_not_finite_is_an_error() -> None:
    class Broken(AttemptReward):
        def attempt_reward(self, attempt: FinishedAttempt) -> float:
            return float("nan")

    slots = Slots(Broken(), 1)
    slots.begin({0: Sum()})
    with pytest.raises(ValueError, match="Broken returned nan"):
        slots.step({0: [EOS]}, {0: CORRECT})


@pytest.mark.parametrize("make", [SparseReward, Recorder])
def test_an_attempt_that_ends_needs_a_verdict(make: Callable[[], Reward]) -> None:
    slots = Slots(make(), 2)
    slots.begin({0: Sum(), 1: Sum()})
    slots.tokens[1] = [EOS]
    with pytest.raises(ValueError, match="slot 1 ended without a verdict"):
        slots.reward.score(np.array([0, 1]), np.array([RUNNING, TERMINATED]), [None, None])


def test_a_reward_belongs_to_one_environment() -> None:
    reward = SparseReward()
    with pytest.raises(RuntimeError, match="SparseReward belongs to no environment"):
        _ = reward.view
    slots = Slots(reward, 1)
    assert reward.view is slots
    with pytest.raises(ValueError, match="already belongs to an environment"):
        Slots(reward, 1)


def test_make_reward() -> None:
    reward = SparseReward()
    assert make_reward(reward) is reward
    assert type(make_reward("sparse")) is SparseReward
    assert type(make_reward({"name": "sparse"})) is SparseReward
    assert make_reward("sparse") is not make_reward("sparse")
    assert REWARDS.names().count("sparse") == 1


def test_make_reward_passes_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(SparseReward):
        def __init__(self, scale: float) -> None:
            self.scale = scale

    monkeypatch.setitem(REWARDS._registered, "scaled", Scaled)
    made = make_reward({"name": "scaled", "scale": 2.0})
    assert isinstance(made, Scaled)
    assert made.scale == 2.0
    with pytest.raises(ValueError, match="reward 'scaled' has no argument 'scael': did you mean 'scale'"):
        make_reward({"name": "scaled", "scale": 1.0, "scael": 2})
    with pytest.raises(ValueError, match=r"reward 'scaled' needs scale: give .*, .scale.: "):
        make_reward("scaled")
    with pytest.raises(ValueError, match="reward 'scaled': scale must be a number, got '2'"):
        make_reward({"name": "scaled", "scale": "2"})


def test_none_is_given_where_it_is_the_default_whatever_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(SparseReward):
        def __init__(self, scale: float = None, name: "str" = None) -> None:  # type: ignore[assignment]  # noqa: RUF013
            self.scale = scale

    monkeypatch.setitem(REWARDS._registered, "scaled", Scaled)
    made = make_reward({"name": "scaled", "scale": None})
    assert isinstance(made, Scaled)
    assert made.scale is None
    with pytest.raises(ValueError, match="reward 'scaled': scale must be a number or None, got '2'"):
        make_reward({"name": "scaled", "scale": "2"})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "dense", "weight": "0.5"}, "reward 'dense': weight must be a number, got '0.5'"),
        ({"name": "dense", "match": ["result"]}, "unknown match ['result']: known are equation, exact_text, result"),
        ({"name": "judged", "form": 1}, "unknown form 1: known are centered, shift"),
        ({"name": "judged", "weight": None}, "reward 'judged': weight must be a number, got None"),
        ({"name": "sparse", "weight": 2}, "reward 'sparse' has no argument 'weight': it takes none"),
        ({"name": "sum", "terms": 5}, "reward 'sum': terms must be a list, got 5"),
        ({"name": "product", "terms": None}, "reward 'product': terms must be a list, got None"),
        (
            {"name": "sum", "terms": [[1, "sparse"], [1, {"name": "dense", "weigt": 1}]]},
            "reward 'dense' has no argument 'weigt': did you mean 'weight'? known are match, shaping, weight",
        ),
    ],
)
def test_a_bad_argument_is_named_with_what_it_may_be(spec: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, UnknownNameError)) as error:
        make_reward(spec)
    assert str(error.value) == message


def test_make_reward_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="unknown reward 'sparce': did you mean 'sparse'"):
        make_reward("sparce")
    with pytest.raises(ValueError, match="SparseReward is a class of rewards, and no reward: register the class"):
        make_reward(SparseReward)  # pyright: ignore[reportArgumentType]
    for spec in ({}, {"name": 3}, None, 7):
        with pytest.raises(ValueError, match="a reward is a name, a mapping"):
            make_reward(spec)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(REWARDS._registered, "odd", lambda: 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"reward 'odd' makes a int, and no tokengym\.rewards\.base\.Reward"):
        make_reward("odd")


def test_rewards_that_agents_cannot_copy_say_how_to_register_them() -> None:
    class Scaled(SparseReward):
        def __init__(self, scale: float, shift: float = 0.0) -> None:
            self.scale, self.shift = scale, shift

    spec = r'REWARDS.register\("mine"\)\(Scaled\), and give reward=\{"name": "mine", "scale": ...\}'
    with pytest.raises(ValueError, match=r"Scaled is a class of rewards, and no reward: register the class, .*" + spec):
        make_reward(Scaled)  # type: ignore
    reward = Scaled(1.0)
    Slots(reward, 1)
    with pytest.raises(ValueError, match="already belongs to an environment.*" + spec):
        Slots(reward, 1)
