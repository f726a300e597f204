"""Calls that hang, die or raise cost their own results alone. `eval` stands for what is called."""

from tokengym.benchmarks.isolated import Fault, isolated


def test_each_call_has_its_result_or_its_fault() -> None:
    calls = ["1 + 1", "__import__('os')._exit(3)", "2 + 2", "__import__('time').sleep(600)", "1 / 0", "3 + 3"]
    assert list(isolated(eval, calls, 10)) == [
        2,
        Fault("its process died with exit code 3"),
        4,
        Fault("it took more than 10 seconds"),
        Fault("ZeroDivisionError: division by zero"),
        6,
    ]
