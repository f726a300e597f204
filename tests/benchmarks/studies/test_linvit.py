"""LINVIT: regularized values against the closed form on an enumerated token tree, and what a good prior saves."""

import itertools

import numpy as np
import pytest

from tokengym.agents.search_rules import log_tilted_weights
from tokengym.benchmarks.studies.linvit import (
    Experiment,
    Problem,
    Row,
    divergence,
    draw,
    episodes_needed,
    regularized_value,
    run,
    soft_policy,
    soft_values,
    table,
)

DEPTH, VOCABULARY = 4, 3


def token_tree() -> tuple[Problem, np.ndarray, dict[tuple[int, ...], int], np.ndarray]:
    """All completions of four tokens as states, paid 1 at a random third of the leaves, and a random language model."""
    rng = np.random.default_rng(0)
    prefixes = [p for n in range(DEPTH + 1) for p in itertools.product(range(VOCABULARY), repeat=n)]
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    transitions = np.zeros((len(prefixes), VOCABULARY, len(prefixes)))
    rewards, right = np.zeros((len(prefixes), VOCABULARY)), rng.random(VOCABULARY**DEPTH) < 1 / 3
    for prefix, i in number.items():
        for token in range(VOCABULARY):
            after = (*prefix, token)
            transitions[i, token, number.get(after, i)] = 1
            if len(after) == DEPTH:
                rewards[i, token] = right[number[after] - number[(0,) * DEPTH]]
    prior = rng.dirichlet(np.ones(VOCABULARY), len(prefixes))
    success = np.zeros(len(prefixes))  # of the prior, from each prefix
    for prefix in reversed(prefixes):
        i = number[prefix]
        if len(prefix) < DEPTH:
            after = [success[number[*prefix, token]] for token in range(VOCABULARY)]
            success[i] = prior[i] @ (rewards[i] if len(prefix) == DEPTH - 1 else after)
    return Problem(transitions, rewards, DEPTH), prior, number, success


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_values_of_tokens_are_the_closed_form(temperature: float) -> None:
    """F1: V = lambda log w, w = 1 + p (e^(1/lambda) - 1), and pi* = pi w(after) / w(before)."""
    problem, prior, number, success = token_tree()
    values, q = soft_values(problem, prior, temperature)
    policy = soft_policy(q, prior, temperature)
    weights = np.exp(log_tilted_weights(success, temperature))
    for prefix, i in number.items():
        if len(prefix) < DEPTH:
            assert values[len(prefix), i] == pytest.approx(temperature * np.log(weights[i]), abs=1e-12)
        if len(prefix) < DEPTH - 1:
            after = np.array([weights[number[*prefix, token]] for token in range(VOCABULARY)])
            np.testing.assert_allclose(policy[len(prefix), i], prior[i] * after / weights[i], atol=1e-12)
    assert regularized_value(problem, policy, prior, temperature) == pytest.approx(values[0, 0], abs=1e-12)
    reached = success[0] * np.exp(1 / temperature) / weights[0]
    assert divergence(problem, prior, temperature) == pytest.approx((reached - values[0, 0]) / temperature, abs=1e-10)
    other = soft_policy(q, prior, 2 * temperature)
    assert regularized_value(problem, other, prior, temperature) < values[0, 0]


def test_a_prior_near_the_optimum_saves_episodes() -> None:
    experiment = Experiment(states=4, actions=3, horizon=3, episodes=2000, tolerance=0.02)
    needed = {}
    for strength in (0.0, 8.0):
        counts = []
        for seed in range(4):
            problem, q = draw(experiment, seed)
            prior = soft_policy(q, np.full(q.shape, 1 / 3), 1 / strength if strength else np.inf)
            counts.append(episodes_needed(problem, prior, experiment, seed))
        needed[strength] = np.mean(counts)
    assert needed[8.0] < needed[0.0] < 2000


def test_rows_of_one_seed_have_no_interval_and_say_where_episodes_were_not_enough() -> None:
    grid = table([Row(0.0, [0.46], [31], False), Row(8.0, [0.05, 0.07], [20, 40], True)])
    cells = [list(column.cells) for column in grid.columns]
    assert [column[0] for column in cells] == ["0", "0.46", "31"]
    assert cells[2][1].startswith("more than 30 [")
    (row,) = run(Experiment((0.0,), (0,), states=3, actions=2, horizon=2, tolerance=1e-9, episodes=1))
    assert row.is_cut
