"""Search over the steps of solutions, guided by a judge that scores what was written so far.

One loop serves all methods. The candidates for a problem are run to their next step end in the slots of an environment;
the judge scores them; a rule (`search_rules`) says which of them continue, and how often each: losers restart from
winners' prefixes, whose keys and values are copied from cache to cache. A search ends with ordinary attempts, graded by
the environment.

Several problems are searched at once, as many as there are slots for. Each has candidates and random streams of its
own, so what is found at one does not depend on the others; they share the passes of the policy and of the judge.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..arrays import FloatArray, IntArray, described, finite_scores, name_of
from ..envs.problems.base import Problem
from ..envs.token_vector_env import TokenVectorEnv
from ..models.engine.decoder import SlotDecoder
from ..models.engine.row_decoder import RowDecoder
from ..models.engine.sampling import stream_key
from ..models.engine.vllm_decoder import VLLMDecoder
from ..models.outcome import OutcomeModel
from ..rewards.steps import decode, newline_tokens, step_ends, step_texts
from .configs.search import Aggregate, SearchConfig
from .evaluation.rerankers import score_completions
from .rollouts.policy import CausalLMPolicy
from .rollouts.searches import Completion, Found, SearchCost, graded
from .search_rules import Candidate, first_candidates, resampled, selected
from .votes import VoteJudge

# The judge is asked, and problems begin, when this share of the slots waits for it: the larger, the fewer are the
# passes of the judge, and the emptier those of the policy.
_WAITING = 0.25


class Judge(Protocol):
    """Scores candidates."""

    def __call__(
        self, problems: Sequence[Problem], completions: Sequence[IntArray], prompts: Sequence[IntArray]
    ) -> FloatArray:
        """Scores `[C]` in [0, 1] of C completions so far, in any order of their problems.

        Args:
            problems: Problem of each completion.
            completions: Tokens `[T]` of each completion so far, T being 0 for the bare prompt.
            prompts: Tokens `[P]` of each completion's prompt.
        """
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

    def __call__(
        self, problems: Sequence[Problem], completions: Sequence[IntArray], prompts: Sequence[IntArray]
    ) -> FloatArray:
        return score_completions(self.model, prompts, completions, self.aggregate)


class ExactJudge:
    """1 for solutions whose steps so far are all right, else 0: the best that a judge of steps can be.

    Args:
        env: Token environment whose problems tell right steps from wrong ones, see `ProblemSource.check_steps`.
    """

    def __init__(self, env: TokenVectorEnv) -> None:
        self.env = env

    def __call__(
        self, problems: Sequence[Problem], completions: Sequence[IntArray], prompts: Sequence[IntArray]
    ) -> FloatArray:
        tokenizer, source = self.env.tokenizer, self.env.problems
        ends = step_ends(completions, [True] * len(completions), tokenizer)
        texts = [step_texts(tokens, own.tolist(), tokenizer) for tokens, own in zip(completions, ends, strict=True)]
        pairs = zip(texts, problems, strict=True)
        return np.array([float(all(source.check_steps(steps, problem))) for steps, problem in pairs])


@dataclass(slots=True, eq=False)
class _Tree:
    """The search at one problem.

    Attributes:
        problem: Problem.
        prompt: `[P]` tokens of its prompt.
        rng: Source of the rule's draws.
        candidates: Solutions so far that take up a slot each.
        slots: Slots of the candidates.
        done: Solutions that ended and wait for the others.
        drawing: Numbers of the candidates that are on their way to a step end.
        depth: Number of steps so far.
        cost: Cost so far.
    """

    problem: Problem
    prompt: IntArray
    rng: np.random.Generator
    candidates: list[Candidate]
    slots: list[int]
    done: list[Candidate] = field(default_factory=list)
    drawing: set[int] = field(default_factory=set)
    depth: int = 0
    cost: SearchCost = field(default_factory=SearchCost)

    def follow(self, config: SearchConfig) -> list[int]:
        """Replaces the scored candidates by those of the next step, none at the end; the slots that become free."""
        if config.rule == "resample":
            self.candidates = resampled(self.candidates, config, self.rng)
            if all(one.ended for one in self.candidates):
                self.done, self.candidates = self.candidates, []
        else:
            self.done += [one for one in self.candidates if one.ended]
            live, wanted = [one for one in self.candidates if not one.ended], config.width - len(self.done)
            self.candidates = selected(live, wanted, config) if live and wanted > 0 else []
        free = self.slots[len(self.candidates) :]
        del self.slots[len(self.candidates) :]
        self.depth += 1
        return free


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
        TypeError: The judge is neither an outcome model nor a function.
    """

    def __init__(
        self, policy: CausalLMPolicy, env: TokenVectorEnv, judge: Judge | OutcomeModel, config: SearchConfig
    ) -> None:
        if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
            raise ValueError("a search places attempts itself: make the env with autoreset_mode='Disabled'")
        if env.num_envs < config.width:
            raise ValueError(
                f"a search of width {config.width} needs as many slots, and the env has {env.num_envs}: raise "
                f"`num_envs` to {config.width}, or choose a smaller width"
            )
        if isinstance(judge, OutcomeModel):
            judge = OutcomeJudge(judge, config.aggregate)
        if isinstance(judge, OutcomeJudge):
            judge.model.check_tokenizer(policy.tokenizer)
            if config.rule == "resample":
                judge.model.check_probability('the search rule "resample"')
        elif isinstance(judge, VoteJudge) and config.rule == "resample":
            raise ValueError('the search rule "resample" needs p(correct), which votes are not: choose another rule')
        elif not callable(judge):
            raise TypeError(
                f"a judge is an OutcomeModel or a function of problems, completions and prompts, not {judge!r}"
            )
        self.policy = policy.with_sampling(temperature=config.temperature)
        self.env, self.judge, self.config = env, judge, config
        self.cost = SearchCost()
        """Cost at all problems whose attempts were found so far."""
        self._newline = newline_tokens(policy.tokenizer)
        self._by_steps = config.rule != "best_of_n"  # which has nothing to decide before the end

    @property
    def width(self) -> int:
        """Attempts that a search ends with at each problem."""
        return self.config.width

    def __call__(self, problems: Iterable[str | int], seed: int) -> Iterator[Found]:
        """Searches for solutions of problems, several at a time.

        Args:
            problems: Problems to search on, by id or index.
            seed: Seed of the random streams, of which every problem has its own.

        Returns:
            An iterator over what was found at each problem, `config.width` attempts and their scores, in order.
        """
        decoder, coming = self.policy.rollout_decoder(self.env), iter(problems)
        free, trees, finished = list(range(self.env.num_envs)), list[_Tree](), dict[_Tree, Found]()
        order: list[_Tree] = []
        while True:
            opened = self._opened([*itertools.islice(coming, len(free) // self.width)], free, seed)
            trees, order = trees + opened, order + opened
            if not trees:
                return
            self._begin(decoder, trees, seed)
            waiting = self._extended(decoder, trees)
            self._score(waiting)
            for tree in waiting:
                free += tree.follow(self.config)
            over = [tree for tree in waiting if not tree.candidates]
            trees = [tree for tree in trees if tree.candidates]
            finished |= zip(over, self._graded(over), strict=True)
            while order and order[0] in finished:
                found = finished.pop(order.pop(0))
                self.cost.add(found.cost)
                yield found

    def _opened(self, problems: Sequence[str | int], free: list[int], seed: int) -> list[_Tree]:
        """The searches at further problems, in slots that are taken from the free ones."""
        env, config = self.env, self.config
        if not problems:
            return []
        env.reset(options={"reset_mask": np.arange(env.num_envs) < len(problems), "problem_id": list(problems)})
        trees: list[_Tree] = []
        for number in range(len(problems)):
            problem, prompt = env.problem(number), env.prompt(number).copy()
            rng = np.random.default_rng([seed, stream_key(seed, problem.id, 0) % 2**32])
            slots = free[: config.width]
            del free[: config.width]
            trees.append(_Tree(problem, prompt, rng, [Candidate()], slots))
        if config.rule == "resample":
            self._score(trees)
        for tree in trees:
            tree.candidates = first_candidates(config, tree.candidates[0].score)
        return trees

    def _begin(self, decoder: SlotDecoder | RowDecoder | VLLMDecoder, trees: Sequence[_Tree], seed: int) -> None:
        """Puts the candidates of all problems that wait for their next step into their slots."""
        slots: list[int] = []
        sequences: list[IntArray] = []
        keys: list[int] = []
        busy = {tree.slots[number] for tree in trees for number in tree.drawing}
        for tree in trees:
            if tree.drawing:
                continue
            for number, one in enumerate(tree.candidates):
                if not one.ended:
                    tree.drawing.add(number)
                    slots.append(tree.slots[number])
                    sequences.append(np.concatenate([tree.prompt, one.tokens]).astype(np.int64))
                    keys.append(stream_key(seed, tree.problem.id, tree.depth * self.width + number + 1))
        idle = [slot for slot in decoder.slots.tolist() if slot not in busy and slot not in slots]
        if idle:
            decoder.retire(np.array(idle))
        if slots:
            decoder.begin(np.array(slots), sequences, np.array(keys))

    def _extended(self, decoder: SlotDecoder | RowDecoder | VLLMDecoder, trees: Sequence[_Tree]) -> list[_Tree]:
        """Draws tokens until the candidates of enough problems are at the ends of their steps; these problems."""
        drawing = {tree.slots[number]: (tree, number) for tree in trees for number in tree.drawing}
        while True:
            waiting = [tree for tree in trees if not tree.drawing]
            if waiting and sum(len(tree.slots) for tree in waiting) >= _WAITING * len(decoder.slots):
                return waiting
            tokens, logprobs = decoder.step(self.policy.sampling)
            may_end = self._may_end(tokens)
            stopped: list[int] = []
            for slot, token, logprob, may in zip(
                decoder.slots.tolist(), tokens.tolist(), logprobs.tolist(), may_end.tolist(), strict=True
            ):
                if slot not in drawing:
                    continue
                tree, number = drawing[slot]
                one = tree.candidates[number]
                one.tokens.append(token)
                one.logprobs.append(logprob)
                tree.cost.policy_tokens += 1
                one.ended = len(one.tokens) == self.env.max_new_tokens or (may and self._has_ended(one))
                if one.ended or (self._by_steps and self._newline[token] and self._is_step(one)):
                    stopped.append(slot)
                    tree.drawing.remove(number)
                    del drawing[slot]
            if stopped:
                decoder.finish(np.array(stopped))

    def _may_end(self, tokens: IntArray) -> NDArray[np.bool_]:
        """Which of `tokens` `[R]` may end an attempt, `[R]` bool."""
        may = self.env.encoder.is_eos[tokens]
        may[self.env.encoder.stops.candidates(tokens)] = True
        return may

    def _has_ended(self, one: Candidate) -> bool:
        """True if the last token, which may end the attempt, does so, as the environment will see it."""
        encoder = self.env.encoder
        return bool(encoder.is_eos[one.tokens[-1]]) or encoder.stops.ends(np.array(one.tokens))

    def _is_step(self, one: Candidate) -> bool:
        """True if the line that just ended has any text; a blank one is no step."""
        tokenizer = self.policy.tokenizer
        return bool(one.line.finish(np.array(one.tokens), lambda tokens: decode(tokenizer, tokens)))

    def _score(self, trees: Sequence[_Tree]) -> None:
        """Has the judge score all candidates of some problems."""
        owners = [tree for tree in trees for _ in tree.candidates]
        candidates = [one for tree in trees for one in tree.candidates]
        completions = [np.array(one.tokens, np.int64) for one in candidates]
        problems, prompts = [tree.problem for tree in owners], [tree.prompt for tree in owners]
        found = self.judge(problems, completions, prompts)
        if (scores := finite_scores(found, len(candidates))) is None:
            raise ValueError(
                f"the judge {name_of(self.judge)} must give {len(candidates)} finite scores, one for each completion, "
                f"and gave {described(found)}"
            )
        if self.config.rule == "resample" and not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(
                'the search rule "resample" needs p(correct), between 0 and 1, and the judge gave '
                f"{scores[(scores < 0) | (scores > 1)][0]:g}: choose another rule, or scale its scores"
            )
        spent = self.judge.newest_tokens if isinstance(self.judge, VoteJudge) else map(len, completions)
        for tree, one, score, tokens in zip(owners, candidates, scores.tolist(), spent, strict=True):
            one.score = score
            tree.cost.judged_tokens += tokens

    def _graded(self, trees: Sequence[_Tree]) -> list[Found]:
        """What was found at problems whose searches are over."""
        for tree in trees:
            del tree.done[self.width :]
        solutions = [
            Completion(tree.problem, index, tree.prompt, np.array(one.tokens, np.int64), np.array(one.logprobs))
            for tree in trees
            for index, one in enumerate(tree.done)
        ]
        attempts = iter(graded(self.env, solutions))
        return [
            Found([*itertools.islice(attempts, self.width)], np.array([one.score for one in tree.done]), tree.cost)
            for tree in trees
        ]
