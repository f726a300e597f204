"""The command of a study: its table, what is missing, and errors of the user's in one line."""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokengym.benchmarks.study import study_command
from tokengym.registry import check_known
from tokengym.settings import Count, check_settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@dataclass(frozen=True)
class MadeUp:
    """A study that finds what it is told to.

    Attributes:
        n: Number of runs.
        variants: Names of variants.
    """

    n: Count = 1
    variants: tuple[str, ...] = ("beam",)

    def __post_init__(self) -> None:
        check_settings(self)
        check_known("variant", self.variants, ("beam", "rebase"))


def status(monkeypatch: pytest.MonkeyPatch, options: list[str], results: dict[str, Any]) -> int:
    monkeypatch.setattr(sys, "argv", ["made_up", *options])
    with pytest.raises(SystemExit) as caught:
        study_command(
            MadeUp,
            lambda study: {"runs": [study.n], **results},
            lambda results: f"runs: {results['runs']}",
            is_empty=lambda results: not results["runs"],
        )
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_study_prints_its_table_and_what_is_missing(monkeypatch, capsys) -> None:
    assert status(monkeypatch, ["--n", "3"], {"missing": {"seed-1/sft": "OSError: gone"}}) == 0
    assert capsys.readouterr() == ("runs: [3]\n", "missing: seed-1/sft: OSError: gone\n")


def test_a_study_of_which_nothing_was_finished_says_why(monkeypatch, capsys) -> None:
    assert status(monkeypatch, [], {"runs": [], "missing": {"seed-1/sft": "OSError: gone"}}) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines() == [
        "missing: seed-1/sft: OSError: gone",
        "tokengym: nothing was finished that a table could show; the same command tries again",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "0"], "n must be at least 1, got 0"),
        (["--variants", "beem"], "unknown variant 'beem': did you mean 'beam'? known are beam, rebase"),
    ],
)
def test_a_wrong_value_is_one_line(monkeypatch, capsys, options: list[str], message: str) -> None:
    assert status(monkeypatch, options, {}) == 1
    assert capsys.readouterr() == ("", f"tokengym: {message}\n")


def test_the_help_tells_the_settings(monkeypatch, capsys) -> None:
    assert status(monkeypatch, ["--help"], {}) == 0
    output = capsys.readouterr().out
    assert "A study that finds what it is told to." in output
    assert "Number of runs." in output


@pytest.mark.parametrize(
    "path",
    [
        *sorted((BENCHMARKS / "studies").glob("*.py")),
        *sorted((BENCHMARKS / "speed" / "peers").glob("trl_*.py")),
        BENCHMARKS / "paper" / "real_model.py",
    ],
    ids=lambda path: path.stem,
)
def test_every_script_ends_by_the_one_function(path: Path) -> None:
    """Scripts have no other way to end than `study_command` or `exit_status`."""
    tree = ast.parse(path.read_text())
    guards = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    for guard in guards:
        assert any(name in ast.unparse(guard) for name in ("study_command(", "sys.exit(exit_status(main))"))
    assert guards or "tyro.cli" not in path.read_text()
