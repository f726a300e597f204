"""The guards of the worker: deadline, memory cap, replacement, no loss of a verdict whoever is killed when.

All but the last tests have a stand-in for math-verify, which is slow, greedy or dying on command.
"""

import functools
import gc
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from tokengym.rewards import Verdict, grade_free_form
from tokengym.rewards.grading import latex_worker
from tokengym.rewards.grading.worker import WORKERS, Worker, Workers, in_background


@pytest.fixture(scope="module")
def worker(make_stand_in) -> Worker:
    return make_stand_in()


def normal(worker: Worker) -> bool:
    """Whether a right and a wrong answer are told apart."""
    return [worker.compare("x+1", [answer])[0] for answer in ("x+1", "x+2")] == ["correct", "wrong"]


def children(worker: Worker) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


@pytest.mark.parametrize(
    ("command", "reason"), [("slow", "timeout"), ("greedy", "crashed"), ("dying", "crashed"), ("killed", "crashed")]
)
def test_a_reader_that_fails_is_replaced_and_its_answer_gets_the_reason(worker, command: str, reason: str) -> None:
    assert normal(worker)
    (before,) = children(worker)
    count = worker.counters[reason]
    verdict = grade_free_form(rf"\boxed{{{command}}}", r"\int x", worker=worker)
    assert (verdict.correct, verdict.reason, verdict.answer) == (False, reason, None)
    (after,) = children(worker)
    assert after.pid != before.pid
    assert not before.is_running()
    assert worker.counters[reason] == count + 1
    assert normal(worker)


def test_deadlines_count_for_the_comparison_that_they_are_set_for(worker) -> None:
    for _ in range(3):
        assert worker.compare("x+1", ["slow"]) == ("timeout", None)
        assert normal(worker)


@pytest.mark.parametrize("command", ["killed", "orphaned"])
def test_killing_in_mid_grade_loses_no_verdict(make_stand_in, tmp_path: Path, command: str) -> None:
    """The reader, or the process that watches it."""
    worker = make_stand_in()
    assert normal(worker)
    assert worker.compare(command, [f"{command} {tmp_path / 'done'}"])[0] == "correct"
    assert (tmp_path / "done").is_dir()
    assert normal(worker)
    assert worker.counters == {"correct": 3, "wrong": 2}


def test_killing_both_between_grades_loses_no_verdict(make_stand_in) -> None:
    worker = make_stand_in()
    assert normal(worker)
    family = [psutil.Process(worker.pid), *children(worker)]
    for process in family:
        process.kill()
    psutil.wait_procs(family[:1])
    assert normal(worker)
    assert worker.counters == {"correct": 2, "wrong": 2}


def test_a_process_that_does_not_answer_counts_as_dead(worker, monkeypatch) -> None:
    assert normal(worker)
    pid = worker.pid
    waits: list[float | None] = []

    def read_line(descriptor, seconds=None):
        waits.append(seconds)
        return None if len(waits) == 1 else latex_worker.read_line(descriptor, seconds)

    with monkeypatch.context() as patch:
        patch.setattr("tokengym.rewards.grading.worker.read_line", read_line)
        assert worker.compare("x+1", ["x+1"])[0] == "correct"
    assert waits[0] is not None
    assert waits[0] > 2 * worker.deadline
    assert worker.pid != pid


def test_memory_is_capped_and_what_took_half_of_it_is_not_kept(make_stand_in) -> None:
    worker = make_stand_in(memory=200 << 20)
    pids = set()
    for _ in range(3):
        (child,) = children(worker) if worker.pid else (None,)
        if child is not None:
            pids.add(child.pid)
            limits = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
            assert [line.split()[3] for line in limits if line.startswith("Max address space")] == [f"{200 << 20}"]
            assert [line.split()[4] for line in limits if line.startswith("Max core file size")] == ["0"]
        assert worker.compare("x", ["half"]) == ("correct", f"{100 << 20}")
        assert normal(worker)
    pids.add(children(worker)[0].pid)
    assert len(pids) == 3
    assert worker.counters == {"correct": 6, "wrong": 3}


def test_what_a_reader_prints_is_no_reply_and_it_writes_no_files(worker, tmp_path: Path) -> None:
    assert worker.compare("nothing", ["printing"]) == ("wrong", "printing")
    assert worker.compare(str(tmp_path / "file"), ["writing"])[0] == "wrong"
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == ""
    assert normal(worker)


def test_an_interrupted_grade_leaves_no_reply_behind(worker, monkeypatch) -> None:
    assert normal(worker)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tokengym.rewards.grading.worker.read_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.compare("x+1", ["x+1"])
    assert worker.compare("x", ["y"])[0] == "wrong"


def test_no_process_is_left_when_a_worker_is_closed_or_forgotten(make_stand_in) -> None:
    script = make_stand_in().script
    for end in (Worker.close, lambda _: None):
        worker = Worker(deadline=600, script=script)
        assert normal(worker)
        parent = psutil.Process(worker.pid)
        family = [parent, *parent.children()]
        end(worker)
        del worker
        gc.collect()
        assert not [process for process in family if process.is_running()]
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_a_closed_worker_starts_again(worker) -> None:
    assert normal(worker)
    worker.close()
    assert worker.pid is None
    assert normal(worker)


def test_threads_share_a_worker(worker) -> None:
    right = [False] * 8

    def work(i: int) -> None:
        right[i] = all(worker.compare(f"x+{i}", [f"x+{j}"])[0] == ("correct" if i == j else "wrong") for j in range(8))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right)


def test_a_forked_process_has_a_worker_of_its_own() -> None:
    """The one that all of a process share."""

    def fine() -> bool:
        return grade_free_form(r"\boxed{x+x^2+x^3}", r"\sum_{n=1}^{3} x^n").correct

    assert fine()
    pids = WORKERS.pids
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # never back into pytest
        try:
            good = not WORKERS.pids and fine() and not set(WORKERS.pids) <= set(pids)
            WORKERS.close()
            os.write(write, b"good" if good else b"bad")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == "good"
    os.waitpid(child, 0)
    assert WORKERS.pids == pids
    assert fine()


def test_what_needs_a_worker_goes_on_in_the_background(make_stand_in, monkeypatch) -> None:
    """One that never ends holds up nobody; nothing but a comparison by a worker is put off."""
    workers = Workers(2, make_stand_in().script)
    workers.deadline = 600.0
    monkeypatch.setattr("tokengym.rewards.grading.worker.WORKERS", workers)
    grade = functools.partial(grade_free_form, worker=workers)
    try:
        assert in_background(grade, r"\boxed{2}", "2") == Verdict(True, "correct", "2")
        assert in_background(grade, "nothing", r"\int x") == Verdict(False, "no_answer", None)
        assert not workers.pids
        slow = in_background(grade, r"\boxed{slow}", r"\int x")
        assert isinstance(slow, Future)
        for answer, correct in ((r"it is \int x", True), (r"it is \int y", False)):
            later = in_background(grade, rf"\boxed{{{answer}}}", r"\int x")
            assert isinstance(later, Future)
            assert later.result().correct == correct
        assert len(workers.pids) == 2
        assert workers.counters == {"correct": 1, "wrong": 1}
        readers: list[psutil.Process] = []
        while len(readers) < 2:  # the process that reads the slow one may still be on its way
            assert not slow.done()
            readers = [child for pid in workers.pids for child in psutil.Process(pid).children()]
        for reader in readers:
            reader.send_signal(signal.SIGUSR1)  # which a reader does not survive, nor is it killed from outside
        assert slow.result().reason == "crashed"
        assert grade(r"\boxed{it is \int x}", r"\int x").correct
    finally:
        workers.close()


def test_graders_do_not_take_the_wish_to_wait_for_an_error(make_stand_in, monkeypatch) -> None:
    workers = Workers(1, make_stand_in().script)
    workers.deadline = 600.0
    monkeypatch.setattr("tokengym.rewards.grading.worker.WORKERS", workers)

    def careful(answer: str) -> str:
        try:
            return workers.compare("x+1", [answer])[0]
        except Exception:
            return "unparsed"

    try:
        later = in_background(careful, "x+1")
        assert isinstance(later, Future)
        assert later.result() == "correct"
        assert careful("x+2") == "wrong"
    finally:
        workers.close()


def test_a_process_that_does_not_start_says_so(monkeypatch) -> None:
    monkeypatch.setattr("tokengym.rewards.grading.worker.sys.executable", "/bin/false")
    worker = Worker()
    with pytest.raises(RuntimeError, match=r"did not start: see what `/bin/false .*latex_worker.py.*needs math-verify"):
        worker.compare("1", ["x"])
    assert worker.pid is None
