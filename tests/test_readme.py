"""Every block of the README runs: Python as it stands or with smaller numbers, commands on small data of our own."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines()]

# What a test can not afford, or not reach, in the README's own words.
SMALLER = {
    "learn(65_536)": "learn(2048)",
    "problems=64, samples_per_problem=4, demonstrations=64": "problems=4, samples_per_problem=2, demonstrations=16, "
    "rounds=1, epochs=1, validation_problems=2",
    "problems=50, n=8": "problems=2, n=8",
    "--model HuggingFaceTB/SmolLM2-135M": "--model tokengym/tiny --data gsm8k --problems 2 --samples-per-problem 2 "
    "--demonstrations 2 --rounds 1 --epochs 1 --validation-problems 1 --env-args max_new_tokens=32",
    "--problems 1319 --n 96": "--problems 2 --n 4 --data gsm8k --env-args max_new_tokens=8",
    "curriculum=prioritized_replay": "curriculum=prioritized_replay max_new_tokens=8 --iterations 1 "
    "--problems-per-iteration 2 --samples-per-problem 2 --validation-problems 0",
    "learn(1_536)": "learn(64)",
    '"n_steps": 96, "batch_size": 64': '"n_steps": 4, "batch_size": 32',
    "--lora-rank 128 --bf16": "--lora-rank 4 --data gsm8k --iterations 1 --problems-per-iteration 2 --minibatch-size 8 "
    "--validation-problems 1 --env-args max_new_tokens=16",
    "--demonstrations 64 --problems 1600 --samples-per-problem 2 --run runs/ei": "--demonstrations 4 --rounds 1 "
    "--epochs 1 --validation-problems 2 --problems 4 --samples-per-problem 2 --run runs/ei",
    "--base tokengym/tiny --problems 1600": "--base tokengym/tiny --problems 8 --samples-per-problem 4 "
    "--rollouts-per-step 2 --positive-ratio None --validation-problems 2",
    '--condition "[BAD]" --n 16': '--condition "[BAD]" --n 4 --problems 2',
    "steps=300": "steps=2, batch_size=8, validation_problems=2",
    "problems_per_iteration=512": "problems_per_iteration=8, iterations=1, validation_problems=2",
    "problems=500)": "problems=2)",
    "--problems 2500 --no-balance": "--problems 4 --samples-per-problem 4 --validation-problems 2 --no-balance",
    "--n 16 --orm": "--problems 2 --n 4 --orm",
    "--demonstrations 64 --problems 1600": "--demonstrations 4 --rounds 1 --epochs 1 --validation-problems 2 "
    "--problems 4",
}


def smaller(text: str) -> str:
    for words, replacement in SMALLER.items():
        text = text.replace(words, replacement)
    return text


def test_all_that_is_made_smaller_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert [words for words in SMALLER if words not in text] == []
    assert {language for language, _ in BLOCKS} <= {"python", "bash", "toml"}


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(smaller(code))
    subprocess.run([sys.executable, script], check=True, cwd=tmp_path)


def test_toml_blocks_name_the_registry() -> None:
    (block,) = [code for language, code in BLOCKS if language == "toml"]
    assert list(tomllib.loads(block)["project"]["entry-points"]) == ["tokengym.agents"]


def test_make_targets_exist() -> None:
    targets = [shlex.split(line)[1] for line in COMMANDS if line.startswith("make")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], check=True, cwd=ROOT, capture_output=True)


def test_commands_train_and_evaluate(tmp_path: Path) -> None:
    """The commands in their order, with the built-in model, on GSM8K's format or generated problems."""
    rows = [
        {"question": f"Tom has {n} apples and buys 3 more. How many?", "answer": f"{n}+3 = {n + 3}\n#### {n + 3}"}
        for n in range(480)
    ]
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs: list[str] = []
    for command in (line for line in COMMANDS if line.startswith("tokengym")):
        arguments = shlex.split(smaller(command))[1:]
        result = subprocess.run(
            [sys.executable, "-m", "tokengym", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert "maj@1" in outputs[1]
    assert "reports GSM8K under another protocol" in " ".join(outputs[1].split())
    assert any("rerank@4" in output for output in outputs)
    assert "seed-0/rcrl/train" in next(output for output in outputs if "60 jobs" in output or "180 jobs" in output)
    assert (tmp_path / "runs" / "gsm8k" / "model" / "model.safetensors").exists()
