"""A report as Markdown for a repository: everything but the attempts."""

import json
import re

from . import text as report_text
from .content import Cell, MissingCell, Report, ResultTable, RunRecord
from .text import paper_value, visible


def markdown(report: Report) -> str:
    """The report as Markdown; it refers to the figures as files in `figures`."""
    parts = [
        f"# {_text(report.title)}",
        _text(report.scale),
        _fenced(report.command, "sh"),
        "\n".join(
            f"- {name}: {_text(value)}"
            for name, value in {
                "Device": report.device,
                "Started": report.started,
                "Wall time": report_text.duration(report.seconds),
                "Cost": report_text.cost(report.cost),
                "Versions": report_text.versions(report.versions),
            }.items()
        ),
    ]
    if report.attempts:
        parts.append(f"`report.html` opens from disk and shows {len(report.attempts):,} attempts, step by step.")
    if report.tables:
        parts += ["## Results", *(part for table in report.tables for part in _table(table))]
    if report.figures:
        parts.append("## Figures")
    for figure in report.figures:
        picture = f"![{_text(figure.caption)}](figures/{figure.name}.svg)"
        parts += [f"### {_text(figure.title)}", picture, _text(figure.caption)]
    if report.findings:
        parts += ["## Findings", report_text.verdicts(report.findings)]
        parts += [
            f"- **{finding.verdict}**: {_text(finding.text)} {report_text.DECIDED[finding.verdict]} "
            f"{_text(finding.evidence)} Certainty: "
            f"{_text(finding.certainty)}"
            for finding in report.findings
        ]
    if report.runs:
        parts += ["## Runs", *(part for run in report.runs for part in _run(run))]
    return "\n\n".join(parts) + "\n"


def _table(table: ResultTable) -> list[str]:
    beside = report_text.paper_metrics(table)
    sizes = _text(report_text.paper_sizes(table))
    head = ["System", *map(_text, table.metrics)]
    head += [f"*paper, another scale: {_text(name)} ({sizes})*" for name in beside.values()]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in table.rows:
        gaps = report_text.gaps(row)
        cells = [_text(f"{row.name} ({gaps})" if gaps else row.name), *map(_cell, row.cells)]
        cells += [f"*{paper_value(table, row, metric)}*" for metric in beside]
        lines.append(_line(cells))
    parts = [f"### {_text(table.title)}", _text(table.caption), "\n".join(lines), f"{_text(table.interval)}."]
    if beside:
        notes = [
            "The paper's figures are of another scale of models, data and samples: compare directions, not values."
        ]
        parts.append("\n".join(f"- {_text(note)}" for note in notes + report_text.paper_notes(table)))
    return parts


def _cell(cell: Cell | MissingCell) -> str:
    if isinstance(cell, MissingCell):
        return f"missing: {_text(cell.reason)}"
    parts = [f"{cell.mean:.3f}", _text(report_text.interval(cell))]
    if cell.missing:
        parts.append(f"({report_text.lacking(cell)})")
    return " ".join(parts)


def _run(run: RunRecord) -> list[str]:
    seeds = ", ".join(map(str, run.seeds))
    versions = report_text.versions(run.versions)
    parts = [f"### {_text(run.name)}", f"Seeds {seeds}; {report_text.run_cost(run)}."]
    if versions:
        parts.append(f"Versions: {_text(versions)}")
    return [*parts, _fenced(json.dumps(run.settings, indent=2, ensure_ascii=False), "json")]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    """Text in one line that no Markdown and no HTML is read into."""
    line = " ".join(visible(text).split())
    line = re.sub(r"([\\`*_\[\]<>|#~&!$])", r"\\\1", line)
    # What would begin a list, or underline a heading.
    return re.sub(r"^([-+=]|\d+(?=[.)](?:\s|$)))", lambda m: f"{m[0]}\\" if m[0].isdigit() else f"\\{m[0]}", line)


def _fenced(text: str, language: str) -> str:
    """Text as a block of code, whatever it holds."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text)}\n{fence}"
