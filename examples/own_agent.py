"""An agent of your own: REINFORCE with the batch's mean return as its baseline, on the library's parts.

    python examples/own_agent.py            # some minutes: success before and after
    python examples/own_agent.py --quick    # a few seconds

`collect` steps the environment with a key-value cache whose rows are its slots, `Learner` cuts batches and steps the
optimizer, and `masked_aggregate` makes losses that do not depend on how a batch was cut.
"""

import argparse
from dataclasses import dataclass

import torch

from tokengym.agents import Agent, collect, evaluate
from tokengym.agents.training import Example, Learner, OptimizerConfig, masked_aggregate
from tokengym.models import num_token_ids


@dataclass(frozen=True)
class ReinforceConfig(OptimizerConfig):
    """Settings.

    Attributes:
        batch_episodes: Attempts in each update.
    """

    batch_episodes: int = 64


class Reinforce(Agent):
    """REINFORCE with the batch's mean return as its baseline."""

    name = "my-reinforce"
    config_class = ReinforceConfig

    def learn(self, total_episodes=640, callback=None, progress_bar=False):
        """Trains on `total_episodes` attempts."""
        steps = (640 if total_episodes is None else total_episodes) // self.config.batch_episodes
        if steps < 1:
            raise ValueError(f"total_episodes must be at least one batch of {self.config.batch_episodes} attempts")
        learner = Learner(self.model, self.config, steps, self.accelerator, num_token_ids(self.tokenizer))
        for step in range(steps):
            attempts = list(collect(self.policy, self.env, self.config.batch_episodes, seed=self.seed + step))
            returns = torch.tensor([attempt.total_reward for attempt in attempts], device=self.model.device)

            def loss(batch, logprobs, advantages=returns - returns.mean()):
                return masked_aggregate(-advantages[batch.rows, None] * logprobs, batch.action_mask, len(attempts))

            metrics = learner.update([Example(a.prompt, a.completion) for a in attempts], loss, seed=step)
            self.num_attempts += len(attempts)
            self.log({"rollout/mean_reward": returns.mean().item(), **metrics}, callback)
        return self


def main() -> None:
    """Trains on short word problems and shows the samples' success before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    agent = Reinforce("tokengym/Arithmetic-v0", batch_episodes=16 if quick else 256, learning_rate=3e-5)
    env = agent.make_env(split="test")
    for attempts in (0, 32 if quick else 5120):
        if attempts:
            agent.learn(attempts)
        result = evaluate(agent, env, problems=8 if quick else 200, n=4)
        print(f"after {attempts} attempts: maj@1 {result.metrics['maj@1']}, pass@1 {result.metrics['pass@1']}")


if __name__ == "__main__":
    main()
