"""Scripts say in one line, and before their work, what cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grader_neighbors.py", "--output", "none/x.md"], "tokengym: none/x.md cannot be written: there is no folder"),
        (["record_trl_losses.py"], "run this in an environment with TRL"),
    ],
)
def test_an_output_that_cannot_be_is_one_line_before_the_work(tmp_path, arguments, message):
    (tmp_path / "trl.py").write_text("raise ModuleNotFoundError('no TRL')")  # whether or not it is installed
    command = [sys.executable, SCRIPTS / arguments[0], *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
