"""ORM and SORM: what they are trained on, what they come to estimate, what they report, how they go on, bad input."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from tokengym.__main__ import main
from tokengym.agents import ORM, SORM, ExpertIteration, PreferenceModel, evaluate, outcome_models, preference
from tokengym.agents.evaluation.outcome_report import OutcomeReport
from tokengym.agents.evaluation.tables import outcome_table
from tokengym.agents.outcome_models import bce
from tokengym.agents.rollouts import collect as rollouts
from tokengym.agents.rollouts.attempts import Attempt, AttemptFile
from tokengym.agents.rollouts.policy import CausalLMPolicy
from tokengym.agents.rollouts.pools import read_pool
from tokengym.agents.search import Search, SearchConfig
from tokengym.agents.training import learner
from tokengym.agents.training.fine_tuning import NothingToLearnError
from tokengym.agents.training.losses import pairwise_loss
from tokengym.agents.training.outcome_labels import (
    Labelled,
    balanced_lengths,
    balanced_problems,
    monotone,
    outcome_labels,
    spread,
)
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.files import LineFile
from tokengym.models import load, load_tokenizer
from tokengym.models.outcome import OutcomeModel
from tokengym.rewards import OutcomeReward, Verdict

LINES = load_tokenizer("chars:yz\n?")
EOS, (NEWLINE,) = LINES.eos_token_id, LINES.encode("\n", add_special_tokens=False)
BUDGET = 5


class Even(ProblemList):
    """Correct is a completion with an even number of the question's letter."""

    def __init__(self, split: str = "train", questions: str = "y z yz zy") -> None:
        super().__init__([Problem(f"{split}-{q}", q + "?", q[-1], q[-1]) for q in questions.split()], split)

    def grade(self, completion: str, problem: Problem) -> Verdict:
        correct = completion.count(problem.answer) % 2 == 0
        return Verdict(correct, "correct" if correct else "wrong", completion)


def slots(problems: ProblemList | None = None, num_envs: int = 16, budget: int = BUDGET) -> TokenVectorEnv:
    return TokenVectorEnv(
        problems or Even(), num_envs, tokenizer=LINES, autoreset_mode="Disabled", prompt="{question}",
        max_prompt_tokens=4, max_new_tokens=budget,
    )  # fmt: skip


@pytest.fixture(scope="session")
def policy_folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    make_model(vocab_size=len(LINES), eos_token_id=EOS, pad_token_id=EOS).save_pretrained(path)
    LINES.save_pretrained(path)
    return path


FAST = {"samples_per_problem": 12, "validation_problems": 2, "epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture
def make_agent(policy_folder):
    def make(cls: type[ORM] = ORM, env: TokenVectorEnv | None = None, **settings: Any) -> ORM:
        validation = settings.pop("validation_env", None) or slots(Even("validation", "yy zz y"))
        return cls(env or slots(), policy_folder, validation_env=validation, device="cpu", **(FAST | settings))

    return make


def weights(model: OutcomeModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def metrics_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def attempt(problem_id: str, text: str, is_success: bool, terminated: bool = True) -> Attempt:
    tokens = np.array([*LINES.encode(text, add_special_tokens=False), *[EOS] * terminated], np.int32)
    empty = np.zeros(len(tokens), np.float32)
    problem = Problem(problem_id, "y?", "y", "y")
    return Attempt(problem, 0, np.array([0, 3]), tokens, empty, empty, is_success, "", None, terminated)


# ------------------------------------------------------------------------------------------------------------- labels


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
def test_every_step_end_and_the_end_bear_the_outcome(text: str, terminated: bool, ends: list[int], is_success) -> None:
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
def test_each_problem_keeps_as_many_correct_as_incorrect_attempts(given_: list[tuple[str, bool]], seed: int) -> None:
    items = outcome_labels([attempt(name, "y", is_success) for name, is_success in given_], LINES)
    kept = balanced_problems(items, seed)
    counts = Counter(given_)
    least = {name: min(counts[name, True], counts[name, False]) for name in "abc"}
    found = Counter((item.attempt.problem.id, item.attempt.is_success) for item in kept)
    assert found == Counter({(name, side): n for name, n in least.items() for side in (True, False) if n})
    assert len({id(item) for item in kept}) == len(kept)
    assert {id(item) for item in kept} <= {id(item) for item in items}
    assert [id(item) for item in balanced_problems(items, seed)] == [id(item) for item in kept]


def test_which_attempts_are_kept_is_drawn_by_the_seed() -> None:
    items = outcome_labels([attempt("a", "y", i % 5 == 0) for i in range(40)], LINES)
    chosen = [{id(item) for item in balanced_problems(items, seed)} for seed in range(3)]
    assert len(set(map(frozenset, chosen))) == 3


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=20), st.integers(0, 5))
def test_each_number_of_steps_keeps_as_many_positive_as_negative_labels(rows: list[list[bool]], seed: int) -> None:
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


def test_a_stepwise_model_learns_what_continuations_reach_and_the_outcome_itself(make_agent, monkeypatch) -> None:
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

    monkeypatch.setattr(outcome_models, "label_prefixes", fake)
    agent = make_agent(SORM, rollouts_per_step=5, consistent=True, temperature=0.9)
    labels = [item.labels.tolist() for item in agent._label("train", agent.env, attempts, False)]
    assert labels == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0]]
    assert (told["samples"], told["temperature"], told["consistent"]) == (5, 0.9, True)
    assert told["seed"] != agent.seed


# ----------------------------------------------------------------------------------------------------------- training


def test_the_loss_is_the_cross_entropy_of_the_labels_alone(make_agent) -> None:
    agent = make_agent()
    model = agent.outcome_model
    items = outcome_labels([attempt("a", "yz\nz", True), attempt("b", "z", False), attempt("c", "\n\ny", True)], LINES)
    items[0].labels[0] = np.nan
    expected, before = [], weights(model)
    for item in items:
        with torch.no_grad():
            logits = model.model(torch.from_numpy(item.attempt.tokens)[None]).logits[0, :, 0].double()
        for end, label in zip(item.ends, item.labels, strict=True):
            if not np.isnan(label):
                p = torch.sigmoid(logits[len(item.attempt.prompt) + end])
                expected.append(-torch.log(p if label else 1 - p).item())
    examples = [learner.Example(item.attempt.prompt, item.attempt.completion) for item in items]
    config = learner.OptimizerConfig(learning_rate=0.0, micro_batch_tokens=9)
    training = outcome_models.OutcomeLearner(model, config, 1, agent.accelerator)
    assert training.update(examples, bce([spread(item) for item in items]), 0)["loss"] == pytest.approx(
        np.mean(expected), abs=1e-6
    )
    assert same(before, weights(model))


def value(model: torch.nn.Module, prompt: list[int], prefix: tuple[int, ...], letter: int) -> float:
    """The chance that a completion of at most four tokens that starts so succeeds, summed over all of them."""
    if prefix and prefix[-1] == EOS:
        return float(prefix.count(letter) % 2 == 0)
    if len(prefix) == 4:
        return 0.0  # cut off
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1, : len(LINES)]
    chances = logits.double().softmax(-1).tolist()
    return sum(p * value(model, prompt, (*prefix, token), letter) for token, p in enumerate(chances))


def test_an_orm_comes_to_the_value_of_the_policy(make_agent) -> None:
    """Judged at every newline, on a problem whose completions can all be enumerated."""
    agent = make_agent(
        env=slots(Even(questions="y"), 256, budget=4), samples_per_problem=1500, epochs=8, batch_size=128,
        learning_rate=1e-2, balance=False, temperature=1.0,
    ).learn()  # fmt: skip
    prompt = LINES.encode("y?", add_special_tokens=False)
    prefixes = [(first, NEWLINE) for first in (0, 1)]
    ends = [(*tokens, EOS) for n in range(3) for tokens in itertools.product((0, 1, NEWLINE), repeat=n)]
    expected = [value(agent.model, prompt, prefix, 0) for prefix in prefixes + ends]
    (scores,) = zip(*agent.outcome_model.score(
        [np.array([*prompt, *prefix]) for prefix in prefixes + ends],
        [np.array([len(prompt) + len(prefix) - 1]) for prefix in prefixes + ends],
    ), strict=True)  # fmt: skip
    assert 0.01 < min(expected[:2]) < 0.02 < 0.1 < max(expected[:2])
    assert np.abs(np.array(scores) - expected).max() < 0.12
    assert np.abs(np.array(scores) - expected).mean() < 0.04


def test_the_policy_stays_as_it_is_and_the_outcome_model_starts_from_it_or_another(
    make_agent, make_model, tmp_path
) -> None:
    agent = make_agent()
    before = {name: p.detach().clone() for name, p in agent.model.named_parameters()}
    trunk = dict(agent.outcome_model.model.base_model.named_parameters())
    assert all(torch.equal(trunk[name], p) for name, p in agent.model.base_model.named_parameters())
    start = weights(agent.outcome_model)
    agent.learn()
    assert all(torch.equal(before[name], p) for name, p in agent.model.named_parameters())
    assert not same(start, weights(agent.outcome_model))
    other = make_model("gpt2", vocab_size=len(LINES), eos_token_id=EOS, pad_token_id=EOS)
    other.save_pretrained(tmp_path)
    LINES.save_pretrained(tmp_path)
    assert make_agent(base=str(tmp_path)).outcome_model.model.config.model_type == "gpt2"
    agent.save(tmp_path / "orm")
    stepwise = make_agent(SORM, base=str(tmp_path / "orm")).outcome_model
    assert stepwise.kind == "sorm"
    assert same(weights(stepwise), weights(agent.outcome_model))


def test_balance_can_be_switched_off(make_agent) -> None:
    told = [{}, {}]
    for metrics, balance in zip(told, (True, False), strict=True):
        make_agent(balance=balance).learn(callback=lambda _, new, metrics=metrics: metrics.update(new))
    assert told[0]["train/attempts"] < told[1]["train/attempts"] == 48
    assert told[0]["labels/count"] == told[1]["labels/count"] == told[1]["train/labels"]


# -------------------------------------------------------------------------------------------------------- preferences


@pytest.mark.parametrize("center_coef", [0.0, 0.05])
@pytest.mark.parametrize("budget", [12, 10_000])
def test_a_preference_update_has_the_gradient_of_all_pairs(make_agent, budget: int, center_coef: float) -> None:
    """Also where the attempts at a problem lie in different micro-batches; every problem counts the same."""
    agent = make_agent(PreferenceModel, micro_batch_tokens=budget, max_grad_norm=1e9, center_coef=center_coef)
    model = agent.outcome_model.model
    texts = {"a": [("yz", True), ("y\nz", False), ("z", True), ("zz", False)], "b": [("y", False), ("\nz", True)]}
    items = outcome_labels([attempt(name, *one) for name, rows in texts.items() for one in rows], LINES)
    groups, left_out = preference.mixed_groups([*items, *outcome_labels([attempt("c", "y", True)], LINES)])
    assert ([group.pairs for group in groups], left_out) == ([4, 1], 1)

    rewards = {
        name: [
            (model(torch.from_numpy(item.attempt.tokens)[None]).logits[0, -1, 0], item.attempt.is_success)
            for item in items
            if item.attempt.problem.id == name
        ]
        for name in texts
    }
    losses, right = [], []
    for own in rewards.values():
        pairs = [(a, b) for a, x in own for b, y in own if x and not y]
        losses.append(sum(-torch.log(torch.sigmoid(a - b)) + center_coef * (a + b) ** 2 for a, b in pairs) / len(pairs))
        right.append(np.mean([a.item() > b.item() for a, b in pairs]))
    loss = sum(losses) / 2
    expected = torch.autograd.grad(loss, list(model.parameters()))

    training = outcome_models.OutcomeLearner(agent.outcome_model, agent.config, 10, agent.accelerator)
    found: list[torch.Tensor] = []
    training.optimizer.step = lambda: found.extend(weight.grad.clone() for weight in model.parameters())
    metrics = preference.update_on_groups(training, groups, center_coef, 0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(right))


def test_the_best_rewards_are_the_logits_of_success_plus_a_constant() -> None:
    """F4: where the same attempt is right or wrong at random, on all pairs of samples."""
    right, wrong = np.array([3, 1, 6, 2]), np.array([2, 5, 1, 4])  # of each of four texts
    rewards = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    rows = [torch.from_numpy(np.repeat(np.arange(4), counts)) for counts in (right, wrong)]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = pairwise_loss(rewards[rows[0]], rewards[rows[1]], 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    difference = rewards.detach().numpy() - np.log(right / wrong)
    np.testing.assert_allclose(difference, difference[0], atol=1e-5)


def test_a_preference_model_learns_resumes_reranks_and_pays(make_agent, tmp_path, monkeypatch) -> None:
    settings = {"samples_per_problem": 16, "batch_size": 1, "epochs": 8, "save_steps": 5, "learning_rate": 1e-2}
    questions = Even(questions="y z yy zz")
    whole = make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "whole", **settings).learn()
    lines = metrics_of(tmp_path / "whole")
    assert np.mean([line["train/accuracy"] for line in lines[-9:-1]]) > 0.9
    assert whole.reports["preference"].within_problem_auc > 0.8
    assert lines[-1]["labels/one_sided_problems"] == 0
    assert lines[-1]["train/pairs"] > lines[-1]["train/attempts"] == 4 * 16

    calls = itertools.count(1)
    update = preference.update_on_groups

    def dying(*args):
        if next(calls) == 9:
            raise Killed
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(preference, "update_on_groups", dying)
        with pytest.raises(Killed):
            make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "cut", **settings).learn()
    cut = make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(cut.outcome_model), weights(whole.outcome_model))
    assert metrics_of(tmp_path / "cut") == lines

    model = OutcomeModel.load(tmp_path / "whole" / "model", LINES, "cpu")
    assert model.kind == "preference"
    result = evaluate(whole, slots(), problems=4, n=8, temperature=1.0, reranker=model)
    assert result.metrics["rerank@8"].value >= result.metrics["pass@1"].value
    paid = TokenVectorEnv(
        Even(), 4, tokenizer=LINES, autoreset_mode="Disabled", prompt="{question}", max_prompt_tokens=4,
        max_new_tokens=BUDGET, reward=OutcomeReward(model, dense=False),
    )  # fmt: skip
    (sampled, *_) = rollouts.collect(whole.policy, paid, 1, seed=0)
    expected = model.score([sampled.tokens], [np.array([len(sampled.tokens) - 1])])[0][0] * sampled.terminated
    assert sampled.total_reward == pytest.approx(expected, abs=1e-5)

    # What needs a probability says so.
    words = "needs p\\(correct\\), and .*whole/model' is a preference model"
    with pytest.raises(ValueError, match=f'"resample" {words}'):
        Search(whole.policy, slots(), model, SearchConfig("resample", width=4))
    with pytest.raises(ValueError, match=f"orm_threshold {words}"):
        ExpertIteration(slots(), whole.model_name, orm=str(tmp_path / "whole" / "model"), device="cpu")


def test_problems_without_a_pair_are_left_out_and_counted(make_agent) -> None:
    class Half(Even):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            if problem.question in ("z?", "zy?"):
                return Verdict(False, "wrong", completion)
            return super().grade(completion, problem)

    told: dict[str, float] = {}
    make_agent(PreferenceModel, env=slots(Half())).learn(callback=lambda _, metrics: told.update(metrics))
    assert (told["labels/one_sided_problems"], told["train/problems"], told["train/attempts"]) == (2, 2, 24)
    with pytest.raises(NothingToLearnError, match="none of 4 problems has both a right and a wrong attempt"):
        make_agent(PreferenceModel, temperature=1e-6).learn()
    with pytest.raises(ValueError, match="samples_per_problem must be at least 2, got 1"):
        make_agent(PreferenceModel, samples_per_problem=1)
    with pytest.raises(ValueError, match="center_coef must be at least 0"):
        make_agent(PreferenceModel, center_coef=-1.0)


# ------------------------------------------------------------------------------------------------- held-out problems


def test_the_report_is_on_held_out_problems_alone_and_counts_by_the_record(make_agent, tmp_path) -> None:
    agent = make_agent(run=tmp_path / "run").learn()
    train, held_out = (records(tmp_path / "run" / name / "attempts-0.jsonl") for name in ("train", "validation"))
    assert Counter(r["problem_id"] for r in train) == {f"train-{q}": 12 for q in ("y", "z", "yz", "zy")}
    assert Counter(r["problem_id"] for r in held_out) == {f"validation-{q}": 12 for q in ("yy", "zz")}
    report = agent.reports["orm"]
    assert report.attempts == 24 == sum(item.size for item in report.calibration)
    assert report.correct == np.mean([r["is_success"] for r in held_out])
    prompts = {"yy": [0, 0, 3], "zz": [1, 1, 3]}
    sequences = [np.array(prompts[r["problem_id"][-2:]] + r["completion"]) for r in held_out]
    with torch.no_grad():
        scores = [
            torch.sigmoid(agent.outcome_model.model(torch.from_numpy(s)[None]).logits[0, -1, 0]).item()
            for s in sequences
        ]
    good = [s for s, r in zip(scores, held_out, strict=True) if r["is_success"]]
    bad = [s for s, r in zip(scores, held_out, strict=True) if not r["is_success"]]
    wins = [(a > b) + 0.5 * (a == b) for a in good for b in bad]
    assert report.auc == pytest.approx(np.mean(wins), abs=2e-2)  # equal attempts may differ by rounding
    within = []
    for name in prompts:
        judged = [(s, r["is_success"]) for s, r in zip(scores, held_out, strict=True) if r["problem_id"][-2:] == name]
        pairs = [(a > b) + 0.5 * (a == b) for a, x in judged for b, y in judged if x and not y]
        within += [np.mean(pairs)] if pairs else []
    assert report.mixed_problems == len(within) > 0
    assert report.within_problem_auc == pytest.approx(np.mean(within), abs=2e-2)
    right = [(s > 0.5) == r["is_success"] for s, r in zip(scores, held_out, strict=True)]
    assert report.attempt_accuracy == pytest.approx(np.mean(right))
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == json.loads(json.dumps({"orm": asdict(report)}))
    last = metrics_of(tmp_path / "run")[-1]
    assert last["eval/auc"] == report.auc
    assert last["rollout/success_rate"] == np.mean([r["is_success"] for r in train])
    assert agent.num_attempts == 48
    loaded = OutcomeModel.load(tmp_path / "run" / "model", LINES, "cpu")
    assert loaded.kind == "orm"
    assert same(weights(loaded), weights(agent.outcome_model))


def test_a_report_without_the_auc_among_attempts_at_one_problem_is_read_still(make_agent, tmp_path) -> None:
    make_agent(run=tmp_path / "run").learn()
    saved = json.loads((tmp_path / "run" / "report.json").read_text())
    del saved["orm"]["within_problem_auc"], saved["orm"]["mixed_problems"]
    (tmp_path / "run" / "report.json").write_text(json.dumps(saved))
    report = make_agent(run=tmp_path / "run", resume=True).learn().reports["orm"]
    assert (np.isnan(report.within_problem_auc), report.mixed_problems) == (True, 0)
    assert report.auc == saved["orm"]["auc"]
    with (console := Console(width=200)).capture() as capture:
        console.print(outcome_table({"orm": report}))
    assert f"{report.auc:.3f}" in capture.get()


def test_a_stepwise_report_is_against_continuations_and_the_orm_is_beside_it(make_agent, tmp_path) -> None:
    make_agent(run=tmp_path / "orm").learn()
    compare = str(tmp_path / "orm" / "model")
    agent = make_agent(SORM, run=tmp_path / "sorm", compare=compare, rollouts_per_step=4).learn()
    assert list(agent.reports) == ["sorm", compare]
    ours, theirs = agent.reports.values()
    assert (ours.steps, ours.positive_steps, ours.correct) == (theirs.steps, theirs.positive_steps, theirs.correct)
    held_out = records(tmp_path / "sorm" / "validation" / "attempts-0.jsonl")
    counts = {
        (r["problem_id"], *r["prefix"]): r["successes"]
        for r in records(tmp_path / "sorm" / "validation" / "prefixes-0.jsonl")
    }
    labels = []
    for record in held_out:
        tokens, ends, line = record["completion"], [], 0
        for position, token in enumerate(tokens[:-1]):
            line += token in (0, 1, 3)
            if token == NEWLINE:
                ends += [position] * bool(line)
                line = 0
        reached = [counts[record["problem_id"], *tokens[: end + 1]] > 0 for end in ends] + [record["is_success"]]
        labels += [any(reached[i:]) for i in range(len(ends))]
    assert ours.steps == len(labels) > 5
    assert ours.positive_steps == pytest.approx(np.mean(labels))
    assert OutcomeModel.load(tmp_path / "sorm" / "model").kind == "sorm"
    last = metrics_of(tmp_path / "sorm")[-1]
    assert last["compare/eval/step_accuracy"] == theirs.step_accuracy
    console = Console(width=200)
    with console.capture() as capture:
        console.print(outcome_table(agent.reports))
    for report in (ours, theirs):
        assert f"{report.step_accuracy:.3f}" in capture.get()
    assert "0.9 to 1.0" in capture.get()


# -------------------------------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize("place", ["", "train/attempts-0.jsonl"])
def test_a_pool_gives_what_sampling_would_have(make_agent, tmp_path, place: str) -> None:
    first = make_agent(run=tmp_path / "run").learn()
    pool = tmp_path / "run" / place
    text = (tmp_path / "run" / "train" / "attempts-0.jsonl").read_text()
    (tmp_path / "run" / "train" / "attempts-0.jsonl").write_text(text + '{"problem_id": "tr')  # being written still
    second = make_agent(pool=str(pool))
    second.learn()
    assert same(weights(first.outcome_model), weights(second.outcome_model))
    assert second.num_attempts == 0
    assert (tmp_path / "run" / "train" / "attempts-0.jsonl").read_text() == text + '{"problem_id": "tr'


def test_of_a_pool_the_first_attempts_at_the_first_problems_are_taken(make_agent, tmp_path) -> None:
    make_agent(run=tmp_path / "run").learn()
    pool = read_pool(str(tmp_path / "run"), make_agent().env, 3, 5)
    assert {name: len(group) for name, group in pool.items()} == {"train-y": 5, "train-z": 5, "train-yz": 5}
    expected = [
        r["completion"]
        for r in records(tmp_path / "run" / "train" / "attempts-0.jsonl")
        if r["problem_id"] == "train-z"
    ]
    assert [a.completion.tolist() for a in pool["train-z"]] == expected[:5]


def test_a_pool_that_is_not_there_or_not_of_this_policy_is_an_error(make_agent, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no pool 'nowhere'"):
        make_agent(pool="nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no attempts-\*\.jsonl"):
        make_agent(pool=str(tmp_path / "empty"))
    (tmp_path / "attempts-0.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no attempts"):
        make_agent(pool=str(tmp_path / "attempts-0.jsonl")).learn()
    (tmp_path / "attempts-0.jsonl").write_text('{"question": "what else?"}\n')
    with pytest.raises(ValueError, match=r"attempts-0\.jsonl is no pool of this policy's attempts at these problems"):
        make_agent(pool=str(tmp_path)).learn()

    make_agent(run=tmp_path / "run").learn()
    pool = tmp_path / "run" / "train" / "attempts-0.jsonl"
    with pytest.raises(ValueError, match=r"no pool of this policy's attempts.*train-y"):
        make_agent(env=slots(Even("test")), pool=str(pool)).learn()
    lines = records(pool)
    for change in (1, 100):  # letters that mean others to the writer's tokenizer; and such as there are not here
        foreign = [line | {"completion": [0 + change, *line["completion"][1:]], "is_success": True} for line in lines]
        (tmp_path / "foreign.jsonl").write_text("".join(json.dumps(line) + "\n" for line in foreign))
        with pytest.raises(ValueError, match="reads otherwise by the policy's tokenizer"):
            make_agent(pool=str(tmp_path / "foreign.jsonl")).learn()


# ---------------------------------------------------------------------------------------------------------- two ranks

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
def test_two_ranks_label_learn_and_filter_as_one_does(policy_folder, tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO_RANKS))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for ranks in (1, 2):
        command = [sys.executable, *(launch if ranks == 2 else []), script, policy_folder, tmp_path / f"run-{ranks}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, re.sub(r"(?s).*(Traceback)", r"\1", done.stderr)
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


# ------------------------------------------------------------------------------------------------------- interruptions


class Killed(BaseException):
    """As abrupt as Ctrl-C."""


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
def whole(policy_folder, tmp_path_factory) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], Path]:
    """The metrics and the weights of a run that nothing interrupts."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    agent = SORM(
        slots(), policy_folder, validation_env=slots(Even("validation", "yy zz y")), device="cpu", run=run,
        save_steps=3, rollouts_per_step=3, **FAST,
    ).learn()  # fmt: skip
    return metrics_of(run), weights(agent.outcome_model), run


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed_equals_never_killed(make_agent, whole, tmp_path, monkeypatch, point: str) -> None:
    run, settings = tmp_path / "run", {"save_steps": 3, "rollouts_per_step": 3}
    owner, name, call = POINTS[point]
    with monkeypatch.context() as patch:
        real, calls = getattr(owner, name), itertools.count(1)

        def dying(*args, **options):
            if not (owner is LineFile and isinstance(args[0], AttemptFile)) and next(calls) >= call:  # labels alone
                raise Killed
            return real(*args, **options)

        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            make_agent(SORM, run=run, **settings).learn()
    agent = make_agent(SORM, run=run, resume=True, **settings).learn()
    assert metrics_of(run) == whole[0]
    assert same(weights(agent.outcome_model), whole[1])
    assert (run / "report.json").read_text() == (whole[2] / "report.json").read_text()


def test_a_finished_run_that_is_resumed_is_left_as_it_is(make_agent, whole, tmp_path, monkeypatch) -> None:
    shutil.copytree(whole[2], tmp_path / "run")
    monkeypatch.setattr(rollouts, "collect", None)
    agent = make_agent(SORM, run=tmp_path / "run", resume=True, save_steps=3, rollouts_per_step=3).learn()
    assert metrics_of(tmp_path / "run") == whole[0]
    assert same(weights(agent.outcome_model), whole[1])
    assert {name: report.auc for name, report in agent.reports.items()} == {"sorm": whole[0][-1]["eval/auc"]}


# ---------------------------------------------------------------------------------------------------------- bad input


class Endless(Even):
    size = None


def test_settings_by_their_names_of_the_version_before(make_agent, caplog) -> None:
    agent = make_agent(SORM, continuations=3)
    assert agent.config.rollouts_per_step == 3
    assert "SORMConfig.continuations is called rollouts_per_step now" in caplog.text
    with pytest.raises(TypeError, match="rollouts_per_step and continuations, its old name: leave out continuations"):
        make_agent(SORM, continuations=3, rollouts_per_step=3)
    with pytest.raises(TypeError, match="unknown setting of ORMConfig 'continuations'"):
        make_agent(continuations=3)


def test_settings_that_cannot_be(make_agent) -> None:
    for name, wrong in {"problems": 0, "samples_per_problem": 0, "temperature": 0, "validation_problems": 0}.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            make_agent(**{name: wrong})
    with pytest.raises(ValueError, match="rollouts_per_step must be at least 1"):
        make_agent(SORM, rollouts_per_step=0)
    with pytest.raises(ValueError, match="set these"):
        make_agent().learn(total_episodes=100)
    with pytest.raises(ValueError, match="leave out lora_rank"):
        make_agent(lora_rank=2)
    with pytest.raises(ValueError, match="set `problems`"):
        make_agent(env=slots(Endless())).learn()


def test_labels_that_are_all_equal_teach_nothing(make_agent) -> None:
    class Hopeless(Even):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            return Verdict(False, "wrong", None)

    for balance in (True, False):
        with pytest.raises(ValueError, match=r"nothing can be learned from \d+ labels, 0% of them positive"):
            make_agent(env=slots(Hopeless()), balance=balance).learn()


def test_models_that_do_not_fit_are_named_before_anything_is_written(
    make_agent, folder, policy_folder, tmp_path
) -> None:
    with pytest.raises(ValueError, match=r"the tokenizers of base=.* differ"):
        make_agent(base=str(folder), run=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="there is no outcome model 'nowhere'"):
        make_agent(SORM, compare="nowhere", run=tmp_path / "run")
    with pytest.raises(ValueError, match="is not an outcome model"):
        make_agent(SORM, compare=str(policy_folder), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_an_outcome_model_that_does_not_fit_in_one_line(
    folder, policy_folder, tmp_path, capsys
) -> None:
    model = CausalLMPolicy(*load(policy_folder, device="cpu"))
    OutcomeModel.from_causal_lm(model.model, model.tokenizer, "orm").save(tmp_path / "other")
    evaluate = ["eval", "--env-args", "prompt={question}", "style=equation", "--model", str(folder), "--device", "cpu"]
    for path, message in {
        tmp_path / "nowhere": "there is no outcome model",
        folder: "is not an outcome model",
        tmp_path / "other": "trained with another tokenizer",
    }.items():
        assert main([*evaluate, "--orm", str(path)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
