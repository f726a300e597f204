"""Synthetic problems by backtranslation: new solutions, questions for them, and a student who solves some, not all.

After the appendix of Havrilla et al. 2024: a proposer learns to write solutions like their nearest neighbors, a writer
learns the way from solutions back to questions, and what the two make is kept where the student's attempts agree with
the proposed answer now and then, but not always. There such problems made models worse.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from ..envs.problems.base import Problem, ProblemList, ProblemSource
from ..envs.token_vector_env import TokenVectorEnv
from ..files import write_text
from ..models.adapters import base_name, is_adapter
from ..models.outcome import is_outcome_model
from ..models.tokenizers import load_tokenizer
from ..rewards.grading.numbers import Verdict
from .base import Agent, Callback
from .configs.backtranslation import BacktranslationConfig
from .configs.lora import LoRA
from .configs.optimizer import FineTuneConfig
from .rollouts.attempts import Attempt
from .rollouts.policy import CausalLMPolicy
from .sft import SFT
from .training.memory import check_held

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARKER = "####"
LIKE, ASK = "Like these:\n{question}\n\nSolution:\n", "Solution:\n{question}\n\nQuestion:\n"
"""Prompts of the proposer and of the writer; what they are given stands for the question."""
_PROPOSER_SEED, _WRITER_SEED, _STUDENT_SEED = 700_001, 700_003, 700_007


class Backtranslation(Agent[BacktranslationConfig]):
    """Writes new problems that the student, the agent's model, solves sometimes; the model itself does not change.

    With a run folder they are in its `problems.jsonl`, for `tokengym/Dataset-v0` with `solution="solution"`.
    """

    name = "backtranslation"
    config_class = BacktranslationConfig
    follows_curriculum = False

    problems: list[Problem]
    """Problems that were kept, after `learn`."""

    def _load_model(
        self, model: str | Path, device: str, dtype: str, lora: LoRA
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        policy, tokenizer = super()._load_model(model, device, dtype, lora)
        self._lora = lora  # of the proposer and the writer: the student does not change
        if (base := self.config.base) is not None:  # before a proposer is made of it
            if is_outcome_model(base):
                raise ValueError(f"base={base!r} is an outcome model, which writes no text: give a language model")
            folder = Path(base).expanduser()
            other = load_tokenizer(base_name(folder) if is_adapter(folder) else base)
            if other.get_vocab() != tokenizer.get_vocab():
                raise ValueError(f"the tokenizers of base={base!r} and of the student {self.model_name!r} differ")
        return policy, tokenizer

    def learn(
        self, total_episodes: int | None = None, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Trains the proposer and the writer, samples problems from them, and keeps those that the student vouches for.

        With a run folder each phase can be interrupted and taken up again.

        Raises:
            ValueError: `total_episodes` is given, there are fewer solutions than neighbors, a solution lacks "####" and
                an answer after it, or nothing that was proposed can be kept.
        """
        if total_episodes is not None:
            raise ValueError(
                "backtranslation needs no budget: set proposals and samples_per_problem, not total_episodes"
            )
        config = self.config
        check_held(config.proposals, "proposals", "`proposals`")
        known = self._known(progress_bar)
        solutions = self._solutions(known, progress_bar)
        new = self._asked(known, solutions, progress_bar) if solutions else []
        new = [problem for problem in new if len(self.env.encode_prompt(problem)) <= self.env.max_prompt_tokens]
        successes = self._successes(new, progress_bar) if new else {}
        self.problems = [problem for problem in new if 0 < successes[problem.id] < config.samples_per_problem]
        metrics = {
            "problems/solutions": float(len(solutions)),
            "problems/questions": float(len(new)),
            "problems/never_solved": float(sum(count == 0 for count in successes.values())),
            "problems/always_solved": float(sum(count == config.samples_per_problem for count in successes.values())),
            "problems/kept": float(len(self.problems)),
        }
        if self.run is not None:
            self.run.rewind(self.num_attempts - 1)  # what an earlier process logged of the same
        self.log(metrics, callback)
        if not self.problems:
            count = config.samples_per_problem
            raise ValueError(
                f"of {config.proposals} proposals {len(solutions)} were new solutions with an answer, {len(new)} of "
                f"these got a new question, and the student solved none of them in some of {count} attempts "
                "and not in all: propose more, or learn from more demonstrations"
            )
        if self.run is not None:
            rows = [
                {"question": p.question, "answer": p.answer, "solution": p.solution, "successes": successes[p.id]}
                for p in self.problems
            ]
            write_text(self.run.path / "problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            self.run.finish()
        self.ranks.wait()
        return self

    def _solutions(self, known: list[Problem], progress_bar: bool) -> dict[str, str]:
        """New solutions with an answer, by id."""
        worked = [problem.solution or "" for problem in known]
        near = neighbors([self.env.encode_solution(problem) for problem in known], self.config.neighbors)

        def given(number: int, rows: Sequence[int], target: str | None) -> Problem:
            return Problem(f"{number}", "\n\n".join(worked[row] for row in rows), "", target)

        lessons = [given(i, near[i].tolist(), solution) for i, solution in enumerate(worked)]
        order = np.random.default_rng([self.seed, _PROPOSER_SEED]).permutation(len(known)).tolist()
        # A proposal is to be like a sampled solution and those nearest to it.
        sampled = [order[i % len(order)] for i in range(self.config.proposals)]
        seeds = [given(i, [at, *near[at, :-1].tolist()], None) for i, at in enumerate(sampled)]
        texts = self._written("proposer", LIKE, lessons, seeds, _PROPOSER_SEED, progress_bar)
        return _new(
            {p.id: text for p, text in zip(seeds, texts, strict=True) if self._is_readable(_answer(text))}, worked
        )

    def _is_readable(self, answer: str | None) -> bool:
        """True if the environment can grade attempts by an answer that was proposed."""
        if answer is None:
            return False
        try:
            self.env.problems.answer_format.check(answer)
        except ValueError:
            return False
        return True

    def _asked(self, known: list[Problem], solutions: Mapping[str, str], progress_bar: bool) -> list[Problem]:
        """The solutions that a new question was found for, as problems."""
        lessons = [Problem(problem.id, problem.solution or "", "", problem.question) for problem in known]
        seeds = [Problem(name, solution, "") for name, solution in solutions.items()]
        texts = self._written("writer", ASK, lessons, seeds, _WRITER_SEED, progress_bar)
        questions = _new(dict(zip(solutions, texts, strict=True)), [problem.question for problem in known])
        return [
            Problem(f"synthetic-{name}", question, _answer(solutions[name]) or "", solutions[name])
            for name, question in questions.items()
        ]

    def _known(self, progress_bar: bool) -> list[Problem]:
        """Problems with solutions; those over the environment's limits are left out."""
        solved = self.demonstrations(self.config.demonstrations, progress_bar)
        known = [self.env.problems.find(name) for name in solved]
        for problem in known:
            if _answer(problem.solution or "") is None:
                raise ValueError(f"problem {problem.id!r} has no solution that ends with '{MARKER} answer'")
        if len(known) <= self.config.neighbors:
            raise ValueError(
                f"{len(known)} demonstrations have no {self.config.neighbors} neighbors each: lower neighbors, or "
                "learn from more"
            )
        return known

    def _written(
        self, name: str, prompt: str, lessons: list[Problem], seeds: list[Problem], seed: int, progress_bar: bool
    ) -> list[str]:
        """Completions of a model fine-tuned on the lessons, one for each seed; "" where it found no end."""
        config = self.config
        folder = None if self.run_path is None else self.run_path / name
        # As long as the longest that it has seen: what is longer is no solution or no question.
        length = max(len(self.env.encode_solution(lesson)) for lesson in lessons)
        taught, asked = (self._slots(prompt, problems, length) for problems in (lessons, seeds))
        agent = SFT(
            taught,
            config.base or self.model_name,
            num_envs=self.num_envs,
            seed=self.seed + seed,
            run=folder,
            resume="auto",
            device=str(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            attn=self._attn,
            **self._lora.to_dict(),
            validation_problems=0,
            **{item.name: getattr(config, item.name) for item in fields(FineTuneConfig)},
        )
        agent.learn(progress_bar=progress_bar)
        attempts = self._collect_stage(name, agent.policy, asked, len(seeds), 1, seed, progress_bar)
        return [asked.decode(attempt.completion).strip() if attempt.terminated else "" for attempt in attempts]

    def _slots(self, prompt: str, problems: list[Problem], max_new_tokens: int) -> TokenVectorEnv:
        prompts = [self.tokenizer(prompt.replace("{question}", problem.question)) for problem in problems]
        return TokenVectorEnv(
            _Ungraded(problems),
            self.num_envs,
            tokenizer=self.tokenizer,
            eos_token_ids=sorted(self.env.eos_token_ids),
            prompt=prompt,
            max_prompt_tokens=max(len(encoded["input_ids"]) for encoded in prompts),
            max_new_tokens=max_new_tokens,
            autoreset_mode="Disabled",
            copy=False,
        )

    def _successes(self, new: list[Problem], progress_bar: bool) -> dict[str, int]:
        """Number of the student's attempts at each problem that reach the proposed answer."""
        env, count = self.make_env(), self.config.samples_per_problem
        env.problems, env.num_problems = _Graded(new, env.problems), None
        attempts = self._collect_stage("student", self.policy, env, len(new), count, _STUDENT_SEED, progress_bar)
        successes = dict.fromkeys((problem.id for problem in new), 0)
        for attempt in attempts:
            successes[attempt.problem.id] += attempt.is_success
        return successes

    def _collect_stage(
        self,
        name: str,
        policy: CausalLMPolicy,
        env: TokenVectorEnv,
        problems: int,
        samples: int,
        seed: int,
        progress_bar: bool,
    ) -> list[Attempt]:
        """All ranks' attempts, in order."""
        ours = self.collect_attempts(
            policy.with_sampling(temperature=self.config.temperature),
            env,
            problems,
            samples,
            seed=self.seed + seed,
            folder=None if self.run_path is None else self.run_path / name / "sampled",
            description=f"{name}: sampling",
            progress_bar=progress_bar,
        )
        attempts = [attempt for part in self.ranks.gather(ours) for attempt in part]
        for attempt in attempts:
            self.num_attempts += 1
            self.num_tokens += len(attempt.completion)
        return attempts


class _Ungraded(ProblemList):
    """Solutions and questions have no answer that they could be graded by."""

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return Verdict(False, "no_answer", None)


class _Graded(ProblemList):
    """New problems, graded as those of another source are."""

    def __init__(self, problems: Sequence[Problem], source: ProblemSource) -> None:
        super().__init__(problems)
        self._source = source

    def grade(self, completion: str, problem: Problem) -> Verdict:
        return self._source.grade(completion, problem)


def neighbors(documents: Sequence[NDArray[np.integer]], count: int) -> NDArray[np.int64]:
    """The nearest other documents of each, by the cosine of their TF-IDF vectors, the nearest first.

    Args:
        documents: D of them, each the ids of its tokens `[T]`.
        count: K < D.

    Returns:
        `[D, K]`, indices; of equally near ones the earlier first.
    """
    terms, columns = np.unique(np.concatenate(documents), return_inverse=True)
    rows = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    vectors = np.zeros((len(documents), len(terms)), np.float32)
    np.add.at(vectors, (rows, columns), 1)
    vectors *= np.log((1 + len(documents)) / (1 + np.count_nonzero(vectors, axis=0))) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.empty((len(documents), count), np.int64)
    for begin in range(0, len(documents), 256):
        near = vectors[begin : begin + 256] @ vectors.T
        near[np.arange(len(near)), np.arange(begin, begin + len(near))] = -np.inf  # none is its own neighbor
        nearest[begin : begin + 256] = np.argsort(-near, axis=1, kind="stable")[:, :count]
    return nearest


def _answer(solution: str) -> str | None:
    """The text after the last "####"."""
    _, marker, answer = solution.rpartition(MARKER)
    return answer.strip() or None if marker else None


def _new(texts: Mapping[str, str], known: Sequence[str]) -> dict[str, str]:
    """Texts that are neither empty nor known nor the same as an earlier one, white space aside, by their ids."""
    seen = {"", *(" ".join(text.split()) for text in known)}
    found: dict[str, str] = {}
    for name, text in texts.items():
        folded = " ".join(text.split())
        if folded not in seen:
            seen.add(folded)
            found[name] = text
    return found
