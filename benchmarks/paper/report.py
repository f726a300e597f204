"""The report of the paper's grid: tables in the shapes of the paper's, figures, findings, costs, attempts."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch

from ..jobs import Done
from ..reports.content import AttemptRecord, Cell, Cost, Report, ResultRow, ResultTable, RunRecord, decode
from .findings import findings
from .jobs import RECORDS
from .plots import figures
from .published import paper_table
from .results import METRICS, Results, job_name, system_of
from .systems import ABLATIONS, OWN_TABLES, TABLES, systems

_PACKAGES = ("tokengym", "torch", "transformers", "gymnasium", "accelerate", "numpy")
_TITLES = {
    "table_1": "From the SFT checkpoint",
    "table_2": "From the pretrained checkpoint",
    "table_3": "From the pretrained checkpoint",
    "table_4": "Shorter and longer fine-tuning",
    "rounds": "Expert iteration by round",
    ABLATIONS: "One thing changed at a time",
}


def assemble(results: Results, *, command: str, started: str, seconds: float) -> Report:
    """The report of all results that there are; cells without one say why.

    Args:
        results: Results of the plan's jobs.
        command: Command that makes the report again.
        started: Time of the start, as ISO 8601.
        seconds: Wall time of it all.
    """
    scale = results.scale
    tables = tuple(table for name in scale.tables if (table := _table(results, name)).rows)
    differ = len({_seeds(row) for table in tables for row in table.rows} - {0}) > 1
    seeds = f"{'up to ' * differ}{len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}"
    return Report(
        title=f"Teaching language models to reason with RL, at scale {scale.name}",
        command=command,
        scale=f"{scale.about} {scale.env}; {scale.test_problems} test problems, {scale.n} samples each at temperature "
        f"{scale.temperature}; {seeds}.",
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        device=_device(scale.agent.get("device")),
        started=started,
        seconds=seconds,
        tables=tables,
        figures=tuple(figures(results)),
        findings=tuple(findings(results)),
        runs=tuple(_runs(results)),
        attempts=tuple(_attempts(results)),
    )


def _table(results: Results, name: str) -> ResultTable:
    scale, single = results.scale, len(results.seeds) == 1
    planned = set(map(system_of, results.jobs))
    rows = tuple(
        ResultRow(
            line.title,
            tuple(results.cell(line.system, metric) for metric in METRICS),
            None if line.paper is None else f"{name}/{line.paper}",
        )
        for line in TABLES[name]
        if line.system in planned
    )
    interval = (
        "One seed, with its 95 % interval over problems, which says nothing about other seeds"
        if single
        else "Mean over seeds and problems, with its 95 % interval over both" + _seeds_by_row(rows)
    )
    published = {} if name in OWN_TABLES else {name: paper_table(name)}
    shape = "".join(f" (as {table.title.partition(':')[0]} of the paper)" for table in published.values())
    return ResultTable(
        _TITLES[name] + shape,
        f"{scale.env}, {scale.test_problems} test problems, {scale.n} samples each at temperature {scale.temperature}.",
        rows,
        tuple(map(results.metric_name, METRICS)),
        interval,
        published,
    )


def _seeds_by_row(rows: Sequence[ResultRow]) -> str:
    """How many seeds rows have, where they differ in that."""
    counts = sorted({_seeds(row) for row in rows} - {0}, reverse=True)
    names = {count: ", ".join(row.name for row in rows if _seeds(row) == count) for count in counts}
    parts = [f"{count} seed{'s' * (count > 1)} of {names[count]}" for count in counts]
    return "; " + "; ".join(parts) if len(parts) > 1 else ""


def _seeds(row: ResultRow) -> int:
    return max(len(cell.values) if isinstance(cell, Cell) else 0 for cell in row.cells)


def _runs(results: Results) -> Iterator[RunRecord]:
    """A record for each system: its configuration and what training and evaluation cost."""
    for system in systems(results.scale):
        seeds, cost, settings = [], _NOTHING, dict[str, Any]()
        for seed in results.seeds:
            for what in ("train", "evaluate", "rerank"):
                name = job_name(system.name, seed, what)
                state = results.states.get(name)
                if isinstance(state, Done):
                    settings.setdefault(what, results.jobs[name].settings)
                    cost += _cost(state)
                    seeds.append(seed)
        if seeds:
            builds_on = [
                _cost(state)
                for seed in results.seeds
                for name in results.builds_on(system.name)
                if isinstance(state := results.states.get(job_name(name, seed, "train")), Done)
            ]
            yield RunRecord(
                system.title, tuple(dict.fromkeys(seeds)), settings, cost, builds_on=sum(builds_on, _NOTHING)
            )


_NOTHING = Cost(0, 0, 0.0)


def _cost(state: Done) -> Cost:
    result = state.result
    attempts = result.get("attempts", result.get("episodes", 0))
    return Cost(attempts, result.get("tokens", 0), result["seconds"])


def _attempts(results: Results) -> Iterator[AttemptRecord]:
    """The attempts of the first seed, with scores where there are some."""
    seed = results.seeds[0]
    for system in systems(results.scale):
        found = results.file(system.name, seed, "rerank", RECORDS)
        if found is None:
            found = results.file(system.name, seed, "evaluate", RECORDS)
        for i, record in enumerate(found or ()):
            yield decode(AttemptRecord, record, f"attempt {i} of {system.name}")


def _device(name: str | None) -> str:
    if name != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
