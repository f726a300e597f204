"""A report as one page that opens from disk, with a browser of attempts, and as Markdown with its figures as files.

What a report holds is text of models and users: everything is shown as text. Should any of it get through as more, the
page's policy still lets no script run but its own and nothing load from anywhere.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...files import write_text
from . import text as report_text
from .content import AttemptRecord, Cell, Figure, Finding, MissingCell, Report, ResultTable, Row, RunRecord
from .markdown import markdown
from .svg import clean_svg
from .text import paper_value, visible

SIGNS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}


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
    pictures = {f"{figure.name}.svg": clean_svg(figure.svg, figure.name) for figure in report.figures}
    pages = {"report.html": html(report), "report.md": markdown(report)}
    figures.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_text(figures / name, picture + "\n")
    for earlier in figures.glob("*.svg"):
        if earlier.name not in pictures:
            earlier.unlink()
    for name, page in pages.items():
        write_text(folder / name, page)


def html(report: Report) -> str:
    """The report as one self-contained page."""
    return _filled(
        _template(),
        title=_text(report.title),
        scale=_text(report.scale),
        summary=_summary(report),
        tables=_join((_table(table, i) for i, table in enumerate(report.tables)), "table"),
        figures=_join(map(_figure, report.figures), "figure"),
        findings=_join(map(_finding, report.findings), "finding", "ul"),
        runs=_join((_run(run, report) for run in report.runs), "run"),
        attempts=_embedded(_attempts(report.attempts)),
    )


def attempts_page(title: str, facts: Mapping[str, str], attempts: Sequence[AttemptRecord]) -> str:
    """The report's browser of attempts as a page of its own.

    Args:
        title: Heading of the page.
        facts: Values of the summary by name.
        attempts: Attempts to browse.
    """
    return _filled(
        re.sub(r"<!--report-->.*?<!--/report-->", "", _template(), flags=re.DOTALL).replace("#results", "#attempts"),
        title=_text(title),
        scale="",
        summary=_facts({name: _text(value) for name, value in facts.items()}),
        attempts=_embedded(_attempts(attempts)),
    )


def _template() -> str:
    return Path(__file__).with_name("template.html").read_text(encoding="utf-8")


def _filled(template: str, **parts: str) -> str:
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    parts["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # In one pass: nothing that is put in is looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _text(text: str) -> str:
    return escape(visible(text))


def _join(items: Iterable[str], what: str, tag: str = "div") -> str:
    found = list(items)
    inner = "\n".join(found) if found else f"<{'li' if tag == 'ul' else 'p'} class=none>This report has no {what}s."
    return f"<{tag} class={what}s>{inner}</{tag}>"


def _summary(report: Report) -> str:
    facts = {
        "Command": f"<code>{_text(report.command)}</code>",
        "Device": _text(report.device),
        "Started": _text(report.started),
        "Wall time": report_text.duration(report.seconds),
        "Runs": _text(f"{len(report.runs)} configurations; {report_text.cost(report.cost)} in all"),
        "Versions": _text(", ".join(f"{name} {version}" for name, version in report.versions.items())),
    }
    if report.findings:
        counts = {verdict: sum(finding.verdict == verdict for finding in report.findings) for verdict in SIGNS}
        facts["Findings"] = _text(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    return _facts(facts)


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())


def _table(table: ResultTable, number: int) -> str:
    beside = report_text.paper_metrics(table)
    name = f"table-{number + 1}"
    metrics = "".join(f"<th scope=col>{_text(metric)}</th>" for metric in table.metrics)
    papers = "".join(f"<th scope=col class=paper>{_text(paper)}</th>" for paper in beside.values())
    group = (
        f"<th scope=colgroup colspan={len(beside)} class=paper>The paper: another scale "
        f"<span class=sizes>{_text(report_text.paper_sizes(table))}</span></th>"
    )
    shares = [_is_share(table, column) for column in range(len(table.metrics))]
    notes = "".join(f"<li>{_text(note)}</li>" for note in report_text.paper_notes(table))
    return (
        f'<div class=scroll role=region tabindex=0 aria-labelledby="{name}"><table class=results>'
        f'<caption id="{name}"><div><strong>{_text(table.title)}</strong> {_text(table.caption)}</div></caption>'
        f"<thead><tr><th rowspan=2 scope=col>System</th><th scope=colgroup colspan={len(table.metrics)}>This report"
        f"</th>{group if beside else ''}</tr><tr>{metrics}{papers}</tr></thead><tbody>"
        + "".join(_row(table, row, shares, beside) for row in table.rows)
        + f"</tbody></table></div><p class=key>{_text(table.interval)}.</p>"
        + (
            "<details class=paper-notes><summary>The paper’s figures are of another scale of models, data and "
            "samples: compare directions, not values. Sources and certainty</summary>"
            f"<ul>{notes}</ul></details>"
            if beside
            else ""
        )
    )


def _is_share(table: ResultTable, column: int) -> bool:
    """True if all that a column has lies between 0 and 1, so that a bar can show it."""
    cells = [cell for row in table.rows if isinstance(cell := row.cells[column], Cell)]
    ends = [end for cell in cells for end in (cell.mean, cell.low, cell.high) if end is not None]
    return all(0 <= end <= 1 for end in ends)


def _row(table: ResultTable, row: Row, shares: Sequence[bool], beside: Iterable[str]) -> str:
    ours = "".join(_cell(cell, share) for cell, share in zip(row.cells, shares, strict=True))
    papers = "".join(f"<td class=paper>{_text(paper_value(table, row, metric))}</td>" for metric in beside)
    gaps = report_text.gaps(row)
    why = f"<small class=gap>{_text(gaps)}</small>" if gaps else ""
    return f"<tr><th scope=row>{_text(row.name)}{why}</th>{ours}{papers}</tr>"


def _cell(cell: Cell | MissingCell, share: bool) -> str:
    if isinstance(cell, MissingCell):
        return f"<td class=missing>missing<small>{_text(cell.reason)}</small></td>"
    text = f"<span class=mean>{cell.mean:.3f}</span> <span class=interval>{report_text.interval(cell)}</span>"
    if share and cell.low is not None and cell.high is not None:
        text += (
            f'<span class=bar aria-hidden=true><i style="left:{cell.low:.1%};width:{cell.high - cell.low:.1%}"></i>'
            f'<b style="left:{cell.mean:.1%}"></b></span>'
        )
    text += f"<small class=seeds>{_text(report_text.seeds(cell))}</small>"
    if cell.missing:
        text += f"<small class=gap>{_text(report_text.lacking(cell))}</small>"
    return f"<td>{text}</td>"


def _figure(figure: Figure) -> str:
    title, caption = _text(figure.title), _text(figure.caption)
    picture = clean_svg(figure.svg, figure.name)
    return (
        f'<figure id="figure-{figure.name}"><h3>{title}</h3>'
        f'<div class=picture role=img aria-label="{title}: {caption}">{picture}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _finding(finding: Finding) -> str:
    kind = finding.verdict.replace(" ", "-")
    return (
        f'<li class="{kind}"><span class=badge><span aria-hidden=true>{SIGNS[finding.verdict]}</span> '
        f"{finding.verdict}</span><p class=claim>{_text(finding.text)}</p><p>{_text(finding.evidence)}</p>"
        f"<p class=certainty>Certainty: {_text(finding.certainty)}</p></li>"
    )


def _run(run: RunRecord, report: Report) -> str:
    versions = run.versions or report.versions
    seeds = ", ".join(map(str, run.seeds))
    return (
        f"<details class=run><summary><span class=name>{_text(run.name)}</span> <span>seeds {_text(seeds)}</span> "
        f"<span>{report_text.run_cost(run)}</span></summary><h3>Configuration</h3><table class=settings>"
        "<thead><tr><th scope=col>Setting</th><th scope=col>Value</th></tr></thead><tbody>"
        + "".join(
            f"<tr><th scope=row>{_text(name)}</th><td><code>{_text(value)}</code></td></tr>"
            for name, value in _flat(run.settings)
        )
        + "</tbody></table><h3>Versions</h3><p>"
        + _text(", ".join(f"{name} {version}" for name, version in versions.items()))
        + "</p></details>"
    )


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


def _embedded(value: Any) -> str:
    """JSON text that has no meaning in HTML: ASCII without <, > and &."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
