"""LaGR-SEQ (arXiv 2308.13542): a proposer completes what the policy has begun, and a second agent learns when to ask.

Expert iteration samples as ever. Of each failed attempt the beginning may go to a proposer, another model, which writes
the rest; what the grader accepts is trained on like the policy's own solutions. Each question has a cost, so a query
policy decides from what is known of the beginning whether to ask. It is a logistic bandit: asking pays 1 less the cost
where the proposal is right, and minus the cost where it is not. What the rewards are is left open by the source.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tokengym.agents import CausalLMPolicy, ExpertIteration
from tokengym.agents.configs.expert_iteration import ExpertIterationConfig
from tokengym.agents.rollouts import Attempt
from tokengym.agents.rollouts.collect import Start, continue_from
from tokengym.envs import TokenVectorEnv
from tokengym.models import load
from tokengym.rewards.steps import step_ends

Features = np.ndarray


class QueryPolicy:
    """Logistic model of the chance that a proposal is right, by which it is asked for or not.

    Args:
        features: Number of features of a beginning.
        cost: Cost of a question, which the chance must exceed.
        rate: Learning rate of the stochastic gradient.
        explore: Share of decisions that are made at random.
        rng: Random numbers of the exploration.
    """

    def __init__(self, features: int, cost: float, rate: float, explore: float, rng: np.random.Generator) -> None:
        self.weights = np.zeros(features + 1)
        self.cost, self.rate, self.explore, self.rng = cost, rate, explore, rng

    def chance(self, features: Features) -> float:
        """Chance that the proposal is right."""
        return float(1 / (1 + np.exp(-(self.weights[:-1] @ features + self.weights[-1]))))

    def asks(self, features: Features) -> bool:
        """True if the question is worth its cost, or is tried."""
        if self.rng.random() < self.explore:
            return bool(self.rng.random() < 0.5)
        return self.chance(features) > self.cost

    def learn(self, features: Features, is_right: bool) -> None:
        """One step of the log-likelihood of what the proposal has come to."""
        error = is_right - self.chance(features)
        self.weights += self.rate * error * np.append(features, 1.0)


@dataclass(frozen=True)
class LaGRSEQConfig(ExpertIterationConfig):
    """Settings of `LaGRSEQ`.

    Attributes:
        proposer: Model that completes beginnings, of the policy's tokenizer; by default the policy itself.
        query: Policy of asking about failed attempts: "always", "never", "random" for half of them, or "learned".
        query_cost: Cost of a question, in solutions; a learned policy asks where it expects more. [choice]
        query_rate: Learning rate of the learned policy. [choice]
        explore: Share of the learned policy's decisions that are made at random. [choice]
    """

    proposer: str | None = None
    query: Literal["always", "never", "random", "learned"] = "learned"
    query_cost: float = 0.2
    query_rate: float = 0.5
    explore: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("query_cost", 0, 1), ("explore", 0, 1), ("query_rate", 0, np.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {getattr(self, name)}")
        if self.search is not None:
            raise ValueError("lagr-seq asks a proposer about sampled attempts: leave out search")


class LaGRSEQ(ExpertIteration):
    """Expert iteration with a proposer that completes failed attempts, and a policy that learns when to ask it."""

    name = "lagr-seq"
    config_class = LaGRSEQConfig
    config: LaGRSEQConfig

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.ranks.count > 1:
            raise ValueError("lagr-seq learns from one question after another: run it in one process")
        self._proposer = self.policy
        if self.config.proposer is not None:
            model, tokenizer = load(self.config.proposer, device=self.device)
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ValueError(
                    f"the tokenizers of proposer={self.config.proposer!r} and of the policy differ: give a model of "
                    "the policy's tokenizer"
                )
            self._proposer = CausalLMPolicy(model.eval(), tokenizer)
        config = self.config
        self.query_policy = QueryPolicy(
            3, config.query_cost, config.query_rate, config.explore, np.random.default_rng([self.seed, 1])
        )
        self.queries = self.accepted = 0

    def _attempts(
        self, number: int, env: TokenVectorEnv, numbers: range, on_step: Callable[[int], object], search: Any
    ) -> Iterator[Attempt]:
        """The round's attempts, each problem's followed by what the proposer made of those that failed."""
        own = super()._attempts(number, env, numbers, on_step, search)
        attempts = list(own)
        yield from attempts
        if self.config.query != "never":
            yield from self._proposed(number, env, attempts)

    def _proposed(self, number: int, env: TokenVectorEnv, attempts: Sequence[Attempt]) -> Iterator[Attempt]:
        """Proposals for the beginnings of failed attempts, one question after another; whole attempts."""
        failed = [one for one in attempts if not one.is_success]
        ends = step_ends([one.completion for one in failed], [one.terminated for one in failed], env.tokenizer)
        proposer = self._proposer.with_sampling(temperature=self.config.temperature)
        seen, rng = set[tuple[str, bytes]](), np.random.default_rng([self.seed, number])
        slots = self.make_env() if self.config.shots else env
        for index, (attempt, steps) in enumerate(zip(failed, ends, strict=True)):
            # Half of the steps are kept: the later ones of a failed attempt are the likelier to be wrong.
            kept = int(steps[len(steps) // 2 - 1]) + 1 if len(steps) > 1 else 0
            prefix = attempt.completion[:kept]
            features = np.array([len(steps) / 10, attempt.terminated, attempt.answer is not None], np.float64)
            if (attempt.problem.id, prefix.tobytes()) in seen or not self._asks(features, rng):
                continue
            seen.add((attempt.problem.id, prefix.tobytes()))
            seed = self.round_seed(number) + 500_009 + index
            (proposal,) = continue_from(proposer, slots, [Start(attempt.problem.id, prefix)], seed=seed)
            self.queries += 1
            self.accepted += proposal.is_success
            if self.config.query == "learned":
                self.query_policy.learn(features, proposal.is_success)
            whole = np.concatenate([prefix, proposal.completion]).astype(np.int32)
            rewards = np.concatenate([np.zeros(kept, np.float32), proposal.rewards])
            logprobs = np.concatenate([np.zeros(kept, np.float32), proposal.logprobs])
            yield replace(proposal, prompt=attempt.prompt, completion=whole, rewards=rewards, logprobs=logprobs)

    def _asks(self, features: Features, rng: np.random.Generator) -> bool:
        if self.config.query == "learned":
            return self.query_policy.asks(features)
        return self.config.query == "always" or bool(rng.random() < 0.5)

    def sample_round(self, number: int, episodes: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """A round of expert iteration, with the questions asked and their cost among its metrics."""
        before = self.queries, self.accepted
        super().sample_round(number, episodes, metrics, progress_bar)
        asked, right = self.queries - before[0], self.accepted - before[1]
        metrics |= {
            "query/asked": asked,
            "query/accepted": right,
            "query/return": right - self.config.query_cost * asked,
        }
