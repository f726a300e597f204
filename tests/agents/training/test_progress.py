"""Progress in a log file: whole lines, not many, and nothing for stages that are over at once."""

import io
import re
import sys

import pytest

from tokengym.agents.training.progress import LineProgress, key_numbers, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    seconds: float,
    shown: bool = True,
    total: int | None = 20,
) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(LineProgress, "seconds", seconds)
    with progress(total, "sampling", shown) as bar:
        for _ in range(20):
            bar.update(1)
    return stream.getvalue()


def test_a_log_file_gets_lines_and_no_carriage_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(monkeypatch, io.StringIO(), 0.0).split("\n")
    assert lines.pop() == ""
    assert lines[-1].startswith("sampling: 20 of 20 in ")
    assert all(line.startswith("sampling: ") and "\r" not in line for line in lines)


def test_a_total_that_nobody_knows_or_that_is_exceeded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for total in (None, 16):  # which twenty go beyond
        lines = run(monkeypatch, io.StringIO(), 0.0, total=total).split("\n")
        assert re.fullmatch(r"sampling: 20 in \d\d:\d\d, .*it/s", lines[-2])


def test_a_stage_that_ends_before_its_first_line_writes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, io.StringIO(), 3600.0) == ""
    assert run(monkeypatch, io.StringIO(), 0.0, shown=False) == ""


def test_a_stage_whose_updates_are_far_apart_says_how_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    monkeypatch.setattr(LineProgress, "seconds", 0.01)
    with progress(20, "sampling") as bar:
        bar._timer.join()
        assert re.fullmatch(r"sampling: 0 of 20 in \d\d:\d\d, \?it/s, \? left\n", stream.getvalue())
        bar._begin()
        assert stream.getvalue().count("\n") == 1, "that is said once"


def test_updates_write_no_line_beside_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    monkeypatch.setattr(LineProgress, "seconds", 3600.0)
    with progress(20, "sampling") as bar:
        for seconds, lines in ((3600.0, 1), (3601.0, 1), (7200.0, 2)):
            bar._time = lambda seconds=seconds: bar.start_t + seconds
            bar._begin()
            bar.update()
            assert stream.getvalue().count("\n") == lines


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(monkeypatch, Terminal(), 3600.0)
    assert "\r" in shown
    assert "\n" not in shown


def test_a_round_has_five_numbers_the_most_telling_first() -> None:
    metrics = {"time/eval_seconds": 1.0, "round": 2.0, "rollout/mean_length": 70.25, "train/loss": 0.5}
    assert key_numbers(metrics) == "round 2  loss 0.5  mean_length 70.25"
    metrics |= {"eval/maj@1": 0.25, "rollout/success_rate": 0.5, "rollout/mean_reward": 1.0, "rollout/entropy": 2.0}
    assert key_numbers(metrics) == "round 2  maj@1 0.25  success_rate 0.5  mean_reward 1  loss 0.5  entropy 2"
    assert key_numbers({"x/some": 3.0}) == "some 3"
