"""Content of a report: typed values, to JSON and back. `html.write_report` makes pages of them.

Our figures and a paper's never share a field: a row of a table refers to the published row that it stands beside.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from ...registry import unknown_name
from .published import PaperRow, PaperTable

Outcome = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Cell:
    """One metric of one system.

    Attributes:
        values: Values by seed.
        mean: Mean of the values.
        low: Lower end of the mean's interval; `None` if there is none, as after a single seed.
        high: Upper end of the mean's interval; `None` if there is none.
        missing: Seeds without a value of their own, each with the reason.
    """

    values: Mapping[int, float]
    mean: float
    low: float | None = None
    high: float | None = None
    missing: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = [self.low, self.high]
        if (self.low is None) != (self.high is None):
            raise ValueError(f"an interval has two ends, got {ends}")
        if not all(value is None or math.isfinite(value) for value in [self.mean, *ends, *self.values.values()]):
            raise ValueError(f"a cell's values must be finite, got mean {self.mean}, interval {ends}, {self.values}")
        if self.low is not None and self.high is not None and not self.low <= self.mean <= self.high:
            raise ValueError(f"the mean {self.mean} is outside of its interval {ends}")


@dataclass(frozen=True)
class MissingCell:
    """A metric that no seed has a value of, and why."""

    reason: str


@dataclass(frozen=True)
class ResultRow:
    """One system in a table.

    Attributes:
        name: Name of the system.
        cells: Cells, one for each of the table's metrics.
        paper: Published row that it stands beside, "table_1/ei" for the row "ei" of the result table's published table
            "table_1"; `None` where there is none.
    """

    name: str
    cells: tuple[Cell | MissingCell, ...]
    paper: str | None = None


@dataclass(frozen=True)
class ResultTable:
    """Systems by metrics.

    Attributes:
        title: Title of the table.
        caption: Text that tells what was measured on what.
        rows: Rows, one for each system.
        metrics: Names of the columns, such as "maj@8".
        interval: Kind of interval in the cells.
        published: Tables of papers that rows stand beside, by the name that the rows use.
    """

    title: str
    caption: str
    rows: tuple[ResultRow, ...]
    metrics: tuple[str, ...] = ("maj@1", "maj@n", "rerank@n", "pass@n")
    interval: str = "Mean over seeds and problems, with its 95 % interval over both"
    published: Mapping[str, PaperTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.metrics):
                raise ValueError(
                    f"table {self.title!r}: row {row.name!r} has {len(row.cells)} cells for the {len(self.metrics)} "
                    f"metrics {', '.join(self.metrics)}"
                )
            self.published_row(row)

    def published_row(self, row: ResultRow) -> tuple[PaperTable, PaperRow] | None:
        """The published table and row that a row stands beside, if it does.

        Raises:
            UnknownNameError: There is no such table or row.
        """
        if row.paper is None:
            return None
        name, _, short_name = row.paper.partition("/")
        if name not in self.published:
            raise unknown_name(f"published table of {self.title!r}", name, self.published)
        return self.published[name], self.published[name].row(short_name)


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        name: Name of its file: small letters, digits, - and _.
        title: Title of the figure.
        caption: Text that tells what it shows; screen readers read it out.
        svg: Picture as SVG.
    """

    name: str
    title: str
    caption: str
    svg: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"a figure's name is of small letters, digits, - and _, got {self.name!r}")


@dataclass(frozen=True)
class CheckedClaim:
    """A claim of the paper, and what became of it here.

    Attributes:
        text: Claim that is checked.
        verdict: Verdict of the evidence.
        evidence: Numbers that the verdict rests on.
        certainty: Certainty of the verdict, in words.
    """

    text: str
    verdict: Outcome
    evidence: str
    certainty: str


@dataclass(frozen=True)
class Cost:
    """Cost of a run: sampled attempts, their tokens, wall time in seconds."""

    attempts: int
    tokens: int
    seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.attempts + other.attempts, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True)
class RunRecord:
    """One configuration that was run.

    Attributes:
        name: Name of the configuration.
        seeds: Seeds that it was run with.
        settings: All of its settings, as JSON values.
        cost: Cost of all its seeds.
        versions: Versions of packages, if they are not the report's.
        builds_on: Cost of the training of other configurations that this one begins from or learns by, over all seeds.
    """

    name: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    cost: Cost
    versions: Mapping[str, str] = field(default_factory=dict)
    builds_on: Cost = field(default_factory=lambda: Cost(0, 0, 0.0))


@dataclass(frozen=True)
class StepRecord:
    """A step of an attempt: its text, the reward it was paid, and its score by an outcome model, p(correct), if any."""

    text: str
    reward: float
    score: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"a step's reward must be finite, got {self.reward}")
        if self.score is not None and not 0 <= self.score <= 1:
            raise ValueError(f"a step's score is a probability, got {self.score}")


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt at one problem, to be looked at.

    Attributes:
        system: Name of the system whose attempt it is.
        problem_id: Id of the problem.
        question: Text of the question.
        reference: Right answer to the problem.
        verdict: Verdict of the grader in one word: "correct", "wrong", ...
        answer: Final answer of the attempt, if it gave one.
        steps: Lines of the attempt.
    """

    system: str
    problem_id: str
    question: str
    reference: str
    verdict: str
    answer: str | None
    steps: tuple[StepRecord, ...]


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark has to say.

    Attributes:
        title: Title of the report.
        command: Command that makes it again.
        scale: Scale in words: models, problems, samples.
        versions: Versions of packages.
        device: Device that it ran on.
        started: Time of the start, as ISO 8601.
        seconds: Wall time in seconds of all of it.
        tables, figures, findings, runs, attempts: Contents of the report.
    """

    title: str
    command: str
    scale: str
    versions: Mapping[str, str]
    device: str
    started: str
    seconds: float
    tables: tuple[ResultTable, ...] = ()
    figures: tuple[Figure, ...] = ()
    findings: tuple[CheckedClaim, ...] = ()
    runs: tuple[RunRecord, ...] = ()
    attempts: tuple[AttemptRecord, ...] = ()

    def __post_init__(self) -> None:
        names = [figure.name for figure in self.figures]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two figures are named {twice[0]!r}")

    @property
    def cost(self) -> Cost:
        """Cost of all runs."""
        return sum((run.cost for run in self.runs), Cost(0, 0, 0.0))

    def to_json(self) -> str:
        """Converts to JSON text."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A report from JSON text.

        Raises:
            ValueError: The text is not a report; the message names the place.
        """
        return decode(cls, json.loads(text), "report")


def decode(kind: Any, value: Any, where: str) -> Any:
    """A value of `kind`, a dataclass or what its fields may be, from JSON values.

    Raises:
        ValueError: The value does not fit the type; the message names the place, which begins with `where`.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        choices = [choice for choice in arguments if choice is not NoneType]
        return decode(next((choice for choice in choices if _has_its_fields(choice, value)), choices[0]), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        key, item = arguments
        if key is int and (wrong := [name for name in value if not re.fullmatch(r"-?\d+", name)]):
            raise ValueError(f"{where}: expected names that are whole numbers, got {wrong[0]!r:.80}")
        return {key(name): decode(item, inner, f"{where}[{name!r}]") for name, inner in value.items()}
    if kind is Any or (origin is Literal and value in arguments):
        return value
    if kind in (str, int, float) and isinstance(value, (float, int) if kind is float else kind):
        return value
    raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r:.80}")


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a {kind.__name__}, got {value!r:.80}")
    kinds = get_type_hints(kind)
    for name in value:
        if name not in kinds:
            raise ValueError(f"{where}: a {kind.__name__} has no {name!r}")
    parts = {name: decode(kinds[name], inner, f"{where}.{name}") for name, inner in value.items()}
    try:
        return kind(**parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _has_its_fields(kind: Any, value: Any) -> bool:
    return is_dataclass(kind) and isinstance(value, dict) and set(value) <= {item.name for item in fields(kind)}
