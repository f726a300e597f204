"""Killed and resumed runs, and Ctrl-C."""

import shutil

import pytest
import torch

from tokengym.agents import ExpertIteration
from tokengym.agents import rounds as in_rounds
from tokengym.agents.rollouts.attempts import AttemptFile
from tokengym.agents.rollouts.collect import collect
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.training import learner, rounds

# What dies, and in which call; for updates, in which round and how far into its training.
POINTS = {
    "sampling round 1": (AttemptFile, "write", 30),
    "sampling round 2": (AttemptFile, "write", 72 + 71),
    "training round 0": (learner.Learner, "update", (0, 0.5)),
    "training round 1": (learner.Learner, "update", (1, 0.5)),
    "training round 2": (learner.Learner, "update", (2, 0.8)),
    "training round 3": (learner.Learner, "update", (3, 0.99)),
    "validating round 0": (in_rounds, "validate", 1),
    "validating round 2": (in_rounds, "validate", 3),
    "keeping round 0": (rounds, "save_file", 1),
    "keeping round 1": (rounds, "save_file", 2),
    "keeping the best": (ExpertIteration, "save", 1),
}


@pytest.fixture(scope="module")
def whole(
    fast, letters, metrics_of, slots, weights, letters_folder, tmp_path_factory
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The metrics and the weights of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    agent = ExpertIteration(
        slots(letters()), letters_folder, validation_env=slots(letters(split="validation")), device="cpu", run=run,
        **fast,
    )  # fmt: skip
    agent.learn()
    assert [line["round"] for line in metrics_of(run)] == [0, 1, 2, 3]
    return metrics_of(run), weights(agent.model)


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_equals_never_killed(
    die_at, killed, metrics_of, same, saved, weights, make_agent, whole, tmp_path, monkeypatch, point: str
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        owner, name, call = POINTS[point]
        if isinstance(call, tuple):
            number, share = call
            updates = [2 * -(-int(line["train/examples"]) // 8) for line in whole[0]]  # two epochs, batches of 8
            call = sum(updates[:number]) + 1 + int(share * updates[number])
        die_at(patch, owner, name, call)
        with pytest.raises(killed):
            make_agent(run=run).learn()
    if (run / "model").exists():
        shutil.rmtree(run / "model")  # a process that is killed for good writes none
    if point.startswith("sampling"):
        record = run / f"round-{point[-1]}" / "attempts-0.jsonl"
        record.write_bytes(record.read_bytes()[:-7])
    agent = make_agent(run=run, resume=True).learn()
    assert metrics_of(run) == whole[0]
    assert same(weights(agent.model), whole[1])
    assert same(saved(run), whole[1])
    assert agent.num_attempts == 3 * 72


def test_killed_twice_and_a_finished_run_resumed_is_left_as_it_is(
    die_at, killed, metrics_of, same, weights, make_agent, whole, tmp_path, monkeypatch
) -> None:
    run = tmp_path / "run"
    for call in (40, 72):
        with monkeypatch.context() as patch:
            die_at(patch, AttemptFile, "write", call)
            with pytest.raises(killed):
                make_agent(run=run, resume="auto").learn()
    for _ in range(2):
        agent = make_agent(run=run, resume=True).learn()
        assert metrics_of(run) == whole[0]
        assert same(weights(agent.model), whole[1])


@pytest.mark.parametrize("where", ["sampling", "training", "callback"])
def test_ctrl_c_leaves_the_best_finished_rounds_policy(
    letters, same, saved, script, slots, weights, make_agent, trainings, monkeypatch, tmp_path, where: str
) -> None:
    script(monkeypatch, [0.3, 0.6, 0.9, 0.9])
    run, told = tmp_path / "run", []

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def callback(_, metrics):
        told.append(metrics["round"])
        if metrics["round"] == 1 and where == "sampling":
            monkeypatch.setattr(AttemptFile, "write", interrupt)
        if metrics["round"] == 1 and where == "training":
            monkeypatch.setattr(learner.Learner, "update", interrupt)
        if metrics["round"] == 2:
            raise KeyboardInterrupt

    agent = make_agent(run=run)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(callback=callback)
    assert told == ([0, 1, 2] if where == "callback" else [0, 1])
    assert same(trainings[1][2], weights(agent.model))
    assert same(saved(run), weights(agent.model))
    loaded = CausalLMPolicy(agent.model, agent.tokenizer)
    assert len(list(collect(loaded, slots(letters()), 5, seed=0))) == 5


def test_ctrl_c_before_any_round_leaves_the_model_as_it_was(
    die_at, killed, same, weights, make_agent, monkeypatch
) -> None:
    agent = make_agent()
    base = weights(agent.model)
    die_at(monkeypatch, learner.Learner, "update", 2)
    with pytest.raises(killed):
        agent.learn()
    assert same(weights(agent.model), base)


@pytest.mark.parametrize(
    ("point", "call", "folder"),
    [("sampling round 2", 143, True), ("validating round 2", 3, False)],
)
def test_a_call_of_learn_after_an_interrupted_one_ends_as_if_nothing_had_stopped_that(
    die_at, killed, same, weights, make_agent, whole, monkeypatch, tmp_path, point: str, call: int, folder: bool
) -> None:
    agent = make_agent(run=tmp_path / "run" if folder else None)
    with monkeypatch.context() as patch:
        die_at(patch, *POINTS[point][:2], call)
        with pytest.raises(killed):
            agent.learn()
    agent.learn()
    assert same(weights(agent), whole[1])
    assert agent.num_attempts == 3 * 72
