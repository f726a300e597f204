"""Fine-tuning beside one busy process for each core: wall time over that on a quiet machine.

Threads of PyTorch that have nothing to do wait for the next operation. By OpenMP's default they spin, which is quick on
a quiet machine; on a busy one they take the cores from the very threads that they wait for. `tokengym` lets them sleep
after some microseconds (`__main__.main`). Each case is a process of its own, which fine-tunes the built-in model on as
many threads as it likes.
"""

import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

GOAL = 2.5
"""Wall time beside busy processes over that without, at most, with the threads of `tokengym`'s commands."""
CASES: dict[str, dict[str, str]] = {
    "tokengym": {"GOMP_SPINCOUNT": "1000"},
    "spin": {},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Environment variables of each case: those that commands set, OpenMP's default, sleep at once, and one thread."""
_VARIABLES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT")


def run(*, demonstrations: int = 64, repeats: int = 3) -> dict[str, Any]:
    """Measures all cases in turns, on the machine as it is and beside one busy process for each core.

    Args:
        demonstrations: Solutions to fine-tune on, in batches of 16.
        repeats: Number of runs of each case.

    Returns:
        JSON values: `settings`, `cores`, and `cases`, for each of which `quiet` and `busy`, medians of wall seconds,
        `quiet_cpu` and `busy_cpu`, medians of CPU seconds, and `ratio`, busy over quiet.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {"quiet": [], "busy": []} for name in CASES}
    for _ in range(repeats):
        for load in ("quiet", "busy"):
            others = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
                for _ in range(cores if load == "busy" else 0)
            ]
            try:
                for name, variables in CASES.items():
                    found[name][load].append(_measure(variables, demonstrations))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    cases = {}
    for name, loads in found.items():
        middle = {load: [median(values) for values in zip(*runs, strict=True)] for load, runs in loads.items()}
        cases[name] = {
            **{load: wall for load, (wall, _) in middle.items()},
            **{f"{load}_cpu": cpu for load, (_, cpu) in middle.items()},
            "ratio": middle["busy"][0] / middle["quiet"][0],
        }
    return {"settings": {"demonstrations": demonstrations, "repeats": repeats}, "cores": cores, "cases": cases}


def table(results: dict[str, Any]) -> str:
    """Formats the results of `run` as text."""
    lines = [f"{'idle threads':<14}{'quiet s':>9}{'busy s':>9}{'ratio':>8}{'goal':>6}{'CPU s, quiet and busy':>26}"]
    for name, found in results["cases"].items():
        cpu = f"{found['quiet_cpu']:.1f} and {found['busy_cpu']:.1f}"
        goal = f"{GOAL}" if name == "tokengym" else ""
        lines.append(f"{name:<14}{found['quiet']:>9.1f}{found['busy']:>9.1f}{found['ratio']:>8.2f}{goal:>6}{cpu:>26}")
    return "\n".join(lines)


def _measure(variables: dict[str, str], demonstrations: int) -> tuple[float, float]:
    """Wall and CPU seconds of fine-tuning, without those of starting."""
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES} | variables
    command = [sys.executable, "-m", __name__, str(demonstrations)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def _fine_tune(demonstrations: int) -> tuple[float, float]:
    from ...agents import SFT

    agent = SFT("tokengym/Arithmetic-v0", demonstrations=demonstrations, epochs=2, batch_size=16, validation_problems=0)
    begin = time.perf_counter(), time.process_time()
    agent.learn()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_fine_tune(int(sys.argv[1]))) + "\n")
