"""The process that keeps math-verify warm: one request a line on standard input, one reply a line on standard output.

A script of its own, started by `free_form`: it imports nothing of this library, whose own imports take seconds. It
reads no answer itself but forks a worker that does, kills it when an answer takes too long, and forks another from the
warm state, which takes milliseconds. What workers parse was written by a language model: their memory is capped, they
write no files, and they end by themselves when whoever asks them is gone.
"""

import json
import logging
import os
import resource
import select
import signal
import sys
import time
from typing import Any

MAX_ANSWER = 256  # characters
# What math-verify and SymPy set up at the first use of each kind of answer, hundreds of milliseconds in all.
WARM_UP = (
    (r"\frac{1}{2}", r"0.5"),
    (r"(x+1)^2", r"x^2 + 2x + 1"),
    (r"\{1, \sqrt{2}\}", r"\sqrt{2}, 1"),
    (r"(-\infty, 5]", r"x \le 5"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"(1, 2)"),
    (r"\text{east}", r"90^\circ"),
)


def main(seconds: float, memory: int) -> None:
    """Serves until the input ends: `seconds` for a request, `memory` bytes of address space for a worker."""
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # whatever libraries print is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    logging.disable()
    for gold, answer in WARM_UP:
        compare(gold, [answer])
    worker = Fork(requests, replies, seconds, memory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        os.write(replies, b"ready\n")
        while request := read_line(requests):
            reply = worker.ask(request)
            if not reply and reply is not None:
                # It died of something else than its deadline: once more, by a new one.
                worker = worker.replace()
                reply = worker.ask(request) or b'["crashed", null]'
            if reply is None:
                reply = b'["timeout", null]'
                worker = worker.replace()
            os.write(replies, reply + b"\n")
    finally:
        worker.end()


class Fork:
    """A fork of this process that compares answers."""

    def __init__(self, requests: int, replies: int, seconds: float, memory: int) -> None:
        self._arguments = requests, replies, seconds, memory
        theirs, self._requests = os.pipe()
        self._replies, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for descriptor in (0, requests, replies, self._requests, self._replies):
                    os.close(descriptor)
                self._work(theirs, answers, seconds, memory)
            finally:
                os._exit(0)
        os.close(theirs)
        os.close(answers)

    @staticmethod
    def _work(requests: int, replies: int, seconds: float, memory: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
            resource.setrlimit(limit, (value, value))
        while line := read_line(requests):
            # Whoever asks kills this process in time; if that one is gone, the alarm does.
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
            request = json.loads(line)
            reply = json.dumps(compare(request["gold"], request["answers"])).encode() + b"\n"
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(replies, reply)

    def ask(self, request: bytes) -> bytes | None:
        """The reply; b"" if the fork died, None if it took too long."""
        try:
            os.write(self._requests, request + b"\n")
        except BrokenPipeError:
            return b""
        return read_line(self._replies, self._arguments[2])

    def replace(self) -> "Fork":
        """Another one in its place."""
        self.end()
        return Fork(*self._arguments)

    def end(self) -> None:
        os.close(self._requests)
        os.close(self._replies)
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


def compare(gold: str, answers: list[str]) -> tuple[str, str | None]:
    """Whether the first of `answers` equals `gold`: a reason as in `Verdict`, and that answer in SymPy's notation.

    The others are further answers of the same attempt, which must not differ from the first; one that cannot be read is
    none.
    """
    try:
        answer, *others = map(read, answers)
        reference = read(gold)
        if not answer or not reference:
            return "unparsed", None
        if not all(equal(answer, other) for other in others if other):
            return "ambiguous", None
        return "correct" if equal(reference, answer) else "wrong", spell(answer[0]) or answers[0]
    except Exception:  # whatever SymPy comes upon in text that nobody wrote for it
        return "unparsed", None


def read(text: str) -> list[Any]:
    """What math-verify reads in the text of an answer; empty if nothing."""
    from math_verify import LatexExtractionConfig, parse

    # LaTeX alone: what math-verify takes for plain expressions, it gives to SymPy's parser, which evaluates code.
    return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)  # pyright: ignore[reportArgumentType]


def equal(gold: list[Any], answer: list[Any]) -> bool:
    """Whether math-verify finds two answers equal."""
    from math_verify import verify

    return verify(gold, answer, timeout_seconds=None)


def spell(expression: object) -> str | None:
    """The expression in SymPy's notation; None where that is long."""
    text = str(expression)
    return text if len(text) <= MAX_ANSWER else None


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
