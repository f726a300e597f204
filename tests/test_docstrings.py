"""Docstrings: every documented argument, attribute and error reads alone, beginning with a noun or a verb."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import docstring_parser
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "benchmarks", "commands", "envs", "examples", "models", "rewards")
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])

CONTINUATIONS = re.compile(
    r"(of|likewise|as|and|or|the|for|how|what|which|whose|in|to|with|that|this|these|those|whether|where|when|by|from"
    r"|also|same|its|their|on|at|if)[,:]?",
    re.IGNORECASE,
)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """The docstring of each class and function with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.lineno, text


def faults(text: str) -> Iterator[str]:
    """What is wrong with the entries of a docstring in Google's format."""
    parsed = docstring_parser.parse(text, docstring_parser.DocstringStyle.GOOGLE)
    for entry in [*parsed.params, *parsed.raises]:
        name = entry.arg_name if isinstance(entry, docstring_parser.DocstringParam) else entry.type_name
        said = " ".join((entry.description or "").split())
        first = said.partition(" ")[0]
        if isinstance(entry, docstring_parser.DocstringParam) and CONTINUATIONS.fullmatch(first):
            yield f"{name} begins with {first!r}"
        elif re.match(r"[a-z]", first) and first != "vLLM":
            yield f"{name} begins in lower case: {said}"
        elif not said.endswith((".", "...", "]", ":")):
            yield f"{name} does not end with a period: {said}"


def test_faults_are_found() -> None:
    text = inspect.cleandoc("""Samples.

        Args:
            seed: of the samples.
            model: Of the policy.
            folder: Folder of the run
            device: Device of the model.

        Raises:
            ValueError: no model.
        """)
    assert [fault.partition(":")[0] for fault in faults(text)] == [
        "seed begins with 'of'",
        "model begins with 'Of'",
        "folder does not end with a period",
        "ValueError begins in lower case",
    ]


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_entries_of_docstrings_stand_alone(room: str) -> None:
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == room or (not room and path.parent == ROOT)]
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line} {fault}"
        for path in files
        for line, text in docstrings(path.read_text())
        for fault in faults(text)
    ]
    assert found == []
