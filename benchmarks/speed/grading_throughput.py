r"""Answers graded per second: numbers and LaTeX as they are by default, LaTeX by math-verify.

math-verify in process is what a grader without a worker would do: `parse` each gold answer once and each completion,
and `verify` them. It has neither a deadline that works in every thread, nor a cap on memory, nor any help against an
answer that ends the process. The worker, which by default gets only what the grammar of `reader` does not read, is
given the same pairs: eight attempts at each problem, half of them right, all different; none equals its gold answer in
text or is a plain number. What was read before is forgotten at the start of every measurement.
"""

import os
import time
from typing import Any

import psutil

from ...rewards.grading import comparison, reader
from ...rewards.grading.boxes import boxed
from ...rewards.grading.latex import Worker, grade_free_form
from ...rewards.grading.numbers import grade

GOALS = {"latex": 3.0, "worker": 0.9}
"""Grades per second over math-verify in process, at least."""
_ATTEMPTS = 8
# Gold answers, and attempts in which a is \frac{ka}{k}, or in the wrong ones \frac{ka+1}{k}.
_FORMS = (
    (r"\frac{{{a}}}{{7}}", r"\frac{{{ka}}}{{{k7}}}"),
    (r"{a}\sqrt{{5}}", r"\frac{{{ka}}}{{{k}}}\sqrt{{5}}"),
    (r"x^2 + {a}x + 9", r"9 + x^2 + \frac{{{ka}}}{{{k}}}x"),
    (r"(-\infty, {a}]", r"(-\infty, \frac{{{ka}}}{{{k}}}]"),
    (r"{a}, 2", r"\{{2, \frac{{{ka}}}{{{k}}}\}}"),
    (r"\begin{{pmatrix}} {a} \\ 1 \end{{pmatrix}}", r"\begin{{pmatrix}} \frac{{{ka}}}{{{k}}} \\ 1 \end{{pmatrix}}"),
    (r"{a}\pi", r"\pi \cdot \frac{{{ka}}}{{{k}}}"),
    (r"2^{{{a}}}", r"2^{{\frac{{{ka}}}{{{k}}}}}"),
)


def run(problems: int = 48, rounds: int = 3) -> dict[str, Any]:
    """Measures all ways in turns, in CPU seconds, the worker's own included.

    Args:
        problems: Number of gold answers, each with eight attempts.
        rounds: Number of times that each way is measured, with caches as at the start; the best of them counts.

    Returns:
        Grades per CPU second: "grammar" of numbers, "latex", "worker" and "in_process" of the same answers in LaTeX;
        "latex_ratio", "worker_ratio" and "grammar_ratio" over "in_process"; "agreement", the share of verdicts that all
        three have in common; "cpus", how many there are.
    """
    latex, numbers = _latex(problems), _numbers(problems)
    ways = {
        "grammar": lambda: _grammar(numbers),
        "latex": lambda: _latex_grades(latex),
        "worker": lambda: _worker(latex),
        "in_process": lambda: _here(latex),
    }
    _here(latex[: _ATTEMPTS * len(_FORMS)])  # what math-verify sets up at its first use
    verdicts: dict[str, list[bool]] = {}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for name, way in ways.items():
            verdicts[name], seconds = way()
            best[name] = max(best[name], len(verdicts[name]) / seconds)
    ratios = {f"{name}_ratio": best[name] / best["in_process"] for name in ("latex", "worker", "grammar")}
    three = zip(verdicts["latex"], verdicts["worker"], verdicts["in_process"], strict=True)
    same = sum(len(set(found)) == 1 for found in three)
    return {**best, **ratios, "agreement": same / len(latex), "cpus": os.cpu_count()}


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    lines = [f"{'way':<12}{'grades/s':>12}{'ratio':>10}{'goal':>8}"]
    for name in ("in_process", "worker", "latex", "grammar"):
        goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
        lines.append(f"{name:<12}{results[name]:>12,.0f}{results.get(f'{name}_ratio', 1):>10.2f}{goal:>8}")
    return "\n".join([*lines, f"the same verdict all three ways: {results['agreement']:.1%}"])


def _grammar(pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    begin = time.process_time()
    return [grade(completion, gold).correct for completion, gold in pairs], time.process_time() - begin


def _latex_grades(pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    reader.read.cache_clear()
    comparison.spell.cache_clear()
    begin = time.process_time()
    return [grade_free_form(completion, gold).correct for completion, gold in pairs], time.process_time() - begin


def _worker(pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    worker = Worker()
    worker.compare("1+x", ["x+1"])
    begin = time.process_time() + _cpu_seconds(worker)
    verdicts = [worker.compare(gold, boxed(completion))[0] == "correct" for completion, gold in pairs]
    seconds = time.process_time() + _cpu_seconds(worker) - begin
    worker.close()
    return verdicts, seconds


def _here(pairs: list[tuple[str, str]]) -> tuple[list[bool], float]:
    from math_verify import parse, verify

    no_timeout: Any = None  # the annotation allows none
    begin = time.process_time()
    golds = {gold: parse(rf"\boxed{{{gold}}}", parsing_timeout=no_timeout) for gold in {gold for _, gold in pairs}}
    verdicts = [
        verify(golds[gold], parse(completion, parsing_timeout=no_timeout), timeout_seconds=None)
        for completion, gold in pairs
    ]
    return verdicts, time.process_time() - begin


def _cpu_seconds(worker: Worker) -> float:
    """CPU seconds of the worker's processes so far."""
    process = psutil.Process(worker.pid)
    return sum(times.user + times.system for times in (p.cpu_times() for p in (process, *process.children())))


def _latex(problems: int) -> list[tuple[str, str]]:
    """Completions with an answer in LaTeX, and gold answers: in turns right and wrong."""
    made: list[tuple[str, str]] = []
    for i in range(problems):
        gold, answer = _FORMS[i % len(_FORMS)]
        for k in range(2, 2 + _ATTEMPTS):
            text = answer.format(ka=k * (3 + i) + k % 2, k=k, k7=7 * k)
            made.append((rf"So the answer is $\boxed{{{text}}}$.", gold.format(a=3 + i)))
    return made


def _numbers(problems: int) -> list[tuple[str, str]]:
    """Completions with a number in GSM8K's format, and gold answers: in turns right and wrong."""
    return [
        (f"{i} * 3 = <<{i}*3={3 * i}>>{3 * i}\n#### ${3 * i + i % 2:,}.00", str(3 * i))
        for i in range(1000, 1000 + _ATTEMPTS * problems)
    ]
