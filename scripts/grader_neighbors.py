r"""Fifty answers under tokengym and four other graders, as a table: `python scripts/grader_neighbors.py`.

Each other grader runs in a temporary virtual environment of its own with pinned versions, on the same rows: a
completion with its answer in a box, and a gold answer. TRL's needs torch and transformers, which it takes from the
environment that runs this script. The answers are ordinary ones; nothing here is meant to break anything.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import NamedTuple

from tokengym.exits import exit_status
from tokengym.files import check_output
from tokengym.rewards import grade_free_form

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "grader_neighbors.md"


class GradingCase(NamedTuple):
    """A completion, its gold answer, whether it is right, and why we say so."""

    completion: str
    gold: str
    is_right: bool
    why: str


def _box(answer: str) -> str:
    return rf"So the answer is $\boxed{{{answer}}}$."


ROWS = [
    GradingCase(_box(r"\frac{14}{4}"), r"\frac{7}{2}", True, "a fraction"),
    GradingCase(_box("3.5"), r"\frac{7}{2}", True, "a decimal"),
    GradingCase(_box(r"3\frac{1}{2}"), r"\frac{7}{2}", True, "a mixed number"),
    GradingCase(_box("1,000"), "1000", True, "thousands"),
    GradingCase(_box(r"1\,000"), "1000", True, "thousands"),
    GradingCase(_box("1 000"), "1000", True, "thousands"),
    GradingCase(_box(r"\frac{1}{12{,}000}"), r"\frac{1}{12000}", True, "thousands in a fraction"),
    GradingCase(_box("3e8"), r"3 \times 10^8", True, "e-notation"),
    GradingCase(_box(r"0.\overline{3}"), r"\frac{1}{3}", True, "a repeating decimal"),
    GradingCase(_box("0.333"), r"\frac{1}{3}", False, "a rounded decimal is another number"),
    GradingCase(_box("3.14"), r"\pi", False, "a rounded decimal is another number"),
    GradingCase(_box(r"\sqrt{8}"), r"2\sqrt{2}", True, "a root, as the gold answer has one"),
    GradingCase(_box(r"\frac{2}{\sqrt{2}}"), r"\sqrt{2}", True, "a root below the bar"),
    GradingCase(_box(r"\frac{1}{2^{98}}"), r"\frac{1}{2^{99}}", False, "small numbers are compared exactly"),
    GradingCase(_box(r"2 \times 10^{-19}"), r"8 \times 10^{-19}", False, "small numbers are compared exactly"),
    GradingCase(_box(r"\frac{1}{3^{40}}"), r"\frac{2}{3^{40}}", False, "small numbers are compared exactly"),
    GradingCase(_box("1+2"), "3", False, "an expression is not an answer"),
    GradingCase(_box(r"\binom{5}{2}"), "10", False, "an expression is not an answer"),
    GradingCase(_box("(7+5)^2-(7-5)^2"), "140", False, "an expression is not an answer"),
    GradingCase(_box("5!"), "120", False, "an expression is not an answer"),
    GradingCase(_box(r"\sqrt{49}"), "7", False, "the gold answer has no root"),
    GradingCase(_box("x=5"), "5", True, "a value with its letter"),
    GradingCase(_box("2x+3=13"), "13", False, "an equation is not its right side"),
    GradingCase(_box("0"), "x + y + z = 0", False, "an equation is not its right side"),
    GradingCase(_box("2x+2y=4"), "x+y=2", True, "a multiple of the equation"),
    GradingCase(_box("x>2"), r"(2,\infty)", True, "an inequality and its interval"),
    GradingCase(_box(r"1 \le x < 2"), "[1,2)", True, "an inequality and its interval"),
    GradingCase(_box(r"x \ne 3"), r"(-\infty,3)\cup(3,\infty)", True, "an inequality and its interval"),
    GradingCase(_box("(0,1)"), "[0,1]", False, "open is not closed"),
    GradingCase(_box("1:15"), "2:30", False, "clock times are no ratios"),
    GradingCase(_box("6:4"), "3:2", True, "ratios are"),
    GradingCase(_box("CBA"), "ABC", False, "letters of a name are no product"),
    GradingCase(_box(r"\text{(C) } 12"), r"\text{(C)}", True, "a choice with its text"),
    GradingCase(_box(r"\text{Evelyn}"), "Evelyn", True, "words"),
    GradingCase(_box("90°"), r"90^\circ", True, "degrees"),
    GradingCase(_box(r"\cot 70^\circ"), r"\tan 20^\circ", True, "degrees inside functions"),
    GradingCase(_box(r"5\ \mathrm{cm}^2"), "5", True, "a unit"),
    GradingCase(_box(r"17\text{.}"), "17", True, "a full stop"),
    GradingCase(_box(r"\[17\]"), "17", True, "delimiters in the box"),
    GradingCase(_box("2,1"), "1,2", True, "lists have no order"),
    GradingCase(_box("(2,1)"), "(1,2)", False, "tuples do"),
    GradingCase(_box(r"1 \pm \sqrt{2}"), r"1+\sqrt{2}, 1-\sqrt{2}", True, "both signs"),
    GradingCase(_box("(x+1)^2"), "x^2+2x+1", True, "expressions are functions"),
    GradingCase(_box(r"\sqrt{x^2}"), "x", False, "they differ below zero"),
    GradingCase(r"<think>\boxed{3}?</think> It is \boxed{5}.", "5", True, "what is thought is no answer"),
    GradingCase(r"$3+\boxed{\square}=8$ gives $\boxed{5}$.", "5", True, "a box to be filled is no answer"),
    GradingCase(r"They are $\boxed{1}$ and $\boxed{2}$.", "1,2", True, "boxes that are the values together"),
    GradingCase(r"It is $\boxed{6}$ or $\boxed{5}$.", "5", False, "rival answers are none"),
    GradingCase(r"It is $\boxed{5}$ or $\boxed{6}$.", "5", False, "rival answers are none"),
    GradingCase("The answer is 5.", "5", False, "no box was asked for and shown"),
]

_MATH_VERIFY = ("math-verify[antlr4_13_2]==0.9.0", "latex2sympy2-extended==1.11.0", "sympy==1.14.0")


class Neighbor(NamedTuple):
    """A grader: what to install, whether with its dependencies, and code with a function `grade(completion, gold)`."""

    title: str
    packages: tuple[str, ...]
    bare: tuple[str, ...]
    borrows: bool
    code: str


NEIGHBORS = [
    Neighbor("math-verify 0.9.0", _MATH_VERIFY, (), False, r"""
from math_verify import parse, verify
def grade(completion, gold):
    return verify(parse(f"\\boxed{{{gold}}}"), parse(completion))
"""),
    Neighbor("TRL 1.16.0", _MATH_VERIFY, ("trl==1.16.0",), True, r"""
from trl.rewards import accuracy_reward
def grade(completion, gold):
    return accuracy_reward([[{"role": "assistant", "content": completion}]], [f"\\boxed{{{gold}}}"])[0]
"""),
    Neighbor("verifiers 0.4.0", (*_MATH_VERIFY, "verifiers==0.4.0"), (), False, r"""
from verifiers.v1.utils.score import verify_boxed_math_answer as grade
"""),
    Neighbor("verifiers 0.4.0, in a thread", (*_MATH_VERIFY, "verifiers==0.4.0"), (), False, r"""
from concurrent.futures import ThreadPoolExecutor
from verifiers.v1.utils.score import verify_boxed_math_answer
pool = ThreadPoolExecutor(1)
def grade(completion, gold):
    return pool.submit(verify_boxed_math_answer, completion, gold).result()
"""),
    Neighbor("gem 0.1.0", (*_MATH_VERIFY, "pylatexenc==2.10"), ("gem-llm==0.1.0",), False, r"""
import importlib.util, pathlib, sysconfig
path = pathlib.Path(sysconfig.get_paths()["purelib"]) / "gem" / "utils" / "math_grader.py"
spec = importlib.util.spec_from_file_location("math_grader", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
def grade(completion, gold):
    return module.boxed_reward_fn(completion, gold, fast=False, correct_reward=1, incorrect_reward=0)[1]
"""),
]  # fmt: skip

_RUNNER = r"""
import contextlib, json, logging, sys
out = sys.stdout
logging.disable()
with contextlib.redirect_stdout(sys.stderr):
    {code}
    verdicts = []
    for completion, gold in json.load(sys.stdin):
        try:
            found = grade(completion, gold)
            verdicts.append("none" if found is None else "right" if float(found) > 0 else "wrong")
        except Exception as error:
            verdicts.append(type(error).__name__)
print(json.dumps(verdicts), file=out)
"""


def verdicts_of(neighbor: Neighbor, folder: Path) -> list[str]:
    """The verdicts of a neighbor on all rows, from an environment made in a folder."""
    if not (folder / "bin").exists():
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *neighbor.packages], check=True)
        if neighbor.bare:
            subprocess.run([*pip, "--no-deps", *neighbor.bare], check=True)
        if neighbor.borrows:
            command = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
            site = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            (Path(site) / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    code = neighbor.code.strip().replace("\n", "\n    ")
    result = subprocess.run(
        [str(folder / "bin" / "python"), "-c", _RUNNER.replace("{code}", code)],
        input=json.dumps([(row.completion, row.gold) for row in ROWS]),
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{neighbor.title} did not run:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def table(columns: dict[str, list[str]]) -> str:
    """The verdicts by grader as Markdown; those that differ from what is right are bold."""
    titles = list(columns)
    agree = {
        title: sum((found == "right") == row.is_right for found, row in zip(columns[title], ROWS, strict=True))
        for title in titles
    }
    lines = [
        "# Fifty answers under five graders",
        "",
        "Made by `python scripts/grader_neighbors.py`, with the versions in the titles. Bold is what differs from our",
        "reading, whose reason is in the last column. `none`: the grader skips the row. A grader that was made for",
        "another purpose, such as math-verify for expressions of any kind, may be right by its own rules. In a thread",
        "that is not the main one math-verify refuses its time limits, which verifiers counts as a wrong answer.",
        "",
        "| completion | gold answer | " + " | ".join(titles) + " | why |",
        "|---" * (len(titles) + 3) + "|",
    ]
    for i, row in enumerate(ROWS):
        shown = row.completion.removeprefix("So the answer is ").removesuffix(".")
        cells = [
            found if (found == "right") == row.is_right else f"**{found}**" for found in (columns[t][i] for t in titles)
        ]
        texts = ["`" + text.replace("|", r"\|") + "`" for text in (shown, row.gold)]
        lines.append(f"| {' | '.join([*texts, *cells, row.why])} |")
    lines.append("| as in the last column | | " + " | ".join(f"{agree[t]} of {len(ROWS)}" for t in titles) + " | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Grades all rows with all graders and writes the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="Markdown file to write.")
    output = parser.parse_args().output
    check_output(output)
    ours = [grade_free_form(row.completion, row.gold).correct for row in ROWS]
    columns = {"tokengym": ["right" if correct else "wrong" for correct in ours]}
    with tempfile.TemporaryDirectory() as folder:
        for neighbor in NEIGHBORS:
            name = (
                "-".join(neighbor.packages[-1:] + neighbor.bare).replace("==", "-").replace("[", "-").replace("]", "")
            )
            columns[neighbor.title] = verdicts_of(neighbor, Path(folder) / name)
    output.write_text(table(columns))
    print(f"{output}: {len(ROWS)} answers, {len(columns)} columns")


if __name__ == "__main__":
    sys.exit(exit_status(main))
