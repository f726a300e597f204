"""Evaluation as in Havrilla et al. 2024: greedy maj@1; maj@n, rerank@n, pass@k and diversity from n samples."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from ...arrays import FloatArray, described, finite_scores, name_of
from ...envs.curriculum import Sequential
from ...envs.token_vector_env import TokenVectorEnv
from ...models.outcome import OutcomeModel
from ...rewards.grading.solutions import equation_sequence
from ...settings import kinds_checked
from ..rollouts.attempts import Attempt
from ..rollouts.collect import collect
from ..rollouts.policy import CausalLMPolicy
from ..rollouts.searches import Found, ProblemSearch
from ..rollouts.slots import make_rollout_env
from ..training.memory import check_held
from ..training.ranks import Ranks
from .rerankers import ModelReranker, OutcomeScore, Reranker, VotingReranker

_SLOTS = 64
"""Slots of an environment that was given by its id."""


class Interval(NamedTuple):
    """A mean over problems with its interval, see `bootstrap`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class HasPolicy(Protocol):
    """An agent, as the evaluation sees it."""

    @property
    def policy(self) -> CausalLMPolicy: ...


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate`, with the protocol.

    Attributes:
        metrics: `maj@1`, `maj@n`, `rerank@n` with a reranker and `weighted_maj@n` if that weighs votes,
            `pass@k` and `diversity` (distinct correct equation sequences per problem).
        verdicts: Number of sampled attempts by verdict (of greedy ones when n is 0).
        median_response_length: Median number of tokens before the end of a greedy response, which shows whether
            learning to reason makes responses longer (Tsilivis et al. 2025).
        problems, n, temperature, seed: Protocol of the evaluation; the temperature is that of the pool.
        episodes, tokens: Cost of the evaluation, the greedy pass included; all tokens that were drawn, those of
            candidates that a search abandoned too.
        seconds: Wall time in seconds.
        top_k, top_p, min_p: Truncation of the pool's distributions, that of the policy; see `SamplingConfig`.
        problem_ids: Ids of the problems, in order.
        by_problem: Value of each metric at each of them; two evaluations of the same problems can be compared in pairs.
    """

    metrics: dict[str, Interval]
    verdicts: dict[str, int]
    median_response_length: float
    problems: int
    n: int
    temperature: float
    seed: int
    episodes: int
    tokens: int
    seconds: float
    problem_ids: list[str]
    by_problem: dict[str, list[float]]
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON values; each metric becomes [value, low, high]."""
        return asdict(self) | {"metrics": {name: list(interval) for name, interval in self.metrics.items()}}


def pass_at_k(successes: int, n: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples succeeds: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    Args:
        successes: Number c of samples that succeeded.
        n: Number of samples in the pool.
        k: Number of attempts, at most n.

    Raises:
        ValueError: Not 1 <= k <= n, or not 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= successes <= n):
        raise ValueError(f"need 1 <= k <= n and 0 <= c <= n, got k={k}, n={n}, c={successes}")
    return 1.0 - math.comb(n - successes, k) / math.comb(n, k)


def majority_vote(answers: Sequence[str | None], weights: Sequence[float] | FloatArray | None = None) -> str | None:
    """The answer with the most votes, in the normal form of verdicts; the first seen wins a tie; `None` has no vote.

    Args:
        answers: Answers of n attempts at one problem.
        weights: Weights [n] of their votes, none below 0; by default each has one vote.

    Raises:
        ValueError: There are more or fewer weights than answers, or one is negative or not finite.
    """
    shares = np.ones(len(answers)) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (len(answers),) or not (np.isfinite(shares).all() and (shares >= 0).all()):
        raise ValueError(f"{len(answers)} answers need as many finite weights, none below 0, got {weights}")
    votes: dict[str, float] = {}
    for answer, weight in zip(answers, shares.tolist(), strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + weight
    return max(votes, key=votes.__getitem__, default=None)


def majority_is_correct(attempts: Sequence[Attempt], weights: Sequence[float] | FloatArray | None = None) -> bool:
    """True if the majority's answer, over attempts at one problem, is the right one; see `majority_vote`."""
    winner = majority_vote([attempt.answer for attempt in attempts], weights)
    return any(attempt.is_success and attempt.answer == winner for attempt in attempts)


def best_scored(answers: Sequence[str | None], scores: Sequence[float] | FloatArray) -> int | None:
    """Index of the highest-scored attempt with an answer; the first seen wins a tie; `None` if none has one."""
    candidates = [i for i, answer in enumerate(answers) if answer is not None]
    return max(candidates, key=lambda i: scores[i], default=None)


def best_is_correct(attempts: Sequence[Attempt], scores: Sequence[float] | FloatArray) -> bool:
    """True if the answer that scores highest, over attempts at one problem, is the right one."""
    best = best_scored([attempt.answer for attempt in attempts], scores)
    return best is not None and attempts[best].is_success


def bootstrap(
    values: Iterable[float],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Mean of per-problem values with its percentile bootstrap interval over problems.

    Where problems do not differ, as when none is solved, resampling shows no error. Then the interval is Wilson's
    (1927) of as many equal trials, for a value between the bounds as wide to both sides.

    Args:
        values: Value of each problem.
        resamples: Number of resamples.
        level: Coverage of the interval.
        seed: Seed of the resamples.
        bounds: Least and greatest possible value.

    Raises:
        ValueError: There are no values.
    """
    array = np.fromiter(values, np.float64)
    if not len(array):
        raise ValueError("no problems to average over")
    if array.min() == array.max() and bounds[0] <= array[0] <= bounds[1]:
        z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
        value, half = float(array[0]), z2 / (len(array) + z2)
        return Interval(value, max(value - half, bounds[0]), min(value + half, bounds[1]))
    rng = np.random.default_rng(seed)
    means = array[rng.integers(len(array), size=(resamples, len(array)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high))


@kinds_checked
def evaluate(
    policy: CausalLMPolicy | HasPolicy,
    env: "TokenVectorEnv | str | EnvSpec | gym.Env[Any, Any]",
    *,
    problems: int,
    n: int = 0,
    temperature: float = 0.7,
    seed: int = 0,
    reranker: OutcomeModel | Reranker | None = None,
    search: ProblemSearch | None = None,
    on_step: Callable[[int], object] | None = None,
    on_problem: Callable[[list[Attempt]], object] | None = None,
) -> Evaluation:
    """Measures a policy on the first `problems` problems of the environment's split.

    Args:
        policy: Policy, or an agent that has one.
        env: Token environment with `autoreset_mode` DISABLED, whose curriculum is restored afterwards; or an id, a spec
            or a `gym.make` product, from which slots are made, on the test split if it names none.
        problems: Number of problems; fewer if the split is smaller.
        n: Samples per problem in the pool; 0 runs the greedy pass alone.
        temperature: Sampling temperature of the pool; the policy's other sampling settings, such as `top_p`, hold for
            the pool too. A search has its own, and this one is not used. [Havrilla et al. 2024]
        seed: Seed of the pool's random streams.
        reranker: Outcome model, or a function such as `rerankers.ImplicitReward`, that scores the pool for `rerank@n`:
            the answer to each problem is that of the attempt with the highest score (Havrilla et al. 2024). Outcome
            models and `MeanLogprob` weigh votes as well, for `weighted_maj@n`: the answer with the greatest sum.
        search: Search that finds the pool of each problem instead of sampling: n attempts and their scores, which then
            choose for `rerank@n` if there are any; see `agents.search.Search`. The attempts are not independent
            samples, so pass@k is reported for k = n only.
        on_step: Function that is called with the number of attempts that have just ended.
        on_problem: Function that is called at the end with the attempts of the pool at each problem, in order.

    Raises:
        TypeError: There is neither a policy nor an agent, but a model, for example, or its name.
        ValueError: Prompts exceed the environment's limit, `problems` is below 1 or `n` below 0, there are a reranker
            and fewer than two samples to choose from, the search finds another number of attempts than `n`, or the
            model that reranks has another tokenizer.
        NotEnoughMemoryError: So many attempts can never be in memory together.
    """
    if reranker is not None and n < 2:
        raise ValueError(f"reranking chooses among n samples: n must be at least 2, got {n}")
    if problems < 1 or n < 0:
        raise ValueError(f"need problems >= 1 and n >= 0, got {problems} and {n}")
    if search is not None and search.width != n:
        raise ValueError(f"the search finds {search.width} attempts at each problem, not n={n}: set n to its width")
    if not isinstance(policy, CausalLMPolicy):
        if not hasattr(policy, "policy"):
            raise TypeError(
                f"evaluate takes a policy or an agent, got {type(policy).__name__}: load_policy makes one of a "
                "name or a folder, and CausalLMPolicy of a model and its tokenizer"
            )
        policy = policy.policy
    pool_sampling = policy.with_sampling(temperature=temperature).sampling if search is None else search.policy.sampling
    reranker = OutcomeScore(reranker) if isinstance(reranker, OutcomeModel) else reranker
    env = env if isinstance(env, TokenVectorEnv) else _test_slots(env, policy)
    if isinstance(reranker, ModelReranker):
        reranker.check_tokenizer(env.tokenizer)
    problems = min(problems, env.size) if env.size is not None else problems
    check_held(problems * (n + 1), "attempts", "`problems` or `n`")
    env.check_prompts(problems)
    started = time.perf_counter()
    greedy = _pool(policy.with_sampling(temperature=0.0), env, problems, 1, seed, on_step)
    values: dict[str, list[float]] = {"maj@1": [float(group[0].is_success) for group in greedy]}
    pool = greedy
    scores: list[FloatArray] | None = None
    weights: list[FloatArray] | None = None
    found: list[Found] = []
    if search is not None:
        for one in search(env.indices(problems), seed):
            found.append(one)
            if on_step is not None:
                on_step(n)
        pool = [one.attempts for one in found]
        scores = [one.scores for one in found if one.scores is not None] or None
    elif n:
        pool = _pool(policy.with_sampling(temperature=temperature), env, problems, n, seed, on_step)
    if n:
        if reranker is not None and scores is None:
            scores = _scores(reranker, pool, n)
            if isinstance(reranker, VotingReranker):
                weights = [reranker.weights(own) for own in scores]
        values |= _pool_values(pool, n, scores, weights, _powers(n) if search is None else [n], env)
    if on_problem is not None:
        for group in pool:
            on_problem(group)
    drawn = sum(one.cost.policy_tokens for one in found) if found else _tokens(pool) if n else 0
    return Evaluation(
        metrics={name: bootstrap(items) for name, items in values.items()},
        verdicts=dict(Counter(attempt.verdict for group in pool for attempt in group).most_common()),
        median_response_length=median_response_length(group[0] for group in greedy),
        problems=problems,
        n=n,
        temperature=pool_sampling.temperature,
        seed=seed,
        episodes=problems * (n + 1),
        tokens=_tokens(greedy) + drawn,
        seconds=time.perf_counter() - started,
        problem_ids=[group[0].problem.id for group in greedy],
        by_problem=values,
        top_k=pool_sampling.top_k,
        top_p=pool_sampling.top_p,
        min_p=pool_sampling.min_p,
    )


def median_response_length(attempts: Iterable[Attempt]) -> float:
    """Median number of tokens before the end of a response: an end-of-sequence token is left out."""
    return float(np.median([len(attempt.completion) - attempt.terminated for attempt in attempts]))


def validate(policy: CausalLMPolicy, env: TokenVectorEnv, problems: int, ranks: Ranks) -> dict[str, float]:
    """Metrics that validate learning: success of greedy decoding and of one sample at temperature 1, and greedy length.

    Each process takes a share of the problems, and all of them get the same numbers.
    """
    problems = min(problems, env.size) if env.size is not None else problems
    share = ranks.share(problems)
    found: dict[str, list[bool]] = {"maj@1": [], "pass@1": []}
    lengths: list[int] = []
    curriculum, env.curriculum = env.curriculum, Sequential()
    try:
        for name, temperature in (("maj@1", 0.0), ("pass@1", 1.0)):
            sampled = policy.with_sampling(temperature=temperature)
            for attempt in collect(sampled, env, share.stop, seed=0, start=share.start):
                found[name].append(attempt.is_success)
                if name == "maj@1":
                    lengths.append(len(attempt.completion) - attempt.terminated)
    finally:
        env.curriculum = curriculum
    parts = ranks.gather((found, lengths))
    whole = {name: [success for part, _ in parts for success in part[name]] for name in found}
    return {
        "eval/maj@1": float(np.mean(whole["maj@1"])),
        "eval/pass@1": float(np.mean(whole["pass@1"])),
        "eval/median_response_length": float(np.median([length for _, part in parts for length in part])),
    }


def distinct_solutions(attempts: Iterable[Attempt], env: TokenVectorEnv) -> set[str]:
    """The equation sequences of the correct attempts."""
    return {equation_sequence(env.decode(attempt.completion)) for attempt in attempts if attempt.is_success}


def _test_slots(env: "str | EnvSpec | gym.Env[Any, Any]", policy: CausalLMPolicy) -> TokenVectorEnv:
    """Slots of an environment, on the test split if it names none."""
    spec = gym.spec(env) if isinstance(env, str) else env if isinstance(env, EnvSpec) else env.spec
    if spec is None:
        raise TypeError(f"{env} has no spec to make slots of: give its id, or a TokenVectorEnv")
    return make_rollout_env(spec, policy, _SLOTS, **({} if "split" in spec.kwargs else {"split": "test"}))


def _scores(reranker: Reranker, pool: Sequence[list[Attempt]], n: int) -> list[FloatArray]:
    """The reranker's score of each of `n` attempts at each problem."""
    scores: list[FloatArray] = []
    for group in pool:
        found = reranker(group)
        if (own := finite_scores(found, n)) is None:
            raise ValueError(
                f"the reranker {name_of(reranker)} must give one finite score for each of {n} attempts at a problem, "
                f"and gave {described(found)}"
            )
        scores.append(own)
    return scores


def _pool_values(
    pool: Sequence[list[Attempt]],
    n: int,
    scores: Sequence[FloatArray] | None,
    weights: Sequence[FloatArray] | None,
    ks: Sequence[int],
    env: TokenVectorEnv,
) -> dict[str, list[float]]:
    """The metrics of the pool, at each problem.

    Args:
        pool: `n` attempts at each problem.
        n: Number of attempts at each.
        scores: `[n]` scores at each problem, if there are any.
        weights: `[n]` weights of votes at each problem, if there are any.
        ks: Numbers of attempts that pass@k is reported for.
        env: Environment that the attempts were made in.
    """
    values: dict[str, list[float]] = {}
    if n > 1:
        values[f"maj@{n}"] = [float(majority_is_correct(group)) for group in pool]
    if scores is not None:
        values[f"rerank@{n}"] = [float(best_is_correct(group, own)) for group, own in zip(pool, scores, strict=True)]
    if weights is not None:
        values[f"weighted_maj@{n}"] = [
            float(majority_is_correct(group, own)) for group, own in zip(pool, weights, strict=True)
        ]
    successes = [sum(attempt.is_success for attempt in group) for group in pool]
    for k in ks:
        values[f"pass@{k}"] = [pass_at_k(c, n, k) for c in successes]
    values["diversity"] = [float(len(distinct_solutions(group, env))) for group in pool]
    return values


def _tokens(pool: Sequence[list[Attempt]]) -> int:
    return sum(len(attempt.completion) for group in pool for attempt in group)


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return sorted({2**i for i in range(n.bit_length())} | {n})


def _pool(
    policy: CausalLMPolicy,
    env: TokenVectorEnv,
    problems: int,
    n: int,
    seed: int,
    on_step: Callable[[int], object] | None,
) -> list[list[Attempt]]:
    """N attempts at each of the first problems, grouped by problem."""
    curriculum, env.curriculum = env.curriculum, Sequential(repeats=n)
    try:
        attempts = list(collect(policy, env, problems * n, seed=seed, on_step=on_step))
    finally:
        env.curriculum = curriculum
    return [attempts[i : i + n] for i in range(0, len(attempts), n)]
