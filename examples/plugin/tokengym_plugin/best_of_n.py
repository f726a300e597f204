"""Best-of-n distillation: fine-tune on the best attempt at each problem, batch after batch."""

from dataclasses import dataclass
from typing import Self

from tokengym.agents import Agent, collect
from tokengym.agents.training import Example, Learner, OptimizerConfig, masked_aggregate
from tokengym.envs.curriculum import Uniform
from tokengym.models import num_token_ids


@dataclass(frozen=True)
class BestOfNConfig(OptimizerConfig):
    """Settings of `BestOfN`.

    Attributes:
        n: Attempts at each problem.
        problems_per_update: Problems of each update.
        updates: Updates, unless a budget of attempts says otherwise.
    """

    n: int = 8
    problems_per_update: int = 16
    updates: int = 20


class BestOfN(Agent):
    """Fine-tunes on the best of n attempts at each problem (reward above 0), from the newest policy each time."""

    name = "best-of-n"
    config_class = BestOfNConfig
    config: BestOfNConfig

    def learn(self, total_episodes: int | None = None, callback=None, progress_bar: bool = False) -> Self:
        """Runs the configured updates, or as many as the budget covers."""
        config = self.config
        batch = config.n * config.problems_per_update
        updates = config.updates if total_episodes is None else total_episodes // batch
        if updates < 1:
            raise ValueError(f"total_episodes must be at least one update of {batch} attempts, got {total_episodes}")
        learner = Learner(self.model, self.config, updates, self.accelerator, num_token_ids(self.tokenizer))
        self.env.curriculum = Uniform(repeats=config.n)
        for update in range(updates):
            attempts = list(collect(self.policy, self.env, batch, seed=self.seed + 1_000_003 * update))
            groups = [attempts[i : i + config.n] for i in range(0, batch, config.n)]
            best = [max(group, key=lambda attempt: attempt.total_reward) for group in groups]
            chosen = [Example(one.prompt, one.completion) for one in best if one.total_reward > 0]
            self.num_attempts += batch
            metrics = {"rollout/success_rate": sum(attempt.is_success for attempt in attempts) / batch}
            if chosen:
                tokens = sum(len(example.completion) for example in chosen)

                def loss(micro_batch, logprobs, tokens=tokens):
                    return masked_aggregate(-logprobs, micro_batch.action_mask, tokens)

                metrics |= {f"train/{name}": value for name, value in learner.update(chosen, loss, update).items()}
            if not self.log(metrics, callback):
                break
        self.keep_model()
        return self
