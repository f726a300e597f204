"""Spelling on every kind of page of a report: text of models, figures with intervals, times and costs."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .content import Cell, CheckedClaim, Cost, Outcome, ResultRow, ResultTable, RunRecord
from .published import PaperRow, PaperTable

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that show nothing, or change how others show."""

DECIDED: dict[Outcome, str] = {
    "holds": "Decided: the results here bear the claim out.",
    "does not hold": "Decided: the results here bear out the opposite.",
    "undecided": "Not decided: the results here are compatible with the claim and with its opposite.",
}
"""Verdicts in words."""


def visible(text: str) -> str:
    """Text with the number of each character that shows nothing or reorders others, as `⟨U+202E⟩`.

    Newlines and tabs are kept.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else f"⟨U+{ord(c):04X}⟩" for c in text)


def interval(cell: Cell) -> str:
    """A cell's interval, or why it has none."""
    if cell.low is not None:
        return f"[{cell.low:.3f}, {cell.high:.3f}]"
    return "one seed" if len(cell.values) == 1 else "no interval"


def seeds(cell: Cell) -> str:
    """A cell's values by seed."""
    return ", ".join(f"seed {seed}: {value:.3f}" for seed, value in cell.values.items())


def lacking(cell: Cell) -> str:
    """Seeds that a cell lacks, or has another system's value for; empty where there are none."""
    without = [str(seed) for seed in cell.missing if seed not in cell.values]
    instead = [str(seed) for seed in cell.missing if seed in cell.values]
    parts = [f"no seed {', '.join(without)}"] if without else []
    return "; ".join([*parts, f"another value for seed {', '.join(instead)}"] if instead else parts)


def gaps(row: ResultRow) -> str:
    """Seeds that the cells of a row lack, with each reason once; empty if they lack none."""
    cells = [cell for cell in row.cells if isinstance(cell, Cell)]
    found = (
        f"{'seed' if seed in cell.values else 'no seed'} {seed}: {reason}"
        for cell in cells
        for seed, reason in cell.missing.items()
    )
    return "; ".join(dict.fromkeys(found))


def paper_metrics(table: ResultTable) -> dict[str, str]:
    """Our metrics that the published rows beside a table have too, each with the paper's own name for it."""
    papers = _beside(table)
    names = {metric: [name for paper in papers if (name := paper.metric(metric))] for metric in table.metrics}
    return {metric: " or ".join(dict.fromkeys(found)) for metric, found in names.items() if found}


def paper_sizes(table: ResultTable) -> str:
    """Sizes of the models that the values beside a table are listed by."""
    return "; ".join(dict.fromkeys(" / ".join(paper.sizes) for paper in _beside(table)))


def paper_value(table: ResultTable, row: ResultRow, metric: str) -> str:
    """The published figures for one of our cells, by size of the model; a dash where there are none."""
    found = table.published_row(row)
    if found is None:
        return "–"
    paper, published = found
    values = paper.values(published, metric)
    if all(value is None for value in values.values()):
        return "–"
    usual = tuple(published.values) == paper.sizes
    return " / ".join(
        ("–" if value is None else f"{value:.2f}") + ("" if usual else f" ({size})") for size, value in values.items()
    )


def paper_notes(table: ResultTable) -> list[str]:
    """Notes on the published figures beside a table: their source, their certainty, and limits of the comparison."""
    found = {row.paper: beside for row in table.rows if (beside := table.published_row(row))}
    notes: list[str] = []
    for source in _beside(table):
        rows = [row for paper, row in found.values() if paper is source]
        notes += [f"{source.source}, {source.title}; {source.models} {' / '.join(source.sizes)}.", *source.notes]
        notes += _certainties(source, rows)
        notes += [f"{row.name}: {note}" for row in rows for note in row.notes]
    return notes


def _certainties(source: PaperTable, rows: Iterable[PaperRow]) -> list[str]:
    by_certainty: dict[str, list[str]] = {}
    for row in rows:
        by_certainty.setdefault(row.certainty, []).append(row.name)
    meaning = source.certainties
    number = source.title.partition(":")[0]
    if len(by_certainty) == 1:
        (certainty,) = by_certainty
        return [f"Certainty of {number}'s figures: {certainty}, that is, {meaning[certainty]}."]
    return [
        f"Certainty of {number}'s figures for {', '.join(names)}: {certainty}, that is, {meaning[certainty]}."
        for certainty, names in by_certainty.items()
    ]


def _beside(table: ResultTable) -> list[PaperTable]:
    """The published tables that rows stand beside, each once."""
    found = (beside[0] for row in table.rows if (beside := table.published_row(row)))
    return list({paper.title: paper for paper in found}.values())


def verdicts(findings: Sequence[CheckedClaim]) -> str:
    """The number of findings of each verdict, in words."""
    counts = Counter(finding.verdict for finding in findings)
    one, many = (
        {"holds": "holds", "does not hold": "does not hold", "undecided": "is undecided"},
        {"holds": "hold", "does not hold": "do not hold", "undecided": "are undecided"},
    )
    parts = [f"{count} {(one if count == 1 else many)[verdict]}" for verdict in DECIDED if (count := counts[verdict])]
    return f"Of {len(findings)} claims {', '.join(parts)}."


def versions(found: Mapping[str, str]) -> str:
    """Versions of packages."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def duration(seconds: float) -> str:
    """Wall time in the two largest units that it has."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def cost(spent: Cost) -> str:
    """Attempts, tokens and time."""
    return f"{spent.attempts:,} attempts, {spent.tokens:,} tokens, {duration(spent.seconds)}"


def run_cost(run: RunRecord) -> str:
    """Cost of a configuration, and with what it builds on, if it does."""
    own = cost(run.cost)
    if run.builds_on == Cost(0, 0, 0.0):
        return own
    return f"{own}; with what it builds on: {cost(run.cost + run.builds_on)}"
