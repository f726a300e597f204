"""Plans: every job once, in order of need; what fails takes only those that need it; what was killed goes on."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tokengym.benchmarks.jobs import Done, Job, Missing, run_plan
from tokengym.files import DamagedFileError


def add(folder: Path, settings, needed) -> dict:
    """Adds a number to the sum of the inputs', and writes down that it ran."""
    with (folder.parent / "order.txt").open("a") as file:
        file.write(folder.name + "\n")
    return {"value": settings["number"] + sum(done.result["value"] for done in needed.values())}


def fail(folder: Path, settings, needed) -> dict:
    if (folder.parent / "repaired").exists():
        return {"value": 0}
    raise ValueError("three problems are one too many")


def die(folder: Path, settings, needed) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fill_the_disk(folder: Path, settings, needed) -> dict:
    raise OSError(errno.ENOSPC, "No space left on device")


def diamond(**changes) -> list[Job]:
    numbers = {"a": 1, "b": 10, "c": 100, "d": 1000} | changes
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    return [Job(name, add, {"number": numbers[name]}, needs[name]) for name in "dcba"]


def order(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().split()


@pytest.mark.parametrize("workers", [1, 3])
def test_jobs_run_once_in_the_order_of_their_needs(tmp_path, workers: int) -> None:
    told: list[str] = []
    states = run_plan(diamond(), tmp_path, workers=workers, say=told.append)
    values = {name: state.result["value"] for name, state in states.items() if isinstance(state, Done)}
    assert values == {"a": 1, "b": 11, "c": 101, "d": 1112}
    ran = order(tmp_path)
    assert sorted(ran) == list("abcd")
    assert (ran[0], ran[-1]) == ("a", "d")
    assert sum("done after" in line for line in told) == 4
    again = run_plan(diamond(), tmp_path, workers=workers, say=told.append)
    assert (again, order(tmp_path)) == (states, ran)
    assert told[-1] == "4 of 4 jobs are done already"


def test_what_fails_takes_only_those_that_need_it_and_is_tried_again(tmp_path) -> None:
    jobs = [
        Job("a", add, {"number": 1}),
        Job("broken", fail, needs=("a",)),
        Job("lost", add, {"number": 2}, needs=("broken",)),
        Job("more", add, {"number": 3}, needs=("lost",)),
        Job("fine", add, {"number": 4}, needs=("a",)),
        Job("killed", die),
    ]
    states = run_plan(jobs, tmp_path)
    assert states["broken"] == Missing("failed", "ValueError: three problems are one too many")
    assert states["lost"] == Missing("skipped", "it needs broken")
    assert states["more"] == Missing("skipped", "it needs lost")
    assert isinstance(states["killed"], Missing)
    assert "status -9" in states["killed"].reason
    assert [name for name, state in states.items() if isinstance(state, Done)] == ["a", "fine"]
    assert "three problems" in json.loads((tmp_path / "broken" / "failure.json").read_text())["traceback"]
    (tmp_path / "repaired").touch()
    states = run_plan(jobs[:-1], tmp_path)
    assert {name: state.result["value"] for name, state in states.items() if isinstance(state, Done)} == {
        "a": 1, "broken": 0, "lost": 2, "more": 5, "fine": 5
    }  # fmt: skip
    assert not (tmp_path / "broken" / "failure.json").exists()


def fill_the_disk_with_weights(folder: Path, settings, needed) -> dict:
    raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")  # as safetensors says


@pytest.mark.parametrize("fill", [fill_the_disk, fill_the_disk_with_weights])
def test_a_full_disk_stops_the_plan(tmp_path, fill) -> None:
    jobs = [Job("a", add, {"number": 1}), Job("big", fill), Job("never", add, {"number": 1}, ("big",))]
    with pytest.raises(OSError, match="no space is left for big") as caught:
        run_plan(jobs, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a" / "result.json").exists()


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Job("a", add), Job("a", add)], "two jobs are named 'a'"),
        ([Job("a", add, needs=("b",))], "job 'a' needs 'b', which is not in the plan"),
        ([Job("a", add, needs=("b",)), Job("b", add, needs=("a",)), Job("c", add)], "in a circle: a, b$"),
    ],
)
def test_plans_that_cannot_be_done(tmp_path, jobs: list[Job], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_plan(jobs, tmp_path)


def test_a_result_does_not_outlive_what_it_was_made_from(tmp_path) -> None:
    run_plan(diamond(), tmp_path)
    (tmp_path / "a" / "result.json").unlink()
    with pytest.raises(ValueError, match=r"c.result\.json was made from a result of a that is gone.*: delete .*c, too"):
        run_plan(diamond(a=2), tmp_path)
    for name in "bcd":
        (tmp_path / name / "result.json").unlink()
    states = run_plan(diamond(a=2), tmp_path)
    assert {name: state.result["value"] for name, state in states.items() if isinstance(state, Done)} == {
        "a": 2, "b": 12, "c": 102, "d": 1114
    }  # fmt: skip


def test_results_of_other_settings_or_versions_are_refused_before_anything_runs(tmp_path) -> None:
    run_plan(diamond(), tmp_path)
    with pytest.raises(ValueError, match=r"b.result\.json is the result of another run \(settings\.number: 10 -> 11\)"):
        run_plan(diamond(b=11), tmp_path)
    path = tmp_path / "a" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "0.0.0"}))
    with pytest.raises(ValueError, match=r"\(version: '0\.0\.0' -> "):
        run_plan(diamond(), tmp_path)
    assert len(order(tmp_path)) == 4


def test_a_damaged_result_and_a_file_in_the_folders_place_are_named(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    for text, lacks in (("{", "no JSON"), ("[]", "no result and no seconds")):
        (tmp_path / "a" / "result.json").write_text(text)
        with pytest.raises(DamagedFileError, match=rf"a/result.json is damaged.*{lacks}"):
            run_plan(diamond(), tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"file is a file, and .* is to be a folder"):
        run_plan(diamond(), tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_is_told_before_any_job_and_read_where_all_are_done(
    tmp_path, monkeypatch
) -> None:
    finished = run_plan(diamond(), tmp_path / "done")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    said: list[str] = []
    with pytest.raises(PermissionError, match=r"new cannot be made: .* is not writable, choose another folder"):
        run_plan(diamond(), tmp_path / "new", say=said.append)
    assert said == []
    assert run_plan(diamond(), tmp_path / "done") == finished


def test_a_plan_may_continue_with_another_number_of_threads(tmp_path) -> None:
    for threads in (1, 2):
        states = run_plan([Job("a", add, {"number": 1, "threads": threads})], tmp_path)
        assert isinstance(states["a"], Done)
    assert json.loads((tmp_path / "a" / "result.json").read_text())["settings"]["threads"] == 1
    assert order(tmp_path) == ["a"]


COUNTING = """
import signal, sys, time
from pathlib import Path
from tokengym.benchmarks.jobs import Job, run_plan

def count(folder, settings, needed):
    done = folder / "count.txt"
    for i in range(settings["to"]):
        while i == settings["stop_at"] and not (folder.parent.parent / f"past {folder.name}").exists():
            time.sleep(0.01)
        if len(done.read_text() if done.exists() else "") <= i:
            with done.open("a") as file:
                file.write("x")
    return {"value": len(done.read_text()) + sum(item.result["value"] for item in needed.values())}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, shells have it ignored
    settings = [{"to": 10 * i + 10, "stop_at": 10 * i + 5} for i in range(4)]
    jobs = [Job(str(i), count, settings[i], (str(i - 1),) if i else ()) for i in range(4)]
    run_plan(jobs, Path(sys.argv[1]), workers=2)
"""


def wait_for(folder: Path, job: int) -> None:
    """Until a job stands where it waits to be let past."""
    path = folder / "plan" / str(job) / "count.txt"
    while not path.exists() or len(path.read_text()) < 10 * job + 5:
        time.sleep(0.02)


def test_a_plan_killed_again_and_again_ends_with_the_same_results(tmp_path) -> None:
    script = tmp_path / "counting.py"
    script.write_text(textwrap.dedent(COUNTING))
    command = [sys.executable, str(script), str(tmp_path / "plan")]
    for job in (0, 2):
        process = subprocess.Popen(command, start_new_session=True)
        wait_for(tmp_path, job)
        os.kill(process.pid, signal.SIGKILL) if job == 0 else os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for past in range(job + 2):
            (tmp_path / f"past {past}").touch()
    (tmp_path / "past 3").touch()
    subprocess.run(command, check=True)
    values = [json.loads((tmp_path / "plan" / str(i) / "result.json").read_text())["result"]["value"] for i in range(4)]
    assert values == [10, 30, 60, 100]


def test_a_plan_that_is_asked_to_end_takes_its_jobs_along(tmp_path) -> None:
    script = tmp_path / "counting.py"
    script.write_text(textwrap.dedent(COUNTING))
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "plan")], stderr=subprocess.PIPE)
    wait_for(tmp_path, 0)
    process.terminate()
    assert process.communicate()[1].splitlines() == [b"0: begun"]
    assert process.returncode == 128 + signal.SIGTERM
    with (tmp_path / "plan" / "0" / "log.txt").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody is at work there any more


def test_ctrl_c_is_the_plans_and_the_same_command_goes_on(tmp_path) -> None:
    script = tmp_path / "counting.py"
    script.write_text(textwrap.dedent(COUNTING))
    command = [sys.executable, str(script), str(tmp_path / "plan")]
    for past in (0, 1, 3):
        (tmp_path / f"past {past}").touch()
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the jobs, too
    errors = process.communicate()[1]
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1  # the script's own
    assert not (tmp_path / "plan" / "3" / "result.json").exists()
    assert not list((tmp_path / "plan").rglob("failure.json"))
    (tmp_path / "past 2").touch()
    subprocess.run(command, check=True)
    assert json.loads((tmp_path / "plan" / "3" / "result.json").read_text())["result"]["value"] == 100
