"""Jobs of the experiments after pretraining: pretraining, a checkpoint's probe, and reinforcement learning from it.

Each returns JSON values and can be killed.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from safetensors.torch import load_file

from ...agents import make_agent
from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...agents.training.fine_tuning import NothingToLearnError, restore
from ...envs.curriculum import Sequential
from ...envs.registration import make_spec
from ...files import read_jsonl
from ...models.loading import load
from ..jobs import Done, Stopwatch


def pretrain(folder: Path, settings: Mapping[str, Any], needed: Mapping[str, Done]) -> dict[str, Any]:
    """Pretrains a model in `run` inside the folder; returns its `curve`, `seconds` and `cpu_seconds`."""
    torch.set_num_threads(settings["threads"])
    agent = make_agent("pretrain", make_spec(settings["env"]), run=folder / "run", **_arguments(settings))
    with Stopwatch(folder) as watch:
        agent.learn(callback=lambda agent, metrics: watch.save(), progress_bar=True)
    return {"curve": _curve(folder / "run"), **watch.spent}


def probe_checkpoint(folder: Path, settings: Mapping[str, Any], needed: Mapping[str, Done]) -> dict[str, Any]:
    """Metrics of the pretrained model at a checkpoint, see `probe`."""
    torch.set_num_threads(settings["threads"])
    policy = CausalLMPolicy(*load(_checkpoint(settings, needed), device="cpu"))
    return probe(policy, make_spec(settings["env"]), settings["test_problems"], settings["num_envs"])


def reinforce(folder: Path, settings: Mapping[str, Any], needed: Mapping[str, Done]) -> dict[str, Any]:
    """Reinforcement learning from a checkpoint, in `run` inside the folder.

    Returns:
        `curve`, `seconds` and `cpu_seconds`; `after`, the metrics of the policy, see `probe`; and `stopped`, why
        learning ended early: no attempt of a round was right, which is a result, too.
    """
    torch.set_num_threads(settings["threads"])
    spec, checkpoint = make_spec(settings["env"]), _checkpoint(settings, needed)
    agent = make_agent(settings["agent"], spec, checkpoint, run=folder / "run", **_arguments(settings))
    stopped = None
    with Stopwatch(folder) as watch:
        try:
            agent.learn(callback=lambda agent, metrics: watch.save(), progress_bar=True)
        except NothingToLearnError as error:
            stopped = str(error)
    # The paper's STaR ends with its last round, the agent with the one that validated best.
    if settings["agent"] == "star" and stopped is None:
        last = folder / "run" / f"round-{settings['config']['rounds']}" / "finished" / "weights.safetensors"
        restore(agent.model, load_file(last))
    after = probe(agent.policy, spec, settings["test_problems"], settings["num_envs"])
    return {"curve": _curve(folder / "run"), "after": after, "stopped": stopped, **watch.spent}


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What agents of these jobs are made with, and the configuration of this one."""
    names = ("seed", "num_envs", "micro_batch_tokens", "validation_problems")
    return {"device": "cpu", "resume": "auto", **{name: settings[name] for name in names}, **settings["config"]}


def _checkpoint(settings: Mapping[str, Any], needed: Mapping[str, Done]) -> Path:
    return needed[settings["pretraining"]].folder / "run" / "checkpoints" / f"step-{settings['start']}"


_CURVES = {
    "loss": "train/loss",
    "sampled": "rollout/success_rate",
    "greedy": "eval/maj@1",
    "sampled_at_1": "eval/pass@1",
    "median_length": "eval/median_response_length",
    "mean_length": "rollout/mean_length",
    "uniform_groups": "rollout/uniform_groups",
}


def _curve(run_folder: Path) -> list[dict[str, float]]:
    """Metrics that a run logged, by optimizer steps of pretraining or iterations of reinforcement learning (`at`).

    Iterations have a line each, and the start may have one; attempts do not count them where groups are resampled.
    """
    file = run_folder / "metrics.jsonl"
    lines = read_jsonl(file) if file.exists() else []  # a run that found nothing to learn from may have none
    pretraining = any("train/demonstrations" in line for line in lines)
    iterations = itertools.accumulate(line["step"] > 0 for line in lines)
    return [
        {"at": line["step"] if pretraining else iteration}
        | {name: round(line[key], 4) for name, key in _CURVES.items() if key in line}
        for line, iteration in zip(lines, iterations, strict=True)
    ]


def probe(policy: CausalLMPolicy, spec: EnvSpec, problems: int, num_envs: int) -> dict[str, float | None]:
    """Metrics of a policy on the first problems of the test split, greedily and sampled once at temperature 1.

    Whatever a run was rewarded for, both are measured: `accuracy`, the final answer is right, and `correct`, so is the
    way to it. A response is long if it is longer than the longest short solution.
    """
    measured = {"split": "test", "grading": "cot"}
    env = make_rollout_env(spec, policy, num_envs, curriculum=Sequential(), **measured)
    short = make_rollout_env(spec, policy, 1, p_cot=0.0, **measured)
    limit = max(len(short.encode_solution(short.problems[i])) for i in range(problems))
    found: dict[str, float | None] = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        attempts = list(collect(policy.with_sampling(temperature=temperature), env, problems, seed=0))
        found |= {f"{name}_{key}": value for key, value in _shares(attempts, limit).items()}
    return found


def _shares(attempts: list[Attempt], limit: int) -> dict[str, float | None]:
    # The limit is with the end-of-sequence token, which a truncated attempt lacks.
    long = np.array([len(attempt.completion) > limit for attempt in attempts])
    correct = np.array([attempt.is_success for attempt in attempts])
    right = correct | np.array([attempt.verdict == "wrong_chain" for attempt in attempts])
    lengths = [len(attempt.completion) - attempt.terminated for attempt in attempts]
    values = {
        "accuracy": right.mean(),
        "correct": correct.mean(),
        "long": long.mean(),
        "correct_if_long": correct[long].mean() if long.any() else None,
        "correct_if_short": correct[~long].mean() if not long.all() else None,
        "median_length": np.median(lengths),
    }
    return {name: None if value is None else round(float(value), 4) for name, value in values.items()}
