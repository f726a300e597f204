"""The table of all speeds: its lines come from the measurements, and the history keeps one line for each run."""

import json
import sys

import pytest
from rich.console import Console

from tokengym.benchmarks.speed.peers import summary, trl_grpo, trl_ppo, versions


def with_made_up_processes(monkeypatch) -> None:
    """Processes of PPO's comparison that measure nothing: twice and three times TRL's speed."""
    parts = {"parts": {"rollout": 0.25, "update": 0.75}, "padding": {"forward passes": 0.5}, "mean_length": 32.0}
    memory = {"megabytes": 500.0, "parameters": 2e6, "trained": 2e6, "critic": 1e6}
    rates = {("tokengym", "float32"): 20.0, ("tokengym", "bfloat16"): 30.0}

    def process(python: str, side: str, folder: str, dtype: str, *_: int) -> dict:
        return memory if side == "memory" else {"rate": rates.get((side, dtype), 10.0), **parts}

    monkeypatch.setattr(trl_ppo, "_process", process)
    monkeypatch.setattr(trl_ppo, "_make_model", lambda *_: None)
    monkeypatch.setattr(versions, "check_trl", lambda python, version: None)


def test_ppos_comparison_has_a_line_for_each_side_and_for_memory(monkeypatch) -> None:
    with_made_up_processes(monkeypatch)
    lines = trl_ppo.table(trl_ppo.run("trl/bin/python", [(16, 64)])).split("\n")
    assert len(lines) == 7
    assert "30.00      3.00" in lines[4]
    assert "rollout 25%, update 75%; padding: forward passes 50%; mean length 32.0" in lines[4]
    assert (
        lines[5] == "memory of a step, full: 500 MB at 2.0 M parameters, 2.0 M of them and the critic's 1.0 M trained"
    )


@pytest.fixture
def results(monkeypatch) -> dict:
    speedups = {"speedup": 3.5, "compiled_speedup": 4.5}
    case = {**trl_grpo.CASES[1]._asdict(), **speedups, "runs": {"trl": [{"trl": "1.16.0"}]}}
    shared = {"model": "4 x 256, 8 heads", "problems": 8, "prompt": 512, "speedup": 1.7}
    made_up = {
        summary.shared_prompts: {"rows": 64, "cases": [shared]},
        summary.env_throughput: {"step_ratio": 40.0, "step_tokens_ratio": 140.0},
        summary.rollout_throughput: {"geometric": {"speedup": 5.0}, "fixed": {"speedup": 1.6}},
        summary.grading_throughput: {"latex_ratio": 20.0},
        summary.orm_cost: {"ratios": {"dense_orm/sparse": [2.0, 1.9, 2.1]}},
        summary.trl_grpo: {"steps": 8, "cases": [case]},
    }
    for module, found in made_up.items():
        monkeypatch.setattr(module, "run", lambda *_, found=found, **__: found)
    with_made_up_processes(monkeypatch)
    monkeypatch.setattr(summary, "check_trl", lambda python, version: None)
    return summary.run("trl/bin/python", "trl-ppo/bin/python")


def test_every_measurement_has_its_line_and_goal(results, monkeypatch) -> None:
    lines = {line["figure"]: (line["ratio"], line["goal"]) for line in results["lines"]}
    assert lines == {
        "environment, a token at a time": (40.0, 10.0), "environment, whole completions": (140.0, 100.0),
        "rollout, geometric lengths": (5.0, 6.0), "rollout, fixed lengths": (1.6, 2.0),
        "step of 64 rows, 8 prompts of 512 tokens, 4 x 256, 8 heads": (1.7, None),
        "grades of LaTeX answers": (20.0, 3.0), "rollout under a dense outcome reward": (0.5, None),
        "GRPO step, 128 + 128, 2 x 128": (3.5, 4.0), "GRPO step, 128 + 128, 2 x 128, compiled decoder": (4.5, 4.0),
        **{
            f"PPO step, {case}, {dtype}": measured
            for case in ("16 + 64", "16 + 192", "128 + 128")
            for dtype, measured in {"float32": (2.0, 4.0), "bfloat16": (3.0, 2.5)}.items()
        },
    }  # fmt: skip
    console = Console(record=True, width=160)
    console.print(summary.table(results))
    shown = console.export_text()
    assert all(figure in shown for figure in lines)
    assert "TRL 1.16.0" in shown
    assert "3.50" in shown
    assert not [line for line in summary.lines(None, None) if "TRL" in line.against]


def test_history_grows_by_a_line(results, tmp_path) -> None:
    for _ in range(2):
        summary.append_history(results, tmp_path / "speed.jsonl")
    first, second = map(json.loads, (tmp_path / "speed.jsonl").read_text().splitlines())
    assert first == second
    assert set(first) == {"commit", "date", "machine", "versions", "ratios"}
    assert first["ratios"]["GRPO step, 128 + 128, 2 x 128 / TRL 1.16.0"] == 3.5


def test_less_than_one_run_is_refused() -> None:
    with pytest.raises(ValueError, match="peer_runs must be at least 1, got 0"):
        summary.run(peer_runs=0)


def test_a_peer_of_another_release_is_found_before_anything_is_measured(monkeypatch) -> None:
    monkeypatch.setattr(summary, "lines", None)
    with pytest.raises(ValueError, match="'nowhere/python' is no interpreter: No such file"):
        summary.run("nowhere/python")
    with pytest.raises(ValueError, match=r"has no TRL: make an environment with trl==1\.12\.0"):
        summary.run(None, sys.executable)
