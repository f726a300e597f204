"""Reinforcement learning after next-token prediction, on parity (Tsilivis et al. 2025).

    python examples/after_pretraining.py            # about six minutes on one core
    python examples/after_pretraining.py --quick    # a few seconds

A model that has read rare long and common short solutions answers greedily at once, and fails. Reinforcement learning
makes long answers common, and it succeeds.
"""

import argparse

import gymnasium as gym

from tokengym.agents import Pretrain, Reinforce, evaluate


def main() -> None:
    """Pretrains from random weights, and learns on by REINFORCE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", default="runs/parity")
    arguments = parser.parse_args()
    quick = arguments.quick
    env = gym.make("tokengym/Parity-v0", d=8 if quick else 25, p_cot=0.25)
    sizes = {"steps": 4, "batch_size": 8, "validation_problems": 2} if quick else {"steps": 300}
    Pretrain(env, run=arguments.run, architecture="llama", **sizes).learn(progress_bar=True)

    sizes = {"iterations": 1, "validation_problems": 2} if quick else {}
    problems = 8 if quick else 512
    agent = Reinforce(env, f"{arguments.run}/model", problems_per_iteration=problems, learning_rate=3e-4, **sizes)

    def show(name: str) -> None:
        result = evaluate(agent, agent.make_env(split="test"), problems=4 if quick else 500)
        print(f"{name}: maj@1 {result.metrics['maj@1']}, median length {result.median_response_length}")

    show("after next-token prediction  ")
    agent.learn(progress_bar=True)
    show("after reinforcement learning")


if __name__ == "__main__":
    main()
