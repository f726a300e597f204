"""Files and folders that a killed process leaves whole, and errors that name the file they are about."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor


class DamagedFileError(ValueError):
    """A file is cut short or holds something else than it should."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes errors of writing or reading name the file or folder: a full disk's names none by itself.

    Raises:
        OSError: The system refuses `path`, or a file that its message names.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # no import of safetensors for it
            raise
        raise OSError(f"{path}: {error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete: a process killed before leaves no half of it."""
    check_folder(path)
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            mode = partial.stat().st_mode & 0o666  # safetensors gives files to their owner alone
            for file in (partial, *partial.rglob("*")):
                if file.is_file():
                    file.chmod(mode)
                _sync(file)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the room
            raise
        retired = _retire(path)
        os.replace(partial, path)
        _sync(path.parent)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears under its name, in place of an earlier one or of that which a link leads to, only when whole.

    Raises:
        OSError: The disk is full or the file cannot be written; the message names it.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        try:
            yield partial
            _sync(partial)
        except Exception as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename == str(partial):
                error.filename = str(path)  # which whoever called knows
            raise
        os.replace(partial, path)


def check_folder(path: Path) -> None:
    """Checks that there can be a folder of that name.

    Raises:
        NotADirectoryError: There is a file in its place, or in that of a folder above it; the message names it.
    """
    for place in (path, *path.parents):
        if place.is_dir():
            return
        if place.exists():
            raise NotADirectoryError(f"{place} is a file, and {path} is to be a folder: choose another name")


def check_new_folder(path: Path) -> None:
    """Checks that a folder can be made, before the work whose results it is for.

    Raises:
        NotADirectoryError: There is a file in its place, or in that of a folder above it; the message names it.
        PermissionError: The system refuses; the message names the nearest folder that is there.
    """
    check_folder(path)
    nearest = next(place for place in (path, *path.absolute().parents) if place.is_dir())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be made: {nearest} is not writable, choose another folder")


def check_output(path: Path | None) -> None:
    """Checks that a file can be written, before the work whose results it is for.

    Raises:
        FileNotFoundError: Its folder is not there; the message names both.
        IsADirectoryError: It is a folder.
        OSError: It cannot; the message names the file.
    """
    if path is None or path.is_fifo() or path.is_char_device():  # whose reader must not see it opened twice
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and results are written to a file: give one in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}, make it first")
    existed = path.exists()
    path.open("a").close()
    if not existed:
        path.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder, if it is there; a process killed before the end leaves no half of it under its name."""
    shutil.rmtree(_retire(path), ignore_errors=True)


def _retire(path: Path) -> Path:
    """Moves a folder, if it is there, out of the way; where to."""
    retired = path.with_name(f".{path.name}.old")
    shutil.rmtree(retired, ignore_errors=True)  # a killed process may have left one
    if path.exists():
        os.replace(path, retired)
    return retired


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step, that which a link leads to; a pipe or a device is written to."""
    if path.exists() and not path.is_file():
        with naming(path):
            path.write_text(text)
        return
    with new_file(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DamagedFileError: The file holds no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DamagedFileError(
            f"{path} is damaged, it holds no JSON ({error}): restore it, or delete what it is part of"
        ) from error


class RepeatedKeyError(ValueError):
    """An object in JSON has a key twice, of which Python's reader would take the last; the message names the key."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, as an `object_pairs_hook` of JSON's reader.

    Raises:
        RepeatedKeyError: A key is given twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(f"the key {twice!r} is given twice: leave one of them out")
    return fields


def read_object(path: Path, *names: str) -> dict[str, Any]:
    """The object in a JSON file, which has values of these names.

    Raises:
        DamagedFileError: The file holds no JSON, no object, or one without such a value; the message names it.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not value.keys() >= set(names):
        lacks = [name for name in names if not isinstance(value, dict) or name not in value]
        what = f"no {' and no '.join(lacks)}" if lacks else "no object"
        raise DamagedFileError(
            f"{path} is damaged or of another version, it has {what}: restore it, or delete what it is part of"
        )
    return value


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors in a safetensors file, by name.

    Raises:
        DamagedFileError: The file is cut short, or holds something else; the message names it.
        FileNotFoundError: There is no such file.
    """
    from safetensors.torch import load_file  # here and not above: it imports PyTorch

    check_tensors(path)
    return load_file(path)


def check_tensors(path: Path) -> None:
    """Checks that a safetensors file is as long as its header says.

    Raises:
        DamagedFileError: It is cut short, or holds something else; the message names it.
        FileNotFoundError: There is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):
            pass
    except SafetensorError as error:
        raise DamagedFileError(
            f"{path} is damaged, it holds no whole tensors ({error}): restore it, or delete what it is part of"
        ) from error


def finite(value: Any) -> Any:
    """JSON values with `None` for numbers that JSON has no name for: infinities and NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


class LineFile:
    """A text file that grows line by line; a context manager that holds it open.

    A line that a killed process left unfinished is cut off when the file is opened.

    Args:
        path: Path of the file, which need not exist; its folder is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab")
            self._file.truncate(_whole(self.path))
        return self

    def __exit__(self, *exc: object) -> None:
        with naming(self.path):
            self._file.close()

    def write(self, value: Any) -> None:
        """Appends a value as a line of JSON, which is on disk afterwards even if the process is killed.

        Raises:
            OSError: The disk is full or the file cannot be written; the message names it.
        """
        with naming(self.path):
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The complete lines of a file as (number from 1, offset in bytes, content); none of a file that is not there."""
    if not path.exists():
        return
    offset = 0
    with naming(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield number, offset, line
            offset += len(line)


def read_jsonl(path: Path, *names: str) -> list[dict[str, Any]]:
    """The objects in the complete lines of a JSONL file; a last line that a killed process cut short does not count.

    Args:
        path: Path of the file.
        names: Names that each object has.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedFileError: A line holds no JSON object with these names; the message names file and line.
    """
    path.stat()
    values: list[dict[str, Any]] = []
    for number, _, line in lines(path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DamagedFileError(f"{path}, line {number} is damaged, it holds no JSON: delete that line") from error
        if not isinstance(value, dict) or not value.keys() >= set(names):
            what = f"no {' and no '.join(names)}" if names else "no object"
            raise DamagedFileError(f"{path}, line {number} is damaged, it has {what}: delete that line")
        values.append(value)
    return values


def _whole(path: Path) -> int:
    """Bytes of a file up to the end of its last complete line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for end in range(size, 0, -_BLOCK):
            start = max(0, end - _BLOCK)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
    return 0


_BLOCK = 1 << 16


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
