"""Published figures that a report's stand beside: of another scale, each with how sure it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...registry import unknown_name


@dataclass(frozen=True)
class PaperRow:
    """One system.

    Attributes:
        name: Name that the paper gives it.
        values: Values for each of the table's metrics, by size of the model ("7B"); `None` where the paper has none.
        certainty: Certainty of the values, one of the table's `certainties`.
        notes: Remarks to read before comparing with them.
    """

    name: str
    values: Mapping[str, tuple[float | None, ...]]
    certainty: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        title: Number and content.
        source: Name of the paper.
        models: Family of models whose sizes the rows' values are listed by, unless a row's notes say otherwise.
        sizes: Sizes of that family; a row with values of other sizes names them at each value.
        data: Name of the data that was evaluated on.
        metrics: Names of the columns.
        rows: Rows by a short name.
        notes: Remarks that hold for all of it.
        certainties: Meaning of each word for how sure a row's values are.
    """

    title: str
    source: str
    models: str
    sizes: tuple[str, ...]
    data: str
    metrics: tuple[str, ...]
    rows: Mapping[str, PaperRow]
    notes: tuple[str, ...] = ()
    certainties: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, row in self.rows.items():
            if row.certainty not in self.certainties:
                raise ValueError(f"{self.title}: `certainties` does not explain {row.certainty!r} of row {name!r}")

    def row(self, name: str) -> PaperRow:
        """The row with that short name.

        Raises:
            UnknownNameError: The table has no such row.
        """
        if name not in self.rows:
            raise unknown_name(f"row of {self.title.partition(':')[0]}", name, self.rows)
        return self.rows[name]

    def metric(self, ours: str) -> str | None:
        """The metric that corresponds to one of ours, whatever the number of samples: maj@96 to maj@8."""
        return next((name for name in self.metrics if _family(name) == _family(ours)), None)

    def values(self, row: PaperRow, metric: str) -> dict[str, float | None]:
        """A row's values by size of the model; none at all where no metric corresponds to this one."""
        name = self.metric(metric)
        return {} if name is None else {size: row.values[size][self.metrics.index(name)] for size in row.values}


def _family(metric: str) -> tuple[str, bool]:
    """A metric's name before the @, and whether it is over one sample only."""
    name, _, samples = metric.partition("@")
    return name, samples == "1"
