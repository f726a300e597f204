"""The design's claims about the house, as tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room may import the rooms before it. `registry` is for all.
ROOMS = ("models", "rewards", "envs", "agents", "benchmarks")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a source file imports, however it spells the import."""
    package = ["tokengym", *path.relative_to(ROOT).parts[:-1]]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        rooms |= {name[1] for name in names if name[0] == "tokengym" and len(name) > 1 and name[1] in ROOMS}
    return rooms


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_the_list_only(path: Path) -> None:
    allowed = ROOMS[: ROOMS.index(path.relative_to(ROOT).parts[0]) + 1]
    assert imported_rooms(path) <= set(allowed)


def test_the_check_sees_an_import_against_the_direction(tmp_path: Path) -> None:
    bad = ROOT / "models" / "never_written.py"
    spellings = (
        "from ..envs import TokenEnv",
        "from tokengym.agents import base",
        "import tokengym.benchmarks.studies.demo",
    )

    class Fake(type(bad)):
        def read_text(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
            return spelling

    for spelling in spellings:
        assert imported_rooms(Fake(bad)) - {"models"}, spelling


def test_importing_the_package_registers_the_environments_and_imports_no_torch() -> None:
    code = (
        "import sys, tokengym, gymnasium; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'heavy import'; "
        "assert 'tokengym/GSM8K-v0' in gymnasium.registry"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gymnasium_imports_the_package_from_the_id_alone() -> None:
    code = (
        "import gymnasium; env = gymnasium.make('tokengym:tokengym/Arithmetic-v0', style='equation', steps=1, "
        "tokenizer='chars:0123456789+-*/=', prompt='{question}'); print(env.spec.id)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "tokengym/Arithmetic-v0"
