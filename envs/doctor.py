"""Finds the faults of a problem set before a training run does."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ..rewards.grading.expressions import evaluate
from .problems.base import SPLITS, MissingSplitError, Problem, ProblemSource
from .problems.prompts import Chat
from .problems.tables import malformed_rows
from .prompt_encoder import PromptEncoder
from .registration import make_vec_env

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from transformers import PreTrainedTokenizerBase

    from .token_vector_env import TokenVectorEnv

_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")

_Complaint = tuple[Literal["error", "warning"], str, str]
"""Severity, check and message of a finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One complaint about one problem.

    Attributes:
        severity: Severity: "error" if it would falsify a result or stop a run, else "warning".
        check: Check that complains: "gold_answer", "duplicate", "overlap", "prompt_length", "solution_length",
            "annotation", "solution_steps", "stop", "row" or "split".
        split: Split of the source.
        index: Index of the problem in its source; -1 for a malformed row, which is not a problem of it, and for a whole
            split that cannot be read.
        problem_id: Id of the problem, which names the row if the data has rows; "" where `index` is -1.
        message: Fault in one sentence.
    """

    severity: Literal["error", "warning"]
    check: str
    split: str
    index: int
    problem_id: str
    message: str

    def __str__(self) -> str:
        if self.index < 0:
            return f"{self.severity}: {self.message}"
        return f"{self.severity}: {self.problem_id} ({self.split} {self.index}): {self.message}"


@dataclass(frozen=True)
class Findings:
    """Findings of `diagnose`.

    Attributes:
        findings: Findings of all sources, source by source and in the order of the problems.
        checked: Number of problems checked in each source, by the source's text.
        absent: Reason by split, for splits that the data does not have.
    """

    findings: tuple[Finding, ...]
    checked: Mapping[str, int]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The complaints that are errors."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The complaints that are warnings."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")


def diagnose(
    sources: ProblemSource | Sequence[ProblemSource],
    tokenizer: "str | PreTrainedTokenizerBase | None" = None,
    max_prompt_tokens: int | None = None,
    max_new_tokens: int | None = None,
    prompt: "str | Mapping[str, Any] | Chat" = "qa",
    limit: int = 1000,
    stop: Sequence[str] = (),
    shots: int = 0,
    examples: ProblemSource | None = None,
) -> Findings:
    """Checks problem sources, each by itself, and against one another for problems that they share.

    - The gold answer grades as correct, and so does the reference solution. Something else than its own text can equal
      the gold answer, too.
    - No question occurs twice in a source (an error if the answers differ, not checked in endless sources), or in two
      sources; letter case and white space make no difference.
    - Prompts and solutions fit into the token limits.
    - Calculator annotations `<<a+b=c>>` compute, decimals up to rounding or cutting off; solutions have steps, and do
      not continue after a stop string.

    Args:
        sources: Source to check, or several, usually the splits of one data set.
        tokenizer: Tokenizer for the token limits, or its name for `models.load_tokenizer`.
        max_prompt_tokens: Length limit of prompts in tokens; `None` sets none.
        max_new_tokens: Length limit of solutions in tokens, the end-of-sequence token included; `None` sets none.
        prompt: Template of the prompts, or settings of chats.
        limit: Number of problems to check in an endless source.
        stop: Texts that end an attempt, and that no solution should contain.
        shots: Number of worked examples before each question.
        examples: Source of the worked examples.

    Raises:
        ValueError: There is a token limit and no tokenizer, `limit` is below 1, or there are too few examples for the
            shots.
        UnknownNameError: No template or tokenizer has that name.
        OSError: A source cannot be read.
    """
    sources = [sources] if isinstance(sources, ProblemSource) else list(sources)
    limits = (max_prompt_tokens, max_new_tokens)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if tokenizer is None and limits != (None, None):
        raise ValueError("a token limit needs the tokenizer to count with")
    if isinstance(tokenizer, str):
        from ..models import load_tokenizer  # here and not above: importing transformers takes seconds

        tokenizer = load_tokenizer(tokenizer)
    findings: list[Finding] = []
    checked: dict[str, int] = {}
    seen: dict[str, tuple[ProblemSource, Problem]] = {}  # by question, in the sources before
    listed: set[str] = set()  # faults of rows, of which several splits may be carved
    for source in sources:
        # Sources that were made outside of `diagnose_env` may read their rows now.
        with malformed_rows() as rows:
            count = limit if source.size is None else source.size
            problems = [source[index] for index in range(count)]
        bad_rows = [row for row in (*rows, *getattr(source, "bad_rows", ())) if row not in listed]
        findings += [_malformed(source.split, row) for row in bad_rows]
        listed.update(bad_rows)
        complaints: dict[int, list[_Complaint]] = defaultdict(list)
        here: dict[str, Problem] = {}
        for index, problem in enumerate(problems):
            complain = complaints[index]
            complain += _check_answers(source, problem)
            complain += _check_readable(source, problem)
            question = " ".join(problem.question.split()).casefold()
            if question in seen:
                other, twin = seen[question]
                complain.append(("error", "overlap", f"asks the same as {twin.id} of {other.split}"))
            if question in here and source.size is not None:
                twin = here[question]
                if twin.answer == problem.answer:
                    complain.append(("warning", "duplicate", f"asks the same as {twin.id}"))
                else:
                    message = f"asks the same as {twin.id}, with the answer {problem.answer} for {twin.answer}"
                    complain.append(("error", "duplicate", message))
            here.setdefault(question, problem)
            complain += _check_solution(problem)
            complain += _check_stops(source, problem, stop)
        if tokenizer is not None:
            encoder = PromptEncoder(source, tokenizer, template=prompt, shots=shots, examples=examples, stop=stop)
            for index, complaint in _check_lengths(problems, encoder, limits):
                complaints[index].append(complaint)
        findings += [
            Finding(severity, check, source.split, index, problems[index].id, message)
            for index in range(count)
            for severity, check, message in complaints[index]
        ]
        checked[str(source)] = count
        for question, problem in here.items():
            seen.setdefault(question, (source, problem))
    return Findings(tuple(findings), checked)


def _malformed(split: str, row: str) -> Finding:
    return Finding("error", "row", split, -1, "", row)


def _check_answers(source: ProblemSource, problem: Problem) -> Iterator[_Complaint]:
    # An attempt shows its answer after a marker, or is nothing but the answer, as its source has it.
    attempts: dict[str, tuple[str, ...]] = {"answer": (source.answer_format.show(problem.answer), problem.answer)}
    if problem.solution is not None:
        attempts["solution"] = (problem.solution,)
    for what, completions in attempts.items():
        try:
            verdicts = [source.grade(completion, problem) for completion in completions]
        except ValueError as error:
            yield "error", "gold_answer", str(error)
            return
        if not any(verdict.correct for verdict in verdicts):
            reason = f"the gold {what} grades as {verdicts[0].reason}"
            yield "error", "gold_answer", f"{reason}, with {verdicts[0].answer} for {problem.answer}"


def _check_readable(source: ProblemSource, problem: Problem) -> Iterator[_Complaint]:
    try:
        readable = source.answer_format.is_readable(problem.answer)
    except ValueError:  # `_check_answers` says why
        return
    if not readable:
        yield "warning", "gold_answer", f"nothing but its own text can equal the gold answer {problem.answer[:60]!r}"


def _check_solution(problem: Problem) -> Iterator[_Complaint]:
    if problem.solution is None:
        return
    lines = problem.solution.strip().splitlines()
    if len(lines) == 1 and lines[0].startswith("####"):
        yield "warning", "solution_steps", "the solution has no step before the answer"
    for annotation in _ANNOTATION.findall(problem.solution):
        complaint = check_annotation(annotation)
        if complaint:
            yield "warning", "annotation", complaint


def _check_stops(source: ProblemSource, problem: Problem, stop: Sequence[str]) -> Iterator[_Complaint]:
    # At the very end of a solution one does no harm: "</answer>".
    solution = "" if problem.solution is None else problem.solution.strip()
    for string in stop:
        if string in solution.removesuffix(string.rstrip()):
            yield "warning", "stop", f"the solution continues after {string!r}, which ends an attempt"


def check_annotation(annotation: str) -> str | None:
    """Fault of the inside of a calculator annotation such as "48/2=24"; `None` if it computes."""
    sides = re.sub(r"[$,\s]", "", annotation).split("=")
    try:
        values = [evaluate(side)[0] for side in sides]
    except ValueError:
        return f"the annotation <<{annotation}>> cannot be read"
    if len(sides) < 2:
        return f"the annotation <<{annotation}>> has no result"
    for (value, result), side in zip(pairwise(values), sides[1:], strict=True):
        # A result such as 3.33 may have been rounded or cut off; a whole one has no excuse.
        places = len(side.partition(".")[2].removesuffix("%"))
        unit = Fraction(1, 10**places * (100 if side.endswith("%") else 1))
        error = abs(value - result)
        inexact = 2 * error <= unit or (error < unit and abs(result) < abs(value))
        if error and not (places and inexact):
            return f"the annotation <<{annotation}>> does not compute: it gives {float(value):g}"
    return None


def _check_lengths(
    problems: Sequence[Problem], encoder: PromptEncoder, limits: tuple[int | None, int | None]
) -> Iterator[tuple[int, _Complaint]]:
    max_prompt_tokens, max_new_tokens = limits
    for index, problem in enumerate(problems):
        if max_prompt_tokens is not None:
            tokens = len(encoder.encode_prompt(problem))
            if tokens > max_prompt_tokens:
                message = f"the prompt has {tokens} tokens, over max_prompt_tokens={max_prompt_tokens}"
                yield index, ("error", "prompt_length", message)
        if max_new_tokens is not None and problem.solution is not None:
            tokens = len(encoder.encode_solution(problem))
            if tokens > max_new_tokens:
                message = f"the solution has {tokens} tokens, over max_new_tokens={max_new_tokens}"
                yield index, ("warning", "solution_length", message)


def diagnose_env(env: "str | EnvSpec", limit: int = 1000, **settings: Any) -> Findings:
    """`diagnose` for the splits that a registered environment has, with its own tokenizer, prompt and token limits.

    A malformed row, or a split that is there and cannot be read, is a finding, and the others are checked all the same.

    Args:
        env: Environment id or spec.
        limit: Number of problems to check in each split of an endless source.
        settings: Arguments of the environment.

    Raises:
        ValueError: No split can be made, the message gives the reason for the first; or `limit` is below 1.
        OSError: No split can be read; the message gives the reason for the first.
    """
    made: list[TokenVectorEnv] = []
    absent: dict[str, str] = {}
    failures: list[Exception] = []
    rows: dict[str, str] = {}  # a malformed row, and the first split that it was met in
    unreadable: dict[str, str] = {}  # likewise the fault of a split that is there
    for split in SPLITS:
        with malformed_rows() as found:
            try:
                one = make_vec_env(env, 1, **{**settings, "split": split})
                one.problems.size  # noqa: B018 - sources may read their rows only now
                made.append(one)
            except (MissingSplitError, FileNotFoundError) as error:
                absent[split] = str(error)
                failures.append(error)
            except ValueError as error:
                unreadable.setdefault(str(error), split)
                failures.append(error)
        for row in found:
            rows.setdefault(row, split)
    if not made:
        raise failures[0]
    first = made[0]
    findings = diagnose(
        [one.problems for one in made],
        first.tokenizer,
        first.max_prompt_tokens,
        first.max_new_tokens,
        first.prompt_template,
        limit,
        first.stop,
        first.encoder.shots,
        first.encoder.examples,
    )
    malformed = tuple(_malformed(split, row) for row, split in rows.items())
    malformed += tuple(Finding("error", "split", split, -1, "", fault) for fault, split in unreadable.items())
    return replace(findings, findings=malformed + findings.findings, absent=absent)
