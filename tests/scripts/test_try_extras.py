"""The trial of extras refuses what it cannot try before it builds anything."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "try_extras.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora", "plotz"], "no extra plotz: choose of gguf, hub"),
        (["gguf", "--gguf", "gone.gguf"], "no file gone.gguf"),
    ],
)
def test_unknown_extras_and_missing_files_are_refused(
    arguments: list[str], message: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.setattr(sys, "argv", ["try_extras.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
