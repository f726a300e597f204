r"""Answers in boxes: the text of a completion inside its boxes, as in MATH: `\boxed{\frac{1}{2}}`."""

import re

from .numbers import MAX_MARKS, after_thinking
from .reader import clean

_BRACES = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)(?:\s+|(?=\d))(?P<token>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)
# What stands in a box that is to be filled: \square, \phantom{0}, ..., ?, "your answer".
_PLACEHOLDER = re.compile(
    r"(?:\\(?:square|Box|bigcirc|ldots|dots|cdots|quad|qquad|_+|text\s*\{\s*\})|\\h?phantom\s*\{[^{}]*\}|[.?_\u2026\s{}$])*"
    r"|[\[<{(]*\s*(?:\\text\s*\{\s*)?(?:the\s+|your\s+|final\s+|my\s+)*answer(?:\s+here)?\s*\}?\s*[\])}>]*",
    re.IGNORECASE,
)


def boxed(text: str) -> list[str]:
    r"""Contents of the boxes in a text, in order, with white space folded; for nested boxes, the outermost.

    A box is `\boxed{...}` (or `\fbox{...}`) with balanced braces, escaped braces not counted, or `\boxed 5`. Takes time
    linear in the length of the text.
    """
    return [fold(text[content:end]) for _, content, end, _ in _spans(text)]


def unbox_earlier(text: str) -> str:
    """The text with the boxes before the last one taken off, and what they hold left in place."""
    for start, content, end, after in reversed(_spans(text)[:-1]):
        text = text[:start] + text[content:end] + text[after:]
    return text


def _spans(text: str) -> list[tuple[int, int, int, int]]:
    """Start of each box, start and end of its content, and end of the box."""
    found: list[tuple[int, int, int, int]] = []
    braces: list[tuple[int, int] | None] = []  # for each open brace of a box: where the box begins, and its content
    for match in _BRACES.finditer(text):
        if match["box"]:
            braces.append((match.start(), match.end()))
        elif match["token"]:
            found.append((match.start(), match.start("token"), match.end(), match.end()))
        elif match[0] == "{":
            braces.append(None)
        elif match[0] == "}" and braces:
            opening = braces.pop()
            if opening is not None:
                start, content = opening
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, content, match.start(), match.end()))
    return found


def boxed_answers(completion: str, question: str | None = None) -> list[str]:
    r"""The answers of an attempt in boxes, the last one first, at most 16.

    What comes before `</think>` is no answer, and neither is a box that waits to be filled (`\boxed{\square}`,
    `\boxed{\phantom{2}}`, `\boxed{your answer}`), nor one that the question itself has.

    Args:
        completion: Text of an attempt.
        question: Question that it answers.
    """
    answers = [text for text in boxed(after_thinking(completion)) if not _PLACEHOLDER.fullmatch(text[:300])]
    if question and "boxed" in question:
        given = {clean(text) for text in boxed(question)}
        answers = [text for text in answers if clean(text) not in given]
    return answers[: -MAX_MARKS - 1 : -1]


def fold(text: str) -> str:
    """The text with white space folded."""
    return " ".join(text.split())
