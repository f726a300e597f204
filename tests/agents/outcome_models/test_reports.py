"""Reports on held-out problems."""

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from rich.console import Console

from tokengym.agents import SORM
from tokengym.agents.evaluation.tables import outcome_table
from tokengym.models import load_tokenizer
from tokengym.models.outcome import OutcomeModel

LINES = load_tokenizer("chars:yz\n?")
EOS, (NEWLINE,) = LINES.eos_token_id, LINES.encode("\n", add_special_tokens=False)


def test_the_report_is_on_held_out_problems_alone_and_counts_by_the_record(
    metrics_of, records, same, weights, make_agent, tmp_path
) -> None:
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
    assert agent.num_attempts == last["rollout/attempts"] == 48
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


def test_a_stepwise_report_is_against_continuations_and_the_orm_is_beside_it(
    metrics_of, records, make_agent, tmp_path
) -> None:
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
