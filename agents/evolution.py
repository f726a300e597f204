"""Evolutionary search: an archive of a problem's solutions, from whose steps new ones are continued.

The first generation is plain sampling. Each later one draws parents from the archive, cuts each at the end of a random
step and lets the policy continue from there; solutions whose equations are new join the archive. Parents that were
drawn often are drawn more rarely, so that the search spreads over what was found. Neither verdicts nor scores steer it:
it widens what is found, and leaves the choice to whoever takes the attempts, such as expert iteration.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.vector import AutoresetMode

from ..arrays import FloatArray, IntArray
from ..envs.problems.base import Problem
from ..envs.token_vector_env import TokenVectorEnv
from ..models.engine.sampling import stream_key
from ..rewards.grading.solutions import equation_sequence
from ..rewards.steps import decode, step_ends
from .configs.search import EvolutionConfig
from .rollouts.attempts import Attempt
from .rollouts.collect import Start, continue_from
from .rollouts.policy import CausalLMPolicy
from .rollouts.searches import Completion, Found, SearchCost, graded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True, eq=False)
class Member:
    """A solution in an archive.

    Attributes:
        attempt: Attempt that was the first with its equations.
        cuts: `[S]` numbers of tokens up to the ends of its steps, the last step excepted; [0] if it has one step.
        visits: Number of times that it was drawn as a parent.
    """

    attempt: Attempt
    cuts: IntArray
    visits: int = 0


class Archive:
    """Solutions of one problem whose sequences of equations differ.

    Args:
        tokenizer: Tokenizer of the completions.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.members: dict[str, Member] = {}
        """Members by their sequence of equations, or by their text where they have none."""
        self._tokenizer = tokenizer

    def add(self, attempt: Attempt) -> None:
        """Adds an attempt, unless it was cut off by its token budget or one with the same equations is there."""
        key = equation_sequence(decode(self._tokenizer, attempt.completion))
        if not attempt.terminated or key in self.members:
            return
        (ends,) = step_ends([attempt.completion], [True], self._tokenizer)
        cuts = ends[ends < len(attempt.completion) - 1] + 1
        self.members[key] = Member(attempt, cuts if len(cuts) else np.zeros(1, np.int64))

    def weights(self) -> FloatArray:
        """Chances `[M]` of the members to be drawn as a parent, in proportion to 1 / (1 + visits)."""
        weights = 1 / (1 + np.array([member.visits for member in self.members.values()]))
        return weights / weights.sum()

    def draw(self, rng: np.random.Generator) -> tuple[Attempt, int]:
        """A parent and the number of its tokens that are kept; counts the visit."""
        member = list(self.members.values())[int(rng.choice(len(self.members), p=self.weights()))]
        member.visits += 1
        return member.attempt, int(rng.choice(member.cuts))


class Evolution:
    """Searches for different solutions by continuing parts of those found before.

    Args:
        policy: Policy that draws the steps.
        env: Token environment with `autoreset_mode` DISABLED.
        config: Settings of the search.

    Raises:
        ValueError: The environment resets finished slots by itself.
    """

    def __init__(self, policy: CausalLMPolicy, env: TokenVectorEnv, config: EvolutionConfig) -> None:
        if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
            raise ValueError("a search places attempts itself: make the env with autoreset_mode='Disabled'")
        self.policy = policy.with_sampling(temperature=config.temperature)
        self.env, self.config = env, config
        self.cost = SearchCost()
        """Cost at all problems whose attempts were found so far."""
        self.archive = Archive(policy.tokenizer)
        """Archive of the problem whose attempts were found last."""

    @property
    def width(self) -> int:
        """Attempts that a search ends with at each problem."""
        return self.config.width

    def __call__(self, problems: Iterable[str | int], seed: int) -> Iterator[Found]:
        """Searches for solutions of problems, as many at a time as fill the slots twice in each generation.

        Args:
            problems: Problems to search on, by id or index.
            seed: Seed of the problems' random streams; the first generation is what plain sampling with it draws.

        Returns:
            An iterator over what was found at each problem, in order: `config.width` attempts, generation by
            generation, and no scores, for nobody scored them.
        """
        children = self.config.width // self.config.generations
        coming = iter(problems)
        while part := list(itertools.islice(coming, -(-2 * self.env.num_envs // children))):
            for one in self._evolved(part, seed):
                self.archive = one.archive
                self.cost.add(one.cost)
                yield Found(one.attempts, None, one.cost)

    def _evolved(self, problems: Sequence[str | int], seed: int) -> "list[_Population]":
        """The searches at some problems, all their generations: each is drawn for all problems before the next."""
        config, env = self.config, self.env
        children = config.width // config.generations
        populations: list[_Population] = []
        for first in range(0, len(problems), env.num_envs):
            part = list(problems[first : first + env.num_envs])
            env.reset(options={"reset_mask": np.arange(env.num_envs) < len(part), "problem_id": part})
            for slot in range(len(part)):
                problem, prompt = env.problem(slot), env.prompt(slot).copy()
                rng = np.random.default_rng([seed, stream_key(seed, problem.id, 0) % 2**32])
                populations.append(_Population(problem, prompt, rng, Archive(self.policy.tokenizer)))
        starts: list[Start] = []
        for _ in range(config.generations):
            owners = [one for one in populations for _ in range(children)]
            heads = [one.head() for one in owners]
            begun = len(starts)
            starts += [Start(one.problem.id, tokens) for one, (tokens, _) in zip(owners, heads, strict=True)]
            rests = list(continue_from(self.policy, env, starts, seed=seed, start=begun))
            solutions: list[Completion] = []
            for number, (one, (tokens, logprobs), rest) in enumerate(zip(owners, heads, rests, strict=True)):
                one.cost.policy_tokens += len(rest.completion)
                solutions.append(
                    Completion(
                        one.problem,
                        len(one.attempts) + number % children,
                        one.prompt,
                        np.concatenate([tokens, rest.completion]),
                        np.concatenate([logprobs, rest.logprobs]),
                    )
                )
            for one, attempt in zip(owners, graded(env, solutions), strict=True):
                one.attempts.append(attempt)
                one.archive.add(attempt)
        return populations


@dataclass(slots=True, eq=False)
class _Population:
    """The search at one problem: what was found so far, and what its random draws come from."""

    problem: Problem
    prompt: IntArray
    rng: np.random.Generator
    archive: Archive
    attempts: list[Attempt] = field(default_factory=list)
    cost: SearchCost = field(default_factory=SearchCost)

    def head(self) -> tuple[IntArray, FloatArray]:
        """The first steps of a parent with their log-probabilities; nothing where there is no parent."""
        if not self.archive.members:
            return np.empty(0, np.int64), np.empty(0)
        parent, cut = self.archive.draw(self.rng)
        return parent.completion[:cut].astype(np.int64), parent.logprobs[:cut].astype(np.float64)
