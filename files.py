"""Files and folders that a killed process leaves whole: written beside their name, synced, then put in its place."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete: a process killed before leaves no half of it."""
    partial = path.with_name(f".{path.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    for file in partial.rglob("*"):
        _sync(file)
    retired = _retire(path)
    os.replace(partial, path)
    _sync(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


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
    """Replaces a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    _sync(partial)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file; a last line that a killed process left unfinished does not count."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
