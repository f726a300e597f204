"""Run folders: what is there already stays, what is half written does not count."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import AtomicCounter

from tokengym import files
from tokengym.agents.training.run_folder import RunFolder, find_runs, is_locked
from tokengym.files import DamagedFileError, check_output, new_folder, read_jsonl, read_object, write_json

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
    for resume in (False, True, "auto"):
        with pytest.raises(FileExistsError, match="holds no run"):
            RunFolder(tmp_path / "photos", CONFIG, resume=resume)


def test_resuming_what_is_not_there_begins_it_only_if_asked_to(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match='holds no run to continue: leave out `resume`, or let it be "auto"'):
        RunFolder(tmp_path / "run", CONFIG, resume=True)
    RunFolder(tmp_path / "run", CONFIG, resume="auto").log(3, {"a": 1.0})
    assert lines(tmp_path / "run") == [{"step": 3, "a": 1.0}]


def test_resuming_with_another_configuration_names_what_differs_and_nothing_else(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG).log(0, {"a": 1.0})
    other = {"agent": "ei", "seed": 1, "config": {"rounds": 3, "betas": (0.9, 0.99)}}
    with pytest.raises(ValueError, match="another configuration") as caught:
        RunFolder(tmp_path / "run", other, resume=True)
    assert "seed: 0 -> 1" in str(caught.value)
    assert "config.betas: [0.9, 0.999] -> [0.9, 0.99]" in str(caught.value)
    assert "rounds" not in str(caught.value), "a longer run is the same run"
    assert "agent" not in str(caught.value)


def test_a_start_that_left_nothing_may_be_begun_again_with_other_settings(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG)  # and an error, such as prompts over the limit
    run = RunFolder(tmp_path / "run", {**CONFIG, "seed": 1}, resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1
    run.log(0, {"a": 1.0})
    with pytest.raises(ValueError, match="seed: 1 -> 0"):
        RunFolder(tmp_path / "run", CONFIG, resume=True)


def test_digests_of_contents_are_compared_where_the_run_has_them(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG).log(0, {"a": 1.0})  # of a version without them
    for weights in ("1", "1"):
        RunFolder(tmp_path / "run", {**CONFIG, "weights": weights}, resume=True)
    with pytest.raises(ValueError, match=r"\(its model had other weights\)"):
        RunFolder(tmp_path / "run", {**CONFIG, "weights": "2"}, resume=True)


def test_what_changes_no_result_may_differ_and_a_run_may_become_longer(tmp_path) -> None:
    first = {"num_envs": 4, "config": {"rounds": 2, "micro_batch_tokens": 8, "save_steps": 1, "seed": 0}}
    RunFolder(tmp_path / "run", first).log(0, {"a": 1.0})
    second = {"num_envs": 8, "config": {"rounds": 3, "micro_batch_tokens": 9, "save_steps": 2, "seed": 0}}
    RunFolder(tmp_path / "run", second, resume=True)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record.pop("versions")
    assert record == second


def test_data_may_have_moved_as_long_as_they_are_the_same(tmp_path) -> None:
    place = lambda path: json.dumps({"id": "tokengym/GSM8K-v0", "kwargs": {"data": path}})  # noqa: E731
    RunFolder(tmp_path / "run", {"env": place("mine.jsonl"), "data": "1"}).log(0, {"a": 1.0})
    RunFolder(tmp_path / "run", {"env": place("/data/mine.jsonl"), "data": "1"}, resume=True)
    with pytest.raises(ValueError, match=r"\(env\.kwargs\.data: .*, its data were others\)"):
        RunFolder(tmp_path / "run", {"env": place("other.jsonl"), "data": "2"}, resume=True)


def test_of_a_changed_environment_only_what_changed_is_named(tmp_path) -> None:
    spec = lambda limit: json.dumps({"id": "tokengym/GSM8K-v0", "kwargs": {"data": "x" * 400, "max_new_tokens": limit}})  # noqa: E731
    RunFolder(tmp_path / "run", {"env": spec(8)}).log(0, {"a": 1.0})
    with pytest.raises(ValueError, match=r"\(env\.kwargs\.max_new_tokens: 8 -> 9\)"):
        RunFolder(tmp_path / "run", {"env": spec(9)}, resume=True)


def test_a_folder_with_a_configuration_alone_is_empty(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG)
    RunFolder(tmp_path / "run", {**CONFIG, "seed": 1})
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 1


def test_metrics_are_json_whatever_the_numbers(tmp_path) -> None:
    RunFolder(tmp_path / "run", CONFIG).log(0, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert lines(tmp_path / "run") == [{"step": 0, "a": None, "b": None, "c": 1.0}]


HOLDER = """
import sys
from tokengym.agents.training.run_folder import RunFolder, find_runs, is_locked
run = RunFolder(sys.argv[1], {"agent": "ei"})
print("ready", flush=True)
sys.stdin.read()
"""


def test_another_process_cannot_write_to_a_run(tmp_path) -> None:
    held = RunFolder(tmp_path / "mine", CONFIG)
    RunFolder(tmp_path / "mine", CONFIG, resume=True)  # this one can
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(BlockingIOError, match=rf"run is in use by process {other.pid} on "):
            RunFolder(tmp_path / "run", CONFIG, resume="auto")
        assert is_locked(tmp_path / "run")
        other.communicate()
    assert not is_locked(tmp_path / "run")
    RunFolder(tmp_path / "run", {"agent": "ei"}, resume=True)
    assert is_locked(tmp_path / "mine")
    del held


def test_runs_are_listed_with_their_states(tmp_path) -> None:
    config = {"agent": "ei", "env": json.dumps({"id": "tokengym/GSM8K-v0", "kwargs": {}})}
    for name in ("done", "longer", "cut", "broken", "fresh"):
        run = RunFolder(tmp_path / "deep" / name, config)
        if name != "fresh":
            run.log(0, {"eval/maj@1": 0.25})
            run.log(96, {"eval/maj@1": 0.5, "rollout/mean_reward": 1.0})
            run.log(192, {"eval/maj@1": 0.375})
        if name in ("done", "longer"):
            run.finish()
        if name == "longer":
            run.log(288, {"eval/maj@1": 0.375})
        del run
    for name in ("done", "cut"):  # an interrupted run may leave the best model so far
        (tmp_path / "deep" / name / "model").mkdir()
        (tmp_path / "deep" / name / "model" / "config.json").write_text('{"architectures": []}')
    for name in ("done", "broken"):  # the one was resumed and came to its end
        (tmp_path / "deep" / name / "not-finite-3.jsonl").touch()
    judge = RunFolder(tmp_path / "judge", config)
    judge.log(7, {"rollout/mean_reward": 1.0, "rollout/attempts": 320})  # its step is of the optimizer
    del judge
    live = RunFolder(tmp_path / "live", config)
    found = {Path(run.path).name: run for run in find_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {
        "done": "finished", "longer": "interrupted", "cut": "interrupted", "broken": "failed", "fresh": "not begun",
        "live": "running", "judge": "interrupted",
    }  # fmt: skip
    assert found["judge"].attempts == "320"
    assert found["cut"][1:5] == ("ei", "tokengym/GSM8K-v0", "192", "0.500")
    assert found["fresh"][3:5] == ("0", "")
    assert "torch" in found["done"].versions
    assert live


def test_a_half_written_line_does_not_spoil_the_next(tmp_path) -> None:
    run = RunFolder(tmp_path / "run", CONFIG)
    run.log(0, {"a": 1.0})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "a')
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl") == [{"step": 0, "a": 1.0}]
    RunFolder(tmp_path / "run", CONFIG, resume=True).log(7, {"a": 2.0})
    assert lines(tmp_path / "run") == [{"step": 0, "a": 1.0}, {"step": 7, "a": 2.0}]


def test_rewind_forgets_later_metrics_in_the_file_and_on_the_board(tmp_path, monkeypatch) -> None:
    # Event files of one second are read in the order of a number that each process counts up, as text: 9 after 10.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(0))
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


def test_metrics_of_an_agent_that_begins_anew_are_not_doubled(tmp_path, caplog) -> None:
    first = RunFolder(tmp_path / "run", CONFIG)
    for step in (4, 8):
        first.log(step, {"a": 1.0})
    again = RunFolder(tmp_path / "run", CONFIG, resume=True)
    for step in (4, 8, 12):
        again.log(step, {"a": 2.0})
    assert [(line["step"], line["a"]) for line in lines(tmp_path / "run")] == [(4, 2.0), (8, 2.0), (12, 2.0)]
    assert caplog.messages == [f"{tmp_path / 'run'} begins anew at step 4: metrics up to step 8 are dropped"]
    RunFolder(tmp_path / "run", CONFIG, resume=True).log(12, {"b": 0.0})  # a second line of the same step
    assert [line["step"] for line in lines(tmp_path / "run")] == [4, 8, 12, 12]


def test_a_last_line_that_is_logged_again_is_not_doubled(tmp_path, caplog) -> None:
    """An agent without checkpoints that logs once, and one that was killed between its newest line and a checkpoint."""
    first = RunFolder(tmp_path / "run", CONFIG)
    for step, name in ((4, "a"), (8, "a"), (8, "b")):
        first.log(step, {name: 1.0})
    again = RunFolder(tmp_path / "run", CONFIG, resume=True)
    for step in (8, 12):
        again.log(step, {"a": 2.0})
    assert lines(tmp_path / "run") == [{"step": 4, "a": 1.0}, {"step": 8, "a": 2.0}, {"step": 12, "a": 2.0}]
    assert caplog.messages == [f"{tmp_path / 'run'} begins anew at step 8: metrics up to step 8 are dropped"]


def test_lines_of_one_step_that_tell_of_different_work_are_kept(tmp_path, caplog) -> None:
    """Of an agent that counts no attempts all lines have step 0, and the next one may be any of them or a new one."""
    for _ in range(2):
        RunFolder(tmp_path / "run", CONFIG, resume="auto").log(0, {"a": 1.0})
    assert len(lines(tmp_path / "run")) == 1
    run = RunFolder(tmp_path / "run", CONFIG, resume=True)
    run.log(0, {"b": 1.0})
    run.log(0, {"a": 1.0})
    caplog.clear()
    RunFolder(tmp_path / "run", CONFIG, resume=True).log(0, {"a": 1.0})
    assert len(lines(tmp_path / "run")) == 4
    assert not caplog.messages


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


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.write_json(tmp_path / "nowhere" / "results.json", {})
    assert caught.value.filename == str(tmp_path / "nowhere" / "results.json")


def test_a_folder_is_on_disk_with_its_list_of_files_before_it_gets_its_name(tmp_path, monkeypatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path.relative_to(tmp_path).as_posix()))
    fill(tmp_path / "target", "new")
    partial = ".target.partial"
    assert set(synced[:-1]) == {partial, f"{partial}/inner", f"{partial}/inner/file"}
    assert synced[-1] == "."  # the name itself


def test_files_of_a_folder_are_as_readable_as_others(tmp_path) -> None:
    with new_folder(tmp_path / "folder") as folder:
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "secret").touch(0o600)
    (tmp_path / "file").touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()}
    assert set(modes.values()) == {(tmp_path / "file").stat().st_mode & 0o666}


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


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/run"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for make in (lambda: RunFolder(tmp_path / name, CONFIG), lambda: new_folder(tmp_path / name).__enter__()):
        with pytest.raises(NotADirectoryError, match=r"notes.txt is a file, and .* is to be a folder: choose another"):
            make()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("line", ["5", "null", "[]", "{}", '{"eval/maj@1": 1.0}'])
def test_metrics_of_another_kind_are_damage(tmp_path, line: str) -> None:
    RunFolder(tmp_path / "run", CONFIG | {"env": "", "versions": {}}).log(0, {"a": 1.0})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text(path.read_text() + line + "\n")
    message = "metrics.jsonl, line 2 is damaged, it has no step: delete that line"
    with pytest.raises(DamagedFileError, match=message):
        RunFolder(tmp_path / "run", CONFIG | {"env": "", "versions": {}}, resume=True)
    (found,) = find_runs(tmp_path)
    assert found.state == "damaged"
    assert message in found.damage


def test_how_to_resume_is_one_of_three(tmp_path) -> None:
    with pytest.raises(ValueError, match="resume must be True, False or \"auto\", got 'yes'"):
        RunFolder(tmp_path / "run", CONFIG, resume="yes")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "lacks"), [("[]", "no agent and no env"), ('{"agent": "ei"}', "no env"), ("{", "no JSON")]
)
def test_an_object_that_is_none_or_lacks_values_is_damage(tmp_path, text: str, lacks: str) -> None:
    (tmp_path / "agent.json").write_text(text)
    with pytest.raises(DamagedFileError, match=rf"agent.json is damaged.*{lacks}"):
        read_object(tmp_path / "agent.json", "agent", "env")


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


def test_a_link_leads_to_the_file_that_is_written_and_a_pipe_is_written_to(tmp_path) -> None:
    (tmp_path / "results").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "results" / "a.json"
    link.symlink_to(target)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"a": 1}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_output(pipe)
    write_json(pipe, {"a": 2})
    assert json.loads(os.read(reader, 100)) == {"a": 2}
    os.close(reader)
    assert pipe.is_fifo()
