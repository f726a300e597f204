"""Killed and resumed runs, second calls of learn, damaged checkpoints and values that are not finite."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import GRPO
from tokengym.agents.on_policy import PolicyGradientAgent
from tokengym.agents.training.learner import Learner, NonFiniteError
from tokengym.envs.curriculum import make_curriculum
from tokengym.files import DamagedFileError

VALIDATED = {"validation_problems": 5, "validation_iterations": 2}


@pytest.fixture(scope="module")
def never_stopped(make, tmp_path_factory) -> Callable[[str], tuple[PolicyGradientAgent, Path]]:
    """An agent of a kind that nothing has stopped, and the folder of its run."""

    @functools.cache
    def never_stopped(kind: str) -> tuple[PolicyGradientAgent, Path]:
        run = tmp_path_factory.mktemp("whole") / "run"
        return make(kind, run=run, **VALIDATED).learn(), run

    return never_stopped


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_killed_and_resumed_equals_never_stopped_bit_for_bit(
    killed, metrics_of, same, weights, make, never_stopped, tmp_path, kind: str, killed_at: int
) -> None:
    whole, run = never_stopped(kind)
    told = []

    def kill(agent, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise killed

    with pytest.raises(killed):
        make(kind, run=tmp_path / "cut", **VALIDATED).learn(callback=kill)
    resumed = make(kind, run=tmp_path / "cut", resume=True, **VALIDATED).learn()
    assert same(weights(whole), weights(resumed))
    assert (whole.num_attempts, whole.num_tokens) == (resumed.num_attempts, resumed.num_tokens)
    assert metrics_of(run) == metrics_of(tmp_path / "cut")
    saved = load_file(tmp_path / "cut" / "model" / "model.safetensors")
    assert torch.equal(saved["transformer.wte.weight"], weights(whole)["transformer.wte.weight"])
    again = make(kind, run=tmp_path / "cut", resume=True, **VALIDATED).learn()  # nothing is left to do
    assert same(weights(whole), weights(again))


@pytest.mark.parametrize("kind", ["rloo", "grpo-all"])
def test_a_second_call_of_learn_continues_where_the_first_ended(
    killed, letters, metrics_of, same, slots, weights, make, tmp_path, kind: str
) -> None:
    """Two calls are one of twice the length, also in a folder, killed in the second, or saved and loaded in between."""
    whole = make(kind).learn()
    halves = make(kind, iterations=2).learn()
    first = weights(halves)
    halves.save(tmp_path / "saved", optimizer=True)
    halves.learn()
    assert same(weights(whole), weights(halves))
    assert not same(first, weights(halves))
    assert (whole.num_attempts, whole.num_tokens) == (halves.num_attempts, halves.num_tokens)
    loaded = type(halves).load(
        tmp_path / "saved", slots(letters()), validation_env=slots(letters("validation")), device="cpu"
    )
    assert same(first, weights(loaded))
    loaded.learn()
    assert same(weights(whole), weights(loaded))
    assert loaded.num_attempts == whole.num_attempts

    def kill(agent, metrics):
        if agent.num_attempts == whole.num_attempts * 3 // 4:
            raise killed

    with pytest.raises(killed):
        make(kind, iterations=2, run=tmp_path / "cut", save_iterations=1).learn().learn(callback=kill)
    resumed = make(kind, iterations=2, run=tmp_path / "cut", save_iterations=1, resume=True).learn()
    assert same(weights(whole), weights(resumed))
    steps = [line["step"] for line in metrics_of(tmp_path / "cut")]
    assert steps == sorted(set(steps))
    budgeted = make(kind, iterations=2)
    episodes = budgeted.config.problems_per_iteration * budgeted.config.samples_per_problem
    for _ in range(4):
        budgeted.learn(total_episodes=episodes)
    assert budgeted.num_attempts == 4 * episodes
    assert same(weights(whole), weights(budgeted))


def test_what_was_logged_before_the_first_checkpoint_is_logged_once(killed, metrics_of, make, tmp_path) -> None:
    """A policy that may stay the best is validated, and that is logged, before anything is sampled."""
    settings = {"keep_best": True, "iterations": 2, **VALIDATED}

    def kill(agent, metrics):
        raise killed

    with pytest.raises(killed):
        make("rloo", run=tmp_path / "cut", **settings).learn(callback=kill)
    make("rloo", run=tmp_path / "cut", resume=True, **settings).learn()
    make("rloo", run=tmp_path / "whole", **settings).learn()
    logged = metrics_of(tmp_path / "cut")
    assert [line["step"] for line in logged] == [0, 24, 48]
    assert logged == metrics_of(tmp_path / "whole")


def test_the_budget_of_a_second_call_holds_also_after_a_resume(killed, same, weights, make, tmp_path) -> None:
    settings = {"save_iterations": 1, "iterations": 8, "min_learning_rate_ratio": 0.1}  # the schedule begins anew
    whole = make("rloo", **settings)
    for _ in range(2):
        whole.learn(total_episodes=72)

    def kill(agent, metrics):
        if agent.num_attempts == 144:
            raise killed

    cut = make("rloo", run=tmp_path / "run", **settings).learn(total_episodes=72)
    with pytest.raises(killed):
        cut.learn(total_episodes=72, callback=kill)
    del cut
    resumed = make("rloo", run=tmp_path / "run", resume=True, **settings).learn(total_episodes=72)
    assert whole.num_attempts == resumed.num_attempts == 144
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("validation_problems", [0, 5])
def test_logits_that_are_not_finite_end_learning_with_the_update_named(
    make, tmp_path, validation_problems: int
) -> None:
    agent = make("rloo", run=tmp_path / "run", validation_problems=validation_problems, validation_iterations=1)
    improve = agent.improve

    def broken(learner, attempts, iteration):
        found = improve(learner, attempts, iteration)
        if iteration == 1:
            next(agent.model.parameters()).data.fill_(torch.nan)
        return found

    agent.improve = broken
    with pytest.raises(NonFiniteError) as error:
        agent.learn()
    where = "iteration 1, before update 3" if validation_problems else "iteration 2, before update 3"
    assert str(error.value).startswith(f"{where}: the logits of GPT2LMHeadModel")
    assert "are not finite in" in str(error.value)
    assert "the attempts are in" in str(error.value)


@pytest.mark.parametrize("name", ["learner.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_run_begins_again(
    same, weights, make, tmp_path, name, damage
) -> None:
    settings = {"iterations": 1, "run": tmp_path / "run"}
    whole = make("rloo", **settings).learn()
    (checkpoint,) = (tmp_path / "run" / "training").glob("step-*")
    (checkpoint.parent / "step-notes").mkdir()  # is no checkpoint
    file = checkpoint / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if damage == "missing":
        file.unlink()
    with pytest.raises(DamagedFileError, match=rf"checkpoint {checkpoint} cannot be read .*{name}.*Delete that folder"):
        make("rloo", resume=True, **settings).learn()
    shutil.rmtree(checkpoint)
    assert same(weights(whole), weights(make("rloo", resume=True, **settings).learn()))


def test_learn_begins_anew_if_asked_to(same, weights, make, tmp_path) -> None:
    agent = make(iterations=1)
    schedule: list[float] = []
    agent.learn().learn(reset=True, callback=lambda _, metrics: schedule.append(metrics["train/learning_rate"]))
    assert agent.num_attempts == 24
    first = make(iterations=1).learn()
    assert not same(weights(first), weights(agent))
    cooled = make(iterations=2, min_learning_rate_ratio=0.1)
    rates: list[float] = []
    for _ in range(2):
        cooled.learn(callback=lambda _, metrics: rates.append(metrics["train/learning_rate"]))
    assert rates[:2] == rates[2:]
    assert rates[1] < rates[0]
    kept = make(iterations=1, run=tmp_path / "run").learn()
    with pytest.raises(ValueError, match="holds what was learned: to begin anew, make an agent with another folder"):
        kept.learn(reset=True)
    with pytest.raises(ValueError, match="no state before learn"):
        make().save(tmp_path / "early", optimizer=True)
    with pytest.raises(ValueError, match="adapters are merged"):
        make(iterations=1, lora_rank=2).learn().save(tmp_path / "adapters", optimizer=True)


@pytest.mark.parametrize("folder", [None, "run"])
def test_what_was_interrupted_within_an_iteration_is_not_continued(same, weights, make, tmp_path, folder) -> None:
    settings: dict[str, Any] = {"iterations": 3, "save_iterations": 1, "run": folder and tmp_path / folder}
    agent = make(**settings)
    update = Learner.update

    def interrupted(learner: Learner, *args: Any) -> dict[str, float]:
        if learner.steps == 8:  # in the middle of the second iteration
            raise KeyboardInterrupt
        return update(learner, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            agent.learn()
    message = "was interrupted within an iteration, whose updates may be half made: "
    with pytest.raises(ValueError, match=message + ("make the agent again" if folder else "reset=True")):
        agent.learn()
    with pytest.raises(ValueError, match=message):
        agent.save(tmp_path / "state", optimizer=True)
    if folder is None:
        assert agent.learn(reset=True).num_attempts == make(**settings).learn().num_attempts
    else:
        del agent
        resumed = make(resume=True, **settings).learn()
        assert same(weights(make(iterations=3).learn()), weights(resumed))


def test_what_is_interrupted_between_iterations_is_continued(same, weights, make) -> None:
    def stop(agent: PolicyGradientAgent, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    agent = make(iterations=1)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(callback=stop)
    agent.learn()
    assert same(weights(make(iterations=2).learn()), weights(agent))


def test_a_run_is_not_resumed_with_other_validation_data(letters, slots, letters_folders, tmp_path) -> None:
    def make(validation: str, resume: bool) -> GRPO:
        return GRPO(
            slots(letters()), letters_folders["gpt2"], validation_env=slots(letters(validation)), device="cpu",
            run=tmp_path / "run", resume=resume,
        )  # fmt: skip

    cast(Any, make("validation", False).run).log(0, {"a": 1.0})
    make("validation", True)
    with pytest.raises(ValueError, match=r"\(its validation data were others\)"):
        make("test", True)


def test_learning_anew_is_that_of_a_new_agent_of_the_same_policy(letters, same, slots, weights, make, tmp_path) -> None:
    def load(name: str) -> PolicyGradientAgent:
        return GRPO.load(tmp_path / name, slots(letters()), device="cpu")

    make(iterations=1).learn().save(tmp_path / "state", optimizer=True)
    agent = load("state").learn()
    agent.save(tmp_path / "policy")
    new = load("policy").learn()
    agent.learn(reset=True)
    assert same(weights(new), weights(agent))
    assert new.num_attempts == agent.num_attempts


@pytest.mark.parametrize("name", ["backtracking", "prioritized_replay"])
@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_curriculum_learns_between_iterations_whatever_the_slots_and_goes_on(
    killed, letters, same, slots, weights, make, tmp_path, name, killed_at
) -> None:
    options = {"window": 24, "threshold": 0.1} if name == "backtracking" else {"capacity": 3}
    iterations: dict[str, list[list[tuple[str, bytes]]]] = {}

    def learn(run: str, num_envs: int, callback=None, **settings) -> PolicyGradientAgent:
        agent = make("grpo", run=tmp_path / run, **settings)
        agent.env = slots(letters(), num_envs)
        agent.env.curriculum = make_curriculum({"name": name, **options})
        improve, seen = agent.improve, iterations.setdefault(run, [])

        def spy(learner, attempts, iteration):
            seen.append([(attempt.problem.id, attempt.tokens.tobytes()) for attempt in attempts])
            return improve(learner, attempts, iteration)

        agent.improve = spy
        return agent.learn(callback=callback)

    whole = learn("whole", 16)
    other = learn("other", 5)
    assert iterations["whole"] == iterations["other"]
    assert same(weights(whole), weights(other))
    assert whole.env.curriculum.state_dict() == other.env.curriculum.state_dict() != make_curriculum(name).state_dict()

    told = []

    def kill(_, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise killed

    with pytest.raises(killed):
        learn("cut", 16, kill)
    resumed = learn("cut", 16, resume=True)
    assert same(weights(whole), weights(resumed))
    assert whole.env.curriculum.state_dict() == resumed.env.curriculum.state_dict()
    assert "curriculum/tau" in told[0] or "curriculum/remembered" in told[0]
