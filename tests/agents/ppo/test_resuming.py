"""Killed and resumed runs, the best checkpoint, and second calls of learn."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tokengym.agents import on_policy
from tokengym.agents.ppo import PPO

SETTINGS = {
    name: {"validation_problems": 5, "validation_iterations": 1} | settings
    for name, settings in {
        "adaptive": {"adaptive_kl": 0.1, "kl_horizon": 50},
        "adapters": {"lora_rank": 2, "critic": "head", "keep_best": False},
        "partial": {"trained_layers": 1, "critic": "model", "best_of": 2},
    }.items()
}


@pytest.fixture(scope="module")
def never_stopped(make, tmp_path_factory) -> Callable[[str], tuple[PPO, Path]]:
    """An agent that nothing has stopped, by the name of its settings, and the folder of its run."""

    @functools.cache
    def never_stopped(name: str) -> tuple[PPO, Path]:
        run = tmp_path_factory.mktemp("whole") / "run"
        return make(run=run, **SETTINGS[name]).learn(), run

    return never_stopped


@pytest.mark.parametrize("killed_at", [1, 2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_and_resumed_equals_never_stopped_bit_for_bit(
    metrics_of, same, weights, make, never_stopped, tmp_path, name: str, killed_at: int
) -> None:
    settings = SETTINGS[name]
    whole, run = never_stopped(name)
    told = []

    def kill(agent, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(run=tmp_path / "cut", **settings).learn(callback=kill)
    resumed = make(run=tmp_path / "cut", resume=True, **settings).learn()
    assert same(weights(whole), weights(resumed))
    assert whole.kl_coef == resumed.kl_coef
    assert metrics_of(run) == metrics_of(tmp_path / "cut")
    (one,), (other,) = ((folder / "training").glob("step-*") for folder in (run, tmp_path / "cut"))
    assert one.name == other.name
    ours, theirs = load_file(one / "learner.safetensors"), load_file(other / "learner.safetensors")
    assert same(ours, theirs)
    assert any(name.startswith("exp_avg/critic.") for name in ours)
    again = make(run=tmp_path / "cut", resume=True, **settings).learn()  # nothing is left to do
    assert same({k: v for k, v in weights(whole).items() if "policy" in k}, weights(again))


def test_the_best_checkpoint_is_kept_and_patience_ends_learning(same, weights, make, tmp_path, monkeypatch) -> None:
    script = [0.1, 0.2, 0.6, 0.6, 0.4, 0.5, 0.9, 0.9, 0.9]  # the start first
    seen: list[dict[str, torch.Tensor]] = []

    def validate(policy, env, problems, ranks):
        seen.append({f"policy.{name}": weight.detach().clone() for name, weight in policy.model.named_parameters()})
        return {"eval/maj@1": script[len(seen) - 1]}

    monkeypatch.setattr("tokengym.agents.on_policy.validate", validate)
    settings = {"iterations": 8, "validation_problems": 5, "validation_iterations": 1, "patience": 3}
    agent = make(run=tmp_path / "run", **settings).learn()
    assert len(seen) == 6
    policy = seen[2]
    assert same(policy, weights(agent))
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert torch.equal(saved["transformer.wte.weight"], policy["policy.transformer.wte.weight"])
    again = make(run=tmp_path / "run", resume=True, **settings).learn()
    assert len(seen) == 6  # it had ended
    assert same(policy, weights(again))


def test_a_resumed_run_with_another_configuration_says_which_field(make, tmp_path) -> None:
    make(run=tmp_path / "run", iterations=1).learn()
    with pytest.raises(ValueError, match=r"another configuration.*clip: 0\.2 -> 0\.3"):
        make(run=tmp_path / "run", iterations=1, clip=0.3, resume=True)


def test_the_start_counts_for_the_best_checkpoint(same, make, monkeypatch) -> None:
    accuracies = iter([0.9, 0.1, 0.2])
    validated = lambda *args: {"eval/maj@1": next(accuracies), "eval/pass@1": 0.0, "eval/median_response_length": 1.0}  # noqa: E731
    monkeypatch.setattr(on_policy, "validate", validated)
    agent = make(validation_problems=1, validation_iterations=1, iterations=2, patience=None)
    before = {name: weight.clone() for name, weight in agent.model.named_parameters()}
    agent.learn()
    assert same(before, dict(agent.model.named_parameters()))
    assert next(accuracies, None) is None


def test_a_second_call_of_learn_continues_with_critic_optimizer_and_reference(
    letters, same, slots, weights, make, tmp_path
) -> None:
    settings = {"iterations": 1, "save_iterations": 1, "keep_best": False, "patience": None, "kl_coef": 0.1}
    whole = make(**settings | {"iterations": 2}).learn()
    halves = make(**settings).learn()
    halves.save(tmp_path / "saved", optimizer=True)
    environments = {"env": slots(letters()), "validation_env": slots(letters("validation"))}
    loaded = PPO.load(tmp_path / "saved", device="cpu", **environments).learn()
    plain = PPO.load(tmp_path / "saved", device="cpu", **environments)
    assert same(weights(plain), weights(halves))
    halves.learn()
    assert same(weights(whole), weights(halves))
    assert same(weights(whole), weights(loaded))
