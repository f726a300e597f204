"""The command line around training: run folders, resuming, ends from outside."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokengym.__main__ import main
from tokengym.agents import SFT
from tokengym.agents.training.run_folder import find_runs
from tokengym.models.tokenizers import TINY_FOLDER

SMALL = ["train", "sft", "--demonstrations", "2", "--epochs", "1", "--batch-size", "2", "--validation-problems", "0"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def learning(monkeypatch: pytest.MonkeyPatch, what) -> None:
    monkeypatch.setattr(SFT, "learn", lambda agent, *args, **named: what())


def wait() -> None:
    while True:
        time.sleep(0.01)


def test_each_run_has_a_folder_of_its_own_and_runs_lists_them(here: Path, capsys) -> None:
    assert main(SMALL) == 0
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("sft-2")
    assert main([*SMALL, "--run", "runs/named"]) == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("finished") == 2
    assert shown.count("    0 attempts,") == 2  # the steps of fine-tuning are none
    assert "runs/named" in shown
    assert main(["runs", "nowhere"]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err


def test_a_start_that_failed_leaves_nothing_in_the_way(monkeypatch, capsys) -> None:
    short = ["--run", "runs/a", "--env-args", "num_problems=8", "max_prompt_tokens=40"]
    assert main([*SMALL, *short]) == 1
    advice = 'pass over such problems with on_long_prompt="skip"'
    assert advice in capsys.readouterr().err
    assert main([*SMALL, *short, "on_long_prompt=skip", "--resume"]) == 0, "the advice holds with --resume, too"
    assert main([*SMALL, "--run", "runs/a"]) == 1
    assert "runs/a holds a run already: continue it by --resume, or" in capsys.readouterr().err


def test_of_problems_that_never_end_a_default_number_is_taken_and_named(monkeypatch, caplog) -> None:
    monkeypatch.setattr("tokengym.agents.base.DEFAULT_PROBLEMS", 2)
    assert main(["train", "sft", "--epochs", "1", "--batch-size", "2", "--validation-problems", "0"]) == 0
    assert "problems never end: demonstrations is 2, unless another number is given" in caplog.text


def test_resume_alone_needs_a_run_and_auto_does_not(capsys) -> None:
    assert main([*SMALL, "--run", "runs/a", "--resume"]) == 1
    assert "runs/a holds no run to continue" in capsys.readouterr().err
    assert main([*SMALL, "--resume"]) == 1
    assert "say which by --run" in capsys.readouterr().err
    for _ in range(2):
        assert main([*SMALL, "--run", "runs/a", "--resume", "auto", "--micro-batch-tokens", "512"]) == 0
    assert main([*SMALL, "--run", "runs/a", "--resume", "--seed", "7"]) == 1
    assert "seed: 0 -> 7" in capsys.readouterr().err


def test_a_run_of_changed_weights_or_damaged_files_is_named(here: Path, capsys) -> None:
    shutil.copytree(TINY_FOLDER, "model")
    run = [*SMALL, "--model", "model", "--run", "runs/a"]
    assert main(run) == 0
    weights = here / "model" / "model.safetensors"
    changed = load_file(weights)
    changed["model.norm.weight"] += 1
    save_file(changed, weights, {"format": "pt"})
    assert main([*run, "--resume"]) == 1
    assert "another configuration (its model had other weights)" in capsys.readouterr().err
    for name, what in (("model.safetensors", "whole tensors"), ("tokenizer.json", "JSON")):
        (here / "model" / name).write_bytes((here / "model" / name).read_bytes()[:100])
        assert main([*run, "--resume"]) == 1
        assert f"from 'model': model/{name} is damaged, it holds no {what}" in capsys.readouterr().err
    shutil.copytree("runs/a", "runs/b")
    (here / "runs" / "a" / "config.json").write_text("{")
    assert main(["runs"]) == 0
    assert "runs/a  damaged\n    runs/a/config.json is damaged, it holds no JSON" in (said := capsys.readouterr().out)
    assert "runs/b  finished" in said


def test_sigterm_ends_as_ctrl_c_does_with_its_own_status(monkeypatch, capsys) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ask() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait()

    learning(monkeypatch, ask)
    assert main([*SMALL, "--run", "runs/a"]) == 143
    assert "terminated: what was finished is in runs/a" in " ".join(capsys.readouterr().out.split())
    assert signal.getsignal(signal.SIGTERM) is before

    def interrupt() -> None:
        raise KeyboardInterrupt

    learning(monkeypatch, interrupt)
    assert main([*SMALL, "--run", "runs/b"]) == 130
    assert "interrupted" in capsys.readouterr().out


def test_a_run_ends_cleanly_when_its_time_is_over(monkeypatch, capsys) -> None:
    learning(monkeypatch, wait)
    assert main([*SMALL, "--run", "runs/a", "--max-hours", "1e-5"]) == 0
    assert "1e-05 hours are over: what was finished is in runs/a" in " ".join(capsys.readouterr().out.split())
    assert main([*SMALL, "--run", "runs/b", "--max-hours", "0"]) == 1
    assert "--max-hours must be above 0" in capsys.readouterr().err


def test_without_a_budget_an_agents_own_default_stands_and_its_model_is_kept(here: Path, monkeypatch) -> None:
    given: list[dict] = []
    monkeypatch.setattr(SFT, "learn", lambda agent, **named: given.append(named))
    assert main([*SMALL, "--run", "runs/a"]) == 0
    assert main([*SMALL, "--run", "runs/b", "--total-episodes", "7"]) == 0
    assert [named.get("total_episodes", "none") for named in given] == ["none", 7]
    assert (here / "runs" / "a" / "model" / "config.json").exists()
    assert [run.state for run in find_runs(here / "runs")] == ["finished", "finished"]


def test_an_agent_that_begins_anew_leaves_its_newest_model(here: Path, monkeypatch) -> None:
    def learn(agent: SFT, **_: object) -> None:
        with torch.no_grad():
            agent.model.model.norm.weight.fill_(len(norms))
        agent.log({"train/loss": 0.0}, None)

    monkeypatch.setattr(SFT, "learn", learn)
    norms: list[float] = []
    for resume in ((), ("--resume",)):
        assert main([*SMALL, "--run", "runs/a", *resume]) == 0
        norms.append(load_file(here / "runs" / "a" / "model" / "model.safetensors")["model.norm.weight"].mean().item())
    assert norms == [0.0, 1.0]


def test_an_agent_that_finishes_without_a_model_has_none(here: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(SFT, "learn", lambda agent, **_: agent.run.finish())
    assert main([*SMALL, "--run", "runs/a"]) == 0
    assert not (here / "runs" / "a" / "model").exists()
    assert "run and logs are in runs/a" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_two_nodes_are_one_run(here: Path) -> None:
    """Two groups of one process on this machine, against one process: attempts, metrics and weights."""
    train = "tokengym train reinforce --iterations 2 --problems-per-iteration 4 --samples-per-problem 4"
    train += " --validation-problems 4 --temperature 1 --env-args steps=1 max_new_tokens=48 --run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = f"torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {port}"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", *launch.split(), "--node-rank", str(rank), "-m", "--", *train.split(), "two"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [text.count("2 processes\n") for text in said] == [1, 0]
    assert main([*train.split()[1:], "one", "--device", "cpu"]) == 0
    rows = [[json.loads(line) for line in (here / name / "metrics.jsonl").open()] for name in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for one, two in zip(*rows, strict=True):
        for name in one.keys() & two.keys():
            if not name.startswith("time/") and "padding" not in name:
                assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    one, two = (load_file(here / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4, rtol=0)
