"""Labels of outcome models: which steps bear them, and which attempts are kept."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.agents import SORM
from tokengym.agents.training.outcome_labels import (
    Labelled,
    balanced_lengths,
    balanced_problems,
    monotone,
    outcome_labels,
    spread,
)
from tokengym.models import load_tokenizer

LINES = load_tokenizer("chars:yz\n?")


@pytest.mark.parametrize(
    ("text", "terminated", "ends"),
    [
        ("yz\nz", True, [2, 4]),
        ("yz\nz\n", True, [2, 4, 5]),  # the end of the attempt is judged, even on a blank line
        ("\n\ny", True, [3]),
        ("", True, [0]),
        ("yz\nz", False, [2, 3]),  # and where its budget ran out
        ("yz\n", False, [2]),
    ],
)
@pytest.mark.parametrize("is_success", [True, False])
def test_every_step_end_and_the_end_bear_the_outcome(
    attempt, text: str, terminated: bool, ends: list[int], is_success
) -> None:
    (item,) = outcome_labels([attempt("p", text, is_success, terminated)], LINES)
    assert item.ends.tolist() == ends
    assert item.labels.tolist() == [is_success] * len(ends)
    target = spread(item)
    assert np.flatnonzero(~np.isnan(target)).tolist() == ends


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_monotone_by_definition(labels: list[bool]) -> None:
    expected = [any(labels[i:]) for i in range(len(labels))]
    assert monotone(np.array(labels, np.float32)).tolist() == expected


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30), st.integers(0, 5))
def test_each_problem_keeps_as_many_correct_as_incorrect_attempts(
    attempt, given_: list[tuple[str, bool]], seed: int
) -> None:
    items = outcome_labels([attempt(name, "y", is_success) for name, is_success in given_], LINES)
    kept = balanced_problems(items, seed)
    counts = Counter(given_)
    least = {name: min(counts[name, True], counts[name, False]) for name in "abc"}
    found = Counter((item.attempt.problem.id, item.attempt.is_success) for item in kept)
    assert found == Counter({(name, side): n for name, n in least.items() for side in (True, False) if n})
    assert len({id(item) for item in kept}) == len(kept)
    assert {id(item) for item in kept} <= {id(item) for item in items}
    assert [id(item) for item in balanced_problems(items, seed)] == [id(item) for item in kept]


def test_which_attempts_are_kept_is_drawn_by_the_seed(attempt) -> None:
    items = outcome_labels([attempt("a", "y", i % 5 == 0) for i in range(40)], LINES)
    chosen = [{id(item) for item in balanced_problems(items, seed)} for seed in range(3)]
    assert len(set(map(frozenset, chosen))) == 3


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=20), st.integers(0, 5))
def test_each_number_of_steps_keeps_as_many_positive_as_negative_labels(
    attempt, rows: list[list[bool]], seed: int
) -> None:
    items = [
        Labelled(attempt(str(i), "y" * len(row), True), np.arange(len(row)), np.array(row, np.float32))
        for i, row in enumerate(rows)
    ]
    kept = balanced_lengths(items, seed)
    for length in range(4):
        column = [row[length] for row in rows if len(row) > length]
        least = min(sum(column), len(column) - sum(column))
        left = [item.labels[length] for item in kept if len(item.labels) > length]
        assert (left.count(1), left.count(0)) == (least, least)
    for item in kept:
        row = rows[int(item.attempt.problem.id)]
        assert not np.isnan(item.labels).all()
        assert all(np.isnan(new) or new == old for new, old in zip(item.labels, row, strict=True))


def test_a_label_of_one_half_is_a_negative_one(attempt) -> None:
    items = [
        Labelled(attempt(str(i), "y", True), np.arange(1), np.array([label])) for i, label in enumerate((0.5, 0.6))
    ]
    assert [item.labels.tolist() for item in balanced_lengths(items, 0)] == [[np.float32(0.5)], [np.float32(0.6)]]
    items[1].labels[0] = 0.5
    assert balanced_lengths(items, 0) == []


def test_a_stepwise_model_learns_what_continuations_reach_and_the_outcome_itself(
    attempt, make_agent, monkeypatch
) -> None:
    attempts = [
        attempt("p", "y\nz\ny", True),  # the outcome makes all before it positive
        attempt("p", "y\nz\ny", False),
        attempt("p", "y\nz\n", False),  # two steps, and an end that is none
        attempt("p", "y\nzz", False, terminated=False),
    ]
    counts = [[0, 0, 8], [0, 3, 0], [2, 0], [1]]
    told: dict[str, Any] = {}

    def fake(policy, env, attempts, samples, **options):
        told.update(options, samples=samples, temperature=policy.sampling.temperature)
        return [np.array(count) for count in counts]

    monkeypatch.setattr("tokengym.agents.base.label_prefixes", fake)
    agent = make_agent(SORM, rollouts_per_step=5, consistent=True, temperature=0.9)
    labels = [item.labels.tolist() for item in agent._label("train", agent.env, attempts, False)]
    assert labels == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0]]
    assert (told["samples"], told["temperature"], told["consistent"]) == (5, 0.9, True)
    assert told["seed"] != agent.seed
