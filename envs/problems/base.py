"""Problems and where they come from: the first stage of the way of data, before any tokenizer."""

import copy
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, SupportsIndex

from ...registry import Registry, unknown_name
from ...rewards.grading.formats import AnswerFormat, Marker, make_format
from ...rewards.grading.numbers import Verdict
from ...rewards.grading.worker import in_background
from ...settings import check_kind, kinds_checked

SPLITS = ("train", "validation", "test")
_TEST = re.compile(r"(?<![a-z])test(?![a-z])")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer.

    Attributes:
        id: Name that the problem's source finds it by, stable between runs and machines.
        question: Text of the question, without any prompt around it.
        answer: Gold answer alone ("72").
        solution: Full worked solution that ends with its answer as the source's format shows it ("#### 72" on its last
            line, or a box as in MATH); `None` where the data has none.
        messages: Conversation that asks the question, if the data has one: chat prompts are these turns.

    Raises:
        TypeError: An id, a question, an answer or a solution is no text, such as the number 72.
    """

    id: str
    question: str
    answer: str
    solution: str | None = None
    messages: tuple[Message, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("id", "question", "answer"):
            if not isinstance(getattr(self, name), str):
                check_kind(f"{name} of problem {self.id!r}", getattr(self, name), str)
        if self.solution is not None and not isinstance(self.solution, str):
            check_kind(f"solution of problem {self.id!r}", self.solution, str | None)


HOW_TO_MAKE = "give Problem(id, question, answer, solution)"


class MissingSplitError(ValueError):
    """Data have no such split, which is no fault of the data: the splits that they have can be used."""


def check_split(split: str) -> str:
    """`split` itself when it is one of `SPLITS`; raises `UnknownNameError` otherwise."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return split


class ProblemSource(ABC):
    """An indexed set of problems, finite or endless; a pure function of its arguments, the split and the index.

    A source pickles, holds no random state, and leaves the network alone until its first problem is asked for.
    """

    split: str
    answer_format: AnswerFormat = Marker()
    """Format in which attempts show their answers, and by which they are compared."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Number of problems; `None` for an endless source, whose indices range over [0, 2**63)."""

    @abstractmethod
    def __getitem__(self, index: SupportsIndex) -> Problem:
        """The problem at `index`, whatever was asked for before; raises `IndexError` outside the range."""

    @abstractmethod
    def find(self, problem_id: str) -> Problem:
        """The problem named `problem_id`; raises `ValueError` when this source has no such problem."""

    def grade(self, completion: str, problem: Problem) -> Verdict:
        """Grades a finished attempt at `problem`; `completion` is the text after the prompt."""
        return self.answer_format.grade(completion, problem.answer, question=problem.question)

    def begin_grading(self, completion: str, problem: Problem) -> Verdict | Future[Verdict]:
        """Grades as `grade`, or returns a future verdict, so that other attempts go on meanwhile.

        By default only verdicts that need math-verify's process are futures. Override it for graders that take long,
        such as judges behind a network or programs that are run; `grade` remains for whoever waits.
        """
        return in_background(self.grade, completion, problem)

    def check_steps(self, steps: Sequence[str], problem: Problem) -> list[bool]:
        """True for each step of a solution that is right by itself, whatever came before it.

        Sources that make their problems can tell. Override it for data whose right steps are known.

        Args:
            steps: Texts of the steps, which are lines; the last may be the beginning of one.
            problem: Problem that the solution is of.

        Raises:
            NotImplementedError: Nothing says which steps are right in solutions of these problems.
        """
        raise NotImplementedError(f"{self} cannot tell right steps from wrong ones: override check_steps")

    def __repr__(self) -> str:
        """The source in messages; the same in every process, unlike an address in memory."""
        return f"{type(self).__name__}(split={self.split!r})"

    @property
    def instruction(self) -> str:
        """Sentence at the end of a chat prompt that asks for an answer as `grade` reads it; "" for none."""
        return self.answer_format.instruction

    def with_split(self, split: str) -> Self:
        """The same source for another split.

        Raises:
            MissingSplitError: This source was made by hand and has no other split.
        """
        if split == self.split:
            return self
        raise MissingSplitError(
            f"{self} was made by hand for the {self.split} split: override with_split, or register its class with a "
            "`split` argument, so that it is made for each split"
        )

    @property
    def env_settings(self) -> Mapping[str, Any]:
        """Arguments of the environment that suit these problems; the registered ids use them where none are given."""
        return {}


class FiniteSource(ProblemSource):
    """Base of sources that hold all their problems in memory, loaded when the first is asked for.

    Raises (at that first use):
        ValueError: there is no problem, or two share an id.
    """

    @abstractmethod
    def load(self) -> Sequence[Problem]:
        """Reads the problems, in order; called once."""

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """All problems in order."""
        loaded = self.load()
        check_kind(f"what {type(self).__name__}.load returns", loaded, Iterable)
        problems = tuple(loaded)
        if not problems:
            raise ValueError(f"{self} has no problems")
        first: dict[str, int] = {}
        for position, problem in enumerate(problems):
            if not isinstance(problem, Problem):
                raise TypeError(f"{self}: problem {position} is {problem!r}: {HOW_TO_MAKE}")
            if (other := first.setdefault(problem.id, position)) != position:
                raise ValueError(f"{self}: the id {problem.id!r} names two problems, numbers {other} and {position}")
        return problems

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {problem.id: position for position, problem in enumerate(self.problems)}

    @property
    def size(self) -> int:
        return len(self.problems)

    def make_problem(
        self,
        problem_id: str,
        place: str,
        question: str,
        answer: str,
        solution: str | None,
        messages: tuple[Message, ...] | None = None,
    ) -> Problem:
        """A problem as a row of data has it, its solution ended in the source's answer format.

        Raises:
            ValueError: The answer does not fit the format; the message begins with `place` and gives the reason.
        """
        try:
            self.answer_format.check(answer)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if solution is not None:
            solution = self.answer_format.complete(solution, answer)
        return Problem(problem_id, question, answer, solution, messages)

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: SupportsIndex) -> Problem:
        position = operator.index(index)
        if not 0 <= position < len(self.problems):
            raise IndexError(f"{self}: index {position} is outside [0, {len(self.problems)})")
        return self.problems[position]

    def find(self, problem_id: str) -> Problem:
        if problem_id not in self._positions:
            raise ValueError(f"{self} has no problem {problem_id!r}; its ids look like {self.problems[0].id!r}")
        return self.problems[self._positions[problem_id]]


class PublishedSource(FiniteSource):
    """Base of published data sets, which are on the hub and may be at hand as local files.

    Args:
        split: Split of the problems: "train", "validation" or "test".
        data: Folder or file with the data, read on construction without any network; by default it is read from the hub
            when the first problem is asked for.
        answer_format: Format of the answers of attempts: a name in `ANSWER_FORMATS`, a mapping with "name" and the
            format's arguments, or an `AnswerFormat`; `None` uses the format of the data set's own solutions.

    Raises:
        UnknownNameError: There is no such split or format.
        ValueError: A gold answer is none in this format (local files), or the format takes no such arguments.
    """

    @kinds_checked
    def __init__(
        self,
        split: str = "train",
        data: str | Path | None = None,
        answer_format: str | Mapping[str, Any] | AnswerFormat | None = None,
    ) -> None:
        self.split = check_split(split)
        self.data = data
        if answer_format is not None:
            self.answer_format = make_format(answer_format)
        if data is not None:
            self.problems  # noqa: B018 - local files fail on construction

    def _check_file(self, path: Path, published: str) -> None:
        """Raises `MissingSplitError` if a file, by its name, has the rows of the other published split."""
        if path.is_file() and bool(_TEST.search(path.stem.lower())) != (published == "test"):
            raise MissingSplitError(
                f"{path} has no {self.split} problems: the name of the file with the test rows holds 'test', and the "
                "train and validation rows are in another; give the folder with both"
            )

    def with_split(self, split: str) -> Self:
        return type(self)(split, self.data, self.answer_format)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(split={self.split!r}, data={self.data!r})"


class ProblemList(FiniteSource):
    """A source over problems at hand.

    Args:
        problems: Problems with unique ids, or those of several splits by the splits' names.
        split: Split that the problems are, or the one of them to use.
        answer_format: Format of the answers of attempts, as in other sources.

    Raises:
        UnknownNameError: There is no such split or format.
        MissingSplitError: There are no problems for `split`.
        TypeError: One of the problems is no `Problem`.
    """

    @kinds_checked
    def __init__(
        self,
        problems: Sequence[Problem] | Mapping[str, Sequence[Problem]],
        split: str = "train",
        answer_format: str | Mapping[str, Any] | AnswerFormat = "marker",
    ) -> None:
        self.split = check_split(split)
        self.answer_format = make_format(answer_format)
        splits = problems if isinstance(problems, Mapping) else {split: problems}
        self._splits = {check_split(name): tuple(given) for name, given in splits.items()}
        for name, given in self._splits.items():
            for row, problem in enumerate(given):
                if not isinstance(problem, Problem):
                    raise TypeError(f"{name} problem {row} is {problem!r}: {HOW_TO_MAKE}")
        if split not in self._splits:
            raise MissingSplitError(f"a ProblemList of {', '.join(self._splits)} has no {split} split")

    def load(self) -> Sequence[Problem]:
        return self._splits[self.split]

    def with_split(self, split: str) -> Self:
        """The problems of another split.

        Raises:
            MissingSplitError: The source was made by hand and has no other split.
        """
        if check_split(split) not in self._splits:
            raise MissingSplitError(
                f"{self} has no {split} split: make it as ProblemList({{'train': [...], {split!r}: [...]}})"
            )
        other = copy.copy(self)
        other.split = split
        for cached in ("problems", "_positions"):
            vars(other).pop(cached, None)
        return other

    def __repr__(self) -> str:
        return f"ProblemList({len(self._splits[self.split])} problems, split={self.split!r})"


_BUILT_IN = {
    "arithmetic": "arithmetic:Arithmetic",
    "dataset": "dataset:Dataset",
    "gsm8k": "gsm8k:GSM8K",
    "math": "competition_math:MATH",
    "multiplication": "multiplication:Multiplication",
    "parity": "parity:Parity",
    "svamp": "svamp:SVAMP",
}

PROBLEMS: Registry[Callable[..., ProblemSource]] = Registry(
    "problem", {name: f"{__package__}.{home}" for name, home in _BUILT_IN.items()}, base=f"{__name__}:ProblemSource"
)
"""Problem sources by name; third parties join through the entry-point group `tokengym.problems`."""


def check_source(problems: object) -> None:
    """Raises `TypeError` unless something is a problem source, with the way to make one of a list."""
    if not isinstance(problems, ProblemSource):
        raise TypeError(f"problems must be a ProblemSource, such as ProblemList([...]), got {problems!r:.80}")


def make_problems(source: str | ProblemSource, **arguments: Any) -> ProblemSource:
    """The problem source registered under a name, constructed with `arguments`; a source is handed through as it is.

    Raises:
        UnknownNameError: Nothing is registered under that name.
        ValueError: Arguments do not fit the source, or came with one that is already made, or another package's source
            cannot be used.
    """
    if isinstance(source, str):
        return PROBLEMS.make_named(source, arguments)
    if arguments:
        raise ValueError(f"{source!r} is already made: give it {', '.join(sorted(arguments))} where you make it")
    return source
