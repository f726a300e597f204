r"""Grading answers in LaTeX and free form, as in MATH (Hendrycks et al. 2021): `\boxed{\frac{1}{2}}`.

**Which text is the answer.** What the last `\boxed{...}` with balanced braces holds; nested ones belong to the box
around them. If an earlier box holds another answer, the attempt earns nothing (`ambiguous`), by the rules of `grading`.

**How it is graded.** Dressing is taken off first (`undress`): units in `\text{}`, degrees, dollar and percent signs,
LaTeX's thousands. Then equal texts are equal, and numbers of the bounded grammar of `grading` are compared there,
exactly. Only what is left goes to math-verify, in a worker process, and nothing of it is evaluated in this one.
math-verify decides by value: `0.5` equals `\frac{1}{2}`, and an expression that comes to the answer is the answer.

**What can go wrong.** The worker is forked by a process that keeps math-verify warm, is started when it is first
needed, and stays. An answer that takes longer than the deadline gets the verdict `timeout`, and the worker is killed
and replaced, in milliseconds. One that makes the worker end, or run out of memory, gets `crashed`. If the worker is
killed from outside, its answer is graded once more by a new one, and is `crashed` only if that is killed too. None of
this affects the next answer.

Verdicts reach users as those of all graders do: in the terminal `info` of an environment, in an agent's logs as
`rollout/verdict/timeout` and so on, and in what `tokengym eval` prints. `WORKER.counters` has those of this process.
"""

import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from . import latex_worker
from .latex_worker import read_line
from .numbers import MAX_LENGTH, MAX_MARKS, Verdict, equal_numbers, is_unit, normalize_number

DEADLINE = 1.5
"""Seconds for one answer [choice]; nearly all take milliseconds."""
MEMORY = 2 << 30
"""Bytes of address space of a worker [choice]."""
START = 60.0
"""Seconds for the process to start, where one or two are usual."""
GRACE = 5.0
"""Seconds beyond its own deadlines after which the process counts as dead."""

# White space, or an empty sign, that sets off thousands; what it is taken for is checked by the grammar of numbers.
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\[,!\ ]|~)(?=\d{3}(?!\d))", re.ASCII)
# In a gold answer in LaTeX, 2m, 6ab and 2 m have variables; words are longer.
_ALGEBRA = re.compile(r"\d(?:[A-DF-Za-df-z]|[eE](?![+-]?\d)|\s+[A-Za-z]{1,2}\b)", re.ASCII)
_WORDS = re.compile(
    r"\\(?:text(?:normal|rm|bf|it)?|mbox|math(?:rm|bf|it))\s*\{([^{}]*)\}(?:\s*\^\s*(?:[23]|\{[23]\}))?"
)
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$")
_BRACES = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)(?:\s+|(?=\d))(?P<token>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL
)


class Worker:
    """A process apart that compares answers by math-verify; safe to share between threads, and not inherited by forks.

    Args:
        deadline: seconds for one comparison.
        memory: bytes of address space.
        script: Python file of the process; the default compares by math-verify.

    Attributes:
        deadline: seconds for one comparison; a change counts from the next comparison on.
        counters: how many comparisons ended with which reason.
    """

    def __init__(
        self, deadline: float = DEADLINE, memory: int = MEMORY, script: str | os.PathLike[str] = latex_worker.__file__
    ) -> None:
        self.deadline = deadline
        self.memory = memory
        self.script = script
        self.counters: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._lock = threading.Lock()
        # A forked child must not read replies to its parent's questions.
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def compare(self, gold: str, answers: Sequence[str]) -> tuple[str, str | None]:
        """Whether `answers[0]` equals `gold`, and its normal form; the others are earlier answers of the attempt.

        Returns:
            A reason as in `Verdict` (`correct`, `wrong`, `ambiguous`, `unparsed`, `timeout` or `crashed`), and for the
            first two the answer in SymPy's notation.

        Raises:
            RuntimeError: the process does not start.
        """
        request = json.dumps({"gold": gold, "answers": list(answers), "seconds": self.deadline}).encode() + b"\n"
        with self._lock:
            try:
                reply = self._ask(request)
                if reply is None:  # the process is gone, killed from outside
                    self._stop()
                    reply = self._ask(request)
                if reply is None:
                    self._stop()
                    reply = ("crashed", None)
            except BaseException:
                self._stop()  # lest the next question get this one's reply
                raise
            self.counters[reply[0]] += 1
        return reply

    def close(self) -> None:
        """Ends the process; the next comparison starts another."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """The id of the process, None while there is none."""
        return None if self._process is None else self._process.pid

    def _ask(self, request: bytes) -> tuple[str, str | None] | None:
        """The reply; None if the process died or does not answer."""
        process = self._process or self._start()
        try:
            cast(Any, process.stdin).write(request)
        except BrokenPipeError:
            return None
        # It keeps the deadline itself, twice if a worker of its own is killed.
        line = read_line(cast(Any, process.stdout).fileno(), 2 * self.deadline + GRACE)
        return tuple(json.loads(line)) if line else None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the script's folder is not searched for modules.
        command = [sys.executable, "-P", os.fspath(self.script), str(self.memory)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, bufsize=0)  # noqa: S603
        self._process, self._finalizer = process, weakref.finalize(self, _end, process, os.getpid())
        if read_line(cast(Any, process.stdout).fileno(), START) != b"ready":
            self._stop()
            raise RuntimeError(
                f"the process for free-form answers did not start: see what `{' '.join(command)}` says; it needs "
                "math-verify"
            )
        return process

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _forget(self) -> None:
        """In a forked child: as if nothing had been started, for the parent's process is not ours to end or to ask."""
        if self._process is not None and self._finalizer is not None:
            self._finalizer.detach()
            _close(self._process)
            self._process.returncode = 0  # no child of this process
        self._process = self._finalizer = None
        self._lock = threading.Lock()


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        cast(Any, pipe).close()


WORKER = Worker()
"""The worker that this process shares; started at the first answer that needs it."""


def grade_free_form(completion: str, answer: str, *, worker: Worker = WORKER) -> Verdict:
    r"""Grade the boxed answer of `completion` against the gold `answer` by the rules at the top of this module.

    Never raises because of the completion.

    Args:
        completion: the text of an attempt.
        answer: the gold answer alone, in LaTeX, without its box.
        worker: what compares answers that are no numbers.

    Returns:
        A verdict. Its `answer` is the gold answer where that was given, a number's normal form or else SymPy's notation
        where another was, so that equal answers can be counted.

    Raises:
        ValueError: the gold answer is empty or longer than 256 characters.
        RuntimeError: the worker does not start.
    """
    answer = fold(answer)
    if not answer or len(answer) > MAX_LENGTH:
        raise ValueError(f"a gold answer has 1 to {MAX_LENGTH} characters, not {len(answer)}: {answer[:60]!r}")
    gold = undress(answer)
    texts = [text for text in reversed(boxed(completion)) if text][:MAX_MARKS]
    if not texts:
        return Verdict(False, "no_answer", None)
    if len(texts[0]) > MAX_LENGTH:
        return Verdict(False, "too_long", None)
    texts = list(dict.fromkeys(undress(text) for text in texts if len(text) <= MAX_LENGTH))
    number = None if _ALGEBRA.search(gold) else normalize_number(gold)
    if texts == [gold]:
        return Verdict(True, "correct", number or answer)
    numbers = [normalize_number(text) for text in texts]
    last = numbers[0]
    if number is not None and last is not None and None not in numbers:
        if not all(equal_numbers(cast(str, other), last) for other in numbers):
            return Verdict(False, "ambiguous", None)
        correct = equal_numbers(last, number)
        return Verdict(correct, "correct" if correct else "wrong", last)
    reason, found = worker.compare(gold, texts)
    if reason == "correct":
        found = number or answer
    elif found is not None:
        found = normalize_number(found) or found
    return Verdict(reason == "correct", reason, found)


def boxed(text: str) -> list[str]:
    r"""What the boxes of a text hold, in order, with white space folded; for nested boxes, the outermost.

    A box is `\boxed{...}` (or `\fbox{...}`) with balanced braces, escaped braces not counted, or `\boxed 5`. Takes time
    linear in the length of the text.
    """
    found: list[tuple[int, str]] = []  # where a box begins, and what it holds
    braces: list[tuple[int, int] | None] = []  # for each open brace of a box: where the box begins, and its content
    for match in _BRACES.finditer(text):
        if match["box"]:
            braces.append((match.start(), match.end()))
        elif match["token"]:
            found.append((match.start(), match["token"]))
        elif match[0] == "{":
            braces.append(None)
        elif match[0] == "}" and braces:
            opening = braces.pop()
            if opening is not None:
                start, content = opening
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, text[content : match.start()]))
    return [fold(content) for _, content in found]


def undress(text: str) -> str:
    r"""An answer without what does not change it: `\$1\,000`, `1{,}000\text{ cm}^2` and `1000\%` are all `1,000`.

    Taken off are dollar signs, the last percent sign (20% is 20, as in `grading`), the last `^\circ`, last words in
    `\text{}` if they are a unit (`grading.is_unit`), another box around the whole, a `\text{}` around a number, and
    what LaTeX sets between thousands.
    """
    whole = text
    text = _THOUSANDS.sub(",", text.strip()).replace(r"\$", "$").replace(r"\%", "%")
    for box in (r"\boxed{", r"\fbox{"):
        while text.startswith(box) and boxed(text) == [text[len(box) : -1]]:
            text = text[len(box) : -1]
    for words in _WORDS.finditer(text):
        if words.end() < len(text.rstrip(". ")):
            continue
        if words.start() == 0:
            text = words[1].strip() if normalize_number(words[1]) else text
        elif is_unit(words[1]):
            text = text[: words.start()].rstrip()
    text = _DEGREES.sub("", text).removesuffix("%").removeprefix("$").removesuffix("$").strip()
    return text or whole


def fold(text: str) -> str:
    """The text with white space folded."""
    return " ".join(text.split())
