"""Search over the steps of solutions, guided by a judge that scores what was written so far.

One loop serves all methods. The candidates for a problem are run to their next step end in the slots of an environment;
the judge scores them; a rule says which of them continue, and how often each: losers restart from winners' prefixes,
whose keys and values are copied from cache to cache. A search ends with ordinary attempts, graded by the environment.

The rules:

- "best_of_n" lets every candidate continue;
- "beam" keeps the best and copies them (Snell et al. 2024, arXiv 2408.03314);
- "tot" keeps the best that differ, for a repetition is worth nothing (tree of thoughts, Yao et al. 2023, arXiv
  2305.10601, breadth first; its judge is `votes.VoteJudge`);
- "dvts" does so in independent groups (diverse verifier tree search, Beeching et al. 2024);
- "rebase" gives each a share of the slots by the softmax of its score (Wu et al. 2024, arXiv 2408.00724);
- "resample" draws candidates with weights whose limit, with many slots and a calibrated judge, is the policy that is
  optimal under a KL penalty, see `tilted_weights`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..arrays import FloatArray, IntArray
from ..envs.problems.base import Problem
from ..envs.token_vector_env import TokenVectorEnv
from ..files import LineFile, read_jsonl
from ..models.engine.decoder import SlotDecoder
from ..models.engine.row_decoder import RowDecoder
from ..models.engine.sampling import stream_key
from ..models.engine.vllm_decoder import VLLMDecoder
from ..models.outcome import OutcomeModel
from ..rewards.steps import OpenLine, decode, newline_tokens, step_ends, step_texts
from .configs.search import Aggregate, SearchConfig
from .evaluation.rerankers import score_completions
from .rollouts.attempts import Attempt, AttemptFile, RecordedAttempts
from .rollouts.policy import CausalLMPolicy
from .votes import VoteJudge


class Judge(Protocol):
    """Scores candidates."""

    def __call__(self, problem: Problem, completions: Sequence[IntArray], prompt: IntArray) -> FloatArray:
        """Scores `[C]` in [0, 1] of C completions so far, each `[T]` tokens, T being 0 for the bare prompt."""
        ...


class OutcomeJudge:
    """An outcome model's p(correct) after the last token, or its scores after all steps, combined.

    Args:
        model: Outcome model, whose tokenizer must be the policy's.
        aggregate: Score of a completion: the "last" step's, or the least ("min") or the "product" of all; `None` uses
            `OutcomeModel.aggregate`.
    """

    def __init__(self, model: OutcomeModel, aggregate: Aggregate | None = None) -> None:
        self.model = model
        self.aggregate: Aggregate | None = aggregate

    def __call__(self, problem: Problem, completions: Sequence[IntArray], prompt: IntArray) -> FloatArray:
        return score_completions(self.model, [prompt] * len(completions), completions, self.aggregate)


class ExactJudge:
    """1 for solutions whose steps so far are all right, else 0: the best that a judge of steps can be.

    Args:
        env: Token environment whose problems tell right steps from wrong ones, see `ProblemSource.check_steps`.
    """

    def __init__(self, env: TokenVectorEnv) -> None:
        self.env = env

    def __call__(self, problem: Problem, completions: Sequence[IntArray], prompt: IntArray) -> FloatArray:
        tokenizer, problems = self.env.tokenizer, self.env.problems
        ends = step_ends(completions, [True] * len(completions), tokenizer)
        texts = [step_texts(tokens, own.tolist(), tokenizer) for tokens, own in zip(completions, ends, strict=True)]
        return np.array([float(all(problems.check_steps(steps, problem))) for steps in texts])


@dataclass
class SearchCost:
    """Cost of searches.

    Attributes:
        policy_tokens: Tokens that the policy drew, those of abandoned candidates included.
        judged_tokens: Tokens of the completions that the judge was given, each time anew; those of questions and
            answers if the judge votes.
    """

    policy_tokens: int = 0
    judged_tokens: int = 0


@dataclass(slots=True)
class _Candidate:
    """A solution so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    line: OpenLine = field(default_factory=OpenLine)
    score: float = 0.0
    weight: float = 1.0
    ended: bool = False
    group: int = 0

    def copy(self) -> "_Candidate":
        line = OpenLine(self.line.start, self.line.carried)
        return _Candidate(
            self.tokens.copy(), self.logprobs.copy(), line, self.score, self.weight, self.ended, self.group
        )


class Search:
    """Searches for solutions.

    Args:
        policy: Draws the steps.
        env: A token environment with `autoreset_mode` DISABLED and at least `config.width` slots.
        judge: Scores candidates; an outcome model, or any function of that kind.
        config: Settings of the search.

    Raises:
        ValueError: The environment resets finished slots by itself or has too few of them, or the judge is an outcome
            model of another tokenizer, or "resample" is asked of a preference model or of votes, which are no
            probabilities.
    """

    def __init__(
        self, policy: CausalLMPolicy, env: TokenVectorEnv, judge: Judge | OutcomeModel, config: SearchConfig
    ) -> None:
        if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
            raise ValueError("a search places attempts itself: make the env with autoreset_mode='Disabled'")
        if env.num_envs < config.width:
            raise ValueError(f"a search of width {config.width} needs as many slots, and the env has {env.num_envs}")
        if isinstance(judge, OutcomeModel):
            if judge.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
                raise ValueError("the outcome model that judges has another tokenizer than the policy")
            if config.rule == "resample":
                judge.check_probability('the search rule "resample"')
            judge = OutcomeJudge(judge, config.aggregate)
        elif isinstance(judge, VoteJudge) and config.rule == "resample":
            raise ValueError('the search rule "resample" needs p(correct), which votes are not: choose another rule')
        self.policy = policy.with_sampling(temperature=config.temperature)
        self.env, self.judge, self.config = env, judge, config
        self.cost = SearchCost()
        self._newline = newline_tokens(policy.tokenizer)

    @property
    def width(self) -> int:
        """Attempts that a search ends with at each problem."""
        return self.config.width

    def __call__(self, problem_id: str | int, seed: int) -> tuple[list[Attempt], FloatArray]:
        """Searches for solutions of one problem.

        Args:
            problem_id: Problem to search on, by id or index.
            seed: Seed of the problem's random streams.

        Returns:
            `config.width` attempts, and the judge's scores `[width]` of them.
        """
        config, env = self.config, self.env
        slots = np.arange(config.width)
        env.reset(options={"reset_mask": np.arange(env.num_envs) < config.width, "problem_id": problem_id})
        problem, prompt = env.problem(0), env.prompt(0).copy()
        rng = np.random.default_rng([seed, stream_key(seed, problem.id, 0) % 2**32])
        candidates = [_Candidate(group=slot * config.keep // config.width) for slot in slots.tolist()]
        start = float(self._judged(problem, [_Candidate()], prompt)[0]) if config.rule == "resample" else 0.0
        for one in candidates:
            one.weight = float(tilted_weights(np.array([start]), config.judge_temperature)[0])
        decoder = self.policy.rollout_decoder(env)
        done: list[_Candidate] = []
        for depth in range(env.max_new_tokens):
            self._extend(decoder, candidates, problem, prompt, seed, depth)
            for one, score in zip(candidates, self._judged(problem, candidates, prompt), strict=True):
                one.score = float(score)
            if config.rule == "resample":
                candidates = self._resampled(candidates, rng)
                if all(one.ended for one in candidates):
                    done = candidates
                    break
                continue
            done += [one for one in candidates if one.ended]
            live = [one for one in candidates if not one.ended]
            if not live or len(done) >= config.width:
                break
            candidates = self._selected(live, config.width - len(done), rng)
        done = done[: config.width]
        completions = [np.array(one.tokens, np.int64) for one in done]
        attempts = graded(env, problem, prompt, completions, [np.array(one.logprobs) for one in done])
        return attempts, np.array([one.score for one in done])

    def _extend(
        self,
        decoder: SlotDecoder | RowDecoder | VLLMDecoder,
        candidates: Sequence[_Candidate],
        problem: Problem,
        prompt: IntArray,
        seed: int,
        depth: int,
    ) -> None:
        """Draws the next step of all candidates that have not ended."""
        live = [slot for slot, one in enumerate(candidates) if not one.ended]
        if not live:
            return
        gone = [slot for slot in decoder.slots.tolist() if slot not in live]
        if gone:
            decoder.retire(np.array(gone))
        sequences = [np.concatenate([prompt, candidates[slot].tokens]).astype(np.int64) for slot in live]
        keys = np.array([stream_key(seed, problem.id, depth * self.config.width + slot + 1) for slot in live])
        decoder.begin(np.array(live), sequences, keys)
        running = set(live)
        while running:
            drawn, logprobs = decoder.step(self.policy.sampling)
            stopped: list[int] = []
            for slot, token, logprob in zip(decoder.slots.tolist(), drawn.tolist(), logprobs.tolist(), strict=True):
                if slot not in running:
                    continue
                one = candidates[slot]
                one.tokens.append(token)
                one.logprobs.append(logprob)
                self.cost.policy_tokens += 1
                one.ended = self._has_ended(one)
                if one.ended or (self._newline[token] and self._is_step(one)):
                    stopped.append(slot)
            if stopped:
                running.difference_update(stopped)
                decoder.finish(np.array(stopped))

    def _has_ended(self, one: _Candidate) -> bool:
        """True if the last token ends the attempt, as the environment will see it."""
        encoder, last = self.env.encoder, np.array(one.tokens[-1:])
        if encoder.is_eos[last[0]] or len(one.tokens) == self.env.max_new_tokens:
            return True
        return len(encoder.stops.candidates(last)) > 0 and encoder.stops.ends(np.array(one.tokens))

    def _is_step(self, one: _Candidate) -> bool:
        """True if the line that just ended has any text; a blank one is no step."""
        tokenizer = self.policy.tokenizer
        return bool(one.line.finish(np.array(one.tokens), lambda tokens: decode(tokenizer, tokens)))

    def _judged(self, problem: Problem, candidates: Sequence[_Candidate], prompt: IntArray) -> FloatArray:
        completions = [np.array(one.tokens, np.int64) for one in candidates]
        voter = self.judge if isinstance(self.judge, VoteJudge) else None
        before = 0 if voter is None else voter.num_tokens
        scores = np.asarray(self.judge(problem, completions, prompt), np.float64)
        self.cost.judged_tokens += sum(map(len, completions)) if voter is None else voter.num_tokens - before
        if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
            raise ValueError(f"the judge must give {len(candidates)} finite scores, got {scores!r}")
        return scores

    def _selected(self, live: Sequence[_Candidate], slots: int, rng: np.random.Generator) -> list[_Candidate]:
        """The candidates of the next step, `slots` of them, by the rule."""
        config, scores = self.config, np.array([one.score for one in live])
        if config.rule == "tot":
            first = {tuple(one.tokens): i for i, one in reversed(list(enumerate(live)))}
            scores[[i for i, one in enumerate(live) if first[tuple(one.tokens)] != i]] = -np.inf
        if config.rule == "best_of_n":
            parents = list(range(len(live)))
        elif config.rule in ("beam", "tot"):
            best = np.argsort(-scores, kind="stable")[: config.keep]
            best = best[scores[best] > -np.inf]
            parents = [int(best[i % len(best)]) for i in range(slots)]
        elif config.rule == "dvts":
            groups = sorted({one.group for one in live})
            members = [[i for i, one in enumerate(live) if one.group == group] for group in groups]
            winners = [max(group, key=lambda i: (scores[i], -i)) for group in members]
            parents = [winners[i % len(winners)] for i in range(slots)]
        else:
            parents = np.repeat(np.arange(len(live)), shares(scores / config.judge_temperature, slots)).tolist()
        return [live[parent].copy() for parent in parents]

    def _resampled(self, candidates: Sequence[_Candidate], rng: np.random.Generator) -> list[_Candidate]:
        """Candidates drawn with weights w(now) / w(before), those that ended included."""
        weights = tilted_weights(np.array([one.score for one in candidates]), self.config.judge_temperature)
        ratios = weights / np.array([one.weight for one in candidates])
        for one, weight in zip(candidates, weights, strict=True):
            one.weight = float(weight)
        return [candidates[i].copy() for i in systematic(ratios, rng)]


def graded(
    env: TokenVectorEnv,
    problem: Problem,
    prompt: IntArray,
    completions: Sequence[NDArray[np.integer]],
    logprobs: Sequence[NDArray[np.floating]],
) -> list[Attempt]:
    """Completions as attempts, numbered from 0: stepped through the environment, which pays and grades them.

    Args:
        env: Token environment with `autoreset_mode` DISABLED.
        problem: Problem of the environment.
        prompt: `[P]` tokens of its prompt.
        completions: Tokens `[T]` of each completion.
        logprobs: Log-probabilities `[T]` of them.
    """
    attempts: list[Attempt] = []
    for first in range(0, len(completions), env.num_envs):
        part = completions[first : first + env.num_envs]
        lengths = np.zeros(env.num_envs, np.int64)
        lengths[: len(part)] = list(map(len, part))
        tokens = np.zeros((env.num_envs, int(lengths.max())), np.int64)
        for slot, completion in enumerate(part):
            tokens[slot, : len(completion)] = completion
        env.reset(options={"reset_mask": np.arange(env.num_envs) < len(part), "problem_id": problem.id})
        _, rewards, terminations, _, infos = env.step_tokens(tokens, lengths)
        components = infos.get("reward_components", {})
        attempts += [
            Attempt(
                problem=problem,
                index=first + slot,
                prompt=prompt,
                completion=completion.astype(np.int32),
                logprobs=logprobs[first + slot].astype(np.float32),
                rewards=rewards[slot, : len(completion)].astype(np.float32),
                is_success=bool(infos["is_success"][slot]),
                verdict=infos["verdict"][slot],
                answer=infos["answer"][slot],
                terminated=bool(terminations[slot]),
                reward_components={name: float(p[slot]) for name, p in components.items() if not name.startswith("_")},
                number=first + slot,
            )
            for slot, completion in enumerate(part)
        ]
    return attempts


class ProblemSearch(Protocol):
    """Finds attempts at a problem, one problem at a time."""

    env: TokenVectorEnv
    cost: SearchCost

    @property
    def width(self) -> int:
        """Attempts that it ends with at each problem."""
        ...

    def __call__(self, problem_id: str | int, seed: int) -> tuple[list[Attempt], FloatArray | None]:
        """The attempts, and their scores `[width]` if there is a judge."""
        ...


def search_into(
    folder: Path | None,
    search: ProblemSearch,
    problems: range,
    *,
    seed: int,
    rank: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Attempt]:
    """Searches at problems one after the other, and writes to a folder what it finds; a search on record is not redone.

    Attempts are numbered as those of `collect_into`, `width` at each problem. What each search cost is written after
    its attempts, so `search.cost` counts all of them, those of earlier processes included.

    Args:
        folder: Folder where each process has its `attempts-<rank>.jsonl` and `searches-<rank>.jsonl`; `None` writes
            nothing.
        search: Search to run.
        problems: Indices of the problems, without gaps; those of different processes must not overlap.
        seed: Seed of the searches' random streams.
        rank: Rank of this process.
        on_step: Function that is called with the number of attempts that have just been found or read.
    """
    width = search.width
    numbers = range(problems.start * width, problems.stop * width)
    recorded = None if folder is None else RecordedAttempts(folder, numbers, search.env)
    costs: dict[int, dict[str, int]] = {}
    for path in [] if folder is None else sorted(folder.glob("searches-*.jsonl")):
        costs |= {line["problem"]: line for line in read_jsonl(path) if line["problem"] in problems}
    for index in problems:
        own = range(index * width, (index + 1) * width)
        known = set() if recorded is None else {number for number in own if number in recorded}
        if recorded is not None and index in costs and len(known) == width:
            search.cost.policy_tokens += costs[index]["policy_tokens"]
            search.cost.judged_tokens += costs[index]["judged_tokens"]
            found = list(recorded.read(own))
        else:
            before = replace(search.cost)
            found = [
                replace(attempt, number=number) for attempt, number in zip(search(index, seed)[0], own, strict=True)
            ]
            if folder is not None:
                with AttemptFile(folder / f"attempts-{rank}.jsonl") as file:
                    for attempt in found:
                        if attempt.number not in known:
                            file.write(attempt)
                spent = {name: getattr(search.cost, name) - getattr(before, name) for name in asdict(before)}
                with LineFile(folder / f"searches-{rank}.jsonl") as file:
                    file.write({"problem": index, **spent})
        if on_step is not None:
            on_step(width)
        yield from found


def tilted_weights(success: FloatArray, temperature: float) -> FloatArray:
    """W = 1 + p (e^(1/lambda) - 1), of prefixes from which the policy succeeds with probability p.

    With a reward of 1 for success and a penalty of lambda for each nat of divergence from the policy, the optimal
    policy draws a token with the policy's own probability times w(after) / w(before).

    Args:
        success: Probabilities p of success, of any shape.
        temperature: Temperature lambda; large values leave the policy as it is, small ones condition it on success.
    """
    return 1 + success * np.expm1(1 / temperature)


def shares(logits: FloatArray, total: int) -> IntArray:
    """Number of `total` slots that each candidate gets, by the softmax of `logits` `[C]`, rounded so that they add up.

    Largest remainders are rounded up; of equal ones the first.
    """
    weights = np.exp(logits - logits.max())
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def systematic(weights: FloatArray, rng: np.random.Generator) -> IntArray:
    """Draws C indices in proportion to their weights `[C]` (systematic resampling)."""
    count = len(weights)
    places = (rng.random() + np.arange(count)) / count
    return np.searchsorted(np.cumsum(weights) / weights.sum(), places).clip(max=count - 1)
