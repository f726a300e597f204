"""The matrix of model types: nothing wrong, no crash, and what is wrong would show."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tokengym.benchmarks.studies import model_checks, model_matrix
from tokengym.benchmarks.studies.model_checks import CHECKS, CheckResult
from tokengym.benchmarks.studies.model_matrix import ModelMatrix, TypeResult, checked, run, summary, table

ALL_RIGHT = dict.fromkeys(CHECKS, "right")


def verdicts(row: TypeResult) -> dict[str, str]:
    return {name: cell.verdict for name, cell in row.cells.items()}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("gpt2", {}),
        ("llama4_text", {}),
        ("laguna", {}),
        ("mamba", {"decoding": "alone", "outcome model": "alone"}),
        ("openai-gpt", {"decoding": "refused", "outcome model": "alone"}),
    ],
)
def test_types_are_right_or_refused(name: str, others: dict[str, str]) -> None:
    row = checked(name)
    assert verdicts(row) == {**ALL_RIGHT, **others}
    for cell in row.cells.values():
        assert bool(cell.why) == (cell.verdict == "refused")
        assert "\n" not in cell.why


def test_what_is_wrong_and_what_crashes_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose log-probabilities are off by 0.01, and a learner with an error deep inside."""
    step = model_checks.SlotDecoder.step

    def off(decoder: object, config: object) -> tuple[np.ndarray, np.ndarray]:
        tokens, logprobs = step(decoder, config)  # pyright: ignore
        return tokens, logprobs + 0.01

    def broken(*_: object, **__: object) -> None:
        np.zeros(3).reshape(2)

    monkeypatch.setattr(model_checks.SlotDecoder, "step", off)
    monkeypatch.setattr(model_checks, "Learner", broken)
    row = checked("llama")
    assert verdicts(row) == {**ALL_RIGHT, "decoding": "WRONG", "training": "CRASH", "LoRA": "CRASH"}
    assert row.cells["decoding"].error == pytest.approx(0.01, abs=1e-3)
    assert "cannot reshape" in row.cells["training"].why
    assert row.bad


def test_finished_rows_are_kept_and_bad_ones_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = dict.fromkeys(CHECKS, CheckResult("right", 1e-6))
    found = {
        "llama": TypeResult(cells),
        "gpt2": TypeResult({**cells, "LoRA": CheckResult("WRONG", 1.0, "off")}),
        "bart": TypeResult({**cells, "decoding": CheckResult("refused", why="no | `cache`")}),
        "blt": TypeResult({}, "too large"),
    }
    asked: list[str] = []

    def fake(_: object, names: list[str], limit: float) -> list[object]:
        asked.extend(names)
        return [found[name] for name in names]

    monkeypatch.setattr(model_matrix, "isolated", fake)
    matrix = ModelMatrix(types=tuple(found), folder=tmp_path / "matrix")
    assert run(matrix, lambda _: None) == found
    assert run(dataclasses.replace(matrix, types=("llama", "bart")), lambda _: None).keys() == {"llama", "bart"}
    assert asked == list(found)
    found["gpt2"] = TypeResult(cells)
    assert run(matrix, lambda _: None) == found
    assert asked == [*found, "gpt2", "blt"]
    record = json.loads((tmp_path / "matrix" / "models.json").read_text())
    assert set(record["rows"]) == set(found)
    assert record["versions"]["transformers"]
    text = (tmp_path / "matrix" / "models.md").read_text()
    assert text == table(dict(sorted(found.items())), record["versions"])
    assert "| gpt2 | right |" in text
    assert "- blt: `too large`" in text
    assert "4 types and variants, of which 1 cannot be made small" in summary(found)


def test_unknown_types_and_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no types nollama; there are afmoe, "):
        ModelMatrix(types=("nollama", "llama"))
    with pytest.raises(ValueError, match="time_limit must be above 0, got 0"):
        ModelMatrix(time_limit=0)


def test_a_file_in_the_place_of_the_folder_is_told_before_any_type(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file, and .* is to be a folder"):
        run(ModelMatrix(("gpt2",), folder=tmp_path / "file"))


@pytest.mark.slow
def test_all_types_that_can_be_made_are_right_or_refused(tmp_path: Path) -> None:
    rows = run(ModelMatrix(folder=tmp_path))
    bad = {name: verdicts(row) for name, row in rows.items() if row.bad}
    assert not bad, bad
    made = [row for row in rows.values() if row.cells]
    assert len(made) > 180
    right = [row for row in made if row.cells["decoding"].verdict in ("right", "alone")]
    assert len(right) >= 160
