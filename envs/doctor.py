"""What is wrong with a problem set, found before a training run finds it."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from .problems.base import SPLITS, Problem, ProblemSource
from .problems.expressions import evaluate
from .problems.prompts import render_prompt
from .registration import make_vec_env

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from transformers import PreTrainedTokenizerBase

_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")


@dataclass(frozen=True, slots=True)
class Finding:
    """One complaint about one problem.

    Attributes:
        severity: "error" if it would falsify a result or stop a run, else "warning".
        check: which check complains: "gold_answer", "duplicate", "overlap", "prompt_length", "solution_length",
            "annotation" or "solution_steps".
        split: split of the source.
        index: the problem's index in its source.
        problem_id: its id, which names the row of the data where they have rows.
        message: what is wrong, in one sentence.
    """

    severity: Literal["error", "warning"]
    check: str
    split: str
    index: int
    problem_id: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.problem_id} ({self.split} {self.index}): {self.message}"


@dataclass(frozen=True)
class Findings:
    """What `diagnose` found.

    Attributes:
        findings: all complaints, source by source and in the order of the problems.
        checked: how many problems of each source were looked at, by the source's text.
    """

    findings: tuple[Finding, ...]
    checked: Mapping[str, int]

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
    prompt: str = "qa",
    limit: int = 1000,
) -> Findings:
    """Checks problem sources, each by itself, and against one another for problems that they share.

    - The gold answer grades as correct, and so does the reference solution.
    - No question occurs twice in a source (an error if the answers differ, not checked in endless sources), or in two
      sources; letter case and white space make no difference.
    - Prompts and solutions fit into the token limits.
    - Calculator annotations `<<a+b=c>>` compute, decimals up to rounding or cutting off; solutions have steps.

    Args:
        sources: one source, or several (the splits of one data set, usually).
        tokenizer: for the token limits: name for `models.load_tokenizer`, or a tokenizer.
        max_prompt_tokens: longest prompt; `None` for any.
        max_new_tokens: longest solution, its end-of-sequence token included; `None` for any.
        prompt: template of the prompts.
        limit: how many problems to look at in an endless source.

    Raises:
        ValueError: there is a token limit and no tokenizer.
        UnknownNameError: no template or tokenizer has that name.
        OSError: a source cannot be read.
    """
    sources = [sources] if isinstance(sources, ProblemSource) else list(sources)
    limits = (max_prompt_tokens, max_new_tokens)
    if tokenizer is None and limits != (None, None):
        raise ValueError("a token limit needs the tokenizer to count with")
    if isinstance(tokenizer, str):
        from ..models import load_tokenizer  # here and not above: importing transformers takes seconds

        tokenizer = load_tokenizer(tokenizer)
    findings: list[Finding] = []
    checked: dict[str, int] = {}
    seen: dict[str, tuple[ProblemSource, Problem]] = {}  # by question, in the sources before
    for source in sources:
        count = limit if source.size is None else source.size
        problems = [source[index] for index in range(count)]
        complaints: dict[int, list[tuple[Literal["error", "warning"], str, str]]] = defaultdict(list)
        here: dict[str, Problem] = {}
        for index, problem in enumerate(problems):
            complain = complaints[index]
            complain += _check_answers(source, problem)
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
        if tokenizer is not None:
            for index, complaint in _check_lengths(problems, tokenizer, limits, prompt, source.instruction):
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


_Complaint = tuple[Literal["error", "warning"], str, str]


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


def check_annotation(annotation: str) -> str | None:
    """What is wrong with the inside of a calculator annotation such as "48/2=24"; `None` when it computes."""
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
        unit, error = Fraction(1, 10**places), abs(value - result)
        inexact = 2 * error <= unit or (error < unit and abs(result) < abs(value))
        if error and not (places and inexact):
            return f"the annotation <<{annotation}>> does not compute: it gives {float(value):g}"
    return None


def _check_lengths(
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
    limits: tuple[int | None, int | None],
    prompt: str,
    instruction: str,
) -> Iterator[tuple[int, _Complaint]]:
    max_prompt_tokens, max_new_tokens = limits

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]

    for index, problem in enumerate(problems):
        if max_prompt_tokens is not None:
            tokens = count(render_prompt(prompt, problem, tokenizer=tokenizer, instruction=instruction))
            if tokens > max_prompt_tokens:
                message = f"the prompt has {tokens} tokens, over max_prompt_tokens={max_prompt_tokens}"
                yield index, ("error", "prompt_length", message)
        if max_new_tokens is not None and problem.solution is not None:
            tokens = count(problem.solution) + 1
            if tokens > max_new_tokens:
                message = f"the solution has {tokens} tokens, over max_new_tokens={max_new_tokens}"
                yield index, ("warning", "solution_length", message)


def diagnose_env(env: "str | EnvSpec", limit: int = 1000, **settings: Any) -> Findings:
    """`diagnose` for all splits of a registered environment, with its own tokenizer, prompt and token limits.

    Args:
        env: the environment's id or spec.
        limit: how many problems of each split to look at in an endless source.
        settings: arguments of the environment.
    """
    made = [make_vec_env(env, 1, **{**settings, "split": split}) for split in SPLITS]
    first = made[0]
    return diagnose(
        [one.problems for one in made],
        first.tokenizer,
        first.max_prompt_tokens,
        first.max_new_tokens,
        first.prompt_template,
        limit,
    )
