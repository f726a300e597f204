"""Gold answers of the real data sets grade themselves. Runs where TOKENGYM_DATA names a folder that holds them."""

import json
import os
from pathlib import Path

import pytest

from tokengym.rewards import Verdict, grade

DATA = os.environ.get("TOKENGYM_DATA")

pytestmark = pytest.mark.skipif(not DATA, reason="TOKENGYM_DATA names no folder with gsm8k/ and svamp/")


def data() -> Path:
    return Path(DATA or "")


def test_gsm8k() -> None:
    rows = [line for split in ("train", "test") for line in (data() / f"gsm8k/{split}.jsonl").read_text().splitlines()]
    solutions = [json.loads(row)["answer"] for row in rows]
    assert len(solutions) == 8792
    for solution in solutions:
        gold = solution.split("#### ")[1]
        assert grade(solution, gold) == Verdict(True, "correct", gold.replace(",", ""))
        assert not grade(solution, f"{gold}.5").correct


def test_svamp() -> None:
    answers = [row["Answer"] for row in json.loads((data() / "svamp/SVAMP.json").read_text())]
    assert len(answers) == 1000
    for answer in answers:
        assert grade(f"#### {answer}", str(answer)) == Verdict(True, "correct", str(int(answer)))
