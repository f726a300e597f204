"""Every measurement of speed as one line: how many times as fast as what, and the goal.

`tokengym bench speed` prints the table, `make bench` with the peers beside, each in an environment of its own. One line
of a history file keeps the ratios with commit, date and machine, so that a change that costs speed is found.
"""

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from ....files import LineFile
from .. import env_throughput, grading_throughput, orm_cost, rollout_throughput, shared_prompts
from . import trl_grpo, trl_ppo
from .versions import check_trl

PACKAGES = ("tokengym", "torch", "transformers", "gymnasium", "math-verify")


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        figure: Name of what was measured.
        against: Name and version of what it is compared with.
        ratio: Speed over the other's, both in CPU seconds of one run.
        goal: Least ratio that is aimed at; `None` if there is none.
    """

    figure: str
    against: str
    ratio: float
    goal: float | None = None


def run(trl_python: str | None = None, trl_ppo_python: str | None = None, peer_runs: int = 1) -> dict[str, Any]:
    """Measures everything, one after the other.

    Args:
        trl_python: Interpreter of an environment with TRL 1.16.0; `None` leaves GRPO's comparison out.
        trl_ppo_python: Interpreter of an environment with TRL 1.12.0; `None` leaves PPO's comparison out.
        peer_runs: Runs of each side of the comparisons with TRL, whose medians count.

    Returns:
        JSON values: "commit", "date", "machine", "versions" and "lines".

    Raises:
        ValueError: An interpreter is none, or has another release of TRL, or there is less than one run.
    """
    if peer_runs < 1:
        raise ValueError(f"peer_runs must be at least 1, got {peer_runs}")
    for python, module in ((trl_python, trl_grpo), (trl_ppo_python, trl_ppo)):
        if python is not None:
            check_trl(python, module.VERSION)
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in PACKAGES},
        "lines": [asdict(line) for line in lines(trl_python, trl_ppo_python, peer_runs)],
    }


def lines(trl_python: str | None, trl_ppo_python: str | None, peer_runs: int = 1) -> Iterator[Measurement]:
    """The lines of the table, each when it is measured."""
    gymnasium = f"Gymnasium's SyncVectorEnv {version('gymnasium')}"
    found: Any = env_throughput.run()
    yield Measurement("environment, a token at a time", gymnasium, found["step_ratio"], env_throughput.GOALS["step"])
    yield Measurement(
        "environment, whole completions", gymnasium, found["step_tokens_ratio"], env_throughput.GOALS["step_tokens"]
    )
    found = rollout_throughput.run()
    for name in ("geometric", "fixed"):
        yield Measurement(
            f"rollout, {name} lengths",
            f"generate, transformers {version('transformers')}",
            found[name]["speedup"],
            rollout_throughput.GOALS[name],
        )
    found = shared_prompts.run(problems=(8,), prompts=(512,))
    for case in found["cases"]:
        figure = f"step of {found['rows']} rows, {case['problems']} prompts of {case['prompt']} tokens, {case['model']}"
        yield Measurement(figure, "prompts read for each row", case["speedup"])
    found = grading_throughput.run()
    yield Measurement(
        "grades of LaTeX answers",
        f"math-verify {version('math-verify')} in the process",
        found["latex_ratio"],
        grading_throughput.GOALS["latex"],
    )
    found = orm_cost.run()
    dense = found["ratios"]["dense_orm/sparse"][0]
    yield Measurement("rollout under a dense outcome reward", "the same under the sparse reward", 1 / dense)
    if trl_python is not None:
        found = trl_grpo.run(trl_python, repeats=peer_runs)
        for case in found["cases"]:
            figure = f"GRPO step, {trl_grpo.case_name(case)}"
            for way, ratio in (("", case["speedup"]), (", compiled decoder", case["compiled_speedup"])):
                yield Measurement(figure + way, f"TRL {trl_grpo.VERSION}", ratio, case["goal"])
    if trl_ppo_python is not None:
        found = trl_ppo.run(trl_ppo_python, repeats=peer_runs)
        for name, case in found["cases"].items():
            for dtype, ratio in case["speedups"].items():
                yield Measurement(
                    f"PPO step, {name}, {dtype}", f"TRL {trl_ppo.VERSION}, float32", ratio, trl_ppo.GOALS[dtype]
                )


def table(results: dict[str, Any]) -> Table:
    """Formats the results of `run`."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    title = f"Speed at {results['commit']}, {results['machine']}"
    shown = Table("figure", "against", "times as fast", "goal", title=title, caption=f"CPU seconds; {versions}")
    for line in results["lines"]:
        goal = "" if line["goal"] is None else f"{line['goal']:g}"
        shown.add_row(line["figure"], line["against"], f"{line['ratio']:.2f}", goal)
    return shown


def append_history(results: dict[str, Any], path: Path) -> None:
    """Adds the results to a file of JSON lines.

    Raises:
        OSError: The file cannot be written.
    """
    ratios = {f"{line['figure']} / {line['against']}": round(line["ratio"], 3) for line in results["lines"]}
    kept = {name: results[name] for name in ("commit", "date", "machine", "versions")}
    with LineFile(path) as file:
        file.write({**kept, "ratios": ratios})


def _commit() -> str:
    """The commit of this checkout, "+" where it has changes; the version if it is none."""
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return version("tokengym")
    return commit.stdout.strip() + "+" * bool(changes.stdout.strip())
