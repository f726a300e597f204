"""A report as one page that opens from disk, with a browser of attempts, and as Markdown with its figures as files.

What a report holds is text of models and users: everything is shown as text. Should any of it get through as more, the
page's policy still lets no script run but its own and nothing load from anywhere.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...files import write_text
from . import text as report_text
from .content import AttemptRecord, Cell, MissingCell, Report, ResultTable
from .markdown import markdown
from .svg import data_uri, width
from .text import DECIDED, visible

SIGNS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}
_WIDE = 440
"""Width in points of figures that take a whole row, in which their text keeps its size."""


def write_report(report: Report, folder: str | Path) -> None:
    """Writes `report.html`, `report.md` and `figures/*.svg`, in place of an earlier report's.

    Args:
        report: Report to write.
        folder: Folder to write to; it is made if it does not exist.

    Raises:
        ValueError: A figure is not SVG.
        OSError: The folder can't be written to.
    """
    folder = Path(folder)
    figures = folder / "figures"
    for figure in report.figures:
        width(figure.svg, figure.name)
    pictures = {f"{figure.name}.svg": figure.svg for figure in report.figures}
    pages = {"report.html": html(report), "report.md": markdown(report)}
    figures.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_text(figures / name, picture.rstrip("\n") + "\n")
    for earlier in figures.glob("*.svg"):
        if earlier.name not in pictures:
            earlier.unlink()
    for name, page in pages.items():
        write_text(folder / name, page)


def html(report: Report) -> str:
    """The report as one self-contained page."""
    facts = {
        "Command": Markup("<code>{}</code>").format(visible(report.command)),
        "Device": report.device,
        "Started": report.started,
        "Wall time": report_text.duration(report.seconds),
        "Runs": f"{len(report.runs)} configurations; {report_text.cost(report.cost)} in all",
        "Versions": report_text.versions(report.versions),
    }
    if report.findings:
        facts["Findings"] = report_text.verdicts(report.findings)
    return _page(report.title, report.scale, facts, report.attempts, report)


def attempts_page(title: str, facts: Mapping[str, str], attempts: Sequence[AttemptRecord]) -> str:
    """The report's browser of attempts as a page of its own.

    Args:
        title: Heading of the page.
        facts: Values of the summary by name.
        attempts: Attempts to browse.
    """
    return _page(title, "", facts, attempts)


def _page(
    title: str, scale: str, facts: Mapping[str, str], attempts: Sequence[AttemptRecord], report: Report | None = None
) -> str:
    source = Path(__file__).with_name("template.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    return (
        _templates()
        .get_template("template.html")
        .render(
            title=title,
            scale=scale,
            facts=facts,
            attempts=_attempts(attempts),
            report=report,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals |= {"text": report_text, "signs": SIGNS, "decided": DECIDED, "data_uri": data_uri}
    environment.globals |= {"flat": _flat, "shares_of": _shares, "is_wide": lambda svg: width(svg, "") > _WIDE}
    return environment


def _shares(table: ResultTable) -> list[bool]:
    """For each column, whether all that it has lies between 0 and 1, so that a bar can show it."""
    return [_is_share([row.cells[column] for row in table.rows]) for column in range(len(table.metrics))]


def _is_share(column: Sequence[Cell | MissingCell]) -> bool:
    cells = [cell for cell in column if isinstance(cell, Cell)]
    ends = [end for cell in cells for end in (cell.mean, cell.low, cell.high) if end is not None]
    return all(0 <= end <= 1 for end in ends)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings by dotted names, values as JSON."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return found


def _attempts(attempts: Sequence[AttemptRecord]) -> dict[str, Any]:
    """Attempts for the browser, what they share named once; reads as the page's script expects it."""
    systems: dict[str, int] = {}
    verdicts: dict[str, int] = {}
    problems: dict[tuple[str, str, str], int] = {}
    rows = [
        [
            systems.setdefault(visible(attempt.system), len(systems)),
            problems.setdefault(
                (visible(attempt.problem_id), visible(attempt.question), visible(attempt.reference)), len(problems)
            ),
            verdicts.setdefault(visible(attempt.verdict), len(verdicts)),
            None if attempt.answer is None else visible(attempt.answer),
            [
                [
                    visible(step.text.removesuffix("\n")),
                    round(step.reward, 6),
                    None if step.score is None else round(step.score, 6),
                ]
                for step in attempt.steps
            ],
        ]
        for attempt in attempts
    ]
    return {"systems": list(systems), "verdicts": list(verdicts), "problems": list(problems), "attempts": rows}
