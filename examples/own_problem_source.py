"""Problems of your own: a list, or a source that makes them.

    python examples/own_problem_source.py

A `ProblemSource` is a pure function of (seed, split, index). A package of yours registers one by the entry-point group
`tokengym.problems`; an agent also takes an environment that was made with one, as here.
"""

import argparse

import numpy as np

from tokengym.agents import SFT, evaluate
from tokengym.envs import Problem, ProblemList, TokenVectorEnv
from tokengym.models import load_tokenizer


def problem(rng: np.random.Generator, name: str) -> Problem:
    """One purchase in words, with its solution."""
    count, price = rng.integers(2, 10, size=2)
    question = f"A pen costs {price} dollars. What do {count} pens cost?"
    solution = f"{count}*{price} = <<{count}*{price}={count * price}>>{count * price} dollars.\n#### {count * price}"
    return Problem(name, question, str(count * price), solution)


def slots(split: str, count: int, seed: int) -> TokenVectorEnv:
    """Eight environment slots over problems made from a seed of the split's own."""
    rng = np.random.default_rng(seed)
    problems = ProblemList([problem(rng, f"pens-{split}-{i}") for i in range(count)], split)
    return TokenVectorEnv(
        problems, 8, tokenizer=load_tokenizer("tokengym/tiny"), max_prompt_tokens=64, max_new_tokens=48,
        autoreset_mode="Disabled",
    )  # fmt: skip


def main() -> None:
    """Fine-tunes the built-in model on the solutions, and evaluates it before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    count = 16 if quick else 512
    agent = SFT(
        slots("train", count, 1), validation_env=slots("validation", 16, 2), batch_size=16, epochs=1 if quick else 4
    )
    test = slots("test", 8 if quick else 100, 3)
    print("before", evaluate(agent, test, problems=100).metrics["maj@1"])
    agent.learn()
    print("after ", evaluate(agent, test, problems=100).metrics["maj@1"])


if __name__ == "__main__":
    main()
