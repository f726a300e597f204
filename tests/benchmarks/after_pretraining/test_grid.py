"""The experiments after next-token prediction: the grid, going on, the probe against hand-made policies, the plots."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import LlamaConfig

from tokengym.__main__ import main
from tokengym.agents.rollouts.attempts import Attempt
from tokengym.benchmarks.after_pretraining import grid as after_pretraining
from tokengym.benchmarks.after_pretraining import jobs
from tokengym.benchmarks.after_pretraining.grid import MultiplicationExperiment, ParityExperiment, run
from tokengym.benchmarks.after_pretraining.plots import sweep, table
from tokengym.benchmarks.jobs import Stopwatch
from tokengym.envs import Problem
from tokengym.envs.registration import make_spec, make_vec_env
from tokengym.registry import UnknownNameError

SMALL = {
    "d": 8, "steps": 4, "save_steps": 2, "batch_size": 8, "width": 16, "iterations": 2, "attempts": 16, "group": 4,
    "test_problems": 10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_jobs_in_forks(monkeypatch) -> None:
    """Processes forked from this one: they import nothing, and share what a test replaces."""
    monkeypatch.setattr(after_pretraining, "VALIDATION_PROBLEMS", 4)
    monkeypatch.setattr(after_pretraining, "NUM_ENVS", 16)
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: fork)


def begun(lines: list[str]) -> list[str]:
    return [line.removesuffix(": begun").partition("/")[2] for line in lines if line.endswith(": begun")]


def test_the_grid_is_run_once_and_a_larger_one_takes_it_over(tmp_path) -> None:
    lines: list[str] = []
    first = run(ParityExperiment(tmp_path, algorithms=("star", "grpo"), **SMALL), lines.append)
    names = ["pretraining", "before-from-4", "star-cot-temperature-1-from-4", "grpo-cot-temperature-1-from-4"]
    assert begun(lines) == [f"p_cot-0.25/{name}" for name in names]
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert (tmp_path / "curves.png").exists()
    assert first["missing"] == {}
    assert [[point["at"] for point in run["curve"]] for run in first["runs"]] == [[0, 1, 2], [1, 2]]
    assert [point["at"] for point in first["pretraining"][0]["curve"]] == [2, 4]
    assert all(run["cpu_seconds"] > 0 for run in first["runs"])
    lines.clear()
    grid = {"gradings": ("cot", "e2e"), "temperatures": (1.0, 1.5), "starts": (2, 4)}
    second = run(ParityExperiment(tmp_path, algorithms=("grpo",), **grid, **SMALL), lines.append)
    assert len(second["runs"]) == 2 * 2 * 2
    learned = [name for name in begun(lines) if "before" not in name]
    assert len(learned) == len(set(learned)) == 8 - 1
    assert second["pretraining"][0]["before"]["4"] == first["pretraining"][0]["before"]["4"]
    same = [run for run in second["runs"] if (run["start"], run["grading"]) == (4, "cot")]
    assert first["runs"][1] in same
    assert len(table(second).rows) == 2 + 8
    with pytest.raises(ValueError, match=r"holds runs with other settings \(iterations: 2 -> 3\)"):
        run(ParityExperiment(tmp_path, **(SMALL | {"iterations": 3})))


def test_curves_count_iterations_however_many_attempts_they_take(tmp_path) -> None:
    lines = [{"step": 0, "eval/maj@1": 0.25}, {"step": 512}, {"step": 1040, "eval/maj@1": 0.5}]  # 16 were resampled
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert jobs._curve(tmp_path) == [{"at": 0, "greedy": 0.25}, {"at": 1}, {"at": 2, "greedy": 0.5}]


@pytest.mark.parametrize("command", ["parity", "multiplication"])
def test_a_file_in_the_place_of_the_folder_is_told(tmp_path, capsys, command: str) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["bench", command, "--folder", str(file)]) == 1
    assert capsys.readouterr().err.endswith(f"{file} is a file, and {file} is to be a folder: choose another name\n")


def test_a_folder_of_settings_that_are_no_more_is_named_by_them(tmp_path) -> None:
    experiment = ParityExperiment(tmp_path, **SMALL)
    after_pretraining._check_folder(experiment)
    record = tmp_path / "settings.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"warmup": 3}))
    with pytest.raises(ValueError, match=r"holds runs with other settings \(warmup: 3 -> None\)"):
        after_pretraining._check_folder(experiment)


@pytest.mark.slow
def test_a_killed_experiment_goes_on(tmp_path, monkeypatch) -> None:
    settings = {"algorithms": ("reinforce", "rloo"), **SMALL}
    whole = run(ParityExperiment(tmp_path / "whole", **settings))
    save = Stopwatch.save
    for name in ("pretraining", "reinforce-cot-temperature-1-from-4"):

        def kill(watch: Stopwatch, name=name) -> None:
            save(watch)
            if watch._path.parent.name == name:
                os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patch:
            patch.setattr(Stopwatch, "save", kill)
            cut = run(ParityExperiment(tmp_path / name, **settings))
        assert "status -9" in cut["missing"][f"seed-0/p_cot-0.25/{name}"]
        assert len(cut["pretraining"]) == (name != "pretraining")
        resumed = run(ParityExperiment(tmp_path / name, **settings))
        for part in ("pretraining", "runs"):
            for expected, found in zip(whole[part], resumed[part], strict=True):
                timed = {"cpu_seconds", "seconds"}
                assert {k: v for k, v in found.items() if k not in timed} == {
                    k: v for k, v in expected.items() if k not in timed
                }


@pytest.mark.slow
def test_a_round_without_a_right_attempt_is_a_result_and_the_grid_goes_on(tmp_path) -> None:
    small = {name: value for name, value in SMALL.items() if name != "d"}
    experiment = MultiplicationExperiment(tmp_path, p_cot=(0.0,), algorithms=("star", "reinforce"), digits=4, **small)
    results = run(experiment)
    star, reinforce = results["runs"]
    assert "nothing to fine-tune on" in star["stopped"]
    assert reinforce["stopped"] is None
    assert star["after"] == results["pretraining"][0]["before"][str(experiment.steps)]
    assert run(experiment) == results


@pytest.mark.parametrize("digits", [0, 2])
def test_the_probe_tells_long_from_short_and_right_from_wrong(monkeypatch, digits: int) -> None:
    """Attempts written by hand, on parity or on multiplication."""
    experiment = MultiplicationExperiment(Path(), digits=digits) if digits else ParityExperiment(Path(), d=8)
    short = len("#### 1 2 3 4") if digits else 1
    shapes = [  # length, verdict
        (short, "correct"), (short, "wrong"), (short + 7, "correct"), (short + 7, "wrong_chain"), (short, "correct"),
    ]  # fmt: skip

    def collect(policy, env, problems, seed):
        assert (env.problems.split, problems, seed) == ("test", 5, 0)
        for length, verdict in shapes:
            tokens = np.zeros(length + 1, np.int32)
            nothing = np.zeros(length + 1, np.float32)
            correct = verdict == "correct"
            yield Attempt(Problem("", "", ""), 0, tokens, tokens, nothing, nothing, correct, verdict, None, True)

    class Policy(SimpleNamespace):
        def with_sampling(self, temperature: float):
            return self

    spec = make_spec(experiment.environment(0.25, "e2e"))
    model = SimpleNamespace(generation_config=None, name_or_path="", config=LlamaConfig())
    monkeypatch.setattr(jobs, "collect", collect)
    policy = Policy(tokenizer=make_vec_env(spec, 1).tokenizer, model=model)
    found = jobs.probe(policy, spec, 5, num_envs=16)  # pyright: ignore[reportArgumentType]
    for kind in ("greedy", "sampled"):
        assert found[f"{kind}_accuracy"] == 0.8
        assert found[f"{kind}_correct"] == 0.6
        assert found[f"{kind}_long"] == 0.4
        assert found[f"{kind}_correct_if_long"] == 0.5
        assert found[f"{kind}_correct_if_short"] == pytest.approx(2 / 3, abs=1e-4)
        assert found[f"{kind}_median_length"] == short


@pytest.mark.slow
def test_the_sweep_is_drawn_and_the_command_prints_a_table(tmp_path, capsys) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    shares = ["--p-cot", "0.2", "0.4", "0.6", "--algorithms", "grpo"]
    assert main(["bench", "parity", "--folder", str(tmp_path), *options, *shares]) == 0
    assert "GRPO, r_cot, T=1" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["runs"]) == 3
    sweep(results, tmp_path / "again.png")
    assert (tmp_path / "sweep.png").stat().st_size == (tmp_path / "again.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"algorithms": ("starr",)}, UnknownNameError, "did you mean 'star'"),
        ({"starts": (3,)}, ValueError, "no checkpoint after 3 of 4 steps"),
        ({"starts": (6,)}, ValueError, "no checkpoint after 6 of 4 steps"),
        ({"group": 1}, ValueError, "group must be at least 2, got 1"),
        ({"group": 3}, ValueError, "group must divide attempts=16, got 3"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0, got 0.0"),
        ({"attempts": 15}, ValueError, "divide attempts=15"),
        ({"p_cot": ()}, ValueError, "at least one value"),
        ({"p_cot": (1.5,)}, ValueError, "p_cot is the share of long solutions"),
        ({"gradings": ("dense",)}, UnknownNameError, "unknown grading 'dense'"),
    ],
)
def test_bad_settings(tmp_path, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(ParityExperiment(tmp_path, **(SMALL | settings)))
