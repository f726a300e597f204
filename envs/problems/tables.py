"""Tables of problems: rows from files and from the hub, each knowing where it stands, and how to carve splits.

Numbers arrive as they were written: JSON's as `Decimal`, and those of binary floating-point columns as the shortest
decimal that is theirs. Where a column of floats cannot have kept all digits of a whole number, its text is refused.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...extras import need
from ...files import RepeatedKeyError, unique_keys
from .base import SPLITS

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# `reward_model.ground_truth`, `messages[0].content`
_PATH = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(-?[0-9]{1,9})\]")
_HALF = re.compile("[\ud800-\udfff]")
# A whole number this long, as text; longer ones keep their exponents.
_MAX_WHOLE = 40


_MALFORMED: ContextVar[list[str] | None] = ContextVar("_MALFORMED", default=None)


@contextmanager
def malformed_rows() -> Iterator[list[str]]:
    """Inside, sources leave malformed rows out, and the list says what is wrong with each."""
    found: list[str] = []
    token = _MALFORMED.set(found)
    try:
        yield found
    finally:
        _MALFORMED.reset(token)


class ColumnError(ValueError):
    """A row has no value at the path that was asked for."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        index: Position in its table, from 0.
        place: Place where a user finds it, for error messages: "train.jsonl, line 3".
        fields: Values of the row by column.
    """

    index: int
    place: str
    fields: Mapping[str, Any]

    def value(self, column: str) -> Any:
        """The value of a column, or at a path: "reward_model.ground_truth", "messages[0].content", "turns[-1]".

        Raises:
            ColumnError: There is no such value.
        """
        if column in self.fields:
            return self.fields[column]
        value: Any = self.fields
        for key in _parse_path(column):
            try:
                value = value[key]
            except (LookupError, TypeError):
                outline = _outline(self.fields)
                raise ColumnError(f"{self.place}: there is no field {column!r}, only {outline}") from None
        return value

    def text(self, column: str, separator: str | None = None) -> str:
        """The value of a column, or at a path, as stripped text; numbers are spelled without a needless ".0".

        Args:
            column: Name of the column, or a path.
            separator: Text that joins the texts of a list; `None` refuses lists.

        Raises:
            ColumnError: There is no such value.
            ValueError: The value is empty, or neither text nor a number that has kept its digits, nor a list of these.
        """
        text = self._spell(column, self.value(column), separator)
        if not text:
            raise ValueError(f"{self.place}: field {column!r} is empty")
        return text

    def optional_text(self, column: str, separator: str | None = None) -> str | None:
        """`text`, or None where the value is empty or null."""
        value = self.value(column)
        return None if value is None else self._spell(column, value, separator) or None

    def _spell(self, column: str, value: Any, separator: str | None) -> str:
        if isinstance(value, str):
            if not value.isascii() and (half := _HALF.search(value)):
                raise ValueError(
                    f"{self.place}: field {column!r} has {half[0]!r}, half of a character that UTF-16 writes in two: "
                    "write the whole character"
                )
            return value.strip()
        if isinstance(value, list) and separator is not None:
            return separator.join(text for item in value if (text := self._spell(column, item, separator)))
        if isinstance(value, float) and np.isfinite(value):
            raise ValueError(
                f"{self.place}: field {column!r} is {value!r}, a floating-point number that cannot hold all the digits "
                "of a whole number of this size: write it as text"
            )
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or not _is_finite(value):
            raise ValueError(f"{self.place}: field {column!r} is {value!r}, neither text nor a finite number")
        if isinstance(value, Decimal):
            whole = value.adjusted() < _MAX_WHOLE and value == value.to_integral_value()
            return str(int(value)) if whole else str(value)
        return str(value)


def _parse_path(column: str) -> list[str | int]:
    """The names and indices of a path; a text that is none is a single name."""
    parts = [name or int(index) for name, index in _PATH.findall(column)]
    return parts if parts and _PATH.sub("", column) == "" else [column]


def _outline(fields: Mapping[str, Any]) -> str:
    """The columns of a row, those with fields of their own as paths, for messages."""
    names: list[str] = []
    for name, value in fields.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) else [name]
    return ", ".join(map(repr, names))


def _is_finite(value: int | Decimal) -> bool:
    return isinstance(value, int) or value.is_finite()


def convert(rows: Iterable[Row], make: Callable[[Row], T]) -> list[T]:
    """Converts each row.

    Raises:
        ValueError: A row is malformed, outside of `malformed_rows`; the message is that of `make` for the first one.
    """
    bad_rows = _MALFORMED.get()
    if bad_rows is None:
        return [make(row) for row in rows]
    made: list[T] = []
    for row in rows:
        try:
            made.append(make(row))
        except ValueError as error:
            bad_rows.append(str(error))
    return made


def read_file(path: str | Path, bad_rows: list[str] | None = None) -> list[Row]:
    """All rows of a JSONL, JSON (a list of objects, or an object a line), CSV (with a header) or Parquet file.

    Args:
        path: Path of the file, whose suffix tells its kind.
        bad_rows: List that the fault of each malformed row is added to, which is then left out; `None` raises at the
            first.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of another kind, has no rows, or has a malformed one, which the message names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of {', '.join(SUFFIXES)}")
    rows: list[Row] = []
    bad_rows = _MALFORMED.get() if bad_rows is None else bad_rows
    bad = bad_rows if bad_rows is not None else []
    try:
        for row in _READERS[path.suffix](path):
            if isinstance(row, Row):
                rows.append(row)
            elif bad_rows is None:
                raise row
            else:
                bad.append(str(row))
    except UnicodeDecodeError as error:
        raise ValueError(_not_text(path, error)) from error
    if not rows:
        raise ValueError(f"{path} has no rows" + (f" that can be read: {bad[0]}" if bad else ""))
    return rows


def read_folder(folder: Path) -> list[Row]:
    """The rows of a folder of files with one object each, named by numbers: `7.json` is row 7.

    Raises:
        ValueError: There is no such file, or one is malformed or has another name, which is named.
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


def _read_jsonl(path: Path) -> Iterator[Row | ValueError]:
    index = 0
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    yield Row(index, place, _object(_DECODER.decode(line), place))
                except ValueError as error:
                    yield error if isinstance(error, _RowError) else _not_json(place, error)
                except RecursionError as error:
                    yield _not_json(place, error)
                index += 1


def _read_json(path: Path) -> Iterator[Row | ValueError]:
    try:
        rows = _parse(path)
    except ValueError as error:
        # Many files named .json have one object a line.
        if isinstance(error.__cause__, json.JSONDecodeError) and error.__cause__.msg == "Extra data":
            yield from _read_jsonl(path)
            return
        raise
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a list of objects, nor one object a line")
    for index, fields in enumerate(rows):
        place = f"{path}, row {index}"
        try:
            yield Row(index, place, _object(fields, place))
        except _RowError as error:
            yield error


def _parse(path: Path) -> object:
    try:
        return _DECODER.decode(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(_not_text(path, error)) from error
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _not_json(f"{path}{line}", error) from error


def _written_decimal(text: str) -> Decimal | str:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond any use
        return text


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RepeatedKeyError:
    """An object, or in its place the error that it has a key twice, to be raised with the place of the row."""
    try:
        return unique_keys(pairs)
    except RepeatedKeyError as error:
        return error


_DECODER = json.JSONDecoder(parse_float=_written_decimal, object_pairs_hook=_fields)


def _read_csv(path: Path) -> Iterator[Row | ValueError]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            _check_header(path, header)
            for index, values in enumerate(values for values in reader if values):
                place = f"{path}, line {reader.line_num}"
                if len(values) == len(header):
                    yield Row(index, place, dict(zip(header, values, strict=True)))
                else:
                    yield ValueError(f"{place}: {len(values)} fields where the header has {len(header)}")
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Raises `ValueError` if two columns have one name."""
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{path} has two columns {twice[0]!r}: rename one of them")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa  # here and not above: it comes with `datasets`, and only this kind of file needs it
    import pyarrow.parquet as pq

    try:
        _check_header(path, pq.read_schema(path).names)
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    yield from _table_rows(table, f"{path}, row")


def _table_rows(table: "pa.Table", place: str) -> Iterator[Row]:
    """The rows of an Arrow table; `place` is what precedes a row's number where it is found."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        columns[field.name] = column.to_pylist()
        if _has_floats(pa, field.type):
            columns[field.name] = [_as_written(pa, value, field.type) for value in columns[field.name]]
    for index in range(table.num_rows):
        yield Row(index, f"{place} {index}", {name: values[index] for name, values in columns.items()})


def _has_floats(pa: Any, kind: Any) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return pa.types.is_floating(kind) or any(_has_floats(pa, one) for one in inner)


def _as_written(pa: Any, value: Any, kind: Any) -> Any:
    """A value of an Arrow column with its floats as `Decimal`, by `shortest_decimal`."""
    if value is None:
        return None
    if pa.types.is_floating(kind):
        return shortest_decimal(value, kind.bit_width)
    if pa.types.is_struct(kind):
        return {field.name: _as_written(pa, value[field.name], field.type) for field in kind}
    if hasattr(kind, "value_type"):  # lists of all kinds
        return [_as_written(pa, item, kind.value_type) for item in value]
    return value


# By the width of a float in bits: its type, up to where it holds all whole numbers, and the digits it holds of any.
_FLOATS: Mapping[int, tuple[type[np.floating[Any]], int, int]] = {
    16: (np.float16, 2**11, 3),
    32: (np.float32, 2**24, 6),
    64: (np.float64, 2**53, 15),
}


def shortest_decimal(value: float, bits: int) -> Decimal | float:
    """The shortest decimal that is read as this float of 16, 32 or 64 bits: what was written, most likely.

    The float itself where that is not finite, or is a number so large and with so many digits that its last digits may
    have been lost when it was made a float.
    """
    kind, exact, digits = _FLOATS[bits]
    if not np.isfinite(value):
        return value
    decimal = Decimal(str(kind(value)))
    return value if abs(value) > exact and len(decimal.normalize().as_tuple().digits) > digits else decimal


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _not_text(path: Path, error: UnicodeDecodeError) -> str:
    return f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"


def _not_json(place: str, error: Exception) -> ValueError:
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return ValueError(f"{place}: not JSON ({reason})")


class _RowError(ValueError):
    """A row is JSON, but no object whose fields have one name each."""


def _object(fields: object, place: str) -> Mapping[str, Any]:
    inside = [fields]
    while inside:
        value = inside.pop()
        if isinstance(value, RepeatedKeyError):
            raise _RowError(f"{place}: {value}")
        inside.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    if not isinstance(fields, dict):
        raise _RowError(f"{place}: {json.dumps(fields, default=str)[:60]} is not an object with named fields")
    return fields


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """All rows of one split of a data set on the hub, downloaded at first and cached by `datasets`.

    Raises:
        OSError: The data cannot be read, for whatever reason.
    """
    need("hub", f"the data set {name!r} of the hub")
    import datasets  # here and not above: importing it takes a second, and local files never need it

    try:
        table: Any = datasets.load_dataset(name, config, split=split)
        return list(_table_rows(table.with_format("arrow")[:], f"{name}, {split} row"))
    except Exception as error:  # the client's exceptions differ between its versions and between its backends
        raise _unreachable(f"{_hub(name, config)}, split {split!r},", error) from error


def hub_splits(name: str, config: str | None) -> list[str]:
    """Names of the splits of a data set on the hub; raises `OSError` when it cannot be had."""
    need("hub", f"the data set {name!r} of the hub")
    import datasets

    try:
        return [str(split) for split in datasets.get_dataset_split_names(name, config)]
    except Exception as error:
        raise _unreachable(_hub(name, config), error) from error


def _hub(name: str, config: str | None) -> str:
    return f"the data set {name!r}" + (f" ({config})" if config else "")


def _unreachable(what: str, error: BaseException) -> OSError:
    """The error for data that the hub did not give, with the whole chain of what led to it."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(causes) < 8:
        text = " ".join(f"{type(cause).__name__}: {cause}".split())[:400]
        if not any(text in known for known in causes):
            causes.append(text)
        cause = cause.__cause__ or cause.__context__
    return OSError(
        f"{what} cannot be read from the hub: {'; because of '.join(causes)}. Give its files by data=..., or set "
        "HF_HUB_OFFLINE=1 to take what the local cache has without asking the network"
    )


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
