r"""Answer formats: where a completion shows its final answer, and what a prompt says about that.

    marker       what follows `####`, or another text, on its line
    boxed        what `\boxed{}` holds
    tag          what stands between `<answer>` and `</answer>`
    choice       the letter of an option
    last_number  the last number, for models that were asked for nothing

What comes before `</think>` is no answer in any of them. A format of one's own is a subclass of `AnswerFormat`, given
as an instance, or by a name from the entry-point group `tokengym.answer_formats`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ...registry import Registry, unknown_name
from ...settings import kinds_checked
from .boxes import boxed, boxed_answers
from .comparison import compare, is_copied, is_readable
from .latex import grade_free_form
from .numbers import (
    MAX_MARKS,
    Percent,
    Verdict,
    after_thinking,
    compare_numbers,
    find_last_number,
    grade,
    is_unit,
    marked,
    normalize_number,
)

GSM8K_MARKER = "####"

Answers = Literal["number", "latex"]


class AnswerFormat(ABC):
    """Format of final answers in completions: asked for by `instruction`, written by `show`, read by `extract`.

    Answers are compared as numbers where both are numbers, and else by what they come to in LaTeX. A subclass may
    compare in its own way by overriding `compare`.
    """

    @property
    @abstractmethod
    def instruction(self) -> str:
        """Sentence at the end of a prompt that asks for an answer in this format."""

    @abstractmethod
    def show(self, answer: str) -> str:
        """The last line of a solution with this answer: "#### 72"."""

    @abstractmethod
    def extract(self, completion: str) -> list[str]:
        """The answers that a completion shows, the last one first; none where it shows none."""

    def is_answer(self, line: str) -> bool:
        """True if a line of a completion is the one that shows its answer, and no step on the way there."""
        return bool(self.extract(line))

    def compare(self, answers: list[str], gold: str) -> Verdict:
        """The grade of an attempt by the answers that it shows, the last one first, one or more."""
        return compare(answers, gold)

    def grade(self, completion: str, answer: str, *, question: str | None = None) -> Verdict:
        """The grade of a completion. Never raises because of the completion.

        Args:
            completion: Text of an attempt.
            answer: Gold answer alone.
            question: Question, if it is known: an expression copied from it is not an answer.

        Raises:
            ValueError: The gold answer is not one that this format reads.
        """
        answers = self.extract(completion)
        if not answers:
            return Verdict(False, "no_answer", None)
        verdict = self.compare(answers, answer)
        if verdict.correct and question is not None and is_copied(answers[0], answer, question):
            return Verdict(False, "unparsed", None)
        return verdict

    def check(self, answer: str) -> None:
        """Raises `ValueError` with the reason when `answer` is no gold answer in this format."""
        verdict = self.grade(self.show(answer), answer)
        if not verdict.correct:
            raise ValueError(f"the gold answer {answer[:60]!r} is read as {verdict.answer!r} ({verdict.reason})")

    def is_readable(self, answer: str) -> bool:
        """True if anything but its own text can equal a gold answer that `check` lets pass."""
        return is_readable(answer)

    def complete(self, solution: str, answer: str) -> str:
        """A reference solution that ends in this format: one that shows no answer gets a last line that does.

        It takes the place of a line with "####".
        """
        if self.extract(solution):
            return solution
        return f"{solution.rpartition(GSM8K_MARKER)[0].rstrip() or solution}\n{self.show(answer)}"

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


ANSWER_FORMATS: Registry[Callable[..., AnswerFormat]] = Registry("answer_format", base=f"{__name__}:AnswerFormat")
"""Answer formats by name; third parties join through the entry-point group `tokengym.answer_formats`."""


class _ValueFormat(AnswerFormat):
    """Base of formats whose answers are values: numbers, or whatever LaTeX says.

    Args:
        answers: Kind of answers: "number" for numbers of the bounded grammar in `numbers`, compared exactly; "latex"
            for numbers and any other LaTeX, compared by value.
        percent: Meaning of "20%" in this data: "number" for 20, "fraction" for 0.2; LaTeX's is 20.
        units: Words that may follow a number, such as ["cm", "square feet"]; [] for none, `None` for any that do not
            change it.
    """

    @kinds_checked
    def __init__(self, answers: Answers, percent: Percent, units: Sequence[str] | None) -> None:
        if answers not in ("number", "latex"):
            raise unknown_name("kind of answers", str(answers), ("number", "latex"))
        normalize_number("0", percent=percent)  # its error belongs here
        if answers == "latex" and percent != "number":
            raise ValueError(f'percent={percent!r} is for answers="number"; in LaTeX 20% is 20')
        if answers == "latex" and units is not None:
            raise ValueError(f'units={units!r} is for answers="number"; LaTeX is read with any')
        if isinstance(units, str) or not all(isinstance(unit, str) and is_unit(unit) for unit in units or ()):
            raise ValueError(f'units={units!r}: give a list of words, such as ["cm", "square feet"]')
        self.answers: Answers = answers
        self.percent: Percent = percent
        self.units = None if units is None else sorted(unit.lower() for unit in units)

    def compare(self, answers: list[str], gold: str) -> Verdict:
        if self.answers == "latex":
            return super().compare(answers, gold)
        return compare_numbers(answers, gold, percent=self.percent, units=self.units)

    def check(self, answer: str) -> None:
        if self.answers == "number" and normalize_number(answer, percent=self.percent, units=self.units) is None:
            units = "" if self.units is None else f" with units={self.units}"
            raise ValueError(f"the gold answer {answer[:60]!r} is not a number that the grader reads{units}")
        super().check(answer)

    def is_readable(self, answer: str) -> bool:
        return self.answers == "number" or super().is_readable(answer)


@ANSWER_FORMATS.register("marker")
class Marker(_ValueFormat):
    """Answers after a marker on its line, as in GSM8K: "#### 72".

    Args:
        marker: Text before an answer, such as "####" (GSM8K) or "Answer:" (DAPO).
        answers: Kind of answers: "number" for numbers alone, or "latex" for numbers and LaTeX.
        percent: Meaning of "20%" in this data: "number" for 20, "fraction" for 0.2.
        units: Words that may follow a number, such as ["cm", "square feet"]; [] for none, `None` for any that do not
            change it.

    Raises:
        ValueError: The marker is empty or has a line break in it, or a unit is no word.
    """

    @kinds_checked
    def __init__(
        self,
        marker: str = GSM8K_MARKER,
        answers: Answers = "number",
        percent: Percent = "number",
        units: Sequence[str] | None = None,
    ) -> None:
        super().__init__(answers, percent, units)
        if not marker.strip() or "\n" in marker:
            raise ValueError(f"marker={marker!r}: give a text in one line, such as {GSM8K_MARKER!r} or 'Answer:'")
        self.marker = marker.strip()

    @property
    def instruction(self) -> str:
        return f"Reason step by step, and end with a line of the form `{self.show('answer')}`."

    def show(self, answer: str) -> str:
        return f"{self.marker} {answer}"

    def extract(self, completion: str) -> list[str]:
        return marked(self._said(completion), self.marker)

    def _said(self, completion: str) -> str:
        return completion if "</think>" in self.marker else after_thinking(completion)

    def grade(self, completion: str, answer: str, *, question: str | None = None) -> Verdict:
        if self.answers == "latex":
            return super().grade(completion, answer, question=question)
        return grade(self._said(completion), answer, marker=self.marker, percent=self.percent, units=self.units)


@ANSWER_FORMATS.register("boxed")
class Boxed(AnswerFormat):
    r"""Answers in the last `\boxed{}`, as in MATH: a number or LaTeX."""

    @property
    def instruction(self) -> str:
        return r"Reason step by step, and put your final answer within \boxed{}."

    def show(self, answer: str) -> str:
        return rf"\boxed{{{answer}}}"

    def extract(self, completion: str) -> list[str]:
        return boxed_answers(completion)

    def grade(self, completion: str, answer: str, *, question: str | None = None) -> Verdict:
        return grade_free_form(completion, answer, question=question)


@ANSWER_FORMATS.register("tag")
class Tag(_ValueFormat):
    """Answers between an opening tag and its closing one: "<answer>72</answer>".

    A tag that is not closed holds no answer.

    Args:
        tag: Name of the tag.
        answers: Kind of answers: "latex" for numbers and LaTeX, or "number" for numbers alone.
        percent: Meaning of "20%" in this data: "number" for 20, "fraction" for 0.2.
        units: Words that may follow a number, such as ["cm", "square feet"]; [] for none, `None` for any that do not
            change it.

    Raises:
        ValueError: The name is not letters, digits, "_" and "-", or a unit is no word.
    """

    @kinds_checked
    def __init__(
        self,
        tag: str = "answer",
        answers: Answers = "latex",
        percent: Percent = "number",
        units: Sequence[str] | None = None,
    ) -> None:
        super().__init__(answers, percent, units)
        if not re.fullmatch(r"[\w-]+", tag):
            raise ValueError(f"tag={tag!r}: give the tag's name alone, such as 'answer' for <answer>...</answer>")
        self.tag = tag

    @property
    def instruction(self) -> str:
        return f"Reason step by step, and put your final answer between <{self.tag}> and </{self.tag}>."

    def show(self, answer: str) -> str:
        return f"<{self.tag}>{answer}</{self.tag}>"

    def extract(self, completion: str) -> list[str]:
        opening, closing = f"<{self.tag}>", f"</{self.tag}>"
        # Of each closing tag, what comes after the last opening one before it.
        parts = after_thinking(completion).rsplit(closing, MAX_MARKS)[:-1]
        answers = (part.rpartition(opening) for part in reversed(parts))
        return [text for _, found, answer in answers if found and (text := answer.strip())]


# "The answer is (B).", "**Answer:** C", "answer: \boxed{D}"; not "answer: E = 5"
_LETTER = (
    r"\W{{0,4}}(?i:\s(?:is|would\s+be))?[\s:*$]{{0,6}}(?:\\boxed\{{)?\s*[(\[*]{{0,3}}"
    r"([{letters}])(?![\w'’^]|-[A-Za-z]|\s*=)"
)
_CHOSEN = (
    r"(?i:answer(?:\W{{0,4}}(?:\s(?:is|would\s+be))?\s+(?:the\s+)?(?:correct\s+|right\s+)?(?:option|choice))?"
    r"|(?:correct|right|best|final|my)\s+(?:option|choice))" + _LETTER
)
# Where nothing is called the answer; on the way to one, options may be weighed.
_NAMED = r"(?i:option|choice)" + _LETTER
# "A, B", "A or (B)", but not "B, A is wrong".
_RIVAL = (
    r"[)\]*}}$]{{0,4}}[ \t]*(?:,|/|&|(?i:or|and)\b)[ \t]*(?:(?i:or|and)\s)?[(\[*$]{{0,3}}"
    r"([{letters}])(?![\w'’^]|-[A-Za-z]|\s*=|\s(?:is|was|has|does|can|cannot|would)\b)"
)
_BOXED_LETTER = (
    r"(?:\\(?:text|mathrm|textbf|mathbf)\s*\{{)?\s*\(?\s*([{letters}])(?!{rival}|\s*=)\s*\)?\s*\}}?\s*[.:)]?(?:\s.*)?"
)
# A bare "A triangle" begins a sentence.
_LINE_LETTER = r"[\s*(\[$]{{0,4}}(?![AI]\s+[a-z])([{letters}])(?!{rival}|\s*=)(?:[\s*)\].:$]{{1,4}}.*)?"


@ANSWER_FORMATS.register("choice")
class Choice(AnswerFormat):
    r"""The letter of an option: "Answer: B", "the answer is (B)", `\boxed{B}`, or a last line of it, "(B) 21 cm".

    Options that are weighed on the way ("option A is wrong") count only where nothing is called the answer. Answers
    that are marked in different ways must agree, or the attempt is `ambiguous`, as it is with "A or B".

    Args:
        letters: Letters of the options.

    Raises:
        ValueError: The letters are not two or more different capital letters.
    """

    @kinds_checked
    def __init__(self, letters: str = "ABCDE") -> None:
        if not re.fullmatch(r"[A-Z]{2,26}", letters) or len(set(letters)) < len(letters):
            raise ValueError(f"letters={letters!r}: give the options' capital letters, such as 'ABCDE'")
        self.letters = letters

    @property
    def instruction(self) -> str:
        return f"Reason step by step, and end with a line of the form `{self.show('letter')}`."

    def show(self, answer: str) -> str:
        return f"Answer: {self._letter(answer) or answer}"

    def extract(self, completion: str) -> list[str]:
        completion = after_thinking(completion)
        rival = _RIVAL.format(letters=self.letters)
        letters = self._marked(_CHOSEN, completion)
        for text in boxed(completion):
            match = re.fullmatch(_BOXED_LETTER.format(letters=self.letters, rival=rival), text)
            letters += [match[1]] if match else [text] if text else []
        letters = letters or self._marked(_NAMED, completion)
        if not letters:
            last = completion.strip().rpartition("\n")[2]
            match = re.fullmatch(_LINE_LETTER.format(letters=self.letters, rival=rival), last)
            letters = [match[1]] if match else []
        return letters[::-1][:MAX_MARKS]

    def _marked(self, pattern: str, completion: str) -> list[str]:
        """The letters after a mark, and those that are named beside them ("A or B")."""
        rival = re.compile(_RIVAL.format(letters=self.letters))
        found: list[str] = []
        for match in re.finditer(pattern.format(letters=self.letters), completion):
            found.append(match[1])
            end = match.end()
            while (other := rival.match(completion, end)) is not None:
                found.append(other[1])
                end = other.end()
        return found

    def is_answer(self, line: str) -> bool:
        # A line that begins with a letter, "B = 5", may be a step, and so may one about an option.
        return bool(boxed(line) or re.search(_CHOSEN.format(letters=self.letters), line))

    def compare(self, answers: list[str], gold: str) -> Verdict:
        letter = self._letter(gold)
        if letter is None:
            raise ValueError(f"the gold answer {gold[:60]!r} is none of the letters {self.letters}")
        if len(set(answers)) > 1:
            return Verdict(False, "ambiguous", None)
        if answers[0] not in self.letters:
            return Verdict(False, "unparsed", None)
        correct = answers[0] == letter
        return Verdict(correct, "correct" if correct else "wrong", answers[0])

    def check(self, answer: str) -> None:
        if self._letter(answer) is None:
            raise ValueError(f"the gold answer {answer[:60]!r} is none of the letters {self.letters}")

    def is_readable(self, answer: str) -> bool:
        return True

    def _letter(self, text: str) -> str | None:
        """The letter of a gold answer: "B", "(B)", "B." or "b"."""
        letter = text.strip("()[]. \t").upper()
        return letter if len(letter) == 1 and letter in self.letters else None


@ANSWER_FORMATS.register("last_number")
class LastNumber(_ValueFormat):
    """The last number of a completion, or what follows "####" where it has that; for models that learned no format.

    Args:
        percent: Meaning of "20%" in this data: "number" for 20, "fraction" for 0.2.
    """

    @kinds_checked
    def __init__(self, percent: Percent = "number") -> None:
        super().__init__("number", percent, None)

    @property
    def instruction(self) -> str:
        return "Reason step by step, and end with the answer, a number."

    def show(self, answer: str) -> str:
        return f"The answer is {answer}."

    def is_answer(self, line: str) -> bool:
        # Any other line with a number may be a step.
        return GSM8K_MARKER in line or line.strip().lower().startswith("the answer is")

    def extract(self, completion: str) -> list[str]:
        completion = after_thinking(completion)
        return marked(completion, GSM8K_MARKER) or find_last_number(completion)


def make_format(spec: str | Mapping[str, Any] | AnswerFormat) -> AnswerFormat:
    """An answer format from its name, from `{"name": ..., **arguments}`, or the instance that was given.

    Raises:
        UnknownNameError: There is no such format; the message suggests the nearest name.
        ValueError: The spec is none of these, or its arguments do not fit the format.
    """
    return ANSWER_FORMATS.make(spec)
