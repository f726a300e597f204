"""Attempts that differ with the number of slots: rounding depends on the shape of a batch, and a draw may turn on it.

    python -m tokengym.benchmarks.studies.slot_counts --output slot_counts.json
    python -m tokengym.benchmarks.studies.slot_counts --model M.gguf --attempts 128 --max-new-tokens 64

Each attempt's stream of random numbers is its own, so attempts would be the same in exact arithmetic.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...agents.rollouts.collect import collect
from ...agents.rollouts.policy import CausalLMPolicy
from ...agents.rollouts.slots import make_rollout_env
from ...envs.curriculum import Sequential
from ...exits import exit_status
from ...files import check_output, write_text
from ...models.loading import load

SLOTS = (64, 1, 8, 48)
"""Numbers of slots; the attempts of the first are what the others' are compared with."""


def run(model: str = "tokengym/tiny", attempts: int = 384, max_new_tokens: int = 128) -> dict[str, Any]:
    """Samples the same attempts at temperature 1 in other numbers of slots, in float32 and in bfloat16.

    Args:
        model: Model as `models.load` takes it.
        attempts: Number of attempts, 4 at each problem.
        max_new_tokens: Longest completion.

    Returns:
        By data type and number of slots, the attempts that differ in a token.
    """
    import gymnasium as gym

    found: dict[str, Any] = {"torch": torch.__version__, "model": Path(model).name, "attempts": attempts}
    for dtype in ("float32", "bfloat16"):
        policy = CausalLMPolicy(*load(model, device="cpu", dtype=dtype)).with_sampling(temperature=1.0)
        completions: dict[int, list[np.ndarray]] = {}
        for slots in SLOTS:
            env = make_rollout_env(
                gym.spec("tokengym/Arithmetic-v0"), policy, slots, max_new_tokens=max_new_tokens,
                curriculum=Sequential(repeats=4),
            )  # fmt: skip
            completions[slots] = [attempt.completion for attempt in collect(policy, env, attempts, seed=0)]
        first = completions[SLOTS[0]]
        tokens = sum(map(len, first))
        found[dtype] = {"tokens": tokens}
        for slots in SLOTS[1:]:
            pairs = zip(first, completions[slots], strict=True)
            found[dtype][f"{slots} slots"] = sum(not np.array_equal(one, other) for one, other in pairs)
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tokengym/tiny")
    parser.add_argument("--attempts", type=int, default=384)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    check_output(arguments.output)
    text = json.dumps(run(arguments.model, arguments.attempts, arguments.max_new_tokens), indent=1)
    print(text)
    if arguments.output is not None:
        write_text(arguments.output, text + "\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
