"""The linear theory: its training against a loop as the paper writes it, its closed forms against what is measured."""

import math

import numpy as np
import pytest

from tokengym.benchmarks.studies import linear_theory
from tokengym.benchmarks.studies.linear_theory import (
    CorrectSamples,
    demonstrations,
    measure,
    next_p,
    respond,
    run,
    stop_probability,
    table,
    train,
)


def slow_features(x: list[float], y: list[float], position: int) -> list[float]:
    before = [*x, *y[: position - 1]]
    return before if position == 1 else [*before, *(before[-1] * value for value in x)]


def slow_train(x, y, long, regularization: float) -> dict[str, np.ndarray]:
    """SGD, one sample and one decision at a time, with the average of the iterates after each step."""
    d = len(x[0])
    names = ["1", "stop", *map(str, range(2, d + 1))]
    w, sums, steps = {}, {}, dict.fromkeys(names, 0)
    for inputs, response, is_long in zip(x, y, long, strict=True):
        for name in names:
            if name not in ("1", "stop") and not is_long:
                continue
            position = 2 if name == "stop" else int(name)
            phi = np.array(slow_features(inputs, response, position) + ([1.0] if name == "stop" else []))
            label = (-1.0 if is_long else 1.0) if name == "stop" else response[position - 1]
            w.setdefault(name, np.zeros(len(phi)))
            steps[name] += 1
            gradient = -label / (1 + math.exp(label * (w[name] @ phi))) * phi + regularization * w[name]
            w[name] = w[name] - gradient / (regularization * steps[name])
            sums[name] = sums.get(name, 0) + w[name]
    return {name: sums[name] / steps[name] for name in sums}


@pytest.mark.parametrize("block", [7, 1000])
def test_vectorized_training_equals_the_loop(monkeypatch, block: int) -> None:
    monkeypatch.setattr(linear_theory, "_BLOCK", block)
    d, steps, regularization = 4, 60, 0.5
    data = demonstrations(np.array([0.3, 0.7]), steps, d, np.random.default_rng(0))
    given = iter(range(0, steps, block))

    def draw(count: int):
        start = next(given)
        part = slice(start, start + count)
        return linear_theory.Responses(data.x[:, part], data.y[:, part], data.long[:, part])

    weights = train(draw, steps, regularization)
    for model in range(2):
        expected = slow_train(data.x[model].tolist(), data.y[model].tolist(), data.long[model].tolist(), regularization)
        for row, name in enumerate(["1", "stop", "2", "3", "4"]):
            ours, theirs = weights[model, row], expected[name]
            if name == "stop":
                ours, theirs, bias = ours[:-1], theirs[:-1], (ours[-1], theirs[-1])
                assert bias[0] == pytest.approx(bias[1], abs=1e-10)
            np.testing.assert_allclose(ours[: len(theirs)], theirs, atol=1e-10)
            assert not ours[len(theirs) :].any()


def test_demonstrations_are_the_mixture_of_chains_and_parities() -> None:
    data = demonstrations(np.array([0.2]), 5000, 6, np.random.default_rng(1))
    assert data.correct.all()
    assert data.long.mean() == pytest.approx(0.2, abs=0.03)
    for x, y, long in zip(data.x[0], data.y[0], data.long[0], strict=True):
        assert y[0] == (x[0] if long else math.prod(x))


def test_closed_forms() -> None:
    assert [round(p, 3) for p in (next_p(0.25), next_p(next_p(0.25)), next_p(next_p(next_p(0.25))))] == [
        0.4, 0.571, 0.727
    ]  # fmt: skip
    assert stop_probability(1 / 3) == pytest.approx(0.5)


def test_models_that_know_the_theory_answer_by_it() -> None:
    """Weights with the closed form's logits: sampling, grading and STaR's filter then follow exactly known laws."""
    d, p = 5, 0.3
    weights = np.zeros((1, d + 1, 3 * d - 1))
    weights[0, 0, 0] = math.log((1 + p) / (1 - p))
    # The stop logit is a where y_1 x_1 = 1, and else so large that it always stops.
    a, b = math.log(stop_probability(p) / (1 - stop_probability(p))), 40.0
    weights[0, 1, d + 1] = (a - b) / 2  # y_1 x_1 comes right behind x and y_1
    weights[0, 1, -1] = (a + b) / 2
    for position in range(2, d + 1):
        weights[0, position, d + position - 1 + position - 1] = 40.0  # y_{l-1} x_l
    found = measure(weights, np.random.default_rng(0), 40_000)
    assert found["long"][0] == pytest.approx(p, abs=0.01)
    assert found["long_correct"][0] == pytest.approx(p, abs=0.01)
    assert found["short_correct"][0] == pytest.approx((1 - p) / 2, abs=0.01)
    assert found["stop"][0] == pytest.approx(stop_probability(p), abs=0.01)
    assert found["greedy_long"] == [0]
    kept = CorrectSamples(weights, np.random.default_rng(1))(40_000)
    assert kept.correct.all()
    assert kept.long.mean() == pytest.approx(next_p(p), abs=0.01)
    weights[0, 1, d + 1], weights[0, 1, -1] = (-0.1 - b) / 2, (-0.1 + b) / 2  # just over the threshold
    greedy = respond(weights, demonstrations(np.array([p]), 500, d, np.random.default_rng(2)).x)
    assert greedy.long.all()
    assert greedy.correct.all()


def test_measured_values_come_near_the_theory_also_in_small() -> None:
    results = run(d=5, rounds=1, seeds=2, sweep=(0.2, 0.5), steps=40_000, regularization=0.005)
    for stage in results["rounds"]:
        assert np.mean(stage["long"]) == pytest.approx(stage["predicted"], abs=0.05)
    assert [round(row["greedy_accuracy"], 1) for row in results["threshold"]] == [0.5, 1.0]
    for row in results["threshold"]:
        assert row["stop"] == pytest.approx(stop_probability(row["p"]), abs=0.05)
    assert table(results) is not None
    with pytest.raises(ValueError, match="d must be at least 3"):
        run(d=2)
