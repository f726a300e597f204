"""The paper's grid as a script of commands, for scales at which every job takes a whole machine of GPUs."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..jobs import Done, Job
from .jobs import evaluate_system, resolved, train_system
from .scales import Scale


def commands(scale: Scale, jobs: Sequence[Job], folder: Path) -> str:
    """A shell script that does the jobs one after the other; a job that was stopped goes on, an evaluation is redone.

    Args:
        scale: Scale with a launcher.
        jobs: Jobs of its plan.
        folder: Folder that everything is written to.
    """
    done = {job.name: Done(folder / job.name, {}, 0.0) for job in jobs}
    settings = {job.name: resolved(job.settings, done) for job in jobs}
    launcher = shlex.split(scale.launcher or "")
    lines = ["#!/bin/sh", "# " + scale.about, "set -e"]
    lines += [
        shlex.join([*launcher, *_training(settings[job.name], folder / job.name)])
        for job in jobs
        if job.work is train_system
    ]
    # An evaluation reranks, too, and so waits for the outcome model.
    for job in jobs:
        if job.work is evaluate_system:
            orm = settings[job.name.removesuffix("evaluate") + "rerank"]["orm"]
            lines.append(shlex.join(["mkdir", "-p", str(folder / job.name)]))
            lines.append(shlex.join(["tokengym", *_evaluation(settings[job.name], orm, folder / job.name)]))
    return "\n".join(lines) + "\n"


def _training(settings: Mapping[str, Any], folder: Path) -> list[str]:
    options = {"model": settings["model"], "run": folder / "run", "seed": settings["seed"]}
    options |= {**settings["arguments"], **settings["config"]}
    flags = [part for name, value in options.items() for part in _flag(name, value)]
    return ["tokengym", "train", settings["agent"], *_env(settings["env"]), "--resume", "auto", *flags]


def _evaluation(settings: Mapping[str, Any], orm: str, folder: Path) -> list[str]:
    env = dict(settings["env"])
    names = ("model", "problems", "n", "temperature", "num_envs", "seed", "dtype", "vllm_memory")
    options = {name: settings[name] for name in names if name in settings}
    options |= {"shots": env.pop("shots", 0), "orm": orm, "output": folder / "evaluation.json"}
    return ["eval", *_env(env), *(part for name, value in options.items() for part in _flag(name, value))]


def _env(env: Mapping[str, Any]) -> list[str]:
    arguments = dict(env)
    parts = ["--env", arguments.pop("id")]
    given = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    return [*parts, "--env-args", *given] if given else parts


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, str(value)]
