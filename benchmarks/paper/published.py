"""The tables of Havrilla et al. 2024 that ours stand beside: figures of another scale, each with how sure it is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...registry import unknown_name

Certainty = Literal["stated", "recalled, high", "recalled, medium", "recalled, low"]


@dataclass(frozen=True)
class PaperRow:
    """One system.

    Attributes:
        name: as the paper calls it.
        values: by size of the model ("7B"), a value for each of the table's metrics; `None` where the paper has none.
        certainty: of the values; `certainties()` says what each word means.
        notes: what to know before comparing with them.
    """

    name: str
    values: Mapping[str, tuple[float | None, ...]]
    certainty: Certainty
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: number and content.
        source: the paper.
        models: whose sizes the rows' values are listed by, unless a row's notes say otherwise.
        data: what was evaluated on.
        metrics: the columns.
        rows: by a short name.
        notes: what holds for all of it.
    """

    title: str
    source: str
    models: str
    data: str
    metrics: tuple[str, ...]
    rows: Mapping[str, PaperRow]
    notes: tuple[str, ...] = ()

    def metric(self, ours: str) -> str | None:
        """The metric that corresponds to one of ours, whatever the number of samples: maj@96 to maj@8."""
        return next((name for name in self.metrics if _family(name) == _family(ours)), None)

    def values(self, row: PaperRow, metric: str) -> dict[str, float | None]:
        """A row's values by size of the model; none at all where no metric corresponds to this one."""
        name = self.metric(metric)
        return {} if name is None else {size: row.values[size][self.metrics.index(name)] for size in row.values}


def paper_table(name: str) -> PaperTable:
    """The table "table_1", "table_2", "table_3" or "table_4".

    Raises:
        UnknownNameError: there is no such table.
    """
    tables = _tables()
    if name not in tables:
        raise unknown_name("table of the paper", name, tables)
    return tables[name]


def paper_row(reference: str) -> tuple[PaperTable, PaperRow]:
    """The table and row that "table_1/ei" refers to.

    Raises:
        UnknownNameError: there is no such table, or it has no such row.
    """
    name, _, row = reference.partition("/")
    table = paper_table(name)
    if row not in table.rows:
        raise unknown_name(f"row of {name} of the paper", row, table.rows)
    return table, table.rows[row]


def certainties() -> dict[Certainty, str]:
    """What the words for certainty mean."""
    return _read()["certainties"]


@cache
def _tables() -> dict[str, PaperTable]:
    data = _read()
    return {name: _table(table, data["source"], data["models"]) for name, table in data["tables"].items()}


@cache
def _read() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text())


def _table(table: Mapping[str, Any], source: str, models: str) -> PaperTable:
    rows = {
        name: PaperRow(
            row["name"],
            {size: tuple(values) for size, values in row["values"].items()},
            row.get("certainty", table["certainty"]),
            tuple(row.get("notes", ())),
        )
        for name, row in table["rows"].items()
    }
    notes = tuple(table.get("notes", ()))
    return PaperTable(table["title"], source, models, table["data"], tuple(table["metrics"]), rows, notes)


def _family(metric: str) -> tuple[str, bool]:
    """A metric's name before the @, and whether it is over one sample only."""
    name, _, samples = metric.partition("@")
    return name, samples == "1"
