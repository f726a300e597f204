"""Labels in sequences, against sequences written by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.training.return_labels import Judged, balanced, labelled, labels_of, quantile_edges
from tokengym.envs import Problem
from tokengym.models import load_tokenizer
from tokengym.models.condition_tokens import Labels
from tokengym.rewards.steps import newline_tokens, step_ends

LINES = load_tokenizer("chars:ab.\n")
ENDS_STEP = newline_tokens(LINES)
FIRST = len(LINES)


def attempt(text: str, terminated: bool = True) -> Attempt:
    completion = np.array(LINES.encode(text, add_special_tokens=False) + [LINES.eos_token_id] * terminated, np.int32)
    nothing = np.zeros(len(completion), np.float32)
    problem = Problem("p", ".", "a")
    return Attempt(problem, 0, np.array([2]), completion, nothing, nothing, True, "correct", "a", terminated)


def written(example: Any) -> str:
    """A sequence as text: + and - for the labels, $ for the end."""
    signs = {FIRST: "-", FIRST + 1: "+", LINES.eos_token_id: "$"}
    return "".join(signs.get(token) or str(LINES.decode([token])) for token in example.completion.tolist())


@pytest.mark.parametrize(
    ("text", "terminated", "values", "expected"),
    [
        ("a", True, [1], "+a$"),
        ("a\nb\n", True, [0.5, 0], "+a\n-b\n-$"),  # the end after a newline belongs to the last step
        ("a\nb\na", True, [0.25, 0.5, 0], "-a\n+b\n-a$"),  # a tie is good
        ("a\nb\na", False, [1, 0], "+a\n-b\n"),  # the line that is cut off is no step
        ("\na\n\n\nb", True, [0, 1], "-\n-a\n+\n+\n+b$"),  # blank lines have the label of the step that follows
    ],
)
def test_labels_stand_before_the_steps(text: str, terminated: bool, values: list[float], expected: str) -> None:
    item = attempt(text, terminated)
    (ends,) = step_ends([item.completion], [item.terminated], LINES)
    labels = Labels(("[BAD]", "[GOOD]"), FIRST, "step", (0.5,))
    found, chosen = labelled(Judged(item, ends, np.array(values)), labels, ENDS_STEP)
    assert written(found) == expected
    assert found.prompt.tolist() == [2]
    assert chosen.tolist() == [int(value >= 0.5) for value in values]


def test_a_step_of_a_single_token_has_its_own_label() -> None:
    """As where a tokenizer has "3\\n" for one token: here "b" stands for such a line."""
    item, ends_step = attempt("bba"), ENDS_STEP.copy()
    ends_step[LINES.convert_tokens_to_ids("b")] = True
    labels = Labels(("[BAD]", "[GOOD]"), FIRST, "step", (0.5,))
    found, _ = labelled(Judged(item, np.array([0, 1, 3]), np.array([1.0, 0.0, 1.0])), labels, ends_step)
    assert written(found) == "+b-b+a$"


def test_one_label_before_the_whole_attempt() -> None:
    labels = Labels(("[RETURN 0]", "[RETURN 1]", "[RETURN 2]"), FIRST, "attempt", (0.0, 1.5))
    for value, label in ((-1.0, 0), (0.0, 1), (1.4, 1), (1.5, 2), (9.0, 2)):
        for item in (attempt("a\nb\n"), attempt("a\nb", terminated=False)):
            judged = Judged(item, np.array([len(item.completion) - 1]), np.array([value]))
            found, _ = labelled(judged, labels, ENDS_STEP)
            assert found.completion.tolist() == [FIRST + label, *item.completion.tolist()]


@given(st.integers(1, 12), st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_a_step_is_good_when_its_share_of_successes_reaches_the_threshold(samples: int, threshold: float) -> None:
    counts = np.arange(samples + 1)
    percent = round(100 * threshold)
    expected = (100 * counts >= percent * samples).astype(int)  # in whole numbers
    assert labels_of(counts / samples, (threshold,)).tolist() == expected.tolist()


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.sampled_from([None, 0.0, 0.3, 0.5, 0.8, 1.0]),
    st.integers(0, 9),
)
@example([True] * 20 + [False] * 3, 0.3, 0)  # 3 / 0.7 * 0.7 is below 3
def test_as_many_attempts_as_there_can_be_at_the_ratio(outcomes: list[bool], ratio: float | None, seed: int) -> None:
    is_success = np.array(outcomes)
    correct, wrong = int(is_success.sum()), int((~is_success).sum())
    if ratio is not None and ((ratio > 0 and not correct) or (ratio < 1 and not wrong)):
        with pytest.raises(ValueError, match=r"attempts is (in)?correct, but positive_ratio"):
            balanced(is_success, ratio, seed)
        return
    kept = balanced(is_success, ratio, seed)
    assert (np.diff(kept) > 0).all()
    assert kept.tolist() == balanced(is_success, ratio, seed).tolist()
    if ratio is None:
        assert len(kept) == len(outcomes)
        return
    assert abs(is_success[kept].sum() - ratio * len(kept)) <= 1
    # One kind is used up.
    assert is_success[kept].sum() == correct or (~is_success[kept]).sum() == wrong


def test_quantiles_divide_returns_and_equal_returns_share_a_bucket() -> None:
    returns = np.random.default_rng(0).permutation(np.arange(100.0))
    edges = quantile_edges(returns, 4)
    assert np.bincount(labels_of(returns, edges)).tolist() == [25, 25, 25, 25]
    assert quantile_edges(np.array([0.0, 0, 0, 0, 1]), 4) == (1.0,)
    assert quantile_edges(np.zeros(5), 4) == ()
