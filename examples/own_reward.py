"""A reward of your own: two base classes cover most of them.

    python examples/own_reward.py

`AttemptReward` pays a finished attempt, `StepReward` every finished line. Rewards add up with `sum`.
"""

import numpy as np

import tokengym
from tokengym.rewards import AttemptReward, StepReward, make_reward


class Brevity(AttemptReward):
    """A correct answer is worth more the fewer tokens it takes."""

    def attempt_reward(self, attempt):
        """1 / tokens for a correct attempt, else 0."""
        return attempt.verdict.correct / len(attempt.tokens)


class Equations(StepReward):
    """Each new line with an equation is worth a little, at its last token."""

    def step_rewards(self, steps):
        """0.1 for each step of `steps` that has an equation and is not a copy of an earlier one."""
        return [0.1 * ("=" in step.text and step.text not in step.previous) for step in steps]


def main() -> None:
    """Pays one attempt, written by hand, token by token."""
    both = make_reward({"name": "sum", "terms": [[1.0, Brevity()], [0.5, Equations()]]})
    env = tokengym.make_vec_env("tokengym/Arithmetic-v0", 1, reward=both, autoreset_mode="Disabled")
    env.reset(seed=0)
    problem = env.problem(0)
    solution = env.encode_solution(problem)
    print(problem.question)
    total = 0.0
    for token in solution:
        _, reward, terminated, _, infos = env.step(np.array([token]))
        total += float(reward[0])
    print(problem.solution)
    parts = {name: float(paid[0]) for name, paid in infos["reward_components"].items() if not name.startswith("_")}
    print(f"paid {total:.3f}, solved: {bool(infos['is_success'][0])}, before weights {parts}")
    assert terminated[0]


if __name__ == "__main__":
    main()
