"""Preference models: the gradient of all pairs, and rewards up to a constant."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from tokengym.agents import ExpertIteration, PreferenceModel, evaluate, outcome_models, preference
from tokengym.agents.evaluation.classification import Bin
from tokengym.agents.evaluation.tables import outcome_table
from tokengym.agents.rollouts import collect as rollouts
from tokengym.agents.search import Search, SearchConfig
from tokengym.agents.training.fine_tuning import NothingToLearnError
from tokengym.agents.training.losses import pairwise_loss
from tokengym.agents.training.outcome_labels import (
    outcome_labels,
)
from tokengym.envs import Problem, TokenVectorEnv
from tokengym.models import load_tokenizer
from tokengym.models.outcome import OutcomeModel
from tokengym.rewards import OutcomeReward, Verdict

LINES = load_tokenizer("chars:yz\n?")
BUDGET = 5


@pytest.mark.parametrize("center_coef", [0.0, 0.05])
@pytest.mark.parametrize("budget", [12, 10_000])
def test_a_preference_update_has_the_gradient_of_all_pairs(
    attempt, make_agent, budget: int, center_coef: float
) -> None:
    """Also where the attempts at a problem lie in different micro-batches; every problem counts the same."""
    agent = make_agent(PreferenceModel, micro_batch_tokens=budget, max_grad_norm=1e9, center_coef=center_coef)
    model = agent.outcome_model.model
    texts = {"a": [("yz", True), ("y\nz", False), ("z", True), ("zz", False)], "b": [("y", False), ("\nz", True)]}
    items = outcome_labels([attempt(name, *one) for name, rows in texts.items() for one in rows], LINES)
    groups, left_out = preference.mixed_groups([*items, *outcome_labels([attempt("c", "y", True)], LINES)])
    assert ([len(group.pairs) for group in groups], left_out) == ([4, 1], 1)

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
        loss = pairwise_loss(*rewards[torch.cartesian_prod(*rows)].T, 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    difference = rewards.detach().numpy() - np.log(right / wrong)
    np.testing.assert_allclose(difference, difference[0], atol=1e-5)


def test_a_preference_model_learns_resumes_reranks_and_pays(
    even, killed, metrics_of, same, slots, weights, make_agent, tmp_path, monkeypatch
) -> None:
    settings = {"samples_per_problem": 16, "batch_size": 1, "epochs": 8, "save_steps": 5, "learning_rate": 1e-2}
    questions = even(questions="y z yy zz")
    whole = make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "whole", **settings).learn()
    lines = metrics_of(tmp_path / "whole")
    assert np.mean([line["train/accuracy"] for line in lines[-9:-1]]) > 0.9
    report = whole.reports["preference"]
    assert report.within_problem_auc > 0.8
    # Its scores are no probabilities, so nothing tells how well they are calibrated.
    assert (report.calibration, report.calibration_error) == ([], None)
    assert '"calibration_error": null' in (tmp_path / "whole" / "report.json").read_text()
    assert "eval/within_problem_auc" in lines[-1]
    assert "eval/calibration_error" not in lines[-1]
    assert lines[-1]["labels/one_sided_problems"] == 0
    assert lines[-1]["train/pairs"] > lines[-1]["train/attempts"] == 4 * 16

    calls = itertools.count(1)
    update = preference.update_on_groups

    def dying(*args):
        if next(calls) == 9:
            raise killed
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(preference, "update_on_groups", dying)
        with pytest.raises(killed):
            make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "cut", **settings).learn()
    cut = make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(cut.outcome_model), weights(whole.outcome_model))
    again = make_agent(PreferenceModel, env=slots(questions), run=tmp_path / "cut", resume=True, **settings).learn()
    orm = replace(report, calibration=[Bin(0.0, 1.0, 4, 0.5, 0.25)], calibration_error=0.25)
    for reports, shown in ((again.reports, False), ({**again.reports, "orm": orm}, True)):
        with (console := Console(width=200)).capture() as capture:
            console.print(outcome_table(reports))
        assert f"{report.within_problem_auc:.3f}" in capture.get()
        assert ("calibration" in capture.get(), "0.0 to 1.0" in capture.get()) == (shown, shown)
        assert "preference: mean score" not in capture.get()
    assert metrics_of(tmp_path / "cut") == lines

    model = OutcomeModel.load(tmp_path / "whole" / "model", LINES, "cpu")
    assert model.kind == "preference"
    result = evaluate(whole, slots(), problems=4, n=8, temperature=1.0, reranker=model)
    assert result.metrics["rerank@8"].value >= result.metrics["pass@1"].value
    paid = TokenVectorEnv(
        even(), 4, tokenizer=LINES, autoreset_mode="Disabled", prompt="{question}", max_prompt_tokens=4,
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


def test_problems_without_a_pair_are_left_out_and_counted(even, slots, make_agent, tmp_path) -> None:
    class Half(even):
        def grade(self, completion: str, problem: Problem) -> Verdict:
            if problem.question in ("z?", "zy?"):
                return Verdict(False, "wrong", completion)
            return super().grade(completion, problem)

    told: dict[str, float] = {}
    make_agent(PreferenceModel, env=slots(Half())).learn(callback=lambda _, metrics: told.update(metrics))
    assert (told["labels/one_sided_problems"], told["train/problems"], told["train/attempts"]) == (2, 2, 24)
    with pytest.raises(NothingToLearnError, match="none of 4 problems has both a right and a wrong attempt"):
        make_agent(PreferenceModel, temperature=1e-6).learn()
    make_agent(run=tmp_path / "run", env=slots(Half())).learn()
    lines = (tmp_path / "run" / "train" / "attempts-0.jsonl").read_text().splitlines()
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(f"{line}\n" for line in lines if not json.loads(line)["is_success"]))
    with pytest.raises(NothingToLearnError, match=r"there are no pairs .*: read more of the pool '.*pool\.jsonl' by "):
        make_agent(PreferenceModel, env=slots(Half()), pool=str(pool)).learn()
    with pytest.raises(ValueError, match="samples_per_problem must be at least 2, got 1"):
        make_agent(PreferenceModel, samples_per_problem=1)
    with pytest.raises(ValueError, match="center_coef must be at least 0"):
        make_agent(PreferenceModel, center_coef=-1.0)
