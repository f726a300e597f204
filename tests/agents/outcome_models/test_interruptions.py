"""Killed and resumed runs, and two processes."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import SORM, outcome_models
from tokengym.agents.evaluation.outcome_report import OutcomeReport
from tokengym.agents.rollouts import collect as rollouts
from tokengym.agents.rollouts.attempts import AttemptFile
from tokengym.agents.training import learner
from tokengym.files import LineFile

TWO_RANKS = """
    import sys
    import torch
    from safetensors.torch import save_file
    from tokengym.agents import SORM, ExpertIteration
    from tokengym.envs import Problem, ProblemList, TokenVectorEnv
    from tokengym.models import load_tokenizer
    from tokengym.rewards import OutcomeReward, Verdict

    torch.set_num_threads(1)

    class Even(ProblemList):
        def __init__(self, split):
            super().__init__([Problem(f"{split}-{q}", q + "?", q[-1], q[-1]) for q in ("y", "z", "yz", "zy", "yy")])

        def grade(self, completion, problem):
            return Verdict(completion.count(problem.answer) % 2 == 0, "", completion)

    slots = lambda split: TokenVectorEnv(
        Even(split), 8, tokenizer=load_tokenizer("chars:yz\\n?"), prompt="{question}", max_prompt_tokens=4,
        max_new_tokens=5, autoreset_mode="Disabled")
    policy, run = sys.argv[1:]
    settings = {"device": "cpu", "samples_per_problem": 9, "batch_size": 8, "micro_batch_tokens": 30,
                "learning_rate": 3e-3, "epochs": 2, "validation_problems": 5}
    told = []
    callback = lambda _, metrics: told.append([value for name, value in metrics.items() if name[:4] != "time"])
    judge = SORM(slots("train"), policy, validation_env=slots("held out"), run=run, rollouts_per_step=3, **settings)
    judge.learn(callback=callback)
    learner = ExpertIteration(slots("train"), policy, validation_env=slots("held out"), orm=run + "/model",
                              orm_threshold=0.4, rounds=1, demonstrations=0, **settings)
    learner.learn(callback=callback)
    if judge.accelerator.is_main_process:
        tensors = {name: p.detach().clone() for name, p in judge.outcome_model.model.named_parameters()}
        save_file(tensors | {f"told.{i}": torch.tensor(values) for i, values in enumerate(told)}, run + "/results")
    judge.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_ranks_label_learn_and_filter_as_one_does(policy_folder, run_script, tmp_path) -> None:
    for ranks in (1, 2):
        run_script(TWO_RANKS, policy_folder, tmp_path / f"run-{ranks}", processes=ranks)
    for name in ("train", "validation"):
        for kind in ("attempts", "prefixes"):
            one, two = (
                [(tmp_path / f"run-{ranks}" / name / f"{kind}-{rank}.jsonl").read_text() for rank in range(ranks)]
                for ranks in (1, 2)
            )
            assert all(two)
            assert "".join(two) == one[0]
    one, two = load_file(tmp_path / "run-1" / "results"), load_file(tmp_path / "run-2" / "results")
    for name, tensor in one.items():
        # Adam turns the rounding of a vanishing gradient into a step of its own.
        torch.testing.assert_close(two[name], tensor, atol=2e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


POINTS = {
    "sampling": (AttemptFile, "write", 20),
    "sampling held-out attempts": (AttemptFile, "write", 60),
    "labeling": (LineFile, "write", 5),
    "labeling held-out attempts": (LineFile, "write", 25),
    "training": (learner.Learner, "update", 4),
    "reporting": (OutcomeReport, "of", 1),
    "logging the report": (outcome_models, "write_json", 1),
}


@pytest.fixture(scope="module")
def whole(
    even, fast, metrics_of, slots, weights, policy_folder, tmp_path_factory
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], Path]:
    """The metrics and the weights of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    agent = SORM(
        slots(), policy_folder, validation_env=slots(even("validation", "yy zz y")), device="cpu", run=run,
        save_steps=3, rollouts_per_step=3, **fast,
    ).learn()  # fmt: skip
    return metrics_of(run), weights(agent.outcome_model), run


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_equals_never_killed(
    killed, metrics_of, same, weights, make_agent, whole, tmp_path, monkeypatch, point: str
) -> None:
    run, settings = tmp_path / "run", {"save_steps": 3, "rollouts_per_step": 3}
    owner, name, call = POINTS[point]
    with monkeypatch.context() as patch:
        real, calls = getattr(owner, name), itertools.count(1)

        def dying(*args, **options):
            if not (owner is LineFile and isinstance(args[0], AttemptFile)) and next(calls) >= call:  # labels alone
                raise killed
            return real(*args, **options)

        patch.setattr(owner, name, dying)
        with pytest.raises(killed):
            make_agent(SORM, run=run, **settings).learn()
    agent = make_agent(SORM, run=run, resume=True, **settings).learn()
    assert metrics_of(run) == whole[0]
    assert same(weights(agent.outcome_model), whole[1])
    assert (run / "report.json").read_text() == (whole[2] / "report.json").read_text()


def test_a_finished_run_that_is_resumed_is_left_as_it_is(
    metrics_of, same, weights, make_agent, whole, tmp_path, monkeypatch
) -> None:
    shutil.copytree(whole[2], tmp_path / "run")
    monkeypatch.setattr(rollouts, "collect", None)
    agent = make_agent(SORM, run=tmp_path / "run", resume=True, save_steps=3, rollouts_per_step=3).learn()
    assert metrics_of(tmp_path / "run") == whole[0]
    assert same(weights(agent.outcome_model), whole[1])
    assert {name: report.auc for name, report in agent.reports.items()} == {"sorm": whole[0][-1]["eval/auc"]}
