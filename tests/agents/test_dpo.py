"""DPO: closed forms, gradients by a plain loss, pairs, rounds that resume."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tokengym.agents import DPO
from tokengym.agents.configs.dpo import DPOConfig
from tokengym.agents.configs.optimizer import OptimizerConfig
from tokengym.agents.dpo import update_on_pairs
from tokengym.agents.training.fine_tuning import NothingToLearnError
from tokengym.agents.training.learner import Example
from tokengym.agents.training.losses import preference_loss
from tokengym.agents.training.pairs import make_pairs
from tokengym.envs import Problem
from tokengym.models import load_tokenizer

LETTERS = load_tokenizer("chars:ab?")


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("letters")
    ids = {"eos_token_id": LETTERS.eos_token_id, "pad_token_id": LETTERS.pad_token_id}
    make_model("llama", vocab_size=len(LETTERS), **ids).save_pretrained(path)
    LETTERS.save_pretrained(path)
    return path


FAST = {
    "rounds": 2, "samples_per_problem": 8, "pairs_per_problem": 6, "problems": 5, "batch_size": 8, "epochs": 2,
    "learning_rate": 3e-3, "validation_problems": 5, "save_steps": 2, "patience": 9,
}  # fmt: skip


@pytest.fixture
def make(folder, letters, slots):
    def make(**settings: Any) -> DPO:
        env, validation = slots(letters()), slots(letters("validation"))
        return DPO(env, folder, validation_env=validation, device="cpu", **(FAST | settings))

    return make


# --------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_with_flipped_labels_the_optimum_is_the_closed_form(beta: float, smoothing: float) -> None:
    """F2: over all right and wrong completions log(pi / pi_ref) differs by logit(1 - e) / beta."""
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    right = torch.tensor([True, False, True, False])
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        ratios = logits.log_softmax(0) - reference
        margins = (ratios[right][:, None] - ratios[~right][None]).ravel()
        loss = preference_loss(margins, beta, label_smoothing=smoothing).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    c = math.log((1 - smoothing) / smoothing) / beta
    p = reference.exp()[right].sum()
    expected = p * math.exp(c) / (1 - p + p * math.exp(c))
    assert logits.softmax(0)[right].sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_ipo_is_least_where_the_margin_is_half_of_one_over_beta() -> None:
    margins = torch.tensor([5.0, 4.0, 6.0])
    torch.testing.assert_close(preference_loss(margins, 0.1, "ipo"), torch.tensor([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("settings", [{}, {"loss": "ipo", "nll_coef": 0.0}, {"label_smoothing": 0.2, "nll_coef": 0.5}])
@pytest.mark.parametrize("budget", [10, 10_000])
def test_an_update_has_the_gradient_of_the_loss_of_whole_pairs(make, settings: dict, budget: int) -> None:
    """Also where a pair's completions lie in different micro-batches; IPO averages over tokens, as TRL's does."""
    agent = make(micro_batch_tokens=budget, max_grad_norm=1e9, **settings)
    config, learner = agent.config, agent_learner(agent)
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(0, 3, 3), rng.integers(0, 3, n)) for n in (2, 4, 1, 3)]
    examples[1::2] = [
        Example(one.prompt, two.completion) for one, two in zip(examples[0::2], examples[1::2], strict=True)
    ]
    reference = rng.normal(-3, 1, 4)

    sums = [logprobs(agent, example) for example in examples]
    ratios = [total - float(r) for (total, _), r in zip(sums, reference, strict=True)]
    if config.loss == "ipo":
        ratios = [ratio / len(example.completion) for ratio, example in zip(ratios, examples, strict=True)]
    margins = torch.stack([ratios[0] - ratios[1], ratios[2] - ratios[3]])
    loss = preference_loss(margins, config.beta, config.loss, config.label_smoothing).mean()
    loss = loss - config.nll_coef * sum(sums[i][0] / len(examples[i].completion) for i in (0, 2)) / 2
    expected = torch.autograd.grad(loss, list(agent.model.parameters()))

    found: list[torch.Tensor] = []
    step = learner.optimizer.step
    learner.optimizer.step = lambda: found.extend(weight.grad.clone() for weight in agent.model.parameters())
    metrics = update_on_pairs(learner, examples, reference, config, 0)
    learner.optimizer.step = step
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["margin"] == pytest.approx(config.beta * margins.mean().item(), rel=1e-4)
    assert metrics["chosen_reward"] - metrics["rejected_reward"] == pytest.approx(metrics["margin"], rel=1e-4)
    assert metrics["accuracy"] == (margins > 0).float().mean()


def agent_learner(agent: DPO):
    from tokengym.agents.training.learner import Learner

    return Learner(agent.model, agent.config, 10, agent.accelerator, len(agent.tokenizer))


def logprobs(agent: DPO, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(np.concatenate([example.prompt, example.completion]))[None]
    scores = agent.model(ids).logits[0, :-1, : len(LETTERS)].log_softmax(-1)
    values = scores.gather(-1, ids[0, 1:, None])[len(example.prompt) - 1 :, 0]
    return values.sum(), values


# -------------------------------------------------------------------------------------------------------------- pairs


def attempt(problem: str, text: str, success: bool, terminated: bool = True) -> Any:
    return SimpleNamespace(
        problem=SimpleNamespace(id=problem), is_success=success, terminated=terminated, text=text,
        prompt=np.array([1]), completion=np.array([ord(sign) for sign in text]),
    )  # fmt: skip


def test_pairs_are_distinct_finished_attempts_one_right_and_one_wrong() -> None:
    attempts = [
        attempt("p", "a", True), attempt("p", "a", True), attempt("p", "b", True), attempt("p", "x", False),
        attempt("p", "y", False, terminated=False), attempt("q", "c", True), attempt("r", "z", False),
        attempt("s", "d", True), attempt("s", "w", False),
    ]  # fmt: skip
    text = lambda example: "".join(map(chr, example.completion))  # noqa: E731
    pairs = make_pairs(attempts, lambda a: a.text, 10, 0)
    assert sorted((text(pair.chosen), text(pair.rejected)) for pair in pairs) == [("a", "x"), ("b", "x"), ("d", "w")]
    for seed in range(4):
        few = make_pairs(attempts, lambda a: a.text, 1, seed)
        assert [text(pair.rejected) for pair in few] == ["x", "w"]
    assert len({text(make_pairs(attempts, lambda a: a.text, 1, seed)[0].chosen) for seed in range(9)}) == 2


def test_attempts_without_a_pair_are_named(make) -> None:
    with pytest.raises(NothingToLearnError, match="make a pair: no problem has both a right and a wrong one"):
        make(temperature=1e-6).learn()


@pytest.mark.parametrize("kept", ["right", "wrong"])
def test_a_pool_without_pairs_is_named_before_anything_is_done(make, tmp_path, kept: str) -> None:
    make(rounds=1, run=tmp_path / "first").learn()
    lines = (tmp_path / "first" / "round-1" / "attempts-0.jsonl").read_text().splitlines()
    same = [line for line in lines if json.loads(line)["is_success"] == (kept == "right")]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(f"{line}\n" for line in same))
    agent = make(rounds=1, pool=str(pool), run=tmp_path / "second")
    with pytest.raises(NothingToLearnError, match=r"no problem has both .*: read more of the pool '.*pool\.jsonl' by "):
        agent.learn()
    assert not list((tmp_path / "second").glob("round-*"))


# ----------------------------------------------------------------------------------------------------------- learning


def test_it_learns_and_the_best_round_stays(make, tmp_path) -> None:
    told: list[dict[str, float]] = []
    agent = make(rounds=3, run=tmp_path / "run", samples_per_problem=16, pairs_per_problem=32, epochs=4)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    assert [metrics["round"] for metrics in told] == [0, 1, 2, 3]
    assert told[-1]["rollout/success_rate"] > told[1]["rollout/success_rate"] + 0.2
    assert max(metrics["eval/maj@1"] for metrics in told) == 1.0
    assert told[1]["train/chosen_reward"] > told[1]["train/rejected_reward"]
    assert agent.num_attempts == 3 * 5 * 16
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["agent"] == "dpo"
    assert DPO.load(tmp_path / "run" / "model", agent.env).name == "dpo"


def test_killed_and_resumed_equals_never_stopped_bit_for_bit(make, tmp_path, monkeypatch, weights) -> None:
    whole = make(run=tmp_path / "whole").learn()
    import tokengym.agents.dpo as module

    calls, update = [], module.update_on_pairs

    def killed(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "update_on_pairs", killed)
        with pytest.raises(KeyboardInterrupt):
            make(run=tmp_path / "cut").learn()

    class Stop(Exception):
        pass

    def stop(agent, metrics):
        if metrics["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        make(run=tmp_path / "cut", resume=True).learn(callback=stop)
    resumed = make(run=tmp_path / "cut", resume=True).learn()
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())
    assert resumed.num_attempts == whole.num_attempts


def test_a_run_whose_data_changed_is_not_resumed(make, tmp_path, monkeypatch, letters) -> None:
    make(run=tmp_path / "run").run.log(0, {"a": 1.0})
    monkeypatch.setattr(letters, "__getitem__", lambda self, index: Problem(f"train-{index}", "b?", "a"))
    with pytest.raises(ValueError, match="its data were others"):
        make(run=tmp_path / "run", resume=True)


def test_offline_from_the_attempts_of_an_earlier_run(make, tmp_path) -> None:
    make(run=tmp_path / "first", rounds=1).learn()
    agent = make(pool=str(tmp_path / "first"), rounds=1, run=tmp_path / "second").learn()
    assert agent.num_attempts == 0
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1], "no attempts are sampled, and still no round is written over"
    with pytest.raises(FileNotFoundError, match="there is no pool"):
        make(pool=str(tmp_path / "nothing"), rounds=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"nll_coef": -1.0}, "nll_coef must be at least 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, 'label_smoothing is for loss="sigmoid"'),
        ({"loss": "hinge"}, "loss must be one of sigmoid, ipo"),
        ({"pool": "x"}, "set rounds=1, not 4"),
        ({"samples_per_problem": 1}, "samples_per_problem must be at least 2"),
    ],
)
def test_bad_settings(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DPOConfig(**settings)
    assert issubclass(DPOConfig, OptimizerConfig)


def test_a_second_call_of_learn_runs_as_many_rounds_again(make, monkeypatch, weights) -> None:
    accuracies = iter([0.1, 0.2, 0.3] * 2)
    monkeypatch.setattr("tokengym.agents.rounds.validate", lambda *_: {"eval/maj@1": next(accuracies)})
    whole, halves = make(rounds=2).learn(), make(rounds=1).learn()
    first = weights(halves)
    halves.learn()
    assert all(torch.equal(weight, weights(halves)[name]) for name, weight in weights(whole).items())
    assert not all(torch.equal(weight, weights(halves)[name]) for name, weight in first.items())
    assert whole.num_attempts == halves.num_attempts
