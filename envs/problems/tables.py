"""Tables of problems: rows from files and from the hub, each knowing where it stands, and how to carve splits."""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...rewards.grading.numbers import normalize_number
from .base import SPLITS, Problem

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        index: position in its table, from 0.
        place: where a user finds it, for error messages: "train.jsonl, line 3".
        fields: its values by column.
    """

    index: int
    place: str
    fields: Mapping[str, Any]

    def text(self, column: str) -> str:
        """The value of a column as stripped text; numbers are spelled without a needless ".0".

        Raises:
            ValueError: there is no such column, or its value is empty or neither text nor a finite number.
        """
        if column not in self.fields:
            raise ValueError(f"{self.place}: there is no field {column!r}, only {', '.join(map(repr, self.fields))}")
        value = self.fields[column]
        if isinstance(value, str):
            text = value.strip()
        elif isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not abs(value) < math.inf:
            raise ValueError(f"{self.place}: field {column!r} is {value!r}, neither text nor a finite number")
        else:
            text = str(int(value)) if value == int(value) else str(value)
        if not text:
            raise ValueError(f"{self.place}: field {column!r} is empty")
        return text


def read_file(path: str | Path) -> list[Row]:
    """All rows of a JSONL, JSON (a list of objects), CSV (with a header) or Parquet file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, has no rows, or has a malformed one, which is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}")
    try:
        rows = list(_READERS[path.suffix](path))
    except UnicodeDecodeError as error:
        raise ValueError(_not_text(path, error)) from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def read_folder(folder: Path) -> list[Row]:
    """The rows of a folder of files with one object each, named by numbers: `7.json` is row 7.

    Raises:
        ValueError: there is no such file, or one is malformed or has another name, which is named.
    """
    files = list(folder.glob("*.json"))
    for file in files:
        if not (file.stem.isascii() and file.stem.isdigit()):
            raise ValueError(f"{file}: the files of {folder.name} hold one problem each and are named by their numbers")
    rows = [
        Row(int(file.stem), str(file), _object(_parse(file), str(file)))
        for file in sorted(files, key=lambda file: int(file.stem))
    ]
    if not rows:
        raise ValueError(f"{folder} has no files of one problem each, like 1.json")
    return rows


def file_of(folder: Path, split: str) -> Path | None:
    """The file in a folder that holds a split; raises `ValueError` when there are two."""
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").is_file()]
    if len(files) > 1:
        raise ValueError(f"{folder} has two files for the split {split!r}: {files[0].name} and {files[1].name}")
    return files[0] if files else None


def _read_jsonl(path: Path) -> Iterator[Row]:
    index = 0
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{place}: not JSON ({_reason(error)})") from error
                yield Row(index, place, _object(fields, place))
                index += 1


def _read_json(path: Path) -> Iterator[Row]:
    rows = _parse(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of objects; a file with one object a line is named .jsonl")
    for index, fields in enumerate(rows):
        place = f"{path}, row {index}"
        yield Row(index, place, _object(fields, place))


def _parse(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(_not_text(path, error)) from error
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{path}{line}: not JSON ({_reason(error)})") from error


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            for index, values in enumerate(values for values in reader if values):
                place = f"{path}, line {reader.line_num}"
                if len(values) != len(header):
                    raise ValueError(f"{place}: {len(values)} fields where the header has {len(header)}")
                yield Row(index, place, dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa  # here and not above: it comes with `datasets`, and only this kind of file needs it
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    for index, fields in enumerate(table.to_pylist()):
        yield Row(index, f"{path}, row {index}", fields)


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _not_text(path: Path, error: UnicodeDecodeError) -> str:
    return f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"


def _reason(error: Exception) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _object(fields: object, place: str) -> Mapping[str, Any]:
    if not isinstance(fields, dict):
        raise ValueError(f"{place}: {json.dumps(fields)[:60]} is not an object with named fields")
    return fields


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """All rows of one split of a data set on the hub, downloaded at first and cached by `datasets`.

    Raises:
        OSError: it cannot be had, for whatever reason.
    """
    import datasets  # here and not above: importing it takes a second, and local files never need it

    try:
        table = datasets.load_dataset(name, config, split=split)
        return [Row(index, f"{name}, {split} row {index}", dict(fields)) for index, fields in enumerate(table)]  # pyright: ignore
    except Exception as error:  # the client's exceptions differ between its versions and between its backends
        raise OSError(f"{_hub(name, config)}, split {split!r}, cannot be read from the hub: {error}") from error


def hub_splits(name: str, config: str | None) -> list[str]:
    """Names of the splits of a data set on the hub; raises `OSError` when it cannot be had."""
    import datasets

    try:
        return [str(split) for split in datasets.get_dataset_split_names(name, config)]
    except Exception as error:
        raise OSError(f"{_hub(name, config)} cannot be read from the hub: {error}") from error


def _hub(name: str, config: str | None) -> str:
    return f"the data set {name!r}" + (f" ({config})" if config else "")


def make_problem(problem_id: str, row: Row, question: str, answer: str, solution: str | None) -> Problem:
    """A problem from the texts of a row; raises `ValueError`, naming the row, when its gold answer is no number."""
    if normalize_number(answer) is None:
        raise ValueError(f"{row.place}: the gold answer {answer[:60]!r} is not a number that the grader reads")
    return Problem(problem_id, question, answer, solution)


def split_solution(row: Row, column: str) -> tuple[str, str]:
    """Solution and answer of a field that ends with "#### answer"; raises `ValueError`, naming the row, otherwise."""
    solution = row.text(column)
    _, marker, answer = solution.rpartition("####")
    if not marker or not answer.strip():
        raise ValueError(f"{row.place}: field {column!r} does not end with '#### answer'")
    return solution, answer.strip()


def carve(questions: Sequence[str], validation: int, test: int) -> list[str]:
    """The split of each row when `validation` and `test` rows are held out of one table.

    Rows are ranked by a hash of their question with white space folded; the first `test` of them are the test split,
    the next `validation` the validation split, and the others train. So the split does not depend on the order of the
    rows, nor the test split on how many are held out for validation, and rows that ask the same question share a split
    (which then has more rows than asked for, where they would straddle a boundary).
    """
    keys = [blake2b(" ".join(question.split()).encode(), digest_size=16).digest() for question in questions]
    ranked = sorted(keys)
    bounds = [ranked[count - 1] if count else b"" for count in (test, test + validation)]
    return [SPLITS[2] if key <= bounds[0] else SPLITS[1] if key <= bounds[1] else SPLITS[0] for key in keys]
