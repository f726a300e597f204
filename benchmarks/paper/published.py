"""The tables of Havrilla et al. 2024 that ours stand beside: figures of another scale, each with how sure it is."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...registry import unknown_name
from ..reports.published import PaperRow, PaperTable


def paper_table(name: str) -> PaperTable:
    """The table "table_1", "table_2", "table_3" or "table_4".

    Raises:
        UnknownNameError: There is no such table.
    """
    tables = _tables()
    if name not in tables:
        raise unknown_name("table of the paper", name, tables)
    return tables[name]


def paper_row(reference: str) -> tuple[PaperTable, PaperRow]:
    """The table and row that "table_1/ei" refers to.

    Raises:
        UnknownNameError: There is no such table, or it has no such row.
    """
    name, _, row = reference.partition("/")
    table = paper_table(name)
    return table, table.row(row)


@cache
def _tables() -> dict[str, PaperTable]:
    data = _read()
    return {name: _table(table, data) for name, table in data["tables"].items()}


@cache
def _read() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("published.json").read_text())


def _table(table: Mapping[str, Any], data: Mapping[str, Any]) -> PaperTable:
    """A table of the file, with what holds for all of the paper's."""
    rows = {
        name: PaperRow(
            row["name"],
            {size: tuple(values) for size, values in row["values"].items()},
            row.get("certainty", table["certainty"]),
            tuple(row.get("notes", ())),
        )
        for name, row in table["rows"].items()
    }
    return PaperTable(
        title=table["title"],
        source=data["source"],
        models=data["models"],
        sizes=tuple(data["sizes"]),
        data=table["data"],
        metrics=tuple(table["metrics"]),
        rows=rows,
        notes=tuple(table.get("notes", ())),
        certainties=data["certainties"],
    )
