"""The measurement beside busy processes: who runs when, and what the ratios are of."""

import os

import psutil
import pytest

from tokengym.__main__ import main
from tokengym.benchmarks.speed import busy_cores


def test_cases_are_measured_with_and_without_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[int] = []
    ours = {child.pid for child in psutil.Process().children()}

    def measure(variables: dict[str, str], demonstrations: int) -> tuple[float, float]:
        busy = [child for child in psutil.Process().children() if child.pid not in ours]
        others.append(len(busy))
        seconds = 2.0 if variables else 1.0
        return (seconds * 4 if busy else seconds), demonstrations / 2

    monkeypatch.setattr(busy_cores, "_measure", measure)
    results = busy_cores.run(demonstrations=8, repeats=2)
    assert others == [0, 0, 0, 0, *[results["cores"]] * 4] * 2
    assert results["cases"]["spin"] == {"quiet": 1.0, "busy": 4.0, "quiet_cpu": 4.0, "busy_cpu": 4.0, "ratio": 4.0}
    assert results["cases"]["sleep"]["quiet"] == 2.0
    lines = busy_cores.table(results).splitlines()
    assert [line[:14].strip() for line in lines[1:]] == list(busy_cores.CASES)
    assert not [child for child in psutil.Process().children() if child.pid not in ours]


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_commands_let_idle_threads_sleep_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == ("1000" if given is None else None)
    assert os.environ.get("OMP_WAIT_POLICY") == given
