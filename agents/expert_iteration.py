"""Expert iteration: sample attempts, keep the correct ones, fine-tune on them, repeat (Havrilla et al. 2024).

RFT (Yuan et al. 2023) and STaR (Zelikman et al. 2022) are settings of it: see `RFT` and `STaR`.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from torch import Tensor

from ..envs.curriculum import Curriculum, Sequential, Uniform
from ..envs.token_vector_env import TokenVectorEnv
from ..models.outcome import OutcomeModel
from ..models.vocabulary import num_token_ids
from ..rewards.grading.solutions import equation_sequence, equations, exact_text, is_right
from .base import Callback
from .configs.expert_iteration import ExpertIterationConfig, RFTConfig, STaRConfig
from .configs.lora import LoRA
from .configs.search import EvolutionConfig, SearchConfig
from .evaluation.rerankers import score_attempts
from .evolution import Evolution
from .rollouts.attempts import Attempt, RolloutStatistics
from .rollouts.collect import collect_into
from .rollouts.policy import CausalLMPolicy
from .rollouts.searches import ProblemSearch, SearchCost, search_into
from .rounds import RoundsAgent
from .search import Search
from .training.fine_tuning import fine_tune, report_to, restore
from .training.learner import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dataset = dict[tuple[str, str], Example]
"""Training examples by problem id and by what makes two solutions the same."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A correct attempt that may be trained on.

    Attributes:
        problem_id: Id of its problem.
        key: Key of the solution, shared by those of its problem that count as the same.
        text: Text of the solution.
        example: Prompt and completion to train on.
    """

    problem_id: str
    key: str
    text: str
    example: Example


@dataclass(slots=True)
class _Found:
    """What sampling a round has found, on one process or on all.

    Attributes:
        statistics: Statistics of all attempts.
        kept: Number of attempts that were good enough.
        wrong: Number of good ones that were rejected for a wrong equation.
        cost: Tokens of the search, if there is one.
        solutions: Good attempts, in the order in which one process would have sampled them.
    """

    statistics: RolloutStatistics = field(default_factory=RolloutStatistics)
    kept: int = 0
    wrong: int = 0
    cost: SearchCost = field(default_factory=SearchCost)
    solutions: list[Solution] = field(default_factory=list)

    @classmethod
    def merged(cls, parts: "Iterable[_Found]") -> "_Found":
        """What all processes have found together."""
        whole = cls()
        for part in parts:
            whole.statistics.merge(part.statistics)
            whole.kept += part.kept
            whole.wrong += part.wrong
            whole.cost.policy_tokens += part.cost.policy_tokens
            whole.cost.judged_tokens += part.cost.judged_tokens
            whole.solutions += part.solutions
        return whole


def most_distant(solutions: Iterable[Solution], known: Mapping[str, Sequence[str]]) -> Dataset:
    """One solution of each key, chosen to differ from the problem's others as RFT does (Yuan et al. 2023).

    Solutions come one after the other; one whose key is taken replaces the one that has it if its edit distances to the
    problem's solutions under other keys, known ones included, have a larger sum.

    Args:
        solutions: Solutions in the order in which they were sampled.
        known: Texts that a problem's solutions shall differ from besides each other, such as its reference, by id.
    """
    from rapidfuzz.distance import Levenshtein

    kept: dict[tuple[str, str], Solution] = {}
    by_problem: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for solution in solutions:
        texts = by_problem[solution.problem_id]
        if solution.key in texts:
            others = [text for key, text in texts.items() if key != solution.key]
            others += known.get(solution.problem_id, ())
            new, old = (
                sum(Levenshtein.distance(text, other) for other in others)
                for text in (solution.text, texts[solution.key])
            )
            if new <= old:
                continue
        texts[solution.key] = solution.text
        kept[solution.problem_id, solution.key] = solution
    return {key: solution.example for key, solution in kept.items()}


_KEYS: dict[str, Callable[[str], str]] = {"equation_sequence": equation_sequence, "exact_text": exact_text}


class ExpertIteration(RoundsAgent[ExpertIterationConfig]):
    """Expert iteration (EI): fine-tune on one's own correct attempts, round after round."""

    name = "ei"
    config_class = ExpertIterationConfig

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        policy, tokenizer = super()._load_model(model, device, dtype, lora)
        self._orm = None
        if self.config.orm is not None:
            self._orm = OutcomeModel.load(self.config.orm, tokenizer, self.device)
            self._orm.check_probability("orm_threshold")
        self._search_orm = None
        if self.config.search_orm is not None:
            self._search_orm = OutcomeModel.load(self.config.search_orm, tokenizer, self.device)
        return policy, tokenizer

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Runs rounds until the configured number, the budget or validation says stop; the best round's policy stays.

        Round 0 is fine-tuning on the demonstrations. A later round begins only if the budget covers it. With a run
        folder every finished round is kept, and learning continues after the last one, in the middle of its sampling or
        its fine-tuning too. Ctrl-C leaves the policy of the best finished round. A second call runs as many rounds
        again, see `RoundsAgent`.

        Raises:
            ValueError: The budget does not cover one round, prompts exceed the environment's limit, the slots are too
                few for the search, or there is nothing to fine-tune on: no demonstrations and no attempt that was kept.
        """
        problems = self.count_problems(self.config.problems)
        if self.config.shots:
            self.make_env(shots=self.config.shots).check_prompts(problems)
        self._search(self.env)  # what it cannot work with is named before anything is sampled
        if self._done is None:
            self._kept = self._demonstrations(progress_bar)
        self._dataset = self._kept  # without what an interrupted call has added
        self.learn_in_rounds(problems, total_episodes, callback, progress_bar)
        self._kept = self._dataset
        return self

    def train_round(
        self, number: int, base: Mapping[str, Tensor], metrics: dict[str, float], progress_bar: bool
    ) -> None:
        if number or self._dataset:
            if self.config.restart == "base":
                restore(self.model, base)
            self._fine_tune(number, self._dataset, metrics, progress_bar)

    def _demonstrations(self, progress_bar: bool) -> Dataset:
        if self.config.demonstrations == 0:
            return {}
        examples = self.demonstrations(self.config.demonstrations, progress_bar)
        return {
            (problem_id, self._key(self.env.decode(example.completion))): example
            for problem_id, example in examples.items()
        }

    def _key(self, solution: str) -> str:
        return _KEYS[self.config.deduplicate](solution)

    # ----------------------------------------------------------------------------------------------------- exploration

    def sample_round(self, number: int, episodes: int, metrics: dict[str, float], progress_bar: bool) -> None:
        """Samples K attempts at every problem, and makes D_i of R_i, the distinct ones that are good enough."""
        started = time.perf_counter()
        shots = self.config.shots if number == 1 else 0
        env = self.make_env(shots=shots) if shots else self.env
        if env.size is not None:  # with examples before them more prompts may be too long, and are passed over
            episodes = min(episodes, env.size * self.config.samples_per_problem)
        search = self._search(env)
        found = self._explore(number, env, episodes, search, progress_bar)
        kept = self._distinct(found.solutions)
        metrics |= self.count(found.statistics, time.perf_counter() - started)
        if search is not None:  # tokens of abandoned candidates count too, and those that the outcome model read
            self.num_tokens += found.cost.policy_tokens + found.cost.judged_tokens - found.statistics.tokens
            metrics["search/policy_tokens"] = found.cost.policy_tokens
            metrics["search/judged_tokens"] = found.cost.judged_tokens
        metrics["rollout/skipped_prompts"] = env.num_skipped
        metrics["rollout/kept"] = found.kept
        if self.config.reject_wrong_equations:
            metrics["rollout/wrong_equations"] = found.wrong
        metrics["rollout/distinct"] = len(kept)
        metrics["rollout/problems_solved"] = len({problem_id for problem_id, _ in kept})
        self._dataset = {**kept, **self._dataset} if self.config.accumulate else kept

    def _explore(
        self, number: int, env: TokenVectorEnv, episodes: int, search: ProblemSearch | None, progress_bar: bool
    ) -> "_Found":
        """Samples a round's attempts, of which every process takes a share; what all of them have found."""
        samples = 1 if search is None else self.config.samples_per_problem  # a search is of a whole problem
        share = self.ranks.share(episodes // samples)
        numbers = range(share.start * samples, share.stop * samples)
        found = _Found()
        seen: set[tuple[str, str]] = set()
        with self.progress(len(numbers), f"round {number}: sampling", progress_bar) as bar:
            for attempt, good in self._judged(self._attempts(number, env, numbers, bar.update, search)):
                found.statistics.add(attempt)
                if not good:
                    continue
                text = env.decode(attempt.completion)
                if self.config.reject_wrong_equations and not all(map(is_right, equations(text))):
                    found.wrong += 1
                    continue
                found.kept += 1
                solution = self._solution(attempt, text, env)
                if self.config.keep == "distant" or (solution.problem_id, solution.key) not in seen:
                    seen.add((solution.problem_id, solution.key))
                    found.solutions.append(solution)
        if search is not None:
            found.cost = search.cost
        return _Found.merged(self.ranks.gather(found))

    def _solution(self, attempt: Attempt, text: str, env: TokenVectorEnv) -> Solution:
        """A good attempt, with some text, as it is trained on."""
        # The prompt of later rounds has no examples in it, whatever this one had; without them nobody would go on to
        # the next question, where attempts stopped.
        completion = attempt.completion if env is self.env else env.encoder.end_by_token(attempt.completion)
        example = Example(self.env.encode_prompt(attempt.problem), completion)
        return Solution(attempt.problem.id, self._key(text), text, example)

    def _distinct(self, solutions: Sequence[Solution]) -> Dataset:
        """One solution of each key."""
        if self.config.keep == "distant":
            known: defaultdict[str, list[str]] = defaultdict(list)
            for (problem_id, _), example in self._dataset.items():
                known[problem_id].append(self.env.decode(example.completion))
            return most_distant(solutions, known)
        kept: Dataset = {}
        for solution in solutions:
            kept.setdefault((solution.problem_id, solution.key), solution.example)
        return kept

    def _curriculum(self) -> Curriculum:
        """Curriculum of a round: the split's first problems, K attempts at each."""
        return Sequential(repeats=self.config.samples_per_problem)

    def _search(self, env: TokenVectorEnv) -> ProblemSearch | None:
        """The search that is the round's expert, if one is configured.

        Raises:
            ValueError: The environment has too few slots for it, or problems without end.
        """
        config = self.config
        if config.search is None:
            return None
        if env.size is None and not isinstance(self._curriculum(), Sequential):
            raise ValueError("a search takes the split's first problems, and these never end: leave out search")
        if self._search_orm is None:
            generations = config.search_generations
            return Evolution(
                self._explorer(), env, EvolutionConfig(config.samples_per_problem, generations, config.temperature)
            )
        settings = SearchConfig(config.search, config.samples_per_problem, config.search_keep, config.temperature)
        return Search(self._explorer(), env, self._search_orm, settings)

    def _explorer(self) -> CausalLMPolicy:
        """The policy that attempts are drawn from."""
        truncation = {name: getattr(self.config, name) for name in ("top_k", "top_p", "min_p")}
        return self.policy.with_sampling(temperature=self.config.temperature, **truncation)

    def _attempts(
        self,
        number: int,
        env: TokenVectorEnv,
        numbers: range,
        on_step: Callable[[int], object],
        search: ProblemSearch | None,
    ) -> Iterator[Attempt]:
        """The round's attempts, written to the run folder as they come; those already there are not sampled again."""
        seed, folder, rank = self.round_seed(number), self.round_folder(number), self.ranks.index
        env.curriculum = self._curriculum()
        if search is None:
            return collect_into(folder, self._explorer(), env, numbers, seed=seed, rank=rank, on_step=on_step)
        width = search.width
        problems = range(numbers.start // width, numbers.stop // width)
        return search_into(folder, search, problems, seed=seed, rank=rank, on_step=on_step)

    def _judged(self, attempts: Iterator[Attempt]) -> Iterator[tuple[Attempt, bool]]:
        """Each attempt, and whether it is to be trained on; one that was cut off by its token budget never is."""
        config, orm = self.config, self._orm
        while batch := list(itertools.islice(attempts, 1 if orm is None else _SCORED_TOGETHER)):
            good = np.array([attempt.terminated for attempt in batch])
            if orm is None or config.orm_filter == "and":
                good &= [attempt.total_reward >= config.threshold for attempt in batch]
            if orm is not None:
                good &= score_attempts(orm, batch) >= config.orm_threshold
            yield from zip(batch, good.tolist(), strict=True)

    # ------------------------------------------------------------------------------------------------------ improvement

    def _fine_tune(self, number: int, dataset: Dataset, metrics: dict[str, float], progress_bar: bool) -> None:
        started = time.perf_counter()
        folder = self.round_folder(number)
        with self.progress(None, f"round {number}: fine-tuning", progress_bar) as bar:
            fine_tune(
                self.model,
                list(dataset.values()),
                self.config,
                accelerator=self.accelerator,
                seed=self.round_seed(number),
                vocab_size=num_token_ids(self.tokenizer),
                checkpoints=folder / "training" if folder is not None else None,
                on_step=report_to(bar, metrics),
            )
        metrics["train/examples"] = len(dataset)
        metrics["time/train_seconds"] = time.perf_counter() - started


# Attempts that an outcome model scores at a time: some forward passes of a micro-batch each.
_SCORED_TOGETHER = 256


class RFT(ExpertIteration):
    """Rejection-sampling fine-tuning (Yuan et al. 2023): one round of expert iteration at temperature 0.7."""

    name = "rft"
    config_class = RFTConfig


class STaR(ExpertIteration):
    """STaR: every round trains on its own correct samples alone and starts from the newest policy.

    Where problems never end, every round draws its own, x ~ D as in Algorithm 1 of Tsilivis et al. 2025.
    """

    name = "star"
    config_class = STaRConfig

    def _curriculum(self) -> Curriculum:
        kind = Uniform if self.env.size is None else Sequential
        return kind(repeats=self.config.samples_per_problem)
