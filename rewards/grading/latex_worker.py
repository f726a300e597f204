"""The process that keeps math-verify warm: one request a line on standard input, one reply a line on standard output.

A script of its own, started by `worker`: it imports nothing of this library, whose own imports take seconds. It
reads no answer itself but forks a worker that does, kills it when an answer takes too long, and forks another from the
warm state, which takes milliseconds. What workers parse was written by a language model: their memory is capped, they
write no files, they end after an answer that took much memory, and when whoever asks them is gone.
"""

import json
import logging
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

Compare = Callable[[str, list[str]], tuple[str, str | None]]
MAX_ANSWER = 256  # characters
_NUMERAL = r"(?<![A-Za-z_^\d.,])\d+(?:[.,]\d+)*"
# math-verify adds a whole number to the number after it, as in 2\frac{1}{2}, also where they are factors, as in 2(3).
_FACTORS = re.compile(rf"(?:{_NUMERAL}|\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}})\s*(?=[({{])|\)\s*(?=[\d(]|\\frac)", re.ASCII)
_SIDE_BY_SIDE = re.compile(rf"{_NUMERAL}(?:\s|\\[,;:])+\.?\d", re.ASCII)
_BASES = re.compile(r"\d\s*_\s*(?:\{([^{}]*)\}|(\d))", re.ASCII)
# What math-verify and SymPy set up at the first use of each kind of answer, hundreds of milliseconds in all.
WARM_UP = (
    (r"\frac{1}{2}", r"0.5"),
    (r"(x+1)^2", r"x^2 + 2x + 1"),
    (r"\{1, \sqrt{2}\}", r"\sqrt{2}, 1"),
    (r"(-\infty, 5]", r"x \le 5"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"(1, 2)"),
    (r"\text{east}", r"90^\circ"),
)


def main(memory: int, compare: Compare, prepare: Callable[[], None]) -> None:
    """Serves until the input ends.

    Args:
        memory: Bytes of address space of a worker.
        compare: Function of the gold answer and the answers of a request that a worker runs.
        prepare: Function that runs once, before the first worker is forked.
    """
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # whatever libraries print is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    prepare()
    worker = Fork(requests, replies, memory, compare)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        os.write(replies, b"ready\n")
        while request := read_line(requests):
            reply = worker.ask(request)
            if reply == "killed":
                worker = worker.replace()
                reply = worker.ask(request)
            if isinstance(reply, str):
                reply = json.dumps(["timeout" if reply == "timeout" else "crashed", None]).encode()
                worker = worker.replace()
            os.write(replies, reply + b"\n")
    finally:
        worker.end()


def prepare() -> None:
    """Warms math-verify up, and takes Python's evaluation from it.

    It gives the text of each number to SymPy's parser, which evaluates it as code. Numbers are read directly here, in
    microseconds instead of a millisecond, and that parser refuses whatever text might still find its way to it.
    """
    import sympy
    from latex2sympy2_extended import latex2sympy2
    from sympy.parsing import sympy_parser

    def number(text: str) -> sympy.Number:
        text = text.replace(",", "")
        return sympy.Integer(int(text)) if text.isdigit() else sympy.Float(text)

    def refuse(*_: object) -> None:
        raise ValueError("text is not evaluated")

    latex2sympy2.Number = number
    latex2sympy2._Latex2Sympy.parse_number = lambda self, text: number(text)  # pyright: ignore[reportAttributeAccessIssue]
    logging.disable()
    for gold, answer in WARM_UP:
        compare(gold, [answer])
    sympy_parser.eval_expr = refuse


class Fork:
    """A fork of this process that compares answers."""

    def __init__(self, requests: int, replies: int, memory: int, compare: Compare) -> None:
        self._arguments = requests, replies, memory, compare
        theirs, self._requests = os.pipe()
        self._replies, answers = os.pipe()
        self._pid = os.fork()
        self._status: int | None = None
        if self._pid == 0:
            status = 1
            try:
                for descriptor in (0, requests, replies, self._requests, self._replies):
                    os.close(descriptor)
                self._work(theirs, answers, memory, compare)
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)
        os.close(answers)

    @staticmethod
    def _work(requests: int, replies: int, memory: int, compare: Compare) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
            resource.setrlimit(limit, (value, value))
        line = read_line(requests)
        while line:
            request = json.loads(line)
            # Whoever asks kills this process in time; if that one is gone, the alarm does.
            signal.setitimer(signal.ITIMER_REAL, 2 * request["seconds"])
            reply = json.dumps(compare(request["gold"], request["answers"])).encode() + b"\n"
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(replies, reply)
            # SymPy's caches may hold what took so much, and the next answer is to have all the memory.
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > memory // 2:
                break
            line = read_line(requests)

    def ask(self, request: bytes) -> bytes | Literal["timeout", "killed", "crashed"]:
        """The reply, or why there is none: "killed" is from outside, or by its own wish, not for the answer's sake."""
        try:
            os.write(self._requests, request + b"\n")
            reply = read_line(self._replies, json.loads(request)["seconds"])
        except BrokenPipeError:
            reply = b""
        if reply is None:
            return "timeout"
        if reply:
            return reply
        _, self._status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(self._status)
        if code == -signal.SIGALRM:
            return "timeout"
        return "killed" if code in (0, -signal.SIGKILL, -signal.SIGTERM) else "crashed"

    def replace(self) -> "Fork":
        """Another one in its place."""
        self.end()
        return Fork(*self._arguments)

    def end(self) -> None:
        os.close(self._requests)
        os.close(self._replies)
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def read_line(descriptor: int, seconds: float | None = None) -> bytes | None:
    """A line without its end; b"" if there is no more to come, None if that took longer than `seconds`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    end = None if seconds is None else time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        if not poll.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000):
            return None
        part = os.read(descriptor, 65536)
        if not part:
            return b""
        line += part
    return line[:-1]


class Answer(NamedTuple):
    """An answer as read."""

    expression: Any
    """Names in SymPy."""
    bases: tuple[str, ...]
    """Subscripts of its numerals, which are no part of the expression."""


def compare(gold: str, answers: list[str]) -> tuple[str, str | None]:
    """Compares the first of `answers` with `gold`: a reason as in `Verdict`, and that answer in SymPy's notation.

    The others are further answers of the same attempt, which must not differ from the first; one that cannot be read is
    none.
    """
    try:
        answer, *others = map(read, answers)
        reference = read(gold)
        if answer is None or reference is None:
            return "unparsed", None
        if not all(equal(answer, other) for other in others if other is not None):
            return "ambiguous", None
        return "correct" if equal(reference, answer) else "wrong", spell(answer.expression) or answers[0]
    except MemoryError:  # what is left of this process is good for nothing
        raise
    except Exception:  # whatever SymPy comes upon in text that nobody wrote for it
        return "unparsed", None


@lru_cache(maxsize=4096)
def read(text: str) -> Answer | None:
    """Expression that math-verify reads in an answer; None if nothing."""
    from latex2sympy2_extended import latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from math_verify.parser import get_last_eq

    # math-verify's `parse` looks for answers in text, and finds one of several in "6, the final answer is $7$. I hope".
    # The whole text is the answer here. What looks like plain expressions, `parse` gives to SymPy's own parser, which
    # evaluates code.
    text = normalize_latex(text, _normalization())
    if r"\boxed" in text or r"\fbox" in text or _SIDE_BY_SIDE.search(text):
        return None
    text = _FACTORS.sub(r"\g<0>\\cdot ", text)
    for part in dict.fromkeys((text, get_last_eq(text))):
        try:
            expression = latex2sympy(part, is_real=not should_treat_as_complex(part), normalization_config=None)
        except MemoryError:
            raise
        except Exception:  # noqa: S112 - the last part of an equation may be readable where all of it is not
            continue
        return Answer(expression, tuple(braced or digit for braced, digit in _BASES.findall(part)))
    return None


@cache
def _normalization() -> Any:
    from latex2sympy2_extended import NormalizationConfig

    # No units: it takes the letters of 2t, 3d and 5ab for some.
    return NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none", units=False)


def equal(gold: Answer, answer: Answer) -> bool:
    """True if math-verify finds two answers equal, and numerals have the gold's bases, or are left without."""
    from math_verify import verify

    if answer.bases and answer.bases != gold.bases and (gold.bases or {*answer.bases} != {"10"}):
        return False
    return verify(gold.expression, answer.expression, timeout_seconds=None)


def spell(expression: object) -> str | None:
    """The expression in SymPy's notation; None where that is long."""
    text = str(expression)
    return text if len(text) <= MAX_ANSWER else None


if __name__ == "__main__":
    main(int(sys.argv[1]), compare, prepare)
