"""When learning stops, and what a second call continues from."""

from typing import Any

import pytest

from tokengym.agents import rounds as in_rounds


@pytest.mark.parametrize(
    ("accuracies", "patience", "rounds_run", "best"),
    [
        ([0.2, 0.5, 0.4, 0.9], 1, 2, 1),
        ([0.2, 0.5, 0.4, 0.5, 0.9], 2, 3, 1),  # as good as before is not better
        ([0.2, 0.5, 0.4, 0.6, 0.5], 2, 4, 3),
        ([0.7, 0.5], 1, 1, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 1, 4, 4),
    ],
)
def test_learning_stops_when_validation_does_not_improve_and_keeps_the_best_round(
    metrics_of,
    same,
    saved,
    script,
    weights,
    make_agent,
    trainings,
    monkeypatch,
    tmp_path,
    accuracies,
    patience,
    rounds_run,
    best,
) -> None:
    script(monkeypatch, accuracies)
    agent = make_agent(rounds=4, patience=patience, run=tmp_path / "run").learn()
    assert len(trainings) == rounds_run + 1
    assert same(trainings[best][2], weights(agent.model))
    assert same(saved(tmp_path / "run"), weights(agent.model))
    assert [line["eval/maj@1"] for line in metrics_of(tmp_path / "run")] == accuracies[: rounds_run + 1]
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [72 * i for i in range(rounds_run + 1)]


def test_the_budget_of_attempts_is_kept(make_agent, trainings) -> None:
    agent = make_agent().learn(total_episodes=2 * 72 + 71)
    assert agent.num_attempts == 144
    assert len(trainings) == 3
    with pytest.raises(ValueError, match=r"6 problems x 12 = 72 attempts.*total_episodes=71"):
        make_agent().learn(total_episodes=71)


def test_a_callback_may_end_learning_and_what_was_learnt_stays(
    same, script, weights, make_agent, trainings, monkeypatch
) -> None:
    script(monkeypatch, [0.1, 0.2])
    agent = make_agent().learn(callback=lambda _, metrics: metrics["round"] < 1)
    assert len(trainings) == 2
    assert same(trainings[1][2], weights(agent.model))


@pytest.mark.parametrize("restart", ["base", "previous"])
def test_a_second_call_of_learn_runs_as_many_rounds_again(
    metrics_of, same, saved, weights, make_agent, tmp_path, monkeypatch, restart: str
) -> None:
    """Where every round is the best so far, two calls are one of twice the length, also resumed in a folder."""

    def improving(*_: Any) -> dict[str, float]:
        steps.append(0.0)
        return {"eval/maj@1": len(steps) / 100}

    monkeypatch.setattr(in_rounds, "validate", improving)
    steps: list[float] = []
    whole = make_agent(rounds=2, restart=restart).learn()
    steps.clear()
    halves = make_agent(rounds=1, restart=restart).learn()
    first = weights(halves.model)
    halves.learn(24 * 6)
    assert same(weights(whole.model), weights(halves.model))
    assert not same(first, weights(halves.model))
    assert (whole.num_attempts, whole.num_tokens) == (halves.num_attempts, halves.num_tokens)
    with pytest.raises(ValueError, match="more than total_episodes=71"):
        halves.learn(71)

    steps.clear()
    cut = make_agent(rounds=1, restart=restart, run=tmp_path / "cut").learn()
    monkeypatch.setattr(in_rounds, "validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cut.learn()
    monkeypatch.setattr(in_rounds, "validate", improving)
    resumed = make_agent(rounds=1, restart=restart, run=tmp_path / "cut", resume=True).learn()
    assert same(first, weights(resumed.model))
    resumed.learn()
    assert same(weights(whole.model), weights(resumed.model))
    assert resumed.num_attempts == whole.num_attempts
    assert same(saved(tmp_path / "cut"), weights(resumed.model))
    assert [line["round"] for line in metrics_of(tmp_path / "cut") if "round" in line] == [0, 1, 2]


def test_patience_of_a_second_call_begins_anew_and_the_best_round_stays(same, weights, make_agent, monkeypatch) -> None:
    accuracies = iter([0.1, 0.9, 0.2, 0.3, 0.4, 0.5])
    monkeypatch.setattr(in_rounds, "validate", lambda *_: {"eval/maj@1": next(accuracies)})
    logged: list[float] = []
    agent = make_agent(rounds=5, patience=2)
    agent.learn(callback=lambda _, metrics: logged.append(metrics["round"]))
    best = weights(agent.model)
    agent.learn(callback=lambda _, metrics: logged.append(metrics["round"]))
    assert logged == [0, 1, 2, 3, 4, 5]
    assert same(best, weights(agent.model))
