"""Every example runs with `--quick`, and the single-file GRPO makes the update that `GRPO` makes."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch

from tokengym.agents import GRPO
from tokengym.agents.training import Learner
from tokengym.models import load

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.usefixtures("short_problems")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--quick"])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_the_single_file_makes_the_update_of_grpo() -> None:
    """From the same attempts: loss, norm of the gradient and the step itself."""
    single = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "examples" / "grpo_single_file.py")))
    group, rate = 4, 1e-4
    torch.manual_seed(0)
    model, tokenizer = load("tokengym/tiny")
    model.eval()
    env = gym.make_vec(
        "tokengym/Arithmetic-v0", 16, "vector_entry_point", tokenizer=tokenizer, autoreset_mode="Disabled", steps=1,
        max_new_tokens=32,
    )  # fmt: skip
    env.reset(seed=3)
    sampled = single.sample(model, len(tokenizer), env, group, 1.0)
    assert (sampled.returns.view(-1, group).std(1) > 0).any()

    agent = GRPO(
        "tokengym/Arithmetic-v0", "tokengym/tiny", problems_per_iteration=4, samples_per_problem=group,
        learning_rate=rate, validation_problems=0,
    )  # fmt: skip
    before = {name: weight.detach().clone() for name, weight in agent.model.named_parameters()}

    class Attempt(SimpleNamespace):
        terminated = True
        kept = None

        @property
        def total_reward(self) -> float:
            return float(self.rewards.sum())

    attempts = []
    for i in range(len(sampled.returns)):
        action, token = sampled.is_action[i], sampled.is_token[i]
        rewards = torch.zeros(int(action.sum()), dtype=torch.float64)
        rewards[-1] = sampled.returns[i]
        attempts.append(
            Attempt(
                prompt=sampled.tokens[i][token & ~action].numpy(),
                completion=sampled.tokens[i][action].numpy(),
                logprobs=sampled.logprobs[i][action].numpy(),
                rewards=rewards.numpy(),
            )
        )
    learner = agent.make_learner(1)
    assert isinstance(learner, Learner)
    theirs = agent.improve(learner, attempts, 0)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0)
    ours = single.update(model, len(tokenizer), optimizer, sampled, group, rows=5)

    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    steps = torch.cat([(weight - before[name]).ravel() for name, weight in agent.model.named_parameters()])
    other = torch.cat([(weight - before[name]).ravel() for name, weight in model.named_parameters()])
    # Not closer: where a gradient is nothing but rounding, AdamW still takes a whole step in its direction.
    assert torch.nn.functional.cosine_similarity(steps, other, dim=0) > 0.99
