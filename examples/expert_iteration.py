"""Expert iteration on generated word problems, with an evaluation before and after.

    python examples/expert_iteration.py            # some minutes on two cores
    python examples/expert_iteration.py --quick    # a few seconds

The model is fine-tuned on 64 solutions, samples attempts at 1,600 problems, is fine-tuned anew on the correct ones, and
does that again. Problems far outnumber demonstrations: a model of this size learns nothing from attempts at problems
whose solutions it has just read.
"""

import argparse

from tokengym.agents import ExpertIteration, evaluate


def main() -> None:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    sizes = {"demonstrations": 8, "problems": 16, "rounds": 1, "epochs": 1, "validation_problems": 4} if quick else {}
    agent = ExpertIteration(
        "tokengym/Arithmetic-v0",
        "tokengym/tiny",
        num_envs=256,
        samples_per_problem=2,
        batch_size=16,
        **({"demonstrations": 64, "problems": 1600, "validation_problems": 100} | sizes),
    )
    test = agent.make_env(split="test")

    def show(name: str) -> None:
        result = evaluate(agent, test, problems=4 if quick else 200, n=8)
        print(f"{name}: maj@1 {result.metrics['maj@1']}, pass@8 {result.metrics['pass@8']}")

    show("before")
    agent.learn(progress_bar=True)
    show("after")


if __name__ == "__main__":
    main()
