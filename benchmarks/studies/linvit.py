"""How many episodes a good language model saves: LINVIT (Zhang et al. 2024, arXiv 2402.16181) on tabular problems.

    python -m tokengym.benchmarks.studies.linvit

Values are regularized towards a prior policy, as that of a language model: V(s) = max over pi of the expected Q less
lambda KL(pi | prior), which is lambda log sum_a prior(a | s) exp(Q(s, a) / lambda). The agent estimates transitions and
rewards from counts, adds a bonus that shrinks with them for an optimistic Q and subtracts it for a pessimistic one, and
explores with the optimistic regularized policy, mixed with the action whose bounds are furthest apart. The fewer
episodes it needs, the nearer the prior is to the regularized optimum. Constants are ours; the source's are not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from ...arrays import FloatArray
from ...settings import Count, CountOrZero, NonNegative, Positive, check_settings
from ..study import study_command


@dataclass(frozen=True)
class Problem:
    """A Markov decision process of H steps that begins in state 0.

    Attributes:
        transitions: `[S, A, S]` probabilities of the next state.
        rewards: `[S, A]` rewards in [0, 1].
        horizon: Number H of steps.
    """

    transitions: FloatArray
    rewards: FloatArray
    horizon: int


@dataclass(frozen=True)
class Experiment:
    """Priors from good to uniform on the same problems.

    Attributes:
        strengths: Strengths of the priors, which are in proportion to exp(strength Q*); 0 is uniform.
        seeds: Seeds of problems and episodes.
        states: Number of states.
        actions: Number of actions.
        horizon: Steps of an episode.
        temperature: Weight lambda of the divergence from the prior.
        bonus: Factor of the bonus for rare actions.
        tolerance: Suboptimality of the regularized value at which learning counts as done.
        episodes: Largest number of episodes.
    """

    strengths: tuple[NonNegative, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)
    seeds: tuple[CountOrZero, ...] = tuple(range(10))
    states: Count = 8
    actions: Count = 4
    horizon: Count = 4
    temperature: Positive = 0.5
    bonus: NonNegative = 0.1
    tolerance: Positive = 0.05
    episodes: Count = 4000

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.strengths or not self.seeds:
            raise ValueError("nothing to run: strengths and seeds need at least one value each")


def soft_values(
    problem: Problem, prior: FloatArray, temperature: float, bonus: FloatArray | float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Regularized values `[H + 1, S]` and Q `[H, S, A]`, clipped to the rewards left, by backward induction.

    Args:
        problem: Problem, or the estimate of one.
        prior: `[S, A]` policy that values are regularized towards.
        temperature: Lambda; as it goes to infinity the values are those of the prior.
        bonus: `[S, A]` number that is added to each reward.
    """
    states = len(problem.rewards)
    values, found = np.zeros((problem.horizon + 1, states)), np.zeros((problem.horizon, *problem.rewards.shape))
    for step in reversed(range(problem.horizon)):
        q = problem.rewards + bonus + problem.transitions @ values[step + 1]
        found[step] = q.clip(0, problem.horizon - step)
        scaled = found[step] / temperature
        top = scaled.max(1)
        values[step] = temperature * (top + np.log((prior * np.exp(scaled - top[:, None])).sum(1)))
    return values, found


def soft_policy(q: FloatArray, prior: FloatArray, temperature: float) -> FloatArray:
    """The regularized policy `[..., S, A]` of Q, prior exp(Q / lambda) over its sum."""
    weights = prior * np.exp((q - q.max(-1, keepdims=True)) / temperature)
    return weights / weights.sum(-1, keepdims=True)


def regularized_value(problem: Problem, policy: FloatArray, prior: FloatArray, temperature: float) -> float:
    """Expected reward of a policy `[H, S, A]` from state 0, less lambda times its divergence from the prior."""
    values = np.zeros(len(problem.rewards))
    for own in reversed(policy):
        divergence = np.where(own > 0, own * (np.log(own.clip(1e-300)) - np.log(prior)), 0.0).sum(1)
        values = (own * (problem.rewards + problem.transitions @ values)).sum(1) - temperature * divergence
    return float(values[0])


def divergence(problem: Problem, prior: FloatArray, temperature: float) -> float:
    """KL(pi* | prior) of whole episodes of the regularized optimum pi*."""
    values, q = soft_values(problem, prior, temperature)
    policy = soft_policy(q, prior, temperature)
    reward = np.zeros(len(problem.rewards))
    for own in reversed(policy):
        reward = (own * (problem.rewards + problem.transitions @ reward)).sum(1)
    return float(reward[0] - values[0, 0]) / temperature


def episodes_needed(problem: Problem, prior: FloatArray, experiment: Experiment, seed: int) -> int:
    """Episodes before the pessimistic regularized policy is within the tolerance of the optimum, at most all."""
    temperature, (states, actions) = experiment.temperature, problem.rewards.shape
    best = soft_values(problem, prior, temperature)[0][0, 0]
    counts, paid = np.zeros((states, actions, states)), np.zeros((states, actions))
    rng = np.random.default_rng(seed)
    for episode in range(1, experiment.episodes + 1):
        visits = counts.sum(2)
        known = np.maximum(visits, 1)
        guess = np.where(visits[:, :, None] > 0, counts / known[:, :, None], 1 / states)
        estimate = Problem(guess, paid / known, problem.horizon)
        width = experiment.bonus * problem.horizon * np.sqrt(np.log(episode + 1) / known)
        high, low = (soft_values(estimate, prior, temperature, sign * width)[1] for sign in (1, -1))
        if regularized_value(problem, soft_policy(low, prior, temperature), prior, temperature) >= (
            best - experiment.tolerance
        ):
            return episode - 1
        explore, gaps = soft_policy(high, prior, temperature), high - low
        state = 0
        for step in range(problem.horizon):
            widest = rng.random() < 1 / problem.horizon
            action = int(gaps[step, state].argmax()) if widest else int(rng.choice(actions, p=explore[step, state]))
            after = int(rng.choice(states, p=problem.transitions[state, action]))
            counts[state, action, after] += 1
            paid[state, action] += problem.rewards[state, action]
            state = after
    return experiment.episodes


def draw(experiment: Experiment, seed: int) -> tuple[Problem, FloatArray]:
    """A random problem, and the mean over steps of its optimal Q, `[S, A]`, which good priors know."""
    rng = np.random.default_rng([seed, 1])
    shape = experiment.states, experiment.actions
    problem = Problem(rng.dirichlet(np.full(experiment.states, 0.3), shape), rng.random(shape) ** 3, experiment.horizon)
    uniform = np.full(shape, 1 / experiment.actions)
    return problem, soft_values(problem, uniform, 1e-3)[1].mean(0)


@dataclass(frozen=True)
class Row:
    """Priors of one strength.

    Attributes:
        strength: Strength of the priors.
        divergences: KL(pi* | prior) of each seed.
        needed: Episodes needed in each seed; the largest number where those were not enough.
        is_cut: True if in some seed they were not.
    """

    strength: float
    divergences: list[float]
    needed: list[int]
    is_cut: bool


def run(experiment: Experiment) -> list[Row]:
    """The rows of all strengths."""
    rows: list[Row] = []
    for strength in experiment.strengths:
        gaps: list[float] = []
        needed: list[int] = []
        for seed in experiment.seeds:
            problem, q = draw(experiment, seed)
            prior = soft_policy(q, np.full(q.shape, 1 / q.shape[1]), 1 / strength if strength else np.inf)
            gaps.append(divergence(problem, prior, experiment.temperature))
            needed.append(episodes_needed(problem, prior, experiment, seed))
        rows.append(Row(strength, gaps, needed, max(needed) == experiment.episodes))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Means over seeds, with 95 % intervals where there are several."""
    grid = Table("strength of the prior", "KL(pi* | prior)", "episodes to the tolerance", box=SIMPLE, show_edge=False)
    for row in rows:
        episodes = ("more than " if row.is_cut else "") + _shown(row.needed, 0)
        grid.add_row(f"{row.strength:g}", _shown(row.divergences, 2), episodes)
    return grid


def _shown(values: Sequence[float], digits: int) -> str:
    """A mean with its interval, by Student's t over the seeds; one seed has none."""
    from scipy import stats

    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    mean, error = np.mean(values), stats.sem(values)
    low, high = mean + np.array(stats.t.interval(0.95, len(values) - 1)) * error
    return f"{mean:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


if __name__ == "__main__":
    study_command(Experiment, run, table, width=120)
