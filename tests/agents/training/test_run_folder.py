"""Run folders: what is there already stays, what is half written does not count."""

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tokengym.agents.training.run_folder import RunFolder
from tokengym.files import new_folder, read_jsonl, write_json

CONFIG = {"agent": "ei", "seed": 0, "config": {"rounds": 2, "betas": (0.9, 0.999)}}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_its_configuration_and_versions(tmp_path) -> None:
    RunFolder(tmp_path / "a" / "run", CONFIG)
    record = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    assert {"tokengym", "torch", "transformers", "gymnasium", "python"} <= set(record.pop("versions"))
    assert record == json.loads(json.dumps(CONFIG))


def test_a_run_that_is_there_is_neither_overwritten_nor_mixed_with_another(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG).log(0, {"a": 1.0})
    with pytest.raises(FileExistsError, match="holds a run already"):
        RunFolder(tmp_path / "run", CONFIG)
    RunFolder(tmp_path / "run", CONFIG, resume=True)
    assert lines(tmp_path / "run") == [{"step": 0, "a": 1.0}]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="holds no run"):
            RunFolder(tmp_path / "photos", CONFIG, resume=resume)


def test_resuming_what_is_not_there_begins_it(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=True).log(3, {"a": 1.0})
    assert lines(tmp_path / "run") == [{"step": 3, "a": 1.0}]


def test_resuming_with_another_configuration_names_what_differs_and_nothing_else(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG)
    other = {"agent": "ei", "seed": 1, "config": {"rounds": 3, "betas": (0.9, 0.999)}}
    with pytest.raises(ValueError, match="another configuration") as caught:
        RunFolder(tmp_path / "run", other, resume=True)
    assert "seed: 0 -> 1" in str(caught.value)
    assert "rounds: 2 -> 3" in str(caught.value)
    assert "betas" not in str(caught.value)
    assert "agent" not in str(caught.value)


def test_a_half_written_line_does_not_spoil_the_next(tmp_path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG)
    run.log(0, {"a": 1.0})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "a')
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == [{"step": 0, "a": 1.0}]
    RunFolder(tmp_path / "run", CONFIG, resume=True).log(7, {"a": 2.0})
    assert lines(tmp_path / "run") == [{"step": 0, "a": 1.0}, {"step": 7, "a": 2.0}]


def test_rewind_forgets_later_metrics_in_the_file_and_on_the_board(tmp_path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG)
    for attempts in (0, 10, 20):
        run.log(attempts, {"a": float(attempts)})
    resumed = RunFolder(tmp_path / "run", CONFIG, resume=True)
    resumed.rewind(10)
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 10]
    resumed.log(30, {"a": 30.0})
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 10, 30]
    board = EventAccumulator(str(tmp_path / "run"))
    board.Reload()
    assert [event.step for event in board.Scalars("a")] == [0, 10, 30]


def test_rewinding_a_run_without_metrics_is_nothing(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG).rewind(0)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------- new_folder


def fill(path: Path, text: str) -> None:
    with new_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def content(path: Path) -> str:
    return (path / "inner" / "file").read_text()


def test_a_folder_appears_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "target"
    for before in (None, "old"):
        with pytest.raises(ZeroDivisionError), new_folder(target) as folder:
            (folder / "file").write_text(f"half{1 // 0}")
        assert target.exists() == (before is not None)
        fill(target, "old")
        assert content(target) == "old"
    fill(target, "new")
    assert content(target) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_replacing_a_folder_can_be_killed_anywhere_and_done_again(tmp_path, monkeypatch, calls: int) -> None:
    """Killed before the old one moves, between the two moves, or before the old one is gone."""
    target = tmp_path / "target"
    fill(target, "old")
    moves = 0

    def stop_after(step):
        def function(*args, **options):
            nonlocal moves
            if moves == calls and "target" in str(args[0]) and Path(args[0]).exists():
                raise KeyboardInterrupt
            moves += 1
            return step(*args, **options)

        return function

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop_after(__import__("os").replace))
        if calls == 2:
            patch.setattr(shutil, "rmtree", stop_after(shutil.rmtree))
            moves = -1  # the call that clears the way, which finds nothing
        with pytest.raises(KeyboardInterrupt):
            fill(target, "new")
    fill(target, "newest")
    assert content(target) == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_json_file_is_replaced_in_one_step(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
