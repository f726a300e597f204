"""What outcome models are trained on, and the value that they come to."""

import itertools

import numpy as np
import pytest
import torch

from tokengym.agents import SORM, outcome_models
from tokengym.agents.outcome_models import bce
from tokengym.agents.training import learner
from tokengym.agents.training.outcome_labels import (
    outcome_labels,
    spread,
)
from tokengym.models import OutcomeModel, load_tokenizer

LINES = load_tokenizer("chars:yz\n?")
EOS, (NEWLINE,) = LINES.eos_token_id, LINES.encode("\n", add_special_tokens=False)


def test_the_loss_is_the_cross_entropy_of_the_labels_alone(attempt, same, weights, make_agent) -> None:
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


def test_an_orm_comes_to_the_value_of_the_policy(even, slots, make_agent) -> None:
    """Judged at every newline, on a problem whose completions can all be enumerated."""
    agent = make_agent(
        env=slots(even(questions="y"), 256, budget=4), samples_per_problem=1500, epochs=8, batch_size=128,
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
    same, weights, make_agent, make_model, tmp_path
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


def test_a_base_in_half_precision_is_trained_in_that_of_the_agent(make_agent, tmp_path) -> None:
    half = make_agent().outcome_model
    half.model.to(torch.bfloat16)
    half.save(tmp_path)
    assert OutcomeModel.load(tmp_path).model.dtype == torch.bfloat16
    assert make_agent(base=str(tmp_path)).outcome_model.model.dtype == torch.float32


def test_balance_can_be_switched_off(make_agent) -> None:
    told = [{}, {}]
    for metrics, balance in zip(told, (True, False), strict=True):
        make_agent(balance=balance).learn(callback=lambda _, new, metrics=metrics: metrics.update(new))
    assert told[0]["train/attempts"] < told[1]["train/attempts"] == 48
    assert told[0]["labels/count"] == told[1]["labels/count"] == told[1]["train/labels"]
