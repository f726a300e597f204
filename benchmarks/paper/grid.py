"""`tokengym bench paper`: every system of Havrilla et al. 2024 in one plan and one report, at a chosen scale."""

import os
import shlex
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from ...envs.registration import make_spec, make_vec_env
from ...extras import need
from ...files import check_folder, read_json, write_json, write_text
from ...registry import check_known
from ...settings import Count, check_settings
from ..jobs import FAILURE, RESULT, Job, run_plan
from ..reports.content import Cell, MissingCell, Report, ResultTable
from ..reports.html import write_report
from ..reports.text import interval
from .commands import commands
from .jobs import evaluate_system, expected_attempts, rerank_system, train_system
from .report import assemble
from .results import Results, job_name, system_of
from .scales import Scale, paper_scale
from .systems import ABLATIONS, JUDGE, MODEL, System, output, outputs, systems


def plan(scale: Scale, seeds: Sequence[int]) -> list[Job]:
    """The jobs of a scale: for each seed all systems, each trained, evaluated and reranked."""
    return [job for seed in seeds for system in systems(scale) for job in _jobs(scale, system, seed)]


def choose(jobs: Sequence[Job], names: Collection[str], folder: Path) -> list[Job]:
    """Jobs of some systems, those of others that a folder has already, and all that these need.

    Args:
        jobs: Jobs of a whole plan, each after those that it needs.
        names: Names of the systems.
        folder: Folder of the plan.
    """
    chosen = {job.name for job in jobs if system_of(job.name) in names or _was_done(folder / job.name)}
    for job in reversed(jobs):
        if job.name in chosen:
            chosen.update(job.needs)
    return [job for job in jobs if job.name in chosen]


def _was_done(folder: Path) -> bool:
    """Whether a job came to its end there; one that failed is missing in tables, and is tried again."""
    return (folder / RESULT).exists() or (folder / FAILURE).exists()


def _jobs(scale: Scale, system: System, seed: int) -> list[Job]:
    def name(what: str) -> str:
        return job_name(system.name, seed, what)

    def job(what: str, work: Any, settings: Mapping[str, Any]) -> Job:
        needs = dict.fromkeys(item["output_of"] for item in outputs(settings))
        return Job(name(what), work, settings, tuple(needs))

    shots = {"shots": system.shots} if system.shots else {}
    env = {"id": scale.env, **scale.env_settings, **shots}
    common = {"env": env, "seed": seed, "threads": scale.threads}
    model: Any = scale.model
    jobs: list[Job] = []
    if system.model is not None:
        model = _placed(system.model, seed)
    if system.agent is not None:
        training = {
            **common,
            "env": {**env, "reward": system.reward, "curriculum": system.curriculum},
            "agent": system.agent,
            "model": system.model or scale.model,
            "arguments": _arguments(scale, system),
            "config": system.config,
        }
        jobs.append(job("train", train_system, _placed(training, seed)))
        model = output(name("train"), MODEL)
    if system.judges:
        return jobs
    device = scale.agent.get("device")
    protocol = {**common, "title": system.title, "n": scale.n, "device": device}
    evaluation = {
        **protocol,
        "model": model,
        "reward": _placed(system.reward, seed),
        "problems": scale.test_problems,
        "temperature": scale.temperature,
        "browsed": scale.browsed,
        "num_envs": scale.agent.get("num_envs", 64),
        "dtype": scale.agent.get("dtype", "float32"),
    }
    if system.after_round is not None:
        folder = output(job_name(system.needs[0], seed, "train"), f"run/round-{system.after_round}")
        evaluation["round"] = {"folder": folder, "number": system.after_round}
    if "vllm_memory" in scale.agent and system.agent != "rcrl":  # which acts under labels, and keeps its own decoder
        evaluation["vllm_memory"] = scale.agent["vllm_memory"]
    orm = output(job_name(JUDGE, seed, "train"), MODEL)
    reranking = {**protocol, "evaluation": output(name("evaluate"), ""), "orm": orm}
    return [*jobs, job("evaluate", evaluate_system, evaluation), job("rerank", rerank_system, reranking)]


def _arguments(scale: Scale, system: System) -> dict[str, Any]:
    """Of the agent; outcome models are trained as a whole, and need the memory for themselves."""
    left_out = ("lora_rank", "vllm_memory") if system.judges else ()
    return {name: value for name, value in scale.agent.items() if name not in left_out}


def _placed(settings: Any, seed: int) -> Any:
    """Settings in which outputs are those of jobs, not of systems."""
    if not isinstance(settings, Mapping):
        return settings
    if "output_of" in settings:
        return {**settings, "output_of": job_name(settings["output_of"], seed, "train")}
    return {name: _placed(value, seed) for name, value in settings.items()}


@dataclass(frozen=True)
class PaperGrid:
    """Which part of the paper's grid to run, and where.

    Attributes:
        scale: Settings of all systems: "tiny" (built-in model, two hours of one core for each seed), or SmolLM2-135M on
            one GPU with GSM8K ("smollm2") or SVAMP ("smollm2-svamp"), or commands for eight GPUs ("llama2-7b").
        seeds: Number of seeds, which are 0, 1, and so on.
        folder: Folder of all jobs and the report, by default `runs/paper-SCALE`; the same command in the same folder
            continues what was stopped.
        workers: Jobs at the same time, each with threads of its own; by default as many as there are cores for, and
            one on a GPU. Scales of commands take none.
        systems: Names of the systems to run, such as "ei" and "pretrained/sparse_ppo", with all that they need; of
            others the report shows what the folder has already. By default all.
        data: Folder or file with the data set, for environments that read one; by default it comes from the hub.
        ablations: Run variants of PPO (penalty, critic, best of N, temperature, curricula), EI and RCRL too.
        dry_run: Show the plan and run nothing.
    """

    scale: str = "tiny"
    seeds: Count = 3
    folder: Path | None = None
    workers: Count | None = None
    systems: tuple[str, ...] = ()
    data: str | None = None
    ablations: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def path(self) -> Path:
        """Folder of all jobs and the report."""
        return self.folder or Path("runs") / f"paper-{self.scale}"

    @property
    def settings(self) -> Scale:
        """The scale, with the data set where it lies and all tables.

        Raises:
            UnknownNameError: There is no such scale.
        """
        scale = paper_scale(self.scale)
        if self.ablations:
            scale = replace(scale, tables=(*scale.tables, ABLATIONS))
        return scale if self.data is None else replace(scale, env_settings={**scale.env_settings, "data": self.data})

    @property
    def jobs(self) -> list[Job]:
        """The plan.

        Raises:
            UnknownNameError: There is no such scale, or it has no such system.
        """
        scale = self.settings
        jobs = plan(scale, range(self.seeds))
        if not self.systems:
            return jobs
        known = [system.name for system in systems(scale) if not system.judges]
        check_known(f"system of scale {scale.name!r}", self.systems, known)
        return choose(jobs, self.systems, self.path)

    @property
    def processes(self) -> int:
        """Jobs at the same time."""
        if self.workers is not None:
            return self.workers
        scale = self.settings
        cores = (os.cpu_count() or 1) if scale.agent.get("device") == "cpu" else 1
        return max(1, cores // scale.threads)

    @property
    def command(self) -> str:
        """Command that runs it again."""
        options: dict[str, Any] = {
            "scale": self.scale,
            "seeds": self.seeds,
            "folder": self.path,
            "workers": self.processes,
        }
        if self.data is not None:
            options["data"] = self.data
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        if self.systems:
            given += ["--systems", *self.systems]
        return shlex.join(["tokengym", "bench", "paper", *given, *(["--ablations"] if self.ablations else [])])


def run(grid: PaperGrid, say: Callable[[Any], object] = lambda line: None) -> Report:
    """Does what is not done yet; writes `report.html`, `report.md` and `report.json` into the folder.

    Args:
        grid: Part of the grid to run.
        say: Function that shows a line of progress.

    Returns:
        The report. Cells that jobs left without a result say why.

    Raises:
        UnknownNameError: There is no such scale, or it has no such system.
        TypeError: There are `data`, and the scale's environment reads none.
        ValueError: The scale is one of commands, the `data` cannot be read, or a result in the folder is of another
            version or of other settings.
        OSError: The disk is full; what was finished is kept.
    """
    need("plots", "the report")
    scale, seeds = grid.settings, range(grid.seeds)
    if scale.launcher is not None:
        raise ValueError(f"scale {scale.name!r} is run by commands, not here: `write_commands` writes them")
    jobs = grid.jobs
    _check_data(grid)
    with _WallTime(grid.path) as wall:

        def progress(line: str) -> None:
            wall.save()
            say(line)

        states = run_plan(jobs, grid.path, workers=grid.processes, say=progress)
    results = Results(scale, seeds, {job.name: job for job in jobs}, states)
    report = assemble(results, command=grid.command, started=wall.started, seconds=wall.seconds)
    write_report(report, grid.path)
    write_text(grid.path / "report.json", report.to_json() + "\n")
    return report


def show(grid: PaperGrid, say: Callable[[Any], object]) -> None:
    """The command: runs the grid, or shows its plan, or writes its commands; says what came of it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the same command continues.
        ValueError: No job has a result.
    """
    scale = grid.settings
    if grid.dry_run:
        if scale.launcher is None:  # else it is read on another machine
            _check_data(grid)
        say(dry_run(scale, grid.jobs))
        return
    if scale.launcher is not None:
        if grid.workers is not None:
            raise ValueError(f"scale {scale.name!r} has one job at a time: leave out workers")
        path = write_commands(scale, grid.jobs, grid.path)
        say(f"every job of {scale.name} takes a whole machine of GPUs: the commands to give there are in {path}")
        return
    try:
        report = run(grid, say)
    except KeyboardInterrupt:
        say(f"interrupted: what was finished is in {grid.path}, and the same command goes on")
        raise
    for result in report.tables:
        say(result_table(result))
    for finding in report.findings:
        say(f"{finding.verdict}: {finding.text}")
    for reason in missing(report):
        say(f"missing: {reason}")
    if all(isinstance(cell, MissingCell) for result in report.tables for row in result.rows for cell in row.cells):
        raise ValueError(f"nothing was finished that a table could show; the same command in {grid.path} tries again")
    say(f"report, with figures and attempts: {grid.path / 'report.html'}")


def _check_data(grid: PaperGrid) -> None:
    """Reads the data set that the grid is given, if it is, so that no job fails for it after hours of others."""
    if grid.data is not None:
        scale = grid.settings
        make_vec_env(make_spec({"id": scale.env, **scale.env_settings}), 1)


def result_table(result: ResultTable) -> Table:
    """A table of the report for the terminal, without the paper's figures."""
    table = Table("", *result.metrics, title=result.title, caption=result.interval)
    for row in result.rows:
        table.add_row(row.name, *map(_cell, row.cells))
    return table


def _cell(cell: Cell | MissingCell) -> str:
    return "missing" if isinstance(cell, MissingCell) else f"{cell.mean:.3f} {interval(cell)}"


def missing(report: Report) -> list[str]:
    """Why cells have no value, or none of some seed, each reason once."""
    found: list[str] = []
    for cell in (cell for table in report.tables for row in table.rows for cell in row.cells):
        found += [cell.reason] if isinstance(cell, MissingCell) else cell.missing.values()
    return list(dict.fromkeys(found))


def dry_run(scale: Scale, jobs: Sequence[Job]) -> Table:
    """The plan: its jobs in order, what each needs, and the attempts it samples."""
    table = Table(title=f"scale {scale.name}: {scale.about}")
    for heading in ("job", "needs", "attempts"):
        table.add_column(heading, overflow="fold")  # a name that is cut off cannot be looked up
    expected = [expected_attempts(job) for job in jobs]
    for job, attempts in zip(jobs, expected, strict=True):
        table.add_row(job.name, "\n".join(job.needs), f"{attempts:,}" if attempts else "")
    table.add_section()
    table.add_row(f"{len(jobs)} jobs", "", f"{sum(expected):,}")
    return table


def write_commands(scale: Scale, jobs: Sequence[Job], folder: Path) -> Path:
    """Writes the jobs of a scale that has a launcher as a script of commands; where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "commands.sh"
    write_text(path, commands(scale, jobs, folder))
    return path


class _WallTime:
    """When a folder's plan was first begun, and how long all commands together have been at it."""

    def __init__(self, folder: Path) -> None:
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "wall_time.json"
        now = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": 0.0}
        self._before = read_json(self._path) if self._path.exists() else now
        self.started: str = self._before["started"]

    def __enter__(self) -> "_WallTime":
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self.save()

    @property
    def seconds(self) -> float:
        return round(self._before["seconds"] + time.monotonic() - self._began, 1)

    def save(self) -> None:
        write_json(self._path, {"started": self.started, "seconds": self.seconds})
