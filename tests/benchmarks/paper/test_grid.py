"""The paper's grid: a plan whose every cell has a job, results that may be missing, and what a killed command does."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokengym.__main__ import main
from tokengym.agents import AGENTS
from tokengym.benchmarks.jobs import Done, Job, Missing
from tokengym.benchmarks.paper import grid as paper
from tokengym.benchmarks.paper.grid import PaperGrid, missing, plan
from tokengym.benchmarks.paper.jobs import evaluate_system, expected_attempts, rerank_system, resolved, train_system
from tokengym.benchmarks.paper.plots import mean_curve
from tokengym.benchmarks.paper.published import paper_row
from tokengym.benchmarks.paper.report import assemble
from tokengym.benchmarks.paper.results import METRICS, Results, job_name, system_of
from tokengym.benchmarks.paper.scales import SCALES, Scale, paper_scale
from tokengym.benchmarks.paper.systems import ABLATIONS, JUDGE, TABLES, outputs, systems
from tokengym.benchmarks.reports import text as report_text
from tokengym.benchmarks.reports.content import Cell, MissingCell, Report
from tokengym.benchmarks.reports.html import write_report
from tokengym.commands.evaluate import EvalOptions
from tokengym.commands.options import AdapterOptions, ComputeOptions
from tokengym.commands.train import TrainOptions
from tokengym.registry import UnknownNameError

HERE = [name for name, scale in SCALES.items() if scale.launcher is None]


# ---------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("ablations", [False, True])
@pytest.mark.parametrize("name", list(SCALES))
def test_every_cell_of_every_table_has_a_job_and_every_job_what_it_needs(name: str, ablations: bool) -> None:
    scale = PaperGrid(name, ablations=ablations).settings
    jobs = {job.name: job for job in plan(scale, range(2))}
    for seed in range(2):
        for table in scale.tables:
            for line in TABLES[table]:
                for metric in METRICS:
                    what = "rerank" if metric.startswith("rerank") else "evaluate"
                    assert job_name(line.system, seed, what) in jobs
                if line.paper is not None:
                    paper_row(f"{table}/{line.paper}")
    for job in jobs.values():
        assert json.loads(json.dumps(job.settings)) == job.settings
        # What the settings refer to is what the job waits for, and never another seed's.
        assert {item["output_of"] for item in outputs(job.settings)} == set(job.needs) <= set(jobs)
        assert {need.split("/")[0] for need in job.needs} <= {job.name.split("/")[0]}
        assert expected_attempts(job) >= 0


def test_what_every_system_starts_from_and_learns_by() -> None:
    jobs = {job.name.removeprefix("seed-0/"): job for job in plan(paper_scale("tiny"), [0])}
    needs = {
        name: {need.removeprefix("seed-0/").removesuffix("/train") for need in job.needs} for name, job in jobs.items()
    }
    assert needs["orm/train"] == {"ei"}
    assert "pool" not in jobs["orm/train"].settings["config"]  # it samples the policy that expert iteration ended with
    assert needs["rcrl/train"] == {"ei"}
    assert needs["orm_rcrl/train"] == {"ei", "orm", "rcrl"}
    assert needs["sparse_ppo/train"] == needs["dense_ppo/train"] == {"sft"}
    assert needs["sparse_orm_ppo/train"] == needs["dense_orm_ppo/train"] == {"sft", "orm"}
    assert needs["sft_2/sparse_ppo/train"] == {"sft_2"}
    assert needs["pretrained/prompted/evaluate"] == needs["pretrained/ei/train"] == set()
    assert needs["pretrained/dense_orm_ppo/train"] == {"orm"}
    assert jobs["orm/train"].settings["config"]["base"] == "tokengym/tiny-orm"  # and not the policy
    # One SFT and one outcome model serve all.
    assert sum(job.settings.get("agent") == "orm" for job in jobs.values()) == 1
    from_pretrained = jobs["pretrained/ei/train"].settings
    assert from_pretrained["config"]["demonstrations"] == 0
    assert jobs["pretrained/sparse_ppo/train"].settings["config"]["temperature"] == 0.2
    epochs = [jobs[f"{name}/train"].settings["config"]["epochs"] for name in ("sft_2", "sft", "sft_8")]
    assert epochs == [2, 4, 8]
    assert jobs["dense_orm_ppo/train"].settings["env"]["reward"]["name"] == "dense_orm"


def test_an_ablation_changes_one_thing_in_the_configuration() -> None:
    scale = PaperGrid("tiny", ablations=True).settings
    found = {system.name: system for system in systems(scale)}
    changed = {
        "no_kl": {"kl_coef"}, "head_critic": {"critic"}, "model_critic": {"critic"}, "hot": {"temperature"},
        "best_half": {"best_of", "minibatch_size"}, "backtracking": set[str](), "replay": set[str](),
    }  # fmt: skip
    plain = found["sparse_ppo"]
    for name, settings in changed.items():
        system = found[f"ablations/{name}"]
        assert {key for key, value in system.config.items() if plain.config.get(key) != value} == settings
        assert (system.agent, system.model, system.reward) == (plain.agent, plain.model, plain.reward)
    jobs = {job.name.removeprefix("seed-0/"): job for job in plan(scale, [0])}
    assert jobs["ablations/backtracking/train"].settings["env"]["curriculum"] == "backtracking"
    assert jobs["ablations/replay/train"].settings["env"]["curriculum"] == "prioritized_replay"
    assert jobs["sparse_ppo/train"].settings["env"]["curriculum"] == "uniform"
    assert "ablations/sorm/evaluate" not in jobs
    assert PaperGrid("tiny", ablations=True).command.endswith("--ablations")


def test_examples_stand_in_the_prompt_of_pretrained_models_alone() -> None:
    jobs = {job.name.removeprefix("seed-0/"): job for job in plan(paper_scale("smollm2"), [0])}
    assert jobs["pretrained/ei/train"].settings["config"]["shots"] == 2  # which it drops after round one
    with_shots = {name for name, job in jobs.items() if job.settings["env"].get("shots")}
    policies = ("prompted", "sparse_ppo", "sparse_orm_ppo", "dense_orm_ppo")
    expected = {f"pretrained/{name}/{what}" for name in policies for what in ("train", "evaluate", "rerank")}
    assert with_shots == expected - {"pretrained/prompted/train"}


def test_a_scale_without_supervised_tables_trains_its_outcome_model_on_what_it_has() -> None:
    names = [system.name for system in systems(paper_scale("smollm2-svamp"))]
    assert names[:2] == ["pretrained/ei", JUDGE]
    assert not any(name.startswith("sft") for name in names)


def test_expected_attempts_by_hand() -> None:
    expected = {job.name.removeprefix("seed-0/"): expected_attempts(job) for job in plan(paper_scale("tiny"), [0])}
    assert expected["ei/train"] == 600 * 2 * 3
    assert expected["rft/train"] == expected["ei/train"] == expected["sparse_ppo/train"]  # compared at equal attempts
    assert expected["pretrained/ei/train"] == expected["pretrained/sparse_ppo/train"] == 600 * 2 * 4
    assert expected["orm/train"] == 600 * 6
    assert expected["rcrl/train"] == 300 * 2 * (1 + 3 * 4)
    assert expected["sft/evaluate"] == 500 * 9
    assert expected["sft/train"] == expected["orm_rcrl/train"] == expected["ei/rerank"] == 0
    more = {job.name: expected_attempts(job) for job in plan(PaperGrid("tiny", ablations=True).settings, [0])}
    assert more["seed-0/ablations/sorm/train"] == 150 * 4 * (1 + 3 * 8)  # whose prefixes are continued


@pytest.mark.parametrize("name", HERE)
def test_algorithms_are_compared_at_equal_attempts(name: str) -> None:
    expected = {job.name.removeprefix("seed-0/"): expected_attempts(job) for job in plan(paper_scale(name), [0])}
    for start, others in (("", ("rft", "sparse_ppo", "dense_ppo")), ("pretrained/", ("sparse_ppo", "dense_orm_ppo"))):
        if (ei := expected.get(f"{start}ei/train")) is not None:
            for other in others:
                assert expected[f"{start}{other}/train"] == pytest.approx(ei, abs=1024)  # an iteration of PPO


def test_outputs_become_paths(tmp_path) -> None:
    needed = {"a": Done(tmp_path / "a", {}, 0.0)}
    settings = {
        "model": {"output_of": "a", "path": "run/model"},
        "n": 3,
        "inner": {"x": {"output_of": "a", "path": ""}},
    }
    assert resolved(settings, needed) == {
        "model": str(tmp_path / "a" / "run" / "model"), "n": 3, "inner": {"x": str(tmp_path / "a")}
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- command


def test_a_scale_that_does_not_exist(capsys) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'smollm2'"):
        paper_scale("smolm2")
    assert main(["bench", "paper", "--scale", "tinny"]) == 1
    assert "unknown scale 'tinny': did you mean 'tiny'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seeds", "workers"])
def test_no_seeds_and_no_workers(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PaperGrid(**{name: 0})


def test_a_scale_of_the_cpu_takes_all_cores_unless_told(monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert PaperGrid("tiny").processes == 6
    assert PaperGrid("tiny", workers=2).processes == 2
    assert PaperGrid("smollm2").processes == 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert PaperGrid("tiny").processes == 1


def test_systems_of_ones_choice_bring_what_they_need() -> None:
    jobs = PaperGrid("tiny", seeds=2, systems=("dense_ppo", "ei/round_2"), folder=Path("nowhere")).jobs
    each = ("ei/train", "orm/train", "sft/train")
    each += tuple(f"{name}/{what}" for name in ("dense_ppo", "ei/round_2") for what in ("evaluate", "rerank"))
    assert {job.name for job in jobs} == {
        f"seed-{seed}/{name}" for seed in range(2) for name in (*each, "dense_ppo/train")
    }
    whole = plan(paper_scale("tiny"), range(2))
    assert [job for job in whole if job in jobs] == jobs


@pytest.mark.parametrize("left", ["result.json", "failure.json"])
def test_what_a_folder_has_of_other_systems_stays_in_the_plan(left: str, tmp_path) -> None:
    folder = tmp_path / "seed-1" / "orm_rcrl" / "train"
    folder.mkdir(parents=True)
    (folder / left).touch()
    jobs = {job.name for job in PaperGrid("tiny", seeds=2, systems=("sft",), folder=tmp_path).jobs}
    others = {name for name in jobs if name.split("/")[1] != "sft"}
    assert others == {f"seed-{seed}/{name}/train" for seed in range(2) for name in ("ei", "orm")} | {
        "seed-1/rcrl/train", "seed-1/orm_rcrl/train",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "hint"), [("sparce_ppo", "did you mean 'sparse_ppo'?"), ("orm", "known are dense")])
def test_a_system_that_there_is_not_to_choose(name: str, hint: str, tmp_path, capsys) -> None:
    folder = tmp_path / "runs"
    assert main(["bench", "paper", "--folder", str(folder), "--systems", "ei", name]) == 1
    error = capsys.readouterr().err
    assert f"unknown system of scale 'tiny' '{name}'" in error
    assert hint in error
    assert not folder.exists()


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["bench", "paper", "--seeds", "2", "--dry-run"]) == 0
    narrow = capsys.readouterr().out
    assert "…" not in narrow
    assert "_orm_ppo" in narrow
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bench", "paper", "--seeds", "2", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "seed-1/pretrained/dense_orm_ppo/evaluate" in shown
    assert f"{len(plan(paper_scale('tiny'), range(2)))} jobs" in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "tiny", "--data", "problems.jsonl"], "unknown argument 'data'"),
        (["--scale", "tiny", "--data", "problems.jsonl", "--dry-run"], "unknown argument 'data'"),
        (["--scale", "smollm2-svamp", "--data", "nowhere.json"], "nowhere.json"),
        (["--scale", "llama2-7b", "--workers", "2"], "leave out workers"),
    ],
)
def test_what_a_scale_does_not_take_is_told_before_any_job(
    arguments: list[str], message: str, tmp_path, capsys
) -> None:
    assert main(["bench", "paper", "--folder", str(tmp_path / "runs"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_results_of_another_configuration_are_refused(tmp_path, capsys) -> None:
    job = plan(paper_scale("tiny"), [0])[0]
    folder = tmp_path / job.name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"version": "0.0.0", "settings": {}, "seconds": 1.0, "result": {}}))
    assert main(["bench", "paper", "--seeds", "1", "--folder", str(tmp_path)]) == 1
    assert re.search(r"result\.json is the result of another run \(version: '0\.0\.0' -> ", capsys.readouterr().err)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path, capsys) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["bench", "paper", "--folder", str(file)]) == 1
    assert capsys.readouterr().err.endswith(f"{file} is a file, and {file} is to be a folder: choose another name\n")


def test_the_commands_of_a_large_scale_are_ones_that_the_command_line_takes(tmp_path, capsys) -> None:
    assert main(["bench", "paper", "--scale", "llama2-7b", "--seeds", "1", "--folder", str(tmp_path)]) == 0
    assert "commands.sh" in capsys.readouterr().out
    lines = (tmp_path / "commands.sh").read_text().splitlines()[3:]
    launcher = shlex.split(paper_scale("llama2-7b").launcher or "")
    seen: set[str] = set()
    slow = [line for line in lines if not line.startswith("mkdir") and "--vllm-memory 0.4" not in line]
    trained = [line for line in slow if " tokengym train " in line]
    assert [line.split("--run ")[1].split()[0] for line in trained] == [f"{tmp_path}/seed-0/orm/train/run"]
    others = [line for line in slow if line not in trained]
    assert others
    assert all("rcrl/train/run/model" in line for line in others), "labels need the built-in decoder"
    for line in lines:
        parts = shlex.split(line)
        if parts[0] == "mkdir":
            continue
        if parts[: len(launcher)] == launcher:
            agent = parts[len(launcher) + 2]
            known = {
                field.name
                for kind in (TrainOptions, ComputeOptions, AdapterOptions, AGENTS.get(agent).config_class)
                for field in dataclasses.fields(kind)
            }
            assert parts[len(launcher) :][:2] == ["tokengym", "train"]
            model = parts[parts.index("--model") + 1]
            assert model == "meta-llama/Llama-2-7b-hf" or model in seen
            seen.add(parts[parts.index("--run") + 1] + "/model")
        else:
            known = {field.name for kind in (EvalOptions, ComputeOptions) for field in dataclasses.fields(kind)}
            assert parts[:2] == ["tokengym", "eval"]
            assert parts[parts.index("--orm") + 1] in seen
        flags = {part[2:].replace("-", "_") for part in parts if part.startswith("--")} - {
            "num_processes",
            "mixed_precision",
        }
        assert {flag.removeprefix("no_") if flag not in known else flag for flag in flags} <= known
    with pytest.raises(ValueError, match="is run by commands"):
        paper.run(PaperGrid("llama2-7b", folder=tmp_path))


# ------------------------------------------------------------------------------------------------- results and reports


def made_up(tmp_path: Path, seeds: int = 3, broken: Mapping[str, str] | None = None) -> Results:
    """Made-up results of the whole plan of `tiny`; jobs in `broken` failed, and those that need them were skipped."""
    scale, rng = paper_scale("tiny"), np.random.default_rng(0)
    jobs = {job.name: job for job in plan(scale, range(seeds))}
    states: dict[str, Done | Missing] = {}
    broken = broken or {}

    def settle(job: Job) -> None:
        for need in job.needs:
            if need not in states:
                settle(jobs[need])
        lost = [need for need in job.needs if isinstance(states[need], Missing)]
        if job.name in broken:
            states[job.name] = Missing("failed", broken[job.name])
        elif lost:
            states[job.name] = Missing("skipped", f"it needs {lost[0]}")
        else:
            states[job.name] = Done(tmp_path / job.name, _made_up(job, tmp_path / job.name, rng), 1.0)

    for job in jobs.values():
        if job.name not in states:
            settle(job)
    return Results(scale, range(seeds), jobs, states)


def _made_up(job: Job, folder: Path, rng: np.random.Generator) -> dict:
    folder.mkdir(parents=True)
    if job.work is train_system:
        rounds = [{"step": 1600 * i, "round": i, "eval/maj@1": float(rng.uniform())} for i in range(5)]
        return {"attempts": 8000, "tokens": 80_000, "seconds": 9.0, "curve": rounds}
    (folder / "attempts.json").write_text("[]")
    assert job.work in (evaluate_system, rerank_system)
    names = ("rerank@8",) if job.work is rerank_system else ("maj@1", "maj@8", "pass@8", "diversity")
    by_problem = {name: (rng.random(20) < rng.uniform()).astype(float).tolist() for name in names}
    ids = [f"p{i}" for i in range(20)]
    (folder / "outcomes.json").write_text(json.dumps({"problem_ids": ids, "by_problem": by_problem}))
    metrics = {name: [float(np.mean(values)), 0.0, 1.0] for name, values in by_problem.items()}
    if job.work is rerank_system:
        return {"metrics": metrics, "seconds": 1.0}
    (folder / "solutions.json").write_text(json.dumps({name: ["1+1=2", None] * 4 for name in ids}))
    return {"metrics": metrics, "episodes": 1800, "tokens": 100_000, "seconds": 30.0}


def report_of(results: Results) -> Report:
    return assemble(results, command="made up", started="2000-01-01T00:00:00Z", seconds=60.0)


def test_a_report_has_every_number_in_its_place(tmp_path) -> None:
    results = made_up(tmp_path)
    report = report_of(results)
    assert [table.title.partition(" (")[2] for table in report.tables] == [
        *(f"as Table {number} of the paper)" for number in (1, 3, 4)),
        "",
    ]
    assert {figure.name for figure in report.figures} == {
        "sample-complexity",
        "rounds",
        "rewards",
        "plane",
        "exploration",
    }
    row = next(row for row in report.tables[0].rows if row.name == "Dense PPO")
    assert row.paper == "table_1/dense_ppo"
    for cell, metric in zip(row.cells, ("maj@1", "maj@8", "rerank@8", "pass@8"), strict=True):
        assert isinstance(cell, Cell)
        what = "rerank" if metric == "rerank@8" else "evaluate"
        for seed in range(3):
            state = results.states[f"seed-{seed}/dense_ppo/{what}"]
            assert isinstance(state, Done)
            assert cell.values[seed] == pytest.approx(state.result["metrics"][metric][0])
    evaluations = sum(job.work is evaluate_system for job in results.jobs.values())
    trainings = sum(job.work is train_system for job in results.jobs.values())
    assert report.cost.attempts == 1800 * evaluations + 8000 * trainings
    assert not missing(report)
    write_report(report, tmp_path)


def test_cells_say_which_job_failed_and_the_others_stand(tmp_path) -> None:
    why = "ValueError: nothing can be learnt from 10 labels"
    report = report_of(made_up(tmp_path, broken={f"seed-{seed}/orm/train": why for seed in range(3)}))
    rows = {row.name: row for row in report.tables[0].rows}
    assert isinstance(rows["EI"].cells[0], Cell)
    assert rows["EI"].cells[2] == MissingCell(f"seed-0/orm/train failed: {why}")
    assert all(isinstance(cell, MissingCell) for cell in rows["ORM EI"].cells)
    verdicts = {finding.text: finding for finding in report.findings}
    assert verdicts["ORM rewards do not help PPO."].verdict == "undecided"
    assert "without a result" in verdicts["ORM rewards do not help PPO."].certainty
    assert missing(report) == [f"seed-{seed}/orm/train failed: {why}" for seed in range(1)]
    write_report(report, tmp_path)


def test_a_cell_without_one_seed_says_so(tmp_path) -> None:
    report = report_of(made_up(tmp_path, broken={"seed-1/dense_ppo/train": "OSError: gone"}))
    cell = next(row for row in report.tables[0].rows if row.name == "Dense PPO").cells[0]
    assert isinstance(cell, Cell)
    assert set(cell.values) == {0, 2}
    assert cell.missing == {1: "seed-1/dense_ppo/train failed: OSError: gone"}


def test_a_seed_with_nothing_to_learn_from_counts_as_its_start(tmp_path) -> None:
    why = "NothingToLearnError: no attempt was kept"
    results = made_up(tmp_path, broken={"seed-1/pretrained/orm_ei/train": why})
    start, found = results.values("pretrained/prompted", "maj@1"), results.values("pretrained/orm_ei", "maj@1")
    assert set(found) == {0, 1, 2}
    assert found[1] == start[1]
    table = next(table for table in report_of(results).tables if "Table 3" in table.title)
    cell = next(row for row in table.rows if row.name == "ORM EI").cells[0]
    assert isinstance(cell, Cell)
    assert cell.missing == {1: f"seed-1/pretrained/orm_ei/train failed: {why}; counted as Pretrained"}
    assert report_text.lacking(cell) == "another value for seed 1"


def test_systems_may_have_other_numbers_of_seeds(tmp_path) -> None:
    whole = made_up(tmp_path)
    more = {"sft", "ei", "sparse_ppo", "dense_ppo"}
    jobs = {name: job for name, job in whole.jobs.items() if name.startswith("seed-0/") or system_of(name) in more}
    jobs = {name: job for name, job in jobs.items() if "/pretrained/" not in name}
    report = report_of(replace(whole, jobs=jobs, states={name: whole.states[name] for name in jobs}))
    assert report.scale.endswith("up to 3 seeds.")
    assert not any("Table 3" in table.title for table in report.tables)
    rows = {row.name: row.cells[0] for row in report.tables[0].rows}
    seeds = {name: set(cell.values) for name, cell in rows.items() if isinstance(cell, Cell)}
    assert seeds["EI"] == seeds["Dense PPO"] == {0, 1, 2}
    assert seeds["ORM EI"] == seeds["RFT"] == {0}
    assert report.tables[0].interval.endswith(
        "over both; 3 seeds of SFT, EI, Sparse PPO, Dense PPO; 1 seed of ORM EI, RCRL, Monte-Carlo labels, ORM RCRL, "
        "Sparse ORM PPO, Dense ORM PPO, RFT"
    )
    assert not missing(report)
    verdicts = {finding.text: finding for finding in report.findings}
    assert "3 seeds" in verdicts["Dense rewards do not help PPO."].evidence
    assert "one seed tells" in verdicts["An ORM does not help expert iteration."].certainty
    assert not any("retrained" in text for text in verdicts)
    write_report(report, tmp_path)


def test_a_system_that_a_scale_has_not_has_no_values(tmp_path) -> None:
    assert made_up(tmp_path, seeds=1).values("ablations/no_kl", "maj@1") == {}


def test_rounds_of_a_run_with_nothing_to_learn_from_count_as_its_start(tmp_path) -> None:
    why = "NothingToLearnError: no attempt was kept"
    results = made_up(tmp_path, broken={"seed-1/pretrained/ei/train": why})
    found = results.cell("pretrained/ei/last_round", "maj@1")
    assert isinstance(found, Cell)
    assert found.values[1] == results.values("pretrained/prompted", "maj@1")[1]
    assert found.missing == {1: f"seed-1/pretrained/ei/train failed: {why}; counted as Pretrained"}


def test_the_command_of_a_report_can_be_given_again() -> None:
    command = PaperGrid("tiny", folder=Path("my runs"), workers=1).command
    assert shlex.split(command)[-4:] == ["--folder", "my runs", "--workers", "1"]
    command = PaperGrid("tiny", workers=1, systems=("sft", "ei")).command
    assert shlex.split(command)[-3:] == ["--systems", "sft", "ei"]


def test_evaluations_of_other_problems_are_not_compared(tmp_path) -> None:
    results = made_up(tmp_path)
    path = tmp_path / "seed-2" / "ei" / "evaluate" / "outcomes.json"
    path.write_text(path.read_text().replace('"p3"', '"q3"'))
    with pytest.raises(ValueError, match="seed-2/ei/evaluate is of other problems than the first evaluation"):
        report_of(results)


def test_costs_count_what_was_sampled_for_a_system(tmp_path) -> None:
    results = made_up(tmp_path)
    assert results.builds_on("orm_rcrl") == ["ei", "orm", "rcrl"]
    assert results.builds_on("sft") == []
    runs = {run.name: run for run in report_of(results).runs}
    assert runs["ORM RCRL"].builds_on.attempts == 3 * 3 * 8000
    assert "with what it builds on" in report_text.run_cost(runs["ORM RCRL"])


def test_curves_count_the_attempts_of_their_own_seed(tmp_path) -> None:
    results = made_up(tmp_path, broken={"seed-1/ei/train": "OSError: gone"})
    found = results.cumulative_curves("orm_rcrl")
    assert {seed: curve[0]["step"] for seed, curve in found.items()} == {0: 24_000, 2: 24_000}
    assert results.cumulative_curves("ei") == results.curves("ei")


def test_curves_are_averaged_by_the_number_of_the_validation() -> None:
    # Labels by continuations take other numbers of attempts in each seed; the second was validated once more.
    curves = [
        [{"step": 700, "eval/maj@1": 0.25}, {"step": 900, "round": 1, "eval/maj@1": 0.5}],
        [
            {"step": 702, "eval/maj@1": 0.75},
            {"step": 904, "round": 1, "eval/maj@1": 0.25},
            {"step": 1000, "eval/maj@1": 1},
        ],
    ]
    assert mean_curve(curves, "step") == [(701, 0.5, 0.25, 0.75), (902, 0.375, 0.25, 0.5)]
    assert mean_curve(curves, "round") == [(1, 0.375, 0.25, 0.5)]
    assert mean_curve([], "step") == []


def test_one_seed_has_its_interval_over_problems(tmp_path) -> None:
    report = report_of(made_up(tmp_path, seeds=1))
    cell = report.tables[0].rows[0].cells[0]
    assert isinstance(cell, Cell)
    assert cell.low is not None
    assert cell.high is not None
    assert 0 < cell.high - cell.low < 1
    assert report.tables[0].interval.startswith("One seed, with its 95 % interval over problems")
    assert {finding.verdict for finding in report.findings} == {"undecided"}
    assert all("one seed" in finding.certainty for finding in report.findings)


# ----------------------------------------------------------------------------------------------------------- end to end

MINIATURE = replace(
    paper_scale("tiny"),
    name="miniature",
    env_settings={"steps": [1, 2], "max_value": 20, "max_new_tokens": 80},
    agent={"num_envs": 32, "device": "cpu"},
    batching={"micro_batch_tokens": 1024, "validation_problems": 4},
    fine_tuning={"epochs": 2, "batch_size": 4},
    demonstrations=4,
    problems=6,
    rft={"samples_per_problem": 2},
    ei={"samples_per_problem": 4, "rounds": 2, "patience": 2},
    ei_from_pretrained={},
    orm={"samples_per_problem": 8, "epochs": 1, "balance": False},
    orm_filter={"orm_threshold": 0.0},  # it has learnt too little to keep anything
    sorm={"problems": 6, "samples_per_problem": 4, "rollouts_per_step": 2, "epochs": 1},
    rcrl={"samples_per_problem": 4, "rollouts_per_step": 1, "positive_ratio": None},
    ppo={
        "iterations": 1, "problems_per_iteration": 4, "samples_per_problem": 2, "minibatch_size": 4, "epochs": 1,
        "critic_layers": 1, "validation_iterations": 1,
    },
    ppo_from_pretrained={"temperature": 0.2},
    test_problems=6,
    n=4,
    browsed=2,
)  # fmt: skip


def in_this_process(scale: Scale, folder: Path) -> Results:
    """All jobs of a scale's plan for seed 0, each when what it needs is done."""
    jobs = {job.name: job for job in plan(scale, [0])}
    states: dict[str, Done | Missing] = {}
    while len(states) < len(jobs):
        for job in jobs.values():
            if job.name not in states and states.keys() >= set(job.needs):
                place = folder / job.name
                place.mkdir(parents=True)
                needed = {need: state for need in job.needs if isinstance(state := states[need], Done)}
                states[job.name] = Done(place, json.loads(json.dumps(job.work(place, job.settings, needed))), 0.0)
    return Results(scale, [0], jobs, states)


@pytest.mark.slow
def test_a_miniature_of_the_whole_grid(tmp_path) -> None:
    scale = replace(MINIATURE, tables=(*MINIATURE.tables, ABLATIONS))
    report = report_of(in_this_process(scale, tmp_path))
    assert not missing(report)
    assert len(report.figures) == 6
    assert {run.name for run in report.runs} == {system.title for system in systems(scale)}
    # Two problems, each a greedy attempt and two samples, by every policy; every whole step has a score.
    assert len(report.attempts) == 6 * sum(not system.judges for system in systems(scale))
    assert all(step.score is not None for attempt in report.attempts for step in attempt.steps[:-1])
    # The dense ORM is paid what it scores.
    dense = [attempt for attempt in report.attempts if attempt.system == "Dense ORM PPO"]
    assert dense
    for step in (step for attempt in dense for step in attempt.steps if step.score is not None):
        assert step.reward == pytest.approx(step.score, abs=1e-4)
    write_report(report, tmp_path)
    assert Report.from_json(report.to_json()) == report


GRID = """
import sys
from dataclasses import replace
from pathlib import Path
from tokengym.benchmarks.paper import grid, scales, systems

if __name__ == "__main__":
    scale = replace(scales.paper_scale("tiny"), **{settings!r})
    scales.SCALES["miniature"] = scale
    lines = [line for line in systems.TABLES["table_2"] if line.title in ("EI", "Sparse ORM PPO")]
    systems.TABLES["table_2"] = tuple(lines)
    grid.run(grid.PaperGrid("miniature", 1, Path(sys.argv[1]), workers=2), print)
"""


@pytest.mark.slow
def test_a_command_killed_at_random_points_ends_with_the_same_tables(tmp_path) -> None:
    tiny, changes = paper_scale("tiny"), dataclasses.asdict(MINIATURE)
    changes = {name: value for name, value in changes.items() if value != getattr(tiny, name)}
    script = tmp_path / "grid.py"
    script.write_text(GRID.format(settings={**changes, "tables": ("table_2",)}))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rng = np.random.default_rng()
    for done in sorted(rng.integers(0, 7, 3)):
        process = subprocess.Popen([sys.executable, str(script), str(killed)], start_new_session=True)
        # Into the work of a job, after so many others.
        while process.poll() is None and len([*killed.rglob("result.json")]) < done:
            time.sleep(0.1)
        while process.poll() is None and not [*killed.rglob("config.json")]:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for folder in (whole, killed):
        subprocess.run([sys.executable, str(script), str(folder)], check=True)
    reports = [Report.from_json((folder / "report.json").read_text()) for folder in (whole, killed)]
    assert not missing(reports[0])
    assert reports[1].tables == reports[0].tables
    assert reports[1].findings == reports[0].findings
    assert reports[1].attempts == reports[0].attempts
