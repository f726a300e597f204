"""Every block of the README and the documentation runs: Python as it stands, commands with smaller numbers."""

import ast
import json
import re
import runpy
import shlex
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tokengym.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
BLOCKS = [
    (page, language, block)
    for page, text in TEXTS.items()
    for language, block in re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
]
INCLUDED = re.compile(r'--8<-- "(.*)"')
PYTHON = [(page, block) for page, language, block in BLOCKS if language == "python" and not INCLUDED.search(block)]
CONTINUED = re.compile(r"\\\n *")
BASH = [CONTINUED.sub("", block) for _, language, block in BLOCKS if language == "bash"]
COMMANDS = [line for block in BASH for line in block.splitlines() if line]
OURS = list(dict.fromkeys(line for line in COMMANDS if line.startswith("tokengym")))

IN_4BIT = "--dtype bfloat16 --load-in-4bit" if find_spec("bitsandbytes") else ""

# What a test can not afford, or not reach, in the words of the pages.
SMALLER = {
    "--model HuggingFaceTB/SmolLM2-135M --lora-rank 128 --bf16": "--lora-rank 4 --data gsm8k --iterations 1 "
    "--problems-per-iteration 2 --minibatch-size 8 --validation-problems 1 --env-args max_new_tokens=16",
    "--model runs/gsm8k/model --lora-rank 128 --bf16 --run runs/ppo": "--lora-rank 4 --data gsm8k --iterations 1 "
    "--problems-per-iteration 2 --minibatch-size 8 --validation-problems 1 --env-args max_new_tokens=16 "
    "--run runs/ppo2",
    "--demonstrations 64 --problems 1600 --samples-per-problem 2 --batch-size 16": "--demonstrations 4 --rounds 1 "
    "--epochs 1 --validation-problems 2 --problems 4 --samples-per-problem 2 --batch-size 16",
    "--demonstrations 64 --batch-size 16": "--demonstrations 4 --epochs 1 --validation-problems 2 --batch-size 4",
    "--problems 200 --n 8": "--problems 2 --n 4",
    "--base tokengym/tiny --problems 1600": "--base tokengym/tiny --problems 8 --samples-per-problem 4 "
    "--rollouts-per-step 2 --positive-ratio None --validation-problems 2",
    '--condition "[BAD]" --n 16': '--condition "[BAD]" --n 4 --problems 2',
    "--problems 2500 --no-balance": "--problems 4 --samples-per-problem 4 --validation-problems 2 --no-balance",
    "--n 16 --orm runs/prm/model --search beam --problems 50": "--n 4 --orm runs/prm/model --search beam --problems 2",
    "--n 16 --orm runs/orm/model --search beam --problems 50": "--n 4 --orm runs/orm/model --search beam --problems 2",
    "--n 16 --reranker mean_logprob --problems 50": "--n 4 --reranker mean_logprob --problems 2",
    "--demonstrations 64 --problems 400 --samples-per-problem 8 --search": "--demonstrations 4 --rounds 1 --epochs 1 "
    "--validation-problems 2 --problems 2 --samples-per-problem 4 --env-args steps=1 --search",
    "--n 16 --orm": "--problems 2 --n 4 --orm",
    "--pair-problems 200 --iterations 10": "--pair-problems 4 --iterations 1 --problems-per-iteration 2 "
    "--minibatch-size 4 --samples-per-problem 2 --validation-problems 2 --env-args steps=1",
    "--iterations 20 --env-args 'reward=": "--iterations 1 --problems-per-iteration 2 --samples-per-problem 2 "
    "--minibatch-size 4 --validation-problems 1 --env-args steps=1 max_new_tokens=16 'reward=",
    "--problems 200 --iterations 10 --rounds 2": "--problems 2 --iterations 1 --rounds 1 --sft-epochs 1 "
    "--problems-per-iteration 2 --minibatch-size 4 --samples-per-problem 2 --validation-problems 2 --env-args steps=1",
    "--labels exact --problems 800": "--labels exact --problems 4 --samples-per-problem 4 --validation-problems 2",
    "--problems 250 --base tokengym/tiny-orm": "--problems 4 --samples-per-problem 4 --validation-problems 2 "
    "--base tokengym/tiny-orm",
    "--problems 800 --samples-per-problem 16": "--problems 4 --samples-per-problem 8 --validation-problems 2 "
    "--temperature 1 --env-args steps=1",
    "--demonstrations 64 --problems 1600 --samples-per-problem 2 --orm": "--demonstrations 4 --rounds 1 --epochs 1 "
    "--validation-problems 2 --problems 4 --samples-per-problem 2 --orm",
    "--problems 200 --samples-per-problem 8": "--problems 3 --samples-per-problem 8 --rounds 1 --temperature 2 "
    "--validation-problems 2 --env-args steps=1",
    "--demonstrations 64 --epochs 1 --batch-size 16": "--demonstrations 4 --epochs 1 --validation-problems 2 "
    "--batch-size 4",
    "runs/short-sft --problems 200 --folder": "runs/short-sft --problems 2 --alpha 0.5 1 --folder",
    "--model runs/expo --problems 200": "--model runs/expo --problems 2 --n 0",
    "--agent ppo --model meta-llama/Llama-2-7b-hf": "--agent ppo --model tokengym/tiny",
    "--log-with wandb trackio --log-project sums": "--iterations 1 --problems-per-iteration 2 --samples-per-problem 2 "
    "--validation-problems 0 --env-args max_new_tokens=8",
    "--pass-rate-attempts 8 --pass-rate-problems 500": "--min-pass-rate 0 --max-pass-rate 1 --pass-rate-attempts 2 "
    "--pass-rate-problems 3 --iterations 1 --problems-per-iteration 2 --samples-per-problem 2 "
    "--validation-problems 0 --env-args max_new_tokens=8",
    "--model meta-llama/Llama-2-7b-hf --dtype bfloat16 --load-in-4bit --lora-rank 16": f"{IN_4BIT} --lora-rank 4 "
    "--data gsm8k --iterations 1 --problems-per-iteration 2 --samples-per-problem 2 --validation-problems 0 "
    "--env-args max_new_tokens=8",
    "--preset dapo": "--preset dapo --iterations 1 --problems-per-iteration 2 --samples-per-problem 8 "
    "--validation-problems 0 --env-args max_new_tokens=8",
}


def smaller(command: str) -> str:
    for words, replacement in SMALLER.items():
        command = command.replace(words, replacement)
    return command


def test_all_that_is_made_smaller_is_in_the_pages() -> None:
    text = "\n".join(TEXTS.values())
    assert [words for words in SMALLER if words not in text] == []
    assert {language for _, language, _ in BLOCKS} <= {"python", "bash", "toml", "text"}


def test_no_command_that_samples_or_trains_runs_at_its_own_size() -> None:
    working = re.compile(r"tokengym (train|eval|extrapolate) ")
    assert [command for command in OURS if working.match(command) and smaller(command) == command] == []


def test_messages_in_the_table_of_faults_are_those_of_the_code() -> None:
    others = {"no space left on device", "read-only file system", "couldn't connect"}  # of the system and the hub
    joined = {"no model can be loaded from": "can be loaded from", "is in use by process": "is in use by"}
    rooms = ("agents", "commands", "models", "envs")
    files = [*ROOT.glob("*.py"), *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    texts = "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    _, _, faults = TEXTS["docs/runs.md"].partition("## Faults")
    cells = [row.split("|")[2] for row in faults.partition("## Alarms")[0].splitlines() if row.startswith("| ")][1:]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    parts = [part for message in messages for part in re.split(r"\.{3}|\b(?:[A-Z]{3,}|123)\b|[(),:]", message)]
    assert len(parts) > 20
    assert [part for part in map(str.strip, parts) if joined.get(part, part) not in texts and part not in others] == []


def test_included_files_are_there() -> None:
    names = [name for text in TEXTS.values() for name in INCLUDED.findall(text)]
    assert names
    for name in names:
        assert (ROOT / name).is_file(), name


def test_links_lead_to_files_and_headings() -> None:
    generated = {"docs/cli.md", "docs/results.md", "docs/tutorial.md"}
    broken = []
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            if str(path.resolve().relative_to(ROOT.resolve())) in generated:
                continue
            if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())):
                broken.append(f"{page}: {target}")
    assert broken == []


def anchors(text: str) -> set[str]:
    """What GitHub and Python-Markdown call the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.usefixtures("short_problems")
@pytest.mark.parametrize("code", [code for _, code in PYTHON], ids=[page for page, _ in PYTHON])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(code)
    runpy.run_path(str(tmp_path / "block.py"), run_name="__main__")


def test_toml_blocks_name_the_registry() -> None:
    blocks = [tomllib.loads(code) for _, language, code in BLOCKS if language == "toml"]
    assert blocks
    assert all(list(block["project"]["entry-points"]) == ["tokengym.agents"] for block in blocks)


def test_make_targets_exist() -> None:
    targets = {shlex.split(line)[1] for line in COMMANDS if line.startswith("make")}
    assert targets >= {"demo", "test", "install"}
    for target in targets:
        subprocess.run(["make", "-n", target], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.usefixtures("short_problems")
def test_commands_train_and_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands in their order, with the built-in model, on GSM8K's format or generated problems."""
    rows = [
        {"question": f"Tom has {n} apples and buys 3 more. How many?", "answer": f"{n}+3 = {n + 3}\n#### {n + 3}"}
        for n in range(480)
    ]
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for i, command in enumerate(OURS):
        arguments = shlex.split(smaller(command))[1:]
        if "--run" in arguments and (tmp_path / arguments[arguments.index("--run") + 1]).exists():
            arguments[arguments.index("--run") + 1] += f"-{i}"
        assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"
    shown = capsys.readouterr().out
    assert "maj@1" in shown
    assert "rerank@4" in shown
    assert "204 jobs" in shown
    assert (tmp_path / "runs" / "ei" / "model" / "model.safetensors").exists()
