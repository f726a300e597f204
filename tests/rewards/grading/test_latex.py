"""Free-form answers: which text is the answer, what is right, and a worker that no death of a process stops."""

import gc
import os
import signal
import threading

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokengym.rewards import grade_free_form
from tokengym.rewards.grading.latex import WORKER, Worker, boxed
from tokengym.rewards.grading.numbers import grade


def box(*answers: str) -> str:
    return " and ".join(rf"$\boxed{{{answer}}}$" for answer in answers)


@pytest.fixture(scope="module")
def quick():
    """A worker with little patience; most hostile answers would keep it busy for hours."""
    worker = Worker(deadline=0.5)
    yield worker
    worker.close()


def normal(worker: Worker) -> bool:
    return grade_free_form(box(r"\frac{2}{4}"), r"\frac{1}{2}", worker=worker).correct


# --------------------------------------------------------------------------------------------------- what a box holds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}.", ["5"]),
        (r"\boxed{\frac{1}{2}} then $\boxed {x}$", [r"\frac{1}{2}", "x"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{\left\{ x \right. }", [r"\left\{ x \right."]),
        (r"\boxed{ a" + "\n" + r" b }", ["a b"]),
        (r"\boxed{\boxed{5}}", [r"\boxed{5}"]),
        (r"\boxed{1} {\boxed{2} \boxed{\boxed{3} 4}}", ["1", "2", r"\boxed{3} 4"]),
        (r"\boxed{5", []),
        (r"\boxed{5 \boxed{6}", ["6"]),
        (r"\boxed{5}}}}", ["5"]),
        (r"}}\boxed{5}", ["5"]),
        (r"\boxed{}", [""]),
        (r"\boxed 2$ or \fbox{3}", ["2", "3"]),
        (r"\boxed23. \boxedx", ["23."]),
        (r"\\boxed{5}", []),  # a line break and a word
        ("boxed{5}", []),
        ("#### 5", []),
        ("", []),
    ],
)
def test_boxes(text, expected):
    assert boxed(text) == expected


@pytest.mark.parametrize("piece", [r"\boxed{", "{", "}", r"\boxed{}", r"\boxed{{", "\\", r"\boxed ", r"\boxed{5} "])
def test_boxes_are_found_in_linear_time(piece):
    assert len(boxed(piece * 50_000)) <= 50_000  # quadratic time would be minutes


@given(st.text(alphabet="\\{}boxed 5$", max_size=60))
def test_any_text_has_boxes_with_balanced_braces(text):
    for content in boxed(text):
        plain = content.replace("\\\\", "").replace(r"\{", "").replace(r"\}", "")
        assert plain.count("{") == plain.count("}")


# ------------------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("answer", "gold", "reason", "found"),
    [
        ("5", "5", "correct", "5"),
        ("5.0", "5", "correct", "5"),
        ("1,000", "1000", "correct", "1000"),
        ("6", "5", "wrong", "6"),
        (r"\frac{10}{2}", "5", "correct", "5"),
        ("0.5", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
        (r"\frac12", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
        (r"\dfrac{2}{4}", r"\frac{1}{2}", "correct", r"\frac{1}{2}"),
        (r"\frac{3}{2}", r"\frac{1}{2}", "wrong", "1.5"),
        ("2.5", r"\frac{1}{2}", "wrong", "2.5"),
        (r"10,\!000", "10000", "correct", "10000"),
        (r"(x+1)^2", "x^2+2x+1", "correct", "x^2+2x+1"),
        (r"(x+1)^2", "x^2+2x+2", "wrong", "(x + 1)**2"),
        (r"\text{Evelyn}", r"\text{Evelyn}", "correct", r"\text{Evelyn}"),
        ("Evelyn", r"\text{Evelyn}", "correct", r"\text{Evelyn}"),
        (r"\sqrt{8}", r"2\sqrt{2}", "correct", r"2\sqrt{2}"),
        ("x=5", "5", "correct", "5"),
        ("5 or 6", "5", "wrong", "{5, 6}"),
        ("5, 6", "5", "wrong", "{5, 6}"),
        (r"\{5, 6\}", "6", "wrong", "{5, 6}"),
        ("2, 1", "1, 2", "correct", "1, 2"),
        (r"\frac{5}{0}", "5", "wrong", "zoo"),
        ("nan", "5", "wrong", None),
        (r"\infty", "5", "wrong", "oo"),
        ("٥", "5", "unparsed", None),
        ("５", "5", "unparsed", None),
        ("", "5", "no_answer", None),
        ("5" * 257, "5", "too_long", None),
    ],
)
def test_what_is_right(answer, gold, reason, found):
    verdict = grade_free_form(box(answer), gold)
    assert (verdict.correct, verdict.reason) == (reason == "correct", reason)
    if found is not None or reason not in ("correct", "wrong"):
        assert verdict.answer == found


@pytest.mark.parametrize(
    ("answers", "gold", "reason"),
    [
        (["5", "5"], "5", "correct"),
        (["5", "5.0"], "5", "correct"),
        (["6", "5"], "5", "ambiguous"),
        (["5", "6"], "5", "ambiguous"),
        (["6", "7"], "5", "ambiguous"),
        (["0.5", r"\frac{1}{2}"], r"\frac{1}{2}", "correct"),
        (["0.25", r"\frac{1}{2}"], r"\frac{1}{2}", "ambiguous"),
        (["", r"\frac{1}{2}"], r"\frac{1}{2}", "correct"),
        ([str(n) for n in range(100)], "99", "ambiguous"),
    ],
)
def test_the_last_box_counts_and_others_must_agree(answers, gold, reason):
    assert grade_free_form(box(*answers), gold).reason == reason


def test_without_a_box_there_is_no_answer():
    for completion in ("", "5", "#### 5", r"\boxed{5"):
        assert grade_free_form(completion, "5").reason == "no_answer"


@given(st.sampled_from(["5", "-3", "0.5", "1,200", "3/4"]), st.text(alphabet="0123456789.,-/% ", max_size=8))
def test_numbers_are_graded_as_everywhere_and_start_no_process(gold, text):
    untouched = Worker(deadline=0.0)
    text = text if text.strip() and grade(text, gold, marker=None).reason != "unparsed" else gold
    verdict = grade_free_form(box(text), gold, worker=untouched)
    assert verdict == grade(text, gold, marker=None)
    assert untouched.pid is None


@pytest.mark.parametrize("gold", ["", "  ", "5" * 257])
def test_a_gold_answer_out_of_bounds_is_an_error(gold):
    with pytest.raises(ValueError, match="a gold answer has 1 to 256 characters"):
        grade_free_form(box("5"), gold)


# ------------------------------------------------------------------------------------------------------ the worker


def test_past_its_deadline_a_worker_is_killed_and_replaced(quick):
    assert normal(quick)
    (before,) = psutil.Process(quick.pid).children()
    timeouts = quick.counters["timeout"]
    assert grade_free_form(box(r"9^{9^{9^{9}}}"), "7", worker=quick).reason == "timeout"
    (after,) = psutil.Process(quick.pid).children()
    assert after.pid != before.pid
    assert not before.is_running()
    assert quick.counters["timeout"] == timeouts + 1
    assert normal(quick)


def test_workers_have_their_memory_capped(quick):
    assert normal(quick)
    (child,) = psutil.Process(quick.pid).children()
    with open(f"/proc/{child.pid}/limits") as limits:
        (line,) = [line for line in limits if line.startswith("Max address space")]
    assert int(line.split()[3]) == quick.memory


def test_an_answer_that_kills_two_workers_is_a_crash():
    worker = Worker(deadline=30)
    assert normal(worker)
    parent, done = psutil.Process(worker.pid), threading.Event()

    def kill():
        while not done.wait(0.05):
            for child in parent.children():
                child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    verdict = grade_free_form(box(r"9^{9^{9^{9}}}"), "7", worker=worker)
    done.set()
    killer.join()
    assert verdict.reason == "crashed"
    assert normal(worker)
    assert worker.counters == {"correct": 2, "crashed": 1}
    worker.close()


@pytest.mark.parametrize("who", ["worker", "its parent", "both"])
def test_killing_in_mid_grade_loses_no_verdict(who):
    worker = Worker(deadline=2)
    assert normal(worker)
    parent = psutil.Process(worker.pid)
    victims = {"worker": parent.children(), "its parent": [parent], "both": [parent, *parent.children()]}[who]
    for victim in victims:
        victim.suspend()  # so that the request is surely on its way when the signal comes
    killer = threading.Timer(0.3, lambda: [victim.send_signal(signal.SIGKILL) for victim in victims])
    killer.start()
    assert normal(worker)
    killer.join()
    assert worker.counters["correct"] == 2
    worker.close()


def test_no_process_is_left_when_a_worker_is_closed_or_forgotten():
    for end in (Worker.close, lambda _: None):
        worker = Worker()
        assert normal(worker)
        parent = psutil.Process(worker.pid)
        family = [parent, *parent.children()]
        end(worker)
        del worker
        gc.collect()
        assert not [process for process in family if process.is_running()]
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_a_closed_worker_starts_again(quick):
    quick.close()
    assert quick.pid is None
    assert normal(quick)


def test_a_forked_process_has_a_worker_of_its_own():
    assert normal(WORKER)
    pid = WORKER.pid
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # never back into pytest
        try:
            good = WORKER.pid is None and normal(WORKER) and WORKER.pid not in (None, pid)
            WORKER.close()
            os.write(write, b"good" if good else b"bad")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read() == "good"
    os.waitpid(child, 0)
    assert WORKER.pid == pid
    assert normal(WORKER)


def test_threads_share_a_worker():
    right = [False] * 8

    def work(i: int) -> None:
        right[i] = all(
            grade_free_form(box(rf"\frac{{{i}}}{{{n}}}"), rf"\frac{{{2 * i}}}{{{2 * n}}}").correct
            for n in range(11, 15)
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right)


def test_an_interrupted_grade_leaves_no_reply_behind(quick, monkeypatch):
    assert normal(quick)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tokengym.rewards.grading.latex.read_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grade_free_form(box("x+1"), "1+x", worker=quick)
    assert grade_free_form(box("x+1"), "x", worker=quick).reason == "wrong"


def test_a_process_that_does_not_start_says_so(monkeypatch):
    monkeypatch.setattr("tokengym.rewards.grading.latex.sys.executable", "/bin/false")
    worker = Worker()
    with pytest.raises(RuntimeError, match=r"did not start: see what `/bin/false .*latex_worker.py.*needs math-verify"):
        worker.compare("1", ["x"])
    assert worker.pid is None
