"""The command of a study: its table, what is missing, and errors of the user's in one line."""

import ast
import re
import sys
from dataclasses import dataclass
from importlib import import_module
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


_REAL = ("--instruct", "a.gguf", "--base", "b.gguf", "--gsm8k", "gsm8k", "--svamp", "svamp")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("studies.greedy", ("--model", "m.gguf")),
        ("studies.precision", ()),
        ("studies.random_kills", ()),
        ("studies.real_answers", _REAL),
        ("studies.slot_counts", ()),
        ("studies.vllm_agreement", ()),
        ("speed.peers.trl_grpo", ("--trl-python", "python")),
        ("speed.peers.trl_ppo", ("--trl-python", "python")),
    ],
)
@pytest.mark.parametrize(("output", "message"), [(".", "is a folder"), ("nowhere/results.json", "no folder nowhere")])
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    module: str, arguments: tuple[str, ...], output: str, message: str, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--output", output])
    with pytest.raises(OSError, match=message):
        import_module(f"tokengym.benchmarks.{module}").main()


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("real_answers", ("--base", "b.gguf"), "nothing to run: give a model by --instruct or --base, and data by"),
        ("real_answers", ("--gsm8k", "gsm8k"), "nothing to run: give a model by --instruct or --base, and data by"),
        ("precision", ("--model", "m.gguf"), "--model and --data go together"),
        ("precision", ("--data", "train.jsonl"), "--model and --data go together"),
        ("random_kills", ("--agents", "grpoo"), "unknown agent 'grpoo': did you mean 'grpo'?"),
        ("random_kills", ("--minutes", "0"), "minutes must be above 0"),
    ],
)
def test_options_of_a_study_that_would_count_for_nothing_are_told(
    module: str, arguments: tuple[str, ...], message: str, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises((ValueError, LookupError), match=re.escape(message)):
        import_module(f"tokengym.benchmarks.studies.{module}").main()
