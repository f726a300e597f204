"""Process reward models: where labels of steps come from, what models of them estimate, and bad input."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokengym.agents import PRM, SORM, ExpertIteration
from tokengym.agents.evaluation.outcome_report import OutcomeReport
from tokengym.agents.evaluation.rerankers import score_attempts
from tokengym.agents.prm import read_labelled
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.agents.search import ExactJudge
from tokengym.agents.training.outcome_labels import balanced_lengths, exact_labels
from tokengym.envs import Problem, ProblemList, TokenVectorEnv, make_vec_env
from tokengym.envs.problems.tables import read_file
from tokengym.models import load_tokenizer
from tokengym.models.outcome import OutcomeModel
from tokengym.rewards import Verdict

LINES = load_tokenizer("chars:yz\n?")
EOS = LINES.eos_token_id


class AllYes(ProblemList):
    """Right is what has lines of `y` alone: after any other line the answer cannot be reached."""

    def __init__(self, split: str = "train") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", "y") for q in ("y", "z", "yz", "zy")], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = set(completion.split()) == {"y"}
        return Verdict(correct, "correct" if correct else "wrong", completion)

    def check_steps(self, steps, problem: Problem) -> list[bool]:
        return [step == "y" for step in steps]


def slots(problems: ProblemList | None = None, num_envs: int = 16) -> TokenVectorEnv:
    return TokenVectorEnv(
        problems or AllYes(), num_envs, tokenizer=LINES, autoreset_mode="Disabled", prompt="{question}",
        max_prompt_tokens=4, max_new_tokens=6,
    )  # fmt: skip


def attempt(text: str, terminated: bool = True, env: TokenVectorEnv | None = None) -> Attempt:
    env = env or slots()
    problem = env.problems[0]
    tokens = env.encoder.encode(text)
    tokens = np.append(tokens, env.encoder.eos_token_id) if terminated else tokens
    nothing = np.zeros(len(tokens), np.float32)
    correct = terminated and env.problems.grade(text, problem).correct
    prompt = env.encode_prompt(problem)
    return Attempt(problem, 0, prompt, tokens.astype(np.int32), nothing, nothing, correct, "", None, terminated)


@pytest.fixture(scope="module")
def policy_folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    make_model(vocab_size=len(LINES), eos_token_id=EOS, pad_token_id=EOS).save_pretrained(path)
    LINES.save_pretrained(path)
    return path


@pytest.fixture
def make_agent(policy_folder):
    def make(cls: type[SORM] = PRM, **settings: Any) -> SORM:
        small = {
            "samples_per_problem": 8,
            "validation_problems": 2,
            "epochs": 1,
            "batch_size": 8,
        }
        if settings.get("labels", "mean") in ("mean", "any"):
            small["rollouts_per_step"] = 4
        validation = slots(AllYes("validation"))
        return cls(slots(), policy_folder, validation_env=validation, device="cpu", **(small | settings))

    return make


# ------------------------------------------------------------------------------------------------------------- labels


NAN = None


@pytest.mark.parametrize(
    ("text", "terminated", "upto", "past"),
    [
        ("y\ny\ny", True, [1, 1, 1], [1, 1, 1]),
        ("y\nz\ny", True, [1, 0, NAN], [1, 0, 1]),
        ("z\ny\nz", True, [0, NAN, NAN], [0, 1, 0]),
        ("y\n\ny\n", True, [1, 1, NAN], [1, 1, NAN]),  # the end of the attempt is no step
        ("y\n\nz", True, [1, 0], [1, 0]),  # a blank line is no step, also before the last one
        ("y\nyy", False, [1, NAN], [1, NAN]),  # nor is a line that the budget cut off
    ],
)
def test_exact_labels_say_of_each_line_whether_it_is_right(text: str, terminated: bool, upto: list, past: list) -> None:
    for after_errors, expected in ((False, upto), (True, past)):
        (item,) = exact_labels([attempt(text, terminated)], slots(), after_errors)
        assert [None if np.isnan(label) else label for label in item.labels] == expected


def test_a_right_line_after_an_error_is_right_by_itself_and_hopeless_for_a_stepwise_outcome_model(make_agent) -> None:
    """The oracle that tells step correctness from value; continuations are really sampled."""
    broken = attempt("y\nz\ny")
    labels = lambda agent: agent._label("train", agent.env, [broken], False)[0].labels.tolist()  # noqa: E731
    assert labels(make_agent(labels="exact", after_errors=True)) == [1, 0, 1]
    stepwise = labels(make_agent(SORM, rollouts_per_step=64))
    assert stepwise == [1, 0, 0]
    assert labels(make_agent(labels="any", rollouts_per_step=64)) == stepwise
    share = labels(make_agent(labels="mean", rollouts_per_step=64))
    assert 0 < share[0] < 1
    assert share[0] * 64 == int(share[0] * 64)
    assert share[1:] == [0, 0]


def test_labels_of_continuations_are_the_raw_ones_of_a_stepwise_outcome_model(make_agent, monkeypatch) -> None:
    counts = [np.array([0, 3, 8]), np.array([2, 0])]
    monkeypatch.setattr("tokengym.agents.base.label_prefixes", lambda *_, **__: counts)
    attempts = [attempt("y\ny\ny"), attempt("y\nz\n")]

    def labels(agent) -> list[list[float]]:
        return [item.labels.tolist() for item in agent._label("train", agent.env, attempts, False)]

    assert labels(make_agent(labels="any", rollouts_per_step=8)) == [[0, 1, 1], [1, 0, 0]]
    assert labels(make_agent(labels="mean", rollouts_per_step=8)) == [[0, 0.375, 1], [0.25, 0, 0]]
    assert labels(make_agent(SORM, rollouts_per_step=8)) == [[1, 1, 1], [1, 0, 0]]


def test_shares_are_balanced_by_whether_most_continuations_succeed() -> None:
    items = exact_labels([attempt("y\ny") for _ in range(4)], slots(), False)
    for item, labels in zip(items, ([0.25, 0], [0.75, 1], [0.5, 1], [np.nan, 1]), strict=True):
        item.labels[:] = labels
    kept = np.array([item.labels for item in balanced_lengths(items, 0)])
    assert kept[~np.isnan(kept[:, 0]), 0].tolist() in ([0.25, 0.75], [0.75, 0.5])
    assert sorted(kept[~np.isnan(kept[:, 1]), 1]) == [0, 1]


# ----------------------------------------------------------------------------------------------- what problems can tell


def test_arithmetic_knows_its_own_lines() -> None:
    env = make_vec_env("tokengym/Arithmetic-v0", 1, tokenizer="tokengym/tiny", autoreset_mode="Disabled", steps=3)
    for index in range(30):
        problem = env.problems[index]
        lines = problem.solution.split("\n")
        assert env.problems.check_steps(lines, problem) == [True] * len(lines)
        wrong = [line.replace(">>", ">>9") for line in lines[:-1]]  # another result beside the annotation is no error
        assert env.problems.check_steps(wrong, problem) == [True] * len(wrong)
        wrong = [line.replace("=", "=1") for line in lines[:-1]] + ["#### 100000"]
        assert env.problems.check_steps(wrong, problem) == [False] * len(lines)
        other = env.problems[index + 1000]
        if not set(problem.solution.split("<<")) & set(other.solution.split("<<")):
            assert not any(env.problems.check_steps(other.solution.split("\n")[:-1], problem))
    problem = Problem("p", "?", "18", "Mia has 3*6 = <<3*6=18>>18.\nLeft: 18-2 = <<18-2=16>>16\n#### 18")
    steps = ["6 x 3 = 18", "2-18 = 16", "Let us see.", "6*3 = 18 and 3*6 = 17", "#### 18", "#### 17"]
    assert env.problems.check_steps(steps, problem) == [True, False, True, False, True, False]


@pytest.mark.parametrize("name", ["Parity", "Multiplication"])
def test_chains_are_right_as_far_as_they_go(name: str) -> None:
    env = make_vec_env(f"tokengym/{name}-v0", 1, autoreset_mode="Disabled", p_cot=1.0)
    problem = env.problems[3]
    whole = problem.solution
    flipped = whole[:10] + ("1" if whole[10] != "1" else "0") + whole[11:]
    for length in range(1, len(whole) + 1):
        assert env.problems.check_steps([whole[:length]], problem) == [True]
        assert env.problems.check_steps([flipped[:length]], problem) == [length <= 10]
    short = f"#### {problem.answer}" if name == "Multiplication" else problem.answer
    assert env.problems.check_steps([short, whole + "0"], problem) == [True, False]


def test_an_exact_judge_knows_right_beginnings() -> None:
    env = slots()
    texts = ["", "y\n", "y\nz\n", "y\nz\ny", "y\ny"]
    scores = ExactJudge(env)(
        [env.problems[0]] * len(texts), [env.encoder.encode(text) for text in texts], [np.array([0])] * len(texts)
    )
    assert scores.tolist() == [1, 1, 0, 0, 1]


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(("labels", "kind"), [("mean", "orm"), ("any", "sorm"), ("exact", "prm")])
def test_a_model_is_saved_as_what_it_estimates(make_agent, tmp_path, labels: str, kind: str) -> None:
    agent = make_agent(labels=labels, run=tmp_path / "run").learn()
    model = OutcomeModel.load(tmp_path / "run" / "model", LINES, "cpu")
    assert model.kind == kind
    assert list(agent.reports) == ["prm"]
    again = make_agent(labels=labels, run=tmp_path / "run", resume=True).learn()
    np.testing.assert_equal(asdict(again.reports["prm"]), asdict(agent.reports["prm"]))


def test_single_steps_can_be_learned_and_are_multiplied_over_an_attempt(make_agent, tmp_path) -> None:
    path = tmp_path / "steps.jsonl"
    solutions = [steps for length in (1, 2, 3) for steps in itertools.product("yz", repeat=length)]
    rows = [row(q, list(steps), [step == "y" for step in steps]) for q in ("y?", "z?", "yz?") for steps in solutions]
    path.write_text("".join(rows))
    settings = {"epochs": 40, "batch_size": 28, "learning_rate": 1e-2, "validation_problems": 1}
    agent = make_agent(labels="file", labels_file=str(path), **settings).learn()
    model = agent.outcome_model
    texts = ["y\ny\ny", "y\nz\ny", "z\ny\ny", "z\nz\nz"]
    attempts = [attempt(text) for text in texts]
    labelled = exact_labels(attempts, slots(), True)
    places = [len(item.attempt.prompt) + item.ends for item in labelled]
    found = model.score([one.tokens for one in attempts], places)
    for scores, item in zip(found, labelled, strict=True):
        assert ((scores > 0.5) == (item.labels == 1)).all()
    np.testing.assert_allclose(score_attempts(model, attempts), [np.prod(scores) for scores in found])
    np.testing.assert_allclose(score_attempts(model, attempts, "min"), [np.min(scores) for scores in found])
    report = OutcomeReport.of(model, labelled)
    assert (report.steps, report.positive_steps, report.step_accuracy) == (12, 7 / 12, 1.0)
    assert (report.auc, report.attempt_accuracy, report.correct) == (1.0, 1.0, 0.25)
    agent.save(tmp_path / "prm")
    with pytest.raises(ValueError, match=r"orm_threshold needs p\(correct\), and .* is a process reward model"):
        ExpertIteration(slots(), agent.model_name, orm=str(tmp_path / "prm"), device="cpu")


def row(prompt: str, completions: list[str], labels: list) -> str:
    return json.dumps({"prompt": prompt, "completions": completions, "labels": labels}) + "\n"


def test_labels_may_come_from_a_file(make_agent, tmp_path) -> None:
    path = tmp_path / "steps.jsonl"
    rows = [("y?", ["y", " y"], [True, 1]), ("y?", ["y", "z"], [True, False]), ("z?", ["zz", "y"], [0.25, None])]
    rows += [("yy?", ["y"], [1]), ("zz?", ["z"], [0]), ("y?", ["y"] * 4, [True] * 4)]
    path.write_text("".join(row(*one) for one in rows))
    items = read_labelled(read_file(path), slots())
    assert len(items) == 5  # the last is too long for the environment
    first, second, third = items[:3]
    assert LINES.decode(first.attempt.completion) == "y\ny" + LINES.eos_token
    assert first.attempt.prompt.tolist() == slots().encoder.encode("y?").tolist()
    assert (first.ends.tolist(), first.labels.tolist()) == ([1, 3], [1, 1])
    assert [item.attempt.is_success for item in items] == [True, False, False, True, False]
    assert third.ends.tolist() == [2, 4]
    assert (third.labels[0], np.isnan(third.labels[1])) == (0.25, True)
    assert second.attempt.problem.id == first.attempt.problem.id

    logged: dict[str, float] = {}
    agent = make_agent(labels="file", labels_file=str(path), validation_problems=2)
    agent.learn(callback=lambda _, metrics: logged.update(metrics))
    report = agent.reports["prm"]
    assert (report.attempts, report.correct, report.steps) == (2, 0.5, 2)
    assert (logged["labels/too_long"], logged["labels/count"], agent.num_attempts) == (1, 5, 0)
    with pytest.raises(ValueError, match=r"has solutions of 4 questions .* validation_problems=9 of them are held out"):
        make_agent(labels="file", labels_file=str(path), validation_problems=9).learn()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("y?", ["y"], [1, 0]), "line 2: 1 completions and 2 labels"),
        (("y?", [], []), "line 2: 0 completions"),
        (("y?", ["y", " "], [1, 0]), "line 2: `completions` must be a list of steps that are not blank"),
        (("y?", "y", [1]), "line 2: `completions` must be a list"),
        (("y?", ["y"], [-1]), "line 2: `labels` lie between 0 and 1.*PRM800K"),
        (("y?", ["y"], ["good"]), "line 2: `labels` must be a list of true, false"),
        (("y?", ["y"], 3), "line 2: `labels` must be a list of true, false"),
        (("", ["y"], [1]), "line 2: field 'prompt' is empty"),
    ],
)
def test_rows_that_are_no_labeled_solutions_are_named(tmp_path, fields: tuple, message: str) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(row("y?", ["y"], [1]) + row(*fields))
    with pytest.raises(ValueError, match=message):
        read_labelled(read_file(path), slots())


def test_settings_that_contradict_each_other_are_refused(make_agent, tmp_path) -> None:
    for settings, message in (
        ({"labels": "file"}, "needs labels_file"),
        ({"labels_file": "x.jsonl"}, "labels_file is for labels=\"file\", not 'mean'"),
        ({"labels": "file", "labels_file": "x.jsonl", "pool": "p"}, "leave out one"),
        ({"after_errors": True}, 'after_errors is True, but it counts only with labels="exact"'),
        ({"labels": "exact", "consistent": True}, "consistent is True, but it counts only with labels="),
        ({"labels": "best"}, "labels must be one of mean, any, exact, file"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(**settings)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none.jsonl"):
        make_agent(labels="file", labels_file=str(tmp_path / "none.jsonl"))

    class Unknown(AllYes):
        check_steps = ProblemList.check_steps

    agent = make_agent(labels="exact")
    agent.env.problems = Unknown()
    with pytest.raises(ValueError, match=r'labels="exact": .* cannot tell right steps from wrong ones.*or choose'):
        agent.learn()

    class Short(AllYes):
        def check_steps(self, steps, problem: Problem) -> list[bool]:
            return [True] * (len(steps) - 1)

    with pytest.raises(ValueError, match=r"checked 2 steps, and returned \(1,\) verdicts"):
        exact_labels([attempt("y\ny")], slots(Short()), False)
