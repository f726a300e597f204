"""`tokengym bench models`: which types of language models decode, train, criticize and judge right here.

A tiny random model of each type that transformers knows is put through `model_checks`, in a process of its own, so that
one that hangs or dies costs its own row alone.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from ...files import check_new_folder, read_json, write_json, write_text
from ...settings import Positive, check_settings
from ..isolated import Fault, isolated
from .model_checks import CHECKS, VOCABULARY, CheckResult, check
from .tiny_architectures import TYPES, VARIANTS, configurations

NAMES = tuple(sorted((*TYPES, *VARIANTS)))
_BAD = ("WRONG", "CRASH")
_MEANINGS = {
    "right": "as one pass over each row alone",
    "alone": "the same, but computed one row at a time, because the type's cache takes no batch of rows",
    "refused": "refused by one clear line before anything is computed",
    "WRONG": "other numbers, and no line",
    "CRASH": "an error from deep inside, a process that dies, or one that takes too long",
}


@dataclass(frozen=True)
class ModelMatrix:
    """Types of models to check, and where the matrix is written.

    Attributes:
        types: Names of types and variants; none checks all types that transformers has.
        folder: Folder for models.json and models.md. Rows in it that the same versions made are kept, except wrong ones
            and crashes.
        time_limit: Limit of processor time in seconds for one type.
    """

    types: tuple[str, ...] = ()
    folder: Path = Path("runs/models")
    time_limit: Positive = 180.0

    def __post_init__(self) -> None:
        if unknown := sorted({*self.types} - {*NAMES}):
            raise ValueError(f"there are no types {', '.join(unknown)}; there are {', '.join(NAMES)}")
        check_settings(self)


@dataclass(frozen=True)
class TypeResult:
    """Results of one type.

    Attributes:
        cells: Cells by the names in `CHECKS`; empty if no tiny model could be made.
        why: Why none could be made.
    """

    cells: dict[str, CheckResult]
    why: str = ""

    @property
    def bad(self) -> bool:
        return any(cell.verdict in _BAD for cell in self.cells.values())


def run(matrix: ModelMatrix, say: Callable[[str], None] = print) -> dict[str, TypeResult]:
    """The rows of all types asked for, written to the folder after each."""
    file = matrix.folder / "models.json"
    versions = {name: version(name) for name in ("tokengym", "transformers", "torch", "peft")}
    rows = _finished(file, versions)
    names = matrix.types or NAMES
    check_new_folder(matrix.folder)
    matrix.folder.mkdir(parents=True, exist_ok=True)
    todo = [name for name in names if name not in rows]
    for name, row in zip(todo, isolated(_quietly_checked, todo, matrix.time_limit), strict=True):
        if isinstance(row, Fault):
            row = TypeResult(dict.fromkeys(CHECKS, CheckResult("CRASH", why=row.why)))
        rows[name] = row
        say(f"{name:32}{_line(row)}")
        rows = dict(sorted(rows.items()))
        record = {"versions": versions, "rows": {name: asdict(row) for name, row in rows.items()}}
        write_json(file, record)
        write_text(matrix.folder / "models.md", table(rows, versions))
    return {name: rows[name] for name in names}


def summary(rows: dict[str, TypeResult]) -> str:
    """Counts of verdicts, a line for each check."""
    made = [row for row in rows.values() if row.cells]
    lines = [f"{len(rows)} types and variants, of which {len(rows) - len(made)} cannot be made small"]
    for name in CHECKS:
        counts = Counter(row.cells[name].verdict for row in made)
        lines.append(f"{name:14}" + ", ".join(f"{counts[verdict]} {verdict}" for verdict in _MEANINGS))
    return "\n".join(lines)


def table(rows: dict[str, TypeResult], versions: dict[str, str]) -> str:
    """The matrix in Markdown."""
    lines = [
        "# Which models work",
        "",
        "Made by `tokengym bench models`: a tiny random model of each type that transformers loads as a causal",
        "language model, and of some variants, checked against passes over single rows without cache, mask or padding.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        "",
        *(f"- {verdict}: {meaning}" for verdict, meaning in _MEANINGS.items()),
        "",
        "```",
        summary(rows),
        "```",
        "",
        "| type | " + " | ".join(CHECKS) + " |",
        "|---" * (len(CHECKS) + 1) + "|",
    ]
    notes = []
    for name, row in rows.items():
        if row.cells:
            lines.append(f"| {name} | " + " | ".join(row.cells[check].verdict for check in CHECKS) + " |")
            whys: dict[str, list[str]] = {}
            for check_name, cell in row.cells.items():
                if cell.why:
                    whys.setdefault(cell.why, []).append(check_name)
            notes += [f"- {name}, {', '.join(checks)}: {_escaped(why)}" for why, checks in whys.items()]
    lines += ["", "## Refusals and faults, word for word", "", *notes]
    lines += ["", "## Not tried, for no tiny model can be made", ""]
    lines += [f"- {name}: {_escaped(row.why)}" for name, row in rows.items() if not row.cells]
    return "\n".join(lines) + "\n"


def checked(name: str) -> TypeResult:
    """The row of one type, in this process."""
    ((_, config),) = configurations(VOCABULARY, [name])
    try:
        if isinstance(config, Exception):
            raise config
        return TypeResult(check(config))
    except Exception as error:
        return TypeResult({}, " ".join(f"{type(error).__name__}: {error}".split())[:300])


def _quietly_checked(name: str) -> TypeResult:
    """The row of one type, in a process of its own."""
    warnings.simplefilter("ignore")
    logging.getLogger("tokengym").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    return checked(name)


def _finished(file: Path, versions: dict[str, str]) -> dict[str, TypeResult]:
    if not file.is_file():
        return {}
    record = read_json(file)
    if record["versions"] != versions:
        return {}
    rows = {
        name: TypeResult({check: CheckResult(**cell) for check, cell in row["cells"].items()}, row["why"])
        for name, row in record["rows"].items()
    }
    return {name: row for name, row in rows.items() if row.cells and not row.bad}


def _line(row: TypeResult) -> str:
    return "  ".join(f"{row.cells[name].verdict:8}" for name in CHECKS) if row.cells else f"not made: {row.why}"


def _escaped(text: str) -> str:
    return f"`{text}`" if "`" not in text else f"``{text}``"
