"""Calls that hang, die or raise cost their own results alone. `eval` stands for what is called."""

import pytest

from tokengym.benchmarks import isolated as module
from tokengym.benchmarks.isolated import Fault, isolated


def test_each_call_has_its_result_or_its_fault() -> None:
    endless = "sum(iter(int, 1))"
    calls = ["1 + 1", "__import__('os')._exit(3)", "2 + 2", endless, "1 / 0", "3 + 3"]
    assert list(isolated(eval, calls, 2)) == [
        2,
        Fault("its process died with exit code 3"),
        4,
        Fault("it took more than 2 seconds"),
        Fault("ZeroDivisionError: division by zero"),
        6,
    ]


def test_a_call_that_computes_nothing_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 1)
    found = list(isolated(eval, ["__import__('time').sleep(600)", "3 + 3"], 10))
    assert found == [Fault("it took more than 10 seconds"), 6]
