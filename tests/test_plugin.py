"""A package of a third party, installed on its own, is found by its entry points."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment with the plug-in on its path."""
    target, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for file in PLUGIN.rglob("*"):  # a build leaves files beside its source
        if file.is_file() and "egg-info" not in str(file):
            (source / file.relative_to(PLUGIN)).parent.mkdir(parents=True, exist_ok=True)
            (source / file.relative_to(PLUGIN)).write_bytes(file.read_bytes())
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([sys.executable, *command], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def run(environment: dict[str, str], *arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_line_lists_and_trains_it(installed, tmp_path: Path) -> None:
    listed = run(installed, "-m", "tokengym", "list", cwd=tmp_path)
    assert "best-of-n" in listed
    assert "judged" in listed
    small = ["--n", "2", "--problems-per-update", "2", "--env-args", "steps=1", "max_new_tokens=16"]
    trained = run(
        installed, "-m", "tokengym", "train", "best-of-n", "--total-episodes", "8", *small, "--run", "run", cwd=tmp_path
    )
    assert trained.count("  success_rate ") == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_reward_is_made_by_name_and_adds_up(installed, tmp_path: Path) -> None:
    code = """
import numpy as np, tokengym
spec = {"name": "sum", "terms": [[1.0, "sparse"], [1.0, {"name": "judged", "shift": 0.25}]]}
env = tokengym.make_vec_env("tokengym/Arithmetic-v0", 1, reward=spec, autoreset_mode="Disabled")
env.reset(seed=0)
solution = env.encode_solution(env.problem(0))
paid = sum(float(env.step(np.array([token]))[1][0]) for token in solution)
lines = [line for line in env.problem(0).solution.splitlines() if line.strip()]
print(paid, 1 + 0.25 * sum("=" in line for line in lines))
"""
    paid, expected = map(float, run(installed, "-c", code, cwd=tmp_path).split())
    assert paid == pytest.approx(expected)
    assert expected > 1
