"""A report whose every figure is made up, to test pages with."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from tokengym.benchmarks.paper.published import paper_table
from tokengym.benchmarks.reports.content import (
    AttemptRecord,
    Cell,
    CheckedClaim,
    Cost,
    Figure,
    MissingCell,
    Report,
    ResultRow,
    ResultTable,
    RunRecord,
    StepRecord,
)
from tokengym.benchmarks.reports.svg import to_svg

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<!--<script> {{title}} &lt; &amp; \x00\x1b[31mred\x7f \u202eright to left\u202c \u2028 \ud800 \ufeff| "
    "`tick` *star*"
)
SYSTEMS = ("SFT", "EI", "Sparse PPO", "Dense ORM PPO")


@pytest.fixture
def hostile() -> str:
    """Text that is no text's friend."""
    return HOSTILE


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Report]:
    """A made-up report with so many attempts; the first problem and the first attempt are hostile."""
    return _report


def _report(attempts: int = 60) -> Report:
    return Report(
        title="MADE-UP FIGURES: a report for tests",
        command="tokengym bench paper --scale tiny --seeds 3",
        scale="Nothing here was measured: made-up figures, for tests of the report's pages alone.",
        versions={"tokengym": "0.0.0", "torch": "0.0", "python": "3.0"},
        device="no device: made up",
        started="2000-01-01T00:00:00Z",
        seconds=4321.0,
        tables=(_table("from an SFT checkpoint", "table_1"), _table("from the pretrained model", "table_3")),
        figures=tuple(_figure(name) for name in ("sample-complexity", "rounds", "rewards")),
        findings=(
            CheckedClaim(
                "EI is at least as good as PPO.", "holds", "EI 0.61, PPO 0.55 (made up).", "high: no overlap."
            ),
            CheckedClaim("Dense rewards do not help.", "does not hold", "They did, 0.58 to 0.55 (made up).", "medium"),
            CheckedClaim("EI stops after two rounds.", "undecided", "Two of three did (made up).", "low: three seeds"),
        ),
        runs=tuple(_run(name) for name in SYSTEMS),
        attempts=tuple(_attempt(i) for i in range(attempts)),
    )


def _table(start: str, paper: str) -> ResultTable:
    rng = np.random.default_rng(len(start))
    first = "prompted" if paper == "table_3" else "sft"
    rows = []
    for name, reference in zip(SYSTEMS, (first, "ei", "sparse_ppo", "dense_orm_ppo"), strict=True):
        values = np.sort(rng.uniform(0.35, 0.75, 4))[:, None] + rng.normal(0, 0.008, (4, 3))
        cells = [_cell(dict(enumerate(row.tolist()))) for row in values]
        if name == "Sparse PPO":
            cells[2] = MissingCell("made up: its ORM ran out of memory")
            cells[3] = _cell({0: 0.7, 2: 0.74}, {1: "made up: no space was left"})
        rows.append(ResultRow(name, tuple(cells), f"{paper}/{reference}"))
    rows.append(ResultRow("GRPO", tuple(_cell({0: value}) for value in (0.5, 0.55, 0.6, 0.7))))
    metrics = ("maj@1", "maj@8", "rerank@8", "pass@8")
    caption = "200 problems that don't exist, 8 samples each."
    published = {paper: paper_table(paper)}
    return ResultTable(f"Made up, {start}", caption, tuple(rows), metrics, published=published)


def _cell(values: dict[int, float], missing: dict[int, str] | None = None) -> Cell:
    """A cell with a made-up interval over seeds, if there are several."""
    mean = float(np.mean(list(values.values())))
    half = (max(values.values()) - min(values.values())) * 1.2
    return Cell(values, mean, *((mean - half, mean + half) if len(values) > 1 else ()), missing=missing or {})


@cache
def _figure(name: str) -> Figure:
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(6, 3.6), layout="constrained")
    axes = plot.add_subplot()
    at = np.geomspace(100, 10_000, 8)
    for i, system in enumerate(SYSTEMS):
        mean = 0.3 + 0.1 * np.log10(at / 100) * (1 + 0.2 * i)
        axes.semilogx(at, mean, marker="o", label=system)
        axes.fill_between(at, mean - 0.02, mean + 0.02, alpha=0.2)
    axes.set(xlabel="attempts", ylabel="maj@1", title="MADE UP")
    axes.legend()
    return Figure(name, f"Made up: {name}", "Accuracy that nobody measured, against cumulative attempts.", to_svg(plot))


def _run(name: str) -> RunRecord:
    settings = {"env": "tokengym/Arithmetic-v0", "learning_rate": 1e-4, "sampling": {"temperature": 0.7, "n": 8}}
    return RunRecord(name, (0, 1, 2), {**settings, "note": "<b>made up</b>"}, Cost(12_345, 678_901, 987.0))


def _attempt(i: int) -> AttemptRecord:
    system, problem = SYSTEMS[i % 4], i // 4
    if problem == 0:
        question, reference = f"Hostile: {HOSTILE}", "4"
    else:
        question = f"Ann has {problem} apples and buys {problem + 2} more.\nHow many apples has Ann?"
        reference = str(2 * problem + 2)
    right = i % 3 == 0
    answer = reference if right else None if i % 3 == 1 else str(problem)
    verdict = "correct" if right else "truncated" if answer is None else "wrong"
    steps = (
        StepRecord(HOSTILE + "\n" if i == 0 else f"{problem}+{problem + 2}=<<{problem}+2>>\n", -0.25, 0.0),
        StepRecord("\tsecond line,  two spaces\n", 0.0, 0.5),
        StepRecord(f"#### {answer}", 1.0 if right else 0.0, 1.0 if right else 0.25),
        *([StepRecord("a line that was cut o", 0.0)] if verdict == "truncated" else []),
    )
    return AttemptRecord(system, f"made-up-{problem}", question, reference, verdict, answer, steps)
