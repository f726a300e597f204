"""Pretraining: fresh demonstrations at every step, checkpoints along the way, and going on."""

import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import tokengym  # noqa: F401 - registers the environments
from tokengym.agents import GRPO, Pretrain
from tokengym.agents.training.learner import Learner
from tokengym.models import load
from tokengym.registry import UnknownNameError

FAST = {"width": 32, "heads": 2, "batch_size": 32, "log_steps": 2, "save_steps": 4, "validation_problems": 20}


def make(run: Path | None = None, d: int = 5, **settings) -> Pretrain:
    spec = gym.spec("tokengym/Parity-v0")
    env = gym.make(spec.id, d=d, p_cot=0.5, disable_env_checker=True)
    return Pretrain(env, device="cpu", num_envs=32, run=run, **(FAST | {"steps": 10} | settings))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_model_has_the_shape_asked_for_and_depends_on_the_seed_alone(architecture: str, weights, same) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    agent, twin, other = (make(architecture=architecture, depth=3, width=48, heads=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    config = agent.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 48, 4)
    assert (config.vocab_size, config.max_position_embeddings) == (4, 11)
    assert same(weights(agent), weights(twin))
    assert not same(weights(agent), weights(other))


def test_every_step_trains_on_the_next_demonstrations_of_the_stream(monkeypatch) -> None:
    seen, modes = [], []
    real = Learner.update

    def spy(self, examples, *args):
        seen.append(list(examples))
        modes.append(self.base.training)
        return real(self, examples, *args)

    monkeypatch.setattr(Learner, "update", spy)
    agent = make(steps=3)
    agent.learn()
    tokenizer, problems = agent.tokenizer, agent.env.problems
    assert all(modes)
    assert not agent.model.training
    for step, batch in enumerate(seen):
        for i, example in enumerate(batch):
            problem = problems[step * 32 + i]
            assert tokenizer.decode(example.prompt) == problem.question
            assert tokenizer.decode(example.completion[:-1]) == problem.solution
            assert example.completion[-1] == tokenizer.eos_token_id


def test_it_learns_short_chains_and_reinforcement_goes_on_from_its_checkpoints(tmp_path, weights, same) -> None:
    told: list[dict[str, float]] = []
    agent = make(tmp_path / "run", steps=120, save_steps=60, batch_size=64, learning_rate=5e-3)
    agent.learn(callback=lambda _, metrics: told.append(metrics))
    validated = [metrics for metrics in told if "eval/maj@1" in metrics]
    assert len(validated) == 2
    assert told[-1]["train/loss"] < 0.6 * told[0]["train/loss"]
    assert set(validated[-1]) >= {"eval/pass@1", "eval/median_response_length"}
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step-120", "step-60"]
    model, tokenizer = load(tmp_path / "run" / "checkpoints" / "step-120", device="cpu")
    assert same(dict(model.named_parameters()), weights(agent))
    assert tokenizer.get_vocab() == agent.tokenizer.get_vocab()
    spec = gym.spec("tokengym/Parity-v0")
    env = gym.make(spec.id, d=5, disable_env_checker=True)
    learner = GRPO(
        env, tmp_path / "run" / "checkpoints" / "step-60", device="cpu", iterations=1, validation_problems=0,
        problems_per_iteration=4,
    )  # fmt: skip
    assert learner.learn().num_attempts == 64
    assert Pretrain.load(tmp_path / "run" / "model", device="cpu").model.config.n_embd == 32


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_killed_and_resumed_equals_never_stopped_bit_for_bit(tmp_path, killed_at: int, weights, same) -> None:
    whole = make(tmp_path / "whole").learn()
    told = []

    def kill(agent, metrics):
        told.append(metrics)
        if len(told) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        make(tmp_path / "cut").learn(callback=kill)
    resumed = make(tmp_path / "cut", resume=True).learn()
    assert same(weights(whole), weights(resumed))
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6, 8, 10]


def test_the_callback_ends_it(tmp_path, weights, same) -> None:
    make(tmp_path / "run").learn(callback=lambda *_: False)
    assert (tmp_path / "run" / "checkpoints" / "step-2").exists()
    resumed = make(tmp_path / "run", resume=True)
    assert same(weights(resumed.learn()), weights(make().learn()))


def test_longer_problems_than_the_model_has_positions_for_are_named(tmp_path) -> None:
    make(tmp_path / "run", steps=1).learn()
    for kind in (Pretrain, GRPO):
        env = gym.make("tokengym/Parity-v0", d=20, disable_env_checker=True)
        with pytest.raises(ValueError, match=r"longer than the model's 11 positions.*Lower max_prompt_tokens"):
            kind(env, tmp_path / "run" / "model", device="cpu", validation_problems=0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"heads": 5}, ValueError, "5 heads do not divide a width of 32"),
        ({"architecture": "llama", "heads": 32}, ValueError, "parts of even width"),
        ({"architecture": "mamba"}, ValueError, "architecture must be one of gpt2, llama"),
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        ({"lora_rank": 4}, ValueError, "a new model is trained in float32 and as a whole"),
        ({"dept": 2}, TypeError, "did you mean 'depth'"),
        ({"model": "tokengym/tinny"}, UnknownNameError, "did you mean 'tokengym/tiny'"),
    ],
)
def test_bad_settings(settings, error, message) -> None:
    with pytest.raises(error, match=message):
        make(**settings)
    with pytest.raises(ValueError, match="set steps and batch_size"):
        make().learn(total_episodes=5)
